"""What a run is: frozen dataclasses, validated where they are built.

A `Config` (run.py) is the whole description of a run, in sections: model.py, data.py, optim.py,
train.py. What is true of a field is said where it is declared (schema.py). A recipe
(`quintic.recipes`) builds a config, the command line replaces fields of it
(`--section.field value`), and the resolved one is saved with the run as `config.json`, which is
enough to run it again. Nothing here knows tensors, files or devices.
"""

from quintic.config.data import EMBEDDED as EMBEDDED
from quintic.config.data import DataConfig as DataConfig
from quintic.config.model import ModelConfig as ModelConfig
from quintic.config.optim import MOMENTUM_START as MOMENTUM_START
from quintic.config.optim import AdamWConfig as AdamWConfig
from quintic.config.optim import CustomConfig as CustomConfig
from quintic.config.optim import MatrixOptimizer as MatrixOptimizer
from quintic.config.optim import MuonConfig as MuonConfig
from quintic.config.optim import OptimConfig as OptimConfig
from quintic.config.optim import ScheduleConfig as ScheduleConfig
from quintic.config.optim import SGDConfig as SGDConfig
from quintic.config.optim import ShampooConfig as ShampooConfig
from quintic.config.optim import SOAPConfig as SOAPConfig
from quintic.config.optim import matrix_optimizers as matrix_optimizers
from quintic.config.origin import ContinuedFrom as ContinuedFrom
from quintic.config.origin import Imported as Imported
from quintic.config.origin import InitFrom as InitFrom
from quintic.config.run import Config as Config
from quintic.config.run import from_the_start as from_the_start
from quintic.config.run import resolve_eot as resolve_eot
from quintic.config.run import resolve_vocabulary as resolve_vocabulary
from quintic.config.schema import differing_fields as differing_fields
from quintic.config.schema import field_facts as field_facts
from quintic.config.schema import field_types as field_types
from quintic.config.schema import flatten as flatten
from quintic.config.schema import nearest_name as nearest_name
from quintic.config.schema import unknown_field as unknown_field
from quintic.config.schema import without_effect as without_effect
from quintic.config.train import BatchSizes as BatchSizes
from quintic.config.train import Precision as Precision
from quintic.config.train import TrainConfig as TrainConfig
