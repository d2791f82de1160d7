"""What a run is: frozen dataclasses, validated where they are built.

A `Config` (run.py) is the whole description of a run, in sections: model.py, data.py, optim.py,
train.py. What is true of a field is said where it is declared (schema.py). A recipe
(`quintic.recipes`) builds a config, the command line replaces fields of it
(`--section.field value`), and the resolved one is saved with the run as `config.json`, which is
enough to run it again. Nothing here knows tensors, files or devices.
"""

from quintic.config.data import EMBEDDED, DataConfig
from quintic.config.model import ModelConfig
from quintic.config.optim import (
    MOMENTUM_START,
    AdamWConfig,
    CustomConfig,
    MatrixOptimizer,
    MuonConfig,
    OptimConfig,
    ScheduleConfig,
    SGDConfig,
    ShampooConfig,
    SOAPConfig,
    matrix_optimizers,
)
from quintic.config.run import Config, resolve_eot, resolve_vocabulary
from quintic.config.schema import (
    differing_fields,
    field_facts,
    field_types,
    flatten,
    nearest_name,
    unknown_field,
    without_effect,
)
from quintic.config.train import BatchSizes, Precision, TrainConfig

__all__ = [
    "EMBEDDED",
    "MOMENTUM_START",
    "AdamWConfig",
    "BatchSizes",
    "Config",
    "CustomConfig",
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
    "field_facts",
    "field_types",
    "flatten",
    "matrix_optimizers",
    "nearest_name",
    "resolve_eot",
    "resolve_vocabulary",
    "unknown_field",
    "without_effect",
]
