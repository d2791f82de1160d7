"""The plan of a training: which setting fits a device, how long it takes, what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quintic.config import EMBEDDED, Config, resolve_eot, resolve_vocabulary
from quintic.data.dataset import open_dataset
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.shards import token_dtype
from quintic.device import auto_micro_batch, choose_device
from quintic.errors import QuinticError
from quintic.ladder import DEEPEST, Rung, parse_rung
from quintic.model.build import meta_model
from quintic.optim.newton_schulz import newton_schulz_flops
from quintic.plan.devices import COUNTED_PRECISION, CPU, WITHOUT_FLOAT8, Device, device_of
from quintic.plan.memory import Memory, MemoryModel, Setting
from quintic.recipes import get_recipe
from quintic.setup import check_divided

LEAST_BUSY = 0.95
"""Share of the best setting's busy time that a setting must reach: of those the largest micro-batch
is taken, since small ones are slower by an amount that is not predicted."""


@dataclass(frozen=True)
class PlannedSetting:
    """A setting with the memory that it takes of one device."""

    setting: Setting
    memory: Memory
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        memory = {**asdict(self.memory), "peak": self.memory.peak}
        return {**asdict(self.setting), "memory_bytes": memory, "fits": self.fits}


@dataclass(frozen=True)
class Plan:
    """Holds what a training will take on a number of devices."""

    config: Config
    """With a vocabulary."""
    vocabulary_from: str
    """Where that is from, in words."""
    device: Device
    count: int
    parameters: int
    blocks: int
    flops_per_token: float
    flops_per_step: float
    """With Newton-Schulz."""
    settings: Sequence[PlannedSetting]
    chosen: PlannedSetting | None
    """The fastest setting that fits; None where none does."""
    checkpoint_bytes: int
    hours_asked: float | None = None
    rung: str | None = None
    """The deepest rung of the ladder that is trained in the hours asked for, where one is."""

    @property
    def flops(self) -> float:
        """Return the operations of the whole run."""
        return self.flops_per_step * self.config.tokens / self.config.train.batch_tokens

    @property
    def floor_tokens_per_s(self) -> float | None:
        """Return the tokens a second at the devices' peak; None where that is not known."""
        peak = self.device.peak_flops
        return None if peak is None else self._tokens_per_s(peak)

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens a second at the rate that training should reach, of which computing
        activations again takes a quarter, and devices without sequences in a last pass their
        share."""
        rate = self._tokens_per_s(self.device.rate)
        if self.chosen is None:
            return rate
        setting = self.chosen.setting
        return rate * self.busy * (0.75 if setting.checkpointing else 1.0)

    @property
    def busy(self) -> float:
        """Return the share of the devices' passes that have sequences, at the chosen setting."""
        assert self.chosen is not None
        return _busy(self.config, self.chosen.setting.micro_batch, self.count)

    @property
    def hours(self) -> float:
        """Return the hours of training, without validation and checkpoints."""
        return self.config.tokens / self.tokens_per_s / 3600

    @property
    def checkpoints(self) -> int:
        """Return how many checkpoints lie on the disk at the end, at most: the newest, the best,
        and the one before the cooldown."""
        train = self.config.train
        return train.keep_checkpoints + 1 + (train.keep_before_cooldown and self._cools)

    @property
    def shard_bytes(self) -> int:
        """Return the bytes of the tokens that are trained and validated on, in shards, each token
        once."""
        assert self.config.model.vocab_size is not None
        size = token_dtype(self.config.model.vocab_size).itemsize
        return size * (self.config.tokens + self.config.train.eval_tokens)

    @property
    def steps_in_hours(self) -> int | None:
        """Return the steps of this config that are trained in the hours asked for."""
        if self.hours_asked is None:
            return None
        tokens = self.hours_asked * 3600 * self.tokens_per_s
        return int(tokens / self.config.train.batch_tokens)

    @property
    def resident_bytes(self) -> tuple[int, int] | None:
        """Return the least and the most bytes that may be resident of a process on a CPU, at the
        chosen setting; None elsewhere."""
        if self.chosen is None or self.device.name != CPU:
            return None
        return self.chosen.memory.resident

    @property
    def passes(self) -> int:
        """Return the forward and backward passes of a step on each device, at the chosen
        setting."""
        assert self.chosen is not None
        return _passes(self.config, self.chosen.setting.micro_batch, self.count)

    @property
    def _cools(self) -> bool:
        return self.config.cooldown_steps > 0

    def _tokens_per_s(self, flops_per_s: float) -> float:
        return self.count * flops_per_s * self.config.train.batch_tokens / self.flops_per_step

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON; every figure is a prediction but for the counts."""
        return {
            "recipe": self.config.recipe,
            "device": {**asdict(self.device), "count": self.count},
            "vocabulary": {"size": self.config.model.vocab_size, "from": self.vocabulary_from},
            "parameters": {"all": self.parameters, "blocks": self.blocks},
            "tokens": self.config.tokens,
            "steps": self.config.train.steps,
            "batch_tokens": self.config.train.batch_tokens,
            "flops_per_token": self.flops_per_token,
            "flops": self.flops,
            "settings": [setting.to_dict() for setting in self.settings],
            "chosen": self.chosen and self.chosen.to_dict(),
            "resident_bytes": self.resident_bytes,
            "floor_tokens_per_s": self.floor_tokens_per_s,
            "tokens_per_s": self.tokens_per_s,
            "hours": self.hours,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoints": self.checkpoints,
            "shard_bytes": self.shard_bytes,
            "hours_asked": self.hours_asked,
            "steps_in_hours": self.steps_in_hours,
            "rung_in_hours": self.rung,
        }


def make_plan(config: Config, *, gpu: str, gpus: int, hours: float | None = None) -> Plan:
    """Return the plan of a config on a number of devices.

    Raises `QuinticError` for a device that is not known, for numbers that are none of devices or
    hours, where the batch cannot be divided among so many, and where the config is for another
    device or precision.
    """
    device = device_of(gpu)
    if gpus < 1:
        raise QuinticError(f"--gpus is {gpus}: it must be at least 1")
    if device.name == CPU and gpus > 1:
        raise QuinticError(f"--gpus is {gpus} and --gpu is cpu: a plan is of one process there")
    if hours is not None and not 0 < hours < float("inf"):
        raise QuinticError(f"--hours is {hours:g}: it must be positive and finite")
    check_divided(config, gpus)
    _check_runs_on(config, device)
    config, vocabulary_from = _with_vocabulary(config)
    plan = _plan(config, vocabulary_from, device, gpus)
    if hours is None:
        return plan
    return replace(plan, hours_asked=hours, rung=_rung_in(hours, plan))


def _check_runs_on(config: Config, device: Device) -> None:
    """Raise `QuinticError` where the config asks for what the device has not, or a plan does not
    know: memory is counted, and speed is known, in one precision of each kind of device."""
    train, of_device = config.train, COUNTED_PRECISION[device.type]
    if train.device not in ("auto", device.type):
        raise QuinticError(
            f"train.device is {train.device} and --gpu is {device.name}: use --train.device auto, "
            f"or {'--gpu cpu' if train.device == CPU else 'a --gpu of that kind'}"
        )
    if train.precision not in ("auto", of_device):
        raise QuinticError(
            f"train.precision is {train.precision}: a plan for {device.name} is of {of_device}, in "
            "which its memory is counted and its speed known; use --train.precision auto"
        )
    for_gpus = {
        "train.loss fused": train.loss == "fused",
        "train.cuda_graphs": train.cuda_graphs,
        "train.prefetch_to_gpu on": train.prefetch_to_gpu == "on",
    }
    for name in (name for name, asked in for_gpus.items() if asked and device.name == CPU):
        raise QuinticError(f"{name} is for GPUs and --gpu is {CPU}: leave it out")
    if train.float8_head and device.name in WITHOUT_FLOAT8:
        raise QuinticError(
            f"train.float8_head multiplies in float8, which {device.name} cannot: use "
            "--train.no-float8-head"
        )


def _plan(config: Config, vocabulary_from: str, device: Device, count: int) -> Plan:
    model, memory = meta_model(config.model), MemoryModel(config, device.type, count)
    flops = model.flops_per_token() * config.train.batch_tokens
    if config.optim.matrices == "muon":
        steps = config.optim.muon.ns_steps
        matrices = (p.shape for p in model.layers.parameters() if p.ndim == 2)
        flops += sum(newton_schulz_flops(rows, columns, steps) for rows, columns in matrices)
    settings = _settings(config, memory, device, count)
    return Plan(
        config=config,
        vocabulary_from=vocabulary_from,
        device=device,
        count=count,
        parameters=model.parameter_count(),
        blocks=model.blocks_parameter_count(),
        flops_per_token=model.flops_per_token(),
        flops_per_step=flops,
        settings=settings,
        chosen=_fastest([planned for planned in settings if planned.fits], config, count),
        checkpoint_bytes=memory.checkpoint_bytes,
    )


def _fastest(
    fitting: Sequence[PlannedSetting], config: Config, count: int
) -> PlannedSetting | None:
    """Return the setting that should be fastest of those that fit: what costs no computation comes
    first, then what costs little."""
    if not fitting:
        return None

    def cost(planned: PlannedSetting) -> tuple[bool, bool]:
        setting = planned.setting
        return setting.checkpointing, setting.sharding != config.train.sharding

    lowest = min(map(cost, fitting))
    cheap = [planned for planned in fitting if cost(planned) == lowest]
    busy = {p: _busy(config, p.setting.micro_batch, count) for p in cheap}
    least = LEAST_BUSY * max(busy.values())
    return max((p for p in cheap if busy[p] >= least), key=lambda p: p.setting.micro_batch)


def _passes(config: Config, micro_batch: int, count: int) -> int:
    """Return the forward and backward passes of a step on each device."""
    return -(-config.batch_sequences // (count * micro_batch))


def _busy(config: Config, micro_batch: int, count: int) -> float:
    """Return the share of all devices' passes that have sequences."""
    return config.batch_sequences / (_passes(config, micro_batch, count) * count * micro_batch)


