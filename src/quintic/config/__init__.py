"""What a run is: frozen dataclasses, validated where they are built.

A `Config` (whole.py) is the whole description of a run, in sections: model.py, data.py, optim.py,
train.py. A recipe (`quintic.recipes`) builds one, the command line replaces fields of it
(`--section.field value`), and the resolved one is saved with the run as `config.json`, which is
enough to run it again. Nothing here knows tensors, files or devices.
"""

from quintic.config.batches import BatchSizes
from quintic.config.data import EMBEDDED, DataConfig
from quintic.config.model import GPT_SWITCHES, ModelConfig
from quintic.config.optim import (
    MOMENTUM_START,
    AdamWConfig,
    MatrixOptimizer,
    MuonConfig,
    OptimConfig,
    ScheduleConfig,
    SGDConfig,
    ShampooConfig,
    SOAPConfig,
)
from quintic.config.resolve import resolve_eot, resolve_vocabulary
from quintic.config.run import Config
from quintic.config.schema import (
    differing_fields,
    field_types,
    flatten,
    nearest_name,
    unknown_field,
)
from quintic.config.train import Precision, TrainConfig

__all__ = [
    "EMBEDDED",
    "GPT_SWITCHES",
    "MOMENTUM_START",
    "AdamWConfig",
    "BatchSizes",
    "Config",
    "DataConfig",
    "MatrixOptimizer",
    "ModelConfig",
    "MuonConfig",
    "OptimConfig",
    "Precision",
    "SGDConfig",
    "SOAPConfig",
    "ScheduleConfig",
    "ShampooConfig",
    "TrainConfig",
    "differing_fields",
    "field_types",
    "flatten",
    "nearest_name",
    "resolve_eot",
    "resolve_vocabulary",
    "unknown_field",
]
