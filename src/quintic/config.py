"""What a run is: frozen dataclasses, validated where they are built.

A `Config` is the whole description of a run. A recipe (`quintic.recipes`) builds one, the command
line replaces fields of it (`--section.field value`), and the resolved one is saved with the run as
`config.json`, which is enough to run it again. Nothing here knows tensors, files or devices.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from quintic.errors import QuinticError

EMBEDDED = "embedded"
"""The value of `data.path` that stands for the corpus every Python installation carries."""

MOMENTUM_START = 0.85
"""Where a momentum warm-up begins, as in the speedrun's later records."""

GPT_SWITCHES = (
    *("positions", "norm", "activation", "init", "qk_norm"),  # ablations
    *("tied_head", "logit_softcap", "embed_norm"),  # techniques of the speedrun
    *("value_embeddings", "embed_shortcut", "unet_skips", "window", "document_mask"),
)
"""Fields of `ModelConfig` that take a part of the modernised GPT away or add a technique to it;
gpt2 has none of them."""

MatrixOptimizer = Literal["muon", "adamw", "sgd", "soap", "shampoo"]

Precision = Literal["auto", "float32", "bfloat16", "float64"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise QuinticError(message)


def _positive(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None:
            _require(math.isfinite(value), f"{section}.{name} is {value}: it must be finite")
            _require(value > 0, f"{section}.{name} is {value}: it must be positive")
            _require(
                isinstance(value, float) or value < 2**63,
                f"{section}.{name} is {value}: it must be less than 2**63",
            )


def _not_negative(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(math.isfinite(value), f"{section}.{name} is {value}: it must be finite")
        _require(value >= 0, f"{section}.{name} is {value}: it must be zero or positive")


def _fraction(section: str, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            0 <= value < 1, f"{section}.{name} is {value}: it must be at least 0 and less than 1"
        )


def _betas(section: str, betas: tuple[float, float]) -> None:
    _require(
        all(0 <= beta < 1 for beta in betas),
        f"{section}.betas is {betas}: both must be at least 0 and less than 1",
    )


def _one_of(section: str, config: Any, *names: str) -> None:
    hints = typing.get_type_hints(type(config))
    for name in names:
        choices, value = typing.get_args(hints[name]), getattr(config, name)
        _require(
            value in choices,
            f"{section}.{name} is {value!r}: it must be one of {', '.join(map(str, choices))}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model."""

    architecture: Literal["gpt", "gpt2"] = "gpt"
    """gpt: the modernised GPT (RoPE, RMSNorm, squared ReLU); gpt2: the classic one."""
    layers: int = 12
    """Transformer blocks."""
    width: int = 768
    """Model width D."""
    heads: int = 6
    """Attention heads; width / heads is the head width."""
    context: int = 1024
    """Tokens the model sees at once, T."""
    vocab_size: int | None = None
    """Rows of the embedding; None: the dataset's vocabulary, rounded up to a multiple of 128."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Ablation of gpt: rotary embeddings, or GPT-2's learned ones."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Ablation of gpt: RMSNorm without parameters, or GPT-2's LayerNorm with gain and bias."""
    activation: Literal["relu2", "gelu"] = "relu2"
    """Ablation of gpt: squared ReLU or GELU."""
    init: Literal["zero", "classic"] = "zero"
    """Ablation of gpt: output projections start at zero, or are divided by sqrt(2 layers)."""
    qk_norm: bool = True
    """Ablation of gpt: RMS-normalise queries and keys per head."""
    tied_head: bool = True
    """The head is the embedding's matrix; or one of its own, which starts at zero."""
    logit_softcap: float | None = None
    """Bound logits smoothly by +-this: softcap * tanh(logits / softcap); None: no bound."""
    embed_norm: bool = False
    """RMS-normalise the embedded tokens."""
    value_embeddings: int = 0
    """Tables of token embeddings mixed into attention values: of the first so many layers, and
    again of the last; at most half of the layers."""
    embed_shortcut: bool = False
    """Mix the embedded tokens into the input of every layer, with learned scalars."""
    unet_skips: bool = False
    """Add the outputs of the first half of the layers to the inputs of the second, from the inside
    out, with learned scalars."""
    window: int | None = None
    """Positions a token sees, itself included; None: all up to its own."""
    document_mask: bool = False
    """A token sees its own document only."""
    eot_id: int | None = None
    """The token that begins a document, for document_mask; None: that of the dataset's
    tokenizer."""

    def __post_init__(self) -> None:
        _one_of("model", self, "architecture", "positions", "norm", "activation", "init")
        _positive(
            "model", self, "layers", "width", "heads", "context", "vocab_size", "logit_softcap"
        )
        _require(
            self.width % self.heads == 0,
            f"model.width {self.width} is not divisible by model.heads {self.heads}: "
            f"choose a multiple, for example --model.width {self._nearest_width()}",
        )
        _require(
            self.architecture != "gpt" or self.positions != "rotary" or self.head_width % 2 == 0,
            f"the head width model.width / model.heads = {self.width} / {self.heads} = "
            f"{self.head_width} is odd, and rotary embeddings rotate pairs: make it even",
        )
        _not_negative("model", self, "value_embeddings")
        _require(
            2 * self.value_embeddings <= self.layers,
            f"model.value_embeddings is {self.value_embeddings}: each serves two of the "
            f"{self.layers} layers, so there can be at most {self.layers // 2}",
        )
        _require(
            not self.unet_skips or self.layers > 1,
            "model.unet_skips is True and there is one layer: a skip needs two",
        )
        _require(
            self.window is None or self.window <= self.context,
            f"model.window is {self.window} and model.context {self.context}: a token sees no more "
            "than the context, so choose a smaller window or leave it out",
        )
        _require(
            self.eot_id is None or self.document_mask,
            f"model.eot_id is {self.eot_id}, which serves model.document_mask alone: leave it out, "
            "or use --model.document-mask",
        )
        _require(
            self.eot_id is None or 0 <= self.eot_id < (self.vocab_size or 2**63),
            f"model.eot_id is {self.eot_id}: it must be a token of the vocabulary"
            + (f", from 0 to {self.vocab_size - 1}" if self.vocab_size else ""),
        )
        for name in GPT_SWITCHES if self.architecture != "gpt" else ():
            value, default = getattr(self, name), getattr(type(self), name)
            _require(
                value == default,
                f"model.{name} is {value!r}, which model.architecture {self.architecture} cannot "
                f"heed: leave it at {default!r}, or use --model.architecture gpt",
            )

    def _nearest_width(self) -> int:
        return max(1, round(self.width / self.heads)) * self.heads

    @property
    def has_scalars(self) -> bool:
        """Whether there are learned scalars, which weigh shortcuts."""
        return self.value_embeddings > 0 or self.embed_shortcut or self.unet_skips

    @property
    def head_width(self) -> int:
        """K = width / heads."""
        return self.width // self.heads


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from and in which order."""

    path: str = EMBEDDED
    """Folder of shards, or `embedded`: the text that every Python installation carries."""
    tokenizer: str | None = None
    """`gpt2` or a tokenizer.json, for folders without a manifest; None: the manifest's."""
    order: Literal["stream", "shuffle"] = "stream"
    """stream: as the shards lie; shuffle: each epoch a permutation of its samples by the seed."""
    embedded_vocab: int = 4096
    """Vocabulary trained on the embedded corpus; used with data.path `embedded` only."""

    def __post_init__(self) -> None:
        _one_of("data", self, "order")
        _require(self.path != "", "data.path is empty: name a folder of shards, or `embedded`")
        _require(
            512 <= self.embedded_vocab <= 65536,
            f"data.embedded_vocab is {self.embedded_vocab}: it must be from 512 to 65,536",
        )


@dataclass(frozen=True)
class MuonConfig:
    """Muon, for the matrices of the blocks."""

    lr: float = 3.6e-4
    """Learning rate before the scale; each scale has its own natural range (docs/muon.md)."""
    momentum: float = 0.95
    """Decay of the momentum buffer: buffer = momentum * buffer + gradient."""
    momentum_warmup_steps: int = 0
    """Steps over which the momentum rises linearly from 0.85; 0: constant."""
    nesterov: bool = True
    """Orthogonalise gradient + momentum * buffer instead of the buffer."""
    scale: Literal["max_dim", "aspect", "rms"] = "max_dim"
    """Factor of the update of a (rows, columns) matrix: max_dim sqrt(max(r, c)), the original's;
    aspect sqrt(max(1, r/c)); rms 0.2 sqrt(max(r, c)), which reuses an AdamW learning rate."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    coefficients: Literal["quintic", "polar_express"] = "quintic"
    """Of Newton-Schulz: quintic, the original's, the same in every iteration; polar_express, a
    sequence of eight, of which fewer iterations use the first and more repeat the last."""
    ns_dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Precision of Newton-Schulz; auto: bfloat16 on GPUs, the weights' own elsewhere."""
    kernel: Literal["auto", "torch", "triton"] = "auto"
    """Products of Newton-Schulz: torch; triton, a kernel for GPUs that computes half of what is
    symmetric; auto: torch, until the kernel has been measured."""
    normalize: bool = False
    """NorMuon: divide each row of the update by its running root mean square."""
    beta2: float = 0.95
    """Decay of NorMuon's second moment; used with normalize only."""
    weight_decay: float = 0.0
    """Decoupled: weights shrink by lr * weight_decay a step, before the scale."""
    cautious: bool = False
    """Decay a weight only where the update makes it smaller too."""

    def __post_init__(self) -> None:
        _one_of("optim.muon", self, "scale", "coefficients", "ns_dtype", "kernel")
        _positive("optim.muon", self, "lr", "ns_steps")
        _not_negative("optim.muon", self, "weight_decay", "momentum_warmup_steps")
        _fraction("optim.muon", self, "momentum", "beta2")
        _require(
            self.momentum_warmup_steps == 0 or self.momentum >= MOMENTUM_START,
            f"optim.muon.momentum is {self.momentum} and its warm-up rises from {MOMENTUM_START}: "
            "choose a larger momentum, or --optim.muon.momentum-warmup-steps 0",
        )
        _require(
            not self.cautious or self.weight_decay > 0,
            "optim.muon.cautious is True and optim.muon.weight_decay 0.0: there is no decay to be "
            "cautious about; give --optim.muon.weight-decay",
        )


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW, for everything that Muon does not take."""

    lr: float = 3.6e-3
    """Learning rate of embeddings, head and vectors."""
    matrix_lr: float | None = None
    """Learning rate of the block matrices where AdamW has them; None: lr."""
    head_lr: float | None = None
    """Learning rate of a head that is not tied to the embedding; None: lr."""
    scalar_lr: float | None = None
    """Learning rate of the learned scalars of shortcuts; None: lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled, on matrices only: vectors are never decayed."""

    def __post_init__(self) -> None:
        _positive("optim.adamw", self, "lr", "matrix_lr", "head_lr", "scalar_lr", "eps")
        _not_negative("optim.adamw", self, "weight_decay")
        _betas("optim.adamw", self.betas)


@dataclass(frozen=True)
class SGDConfig:
    """SGD with Nesterov momentum, for the matrices of the blocks: what Muon orthogonalises."""

    lr: float = 0.03
    """Learning rate."""
    momentum: float = 0.95
    """Decay of the momentum buffer: buffer = momentum * buffer + gradient."""

    def __post_init__(self) -> None:
        _positive("optim.sgd", self, "lr")
        _require(
            0 < self.momentum < 1,
            f"optim.sgd.momentum is {self.momentum}: it must be between 0 and 1, since Nesterov's "
            "method has momentum",
        )


@dataclass(frozen=True)
class SOAPConfig:
    """SOAP, for the matrices of the blocks; needs the extra `optimizers`."""

    lr: float = 3e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the first moment, and of the second and the preconditioners."""
    precondition_frequency: int = 10
    """Steps from one renewal of the eigenbasis to the next."""

    def __post_init__(self) -> None:
        _positive("optim.soap", self, "lr", "precondition_frequency")
        _betas("optim.soap", self.betas)


@dataclass(frozen=True)
class ShampooConfig:
    """Shampoo, for the matrices of the blocks; needs the extra `optimizers`."""

    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the momentum, and of the preconditioners and the step length."""
    precondition_frequency: int = 10
    """Steps from one renewal of the inverse roots to the next."""

    def __post_init__(self) -> None:
        _positive("optim.shampoo", self, "lr", "precondition_frequency")
        _betas("optim.shampoo", self.betas)


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run, as a factor of each optimizer's own."""

    kind: Literal["trapezoid", "cosine"] = "trapezoid"
    """trapezoid: warm-up, constant, linear to zero; cosine: warm-up, half a cosine to zero."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    cooldown_fraction: float = 0.28
    """Share of all steps over which the trapezoid falls to zero; unused by cosine."""

    def __post_init__(self) -> None:
        _one_of("optim.schedule", self, "kind")
        _not_negative("optim.schedule", self, "warmup_steps")
        _require(
            0 <= self.cooldown_fraction <= 1,
            f"optim.schedule.cooldown_fraction is {self.cooldown_fraction}: it must be from 0 to 1",
        )


@dataclass(frozen=True)
class OptimConfig:
    """Which optimizer takes the block matrices, and each optimizer's settings."""

    matrices: MatrixOptimizer = "muon"
    """The optimizer of the block matrices; everything else is AdamW's."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    sgd: SGDConfig = field(default_factory=SGDConfig)
    soap: SOAPConfig = field(default_factory=SOAPConfig)
    shampoo: ShampooConfig = field(default_factory=ShampooConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = None
    """Clip the gradient to this global norm; None: no clipping."""

    def __post_init__(self) -> None:
        _one_of("optim", self, "matrices")
        _positive("optim", self, "clip_norm")

    @property
    def matrix_lr(self) -> float:
        """Learning rate of the block matrices, before schedule and scale."""
        if self.matrices == "adamw":
            return self.adamw.matrix_lr or self.adamw.lr
        return {
            "muon": self.muon.lr,
            "sgd": self.sgd.lr,
            "soap": self.soap.lr,
            "shampoo": self.shampoo.lr,
        }[self.matrices]


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, on what, and what is kept."""

    steps: int = 5100
    """Optimizer steps."""
    batch_tokens: int = 524_288
    """Tokens of the global batch of one step."""
    micro_batch: int | None = None
    """Sequences of one forward and backward pass of a process; None: chosen for the device."""
    seed: int = 1337
    """Seed of the initialisation and, with data.order shuffle, of the data order."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: the first of cuda, mps, cpu that is there."""
    precision: Precision = "auto"
    """Compute precision; weights stay float32 (float64: everything). auto: bfloat16 on CUDA,
    float32 elsewhere."""
    compile: bool = False
    """Compile loss, backward and the optimizer's update with torch.compile."""
    sharding: Literal["zero1", "fsdp"] = "zero1"
    """What several processes divide among them: zero1 the optimizer's work and state; fsdp the
    weights too, for models that do not fit on one device. Changes no result."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the rest again in the backward pass: a third more
    computation for a fraction of the memory."""
    hang_timeout_s: float = 600.0
    """Seconds without progress after which a process among several counts as hung."""
    loss: Literal["chunked", "plain", "fused"] = "chunked"
    """chunked: head and cross-entropy a chunk of tokens at a time; plain: the reference; fused:
    chunked with a Triton kernel, for GPUs."""
    float8_head: bool = False
    """Multiply by the head in float8 while training, for GPUs from compute capability 8.9 on; a CPU
    rounds alike and gains nothing. Validation stays in the compute precision."""
    attention: Literal["auto", "math", "flash", "efficient", "cudnn"] = "auto"
    """Kernel of attention: math is the reference; auto: PyTorch's own choice. One that is named
    must work on the device."""
    cuda_graphs: bool = False
    """Replay each micro-batch as a CUDA graph, for models so small that launching their kernels
    takes longer than running them. Needs compile, and one process."""
    cast_once: bool = False
    """Cast the blocks' weights to the compute precision once a step, not once a micro-batch."""
    upload: Literal["auto", "ahead", "inline"] = "auto"
    """Batches go to a GPU ahead, while the one before is computed, or inline with each
    micro-batch; auto: ahead on CUDA."""
    eval_every: int = 125
    """Steps between validations; the last step always validates."""
    eval_tokens: int = 10_485_760
    """Tokens of one validation, from the start of the validation stream."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the end and a stop always save one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best by validation loss is kept besides."""
    log_every: int = 1
    """Steps between the training losses that are written; all are checked for being finite."""
    tensorboard: bool = True
    """Write TensorBoard events beside metrics.jsonl."""

    def __post_init__(self) -> None:
        _one_of("train", self, "device", "precision", "loss", "sharding", "attention", "upload")
        _positive(
            "train",
            self,
            "steps",
            "batch_tokens",
            "micro_batch",
            "eval_every",
            "eval_tokens",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
            "hang_timeout_s",
        )
        _require(
            self.compile or not self.cuda_graphs,
            "train.cuda_graphs records what train.compile makes, and that is off: use "
            "--train.compile, or --train.no-cuda-graphs",
        )
        _require(
            self.sharding != "fsdp" or not self.cast_once,
            "train.cast_once keeps whole weights in two precisions, and train.sharding fsdp has "
            "no whole ones: use --train.sharding zero1, or --train.no-cast-once",
        )
        _require(
            0 <= self.seed < 2**64, f"train.seed is {self.seed}: it must be from 0 to 2**64 - 1"
        )


@dataclass(frozen=True)
class Config:
    """A whole run."""

    recipe: str = "custom"
    """Name of the recipe this came from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        context, batch, micro = (
            self.model.context,
            self.train.batch_tokens,
            self.train.micro_batch,
        )
        _require(
            batch % context == 0,
            f"train.batch_tokens {batch:,} is not a multiple of model.context {context:,}: "
            f"use --train.batch-tokens {max(1, round(batch / context)) * context}",
        )
        _require(
            micro is None or self.batch_sequences % micro == 0,
            f"train.batch_tokens {batch:,} is not a multiple of train.micro_batch {micro} times "
            f"model.context {context:,}: the batch has {self.batch_sequences} sequences, so the "
            "micro-batch must divide that",
        )
        _require(
            self.train.eval_tokens % context == 0,
            f"train.eval_tokens {self.train.eval_tokens:,} is not a multiple of model.context "
            f"{context:,}: use --train.eval-tokens "
            f"{max(1, round(self.train.eval_tokens / context)) * context}",
        )
        _require(
            self.train.sharding != "fsdp" or self.optim.matrices not in ("soap", "shampoo"),
            f"train.sharding fsdp cuts matrices into rows, and optim.matrices "
            f"{self.optim.matrices} needs them whole: use --train.sharding zero1",
        )
        _require(
            self.optim.adamw.head_lr is None or not self.model.tied_head,
            f"optim.adamw.head_lr is {self.optim.adamw.head_lr} and the head is the embedding's "
            "matrix, whose learning rate is optim.adamw.lr: leave it out, or use "
            "--model.no-tied-head",
        )
        _require(
            self.optim.adamw.scalar_lr is None or self.model.has_scalars,
            f"optim.adamw.scalar_lr is {self.optim.adamw.scalar_lr} and the model has no learned "
            "scalars: leave it out, or use --model.value-embeddings, --model.embed-shortcut or "
            "--model.unet-skips",
        )
        if self.train.float8_head:
            self._check_float8_head()
        schedule = self.optim.schedule
        _require(
            schedule.warmup_steps + self.cooldown_steps <= self.train.steps,
            f"optim.schedule.warmup_steps {schedule.warmup_steps} and {self.cooldown_steps} steps "
            f"of cooldown do not fit in train.steps {self.train.steps}: shorten the warm-up",
        )

    def _check_float8_head(self) -> None:
        _require(
            self.train.loss != "plain",
            "train.float8_head is for the losses that go by chunks, and train.loss is plain: use "
            "--train.loss chunked or --train.loss fused, or --train.no-float8-head",
        )
        for name in ("width", "context", "vocab_size"):
            size = getattr(self.model, name)
            _require(
                size is None or size % 16 == 0,
                f"model.{name} is {size}, and train.float8_head multiplies 16 numbers at a time: "
                f"choose a multiple, for example {-(-(size or 0) // 16) * 16}",
            )

    @property
    def batch_sequences(self) -> int:
        """Sequences in the global batch."""
        return self.train.batch_tokens // self.model.context

    @property
    def cooldown_steps(self) -> int:
        """Steps of the trapezoid's linear fall to zero; 0 for cosine, which has none."""
        if self.optim.schedule.kind == "cosine":
            return 0
        return round(self.optim.schedule.cooldown_fraction * self.train.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; raises `QuinticError` on unknown keys and bad values."""
        return typing.cast(Config, _build(Config, values, ""))

    def override(self, changes: Mapping[str, Any]) -> Config:
        """A copy with dotted fields replaced: `override({"train.steps": 10})`.

        All changes are applied before anything is validated, so fields that depend on each other
        can change together. Raises `QuinticError` for an unknown field, naming the nearest.
        """
        values = self.to_dict()
        for key, value in changes.items():
            section, *rest = key.split(".")
            target: Any = values
            path = [section, *rest]
            for name in path[:-1]:
                target = target.get(name) if isinstance(target, dict) else None
            if not isinstance(target, dict) or path[-1] not in target:
                raise QuinticError(unknown_field(key))
            target[path[-1]] = value
        return Config.from_dict(values)


def differing_fields(one: Config, other: Config) -> list[str]:
    """Dotted names of the fields in which two configs differ."""
    left, right = dict(flatten(one)), dict(flatten(other))
    return [key for key in left if left[key] != right[key]]


def unknown_field(key: str) -> str:
    """The message for a field that does not exist, with the nearest that does."""
    nearest = nearest_name(key, [name for name, _ in flatten(Config())])
    hint = f"did you mean {nearest}?" if nearest else "see quintic train --help"
    return f"there is no field {key}: {hint}"


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The nearest of several dotted names: by its last part where that is right, which finds a
    field in another section, else by the whole, else by the last part; None where none is near.
    Where sections are only left out, it is the first: optim.lr and lr are optim.muon.lr."""
    *sections, tail = name.rsplit(".", 1)
    prefix = "".join(f"{section}." for section in sections)
    if same := [full for full in known if full.rsplit(".", 1)[-1] == tail]:
        if inside := [full for full in same if full.startswith(prefix)]:
            return inside[0]
        return difflib.get_close_matches(name, same, n=1, cutoff=0)[0]
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return close[0]
    tails = {full.rsplit(".", 1)[-1]: full for full in known}
    close = difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)
    return tails[close[0]] if close else None


def resolve_vocabulary(config: Config, dataset_vocabulary: int | None) -> Config:
    """The config with `model.vocab_size` filled in from the dataset's vocabulary.

    Rounded up to a multiple of 128, which keeps the head's matrix product aligned; the extra rows
    are never a target. Raises `QuinticError` where neither gives a size, or where the model's is
    too small for the dataset's tokenizer.
    """
    if config.model.vocab_size is not None:
        _require(
            config.model.vocab_size >= (dataset_vocabulary or 0),
            f"model.vocab_size is {config.model.vocab_size} and the tokenizer of "
            f"{config.data.path} has {dataset_vocabulary} tokens: give the model at least as many, "
            "or leave --model.vocab-size out",
        )
        return config
    if dataset_vocabulary is None:
        raise QuinticError(
            f"the vocabulary of {config.data.path} is unknown, since it has no manifest: name "
            "its tokenizer with --data.tokenizer (gpt2, or a tokenizer.json) or give "
            "--model.vocab-size"
        )
    padded = -(-dataset_vocabulary // 128) * 128
    return replace(config, model=replace(config.model, vocab_size=padded))


def resolve_eot(config: Config, dataset_eot_id: int | None) -> Config:
    """The config with `model.eot_id` filled in from the dataset's tokenizer, where it is needed.

    Raises `QuinticError` where neither gives one, or where they differ.
    """
    model = config.model
    if not model.document_mask:
        return config
    _require(
        model.eot_id is not None or dataset_eot_id is not None,
        f"the end-of-text token of {config.data.path} is unknown, which model.document_mask needs: "
        "name its tokenizer with --data.tokenizer (gpt2, or a tokenizer.json) or give "
        "--model.eot-id",
    )
    _require(
        model.eot_id is None or dataset_eot_id is None or model.eot_id == dataset_eot_id,
        f"model.eot_id is {model.eot_id} and the tokenizer of {config.data.path} begins documents "
        f"with {dataset_eot_id}: leave --model.eot-id out",
    )
    eot_id = dataset_eot_id if model.eot_id is None else model.eot_id
    return replace(config, model=replace(model, eot_id=eot_id))


def flatten(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The fields of a config by their dotted names, in the order of the sections."""
    pairs: list[tuple[str, Any]] = []
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            pairs += flatten(value, f"{prefix}{f.name}.")
        else:
            pairs.append((f"{prefix}{f.name}", value))
    return pairs


def field_types(section: Any = Config, prefix: str = "") -> dict[str, Any]:
    """The type of every field, by the dotted names of `flatten`."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(section).items():
        if is_dataclass(hint):
            found |= field_types(hint, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = hint
    return found


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise QuinticError(f"config section {prefix.rstrip('.') or 'config'} is not an object")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise QuinticError(unknown_field(f"{prefix}{key}"))
    arguments = {
        key: _build(hints[key], value, f"{prefix}{key}.")
        if is_dataclass(hints[key])
        else _convert(hints[key], value, f"{prefix}{key}")
        for key, value in values.items()
    }
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """A JSON value as the field's type; raises `QuinticError` where it is of another."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (h for h in typing.get_args(hint) if h is not type(None))
        return _convert(hint, value, name)
    if origin is Literal:
        return value  # the section's own check names the choices
    if origin is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(hint)
        if len(kinds) == len(value):
            return tuple(_convert(k, v, name) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise QuinticError(f"{name} is {value!r}: it must be {getattr(hint, '__name__', hint)}")