def _settings(
    config: Config, memory: MemoryModel, device: Device, count: int
) -> list[PlannedSetting]:
    """Return settings with their memory: of several micro-batches, or of the one that the config
    names. Activations are computed again where the config says so, or not everything fits."""
    smallest, train = config.batches.smallest, config.train
    shardings = ["zero1", "fsdp"] if count > 1 else [train.sharding]
    sizes = [n for n in range(1, smallest + 1) if smallest % n == 0 and n <= -(-smallest // count)]
    if train.micro_batch is not None:
        sizes = [train.micro_batch]
    elif device.type == "cpu":
        sizes = [auto_micro_batch(config, choose_device("cpu"))]
    else:
        sizes = [n for n in sizes if n & (n - 1) == 0 or n == sizes[-1]]
    found: list[PlannedSetting] = []
    for again in [True] if train.activation_checkpointing else [False, True]:
        if found and all(planned.fits for planned in found):
            break
        for setting in (Setting(n, sharding, again) for sharding in shardings for n in sizes):
            needed = memory(setting)
            found.append(PlannedSetting(setting, needed, needed.peak <= device.memory_bytes))
    return found


def _with_vocabulary(config: Config) -> tuple[Config, str]:
    """Return the config with a vocabulary and an end-of-text token, and where they are from."""
    if config.model.document_mask and config.model.eot_id is None:
        config = resolve_eot(config, 0)  # which one it is changes no size
    if config.model.vocab_size is not None:
        return config, "the config"
    path = config.data.path
    if path == EMBEDDED:
        return resolve_vocabulary(config, config.data.embedded_vocab), "the embedded corpus"
    if not Path(path).is_dir():
        return resolve_vocabulary(config, GPT2.vocab_size), f"GPT-2, since {path} is not there"
    dataset = open_dataset(Path(path), config.data.tokenizer)
    return resolve_vocabulary(config, dataset.vocab_size), path


def _rung_in(hours: float, plan: Plan) -> str | None:
    """Return the deepest rung that is trained in so many hours and fits, at the plan's own tokens a
    parameter where it is of a rung, and its vocabulary."""
    own = parse_rung(plan.config.recipe) or Rung(DEEPEST)
    changes = {"model.vocab_size": plan.config.model.vocab_size}
    for depth in range(DEEPEST, 0, -1):
        config = get_recipe(replace(own, depth=depth).name).override(changes)
        config = config.override({"train.micro_batch": 1})  # what takes least
        flops = meta_model(config.model).flops_per_token() * config.tokens
        if flops > hours * 3600 * plan.device.rate * plan.count:
            continue
        if config.batches.smallest < plan.count:
            return None
        if _plan(config, plan.vocabulary_from, plan.device, plan.count).chosen is not None:
            return config.recipe
    return None
