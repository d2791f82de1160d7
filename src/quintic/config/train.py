"""The step, its batch, the device, and what of a run is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from quintic.config.schema import (
    ON,
    OTHER_TEXT,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rule,
    Section,
    require,
    setting,
)

Precision = Literal["auto", "float32", "bfloat16", "float64"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def distinct(values: Sequence[str]) -> bool:
    """Return whether no value comes twice."""
    return len(set(values)) == len(values)


@dataclass(frozen=True)
class TrainConfig(Section, name="train"):
    """How long, how fast, on what, and what is kept."""

    steps: PositiveInt = setting(5100, resume="schedule")
    """Optimizer steps."""
    batch_tokens: PositiveInt = 524_288
    """Tokens of the global batch of one step."""
    batch_stages: PositiveInt = 1
    """Equal parts of the run, of which the i-th of n trains on i/n of batch_tokens a step, with
    learning rates times (i/n)^0.6."""
    micro_batch: PositiveInt | None = setting(None, resume="free")
    """Sequences of one forward and backward pass of a process; None: chosen for the device."""
    seed: Annotated[int, Rule(lambda seed: 0 <= seed < 2**64, "it must be from 0 to 2**64 - 1")] = (
        setting(1337, not_swept="give --seeds N")
    )
    """Seed of the initialisation, of random numbers in training and, with data.order shuffle, of
    the data order."""
    device: Literal["auto", "cuda", "mps", "cpu"] = setting("auto", resume="free")
    """auto: the first of cuda, mps, cpu that is there."""
    precision: Precision = "auto"
    """Compute precision; weights stay float32 (float64: everything). auto: bfloat16 on CUDA,
    float32 elsewhere."""
    compile: bool = setting(False, resume="free")
    """Compile loss, backward and the optimizer's update with torch.compile."""
    sharding: Literal["zero1", "fsdp"] = setting("zero1", resume="free")
    """What several processes divide among them: zero1 the optimizer's work and state; fsdp the
    weights too, for models that do not fit on one device. Changes no result."""
    activation_checkpointing: bool = setting(False, resume="free")
    """Keep only each block's input and compute the rest again in the backward pass: a third more
    computation for a fraction of the memory."""
    hang_timeout_s: PositiveFloat = setting(600.0, resume="free")
    """Seconds without progress after which a process among several counts as hung."""
    loss: Literal["auto", "chunked", "plain", "fused"] = setting("auto", resume="free")
    """chunked: head and cross-entropy a chunk of tokens at a time; plain: the reference; fused:
    chunked with a Triton kernel, for GPUs; auto: fused on CUDA where it runs, else chunked."""
    mtp_tokens: PositiveInt = 1
    """Tokens that each position predicts in training, the next one included; the further ones fade
    one after another, and of as many equal parts of the run the last is of the next alone."""
    float8_head: bool = setting(False, needs={"train.loss": ("auto", "chunked", "fused")})
    """Multiply by the head in float8 while training, for GPUs from compute capability 8.9 on; a CPU
    rounds alike and gains nothing. Validation stays in the compute precision."""
    attention: Literal["auto", "math", "flash", "efficient", "cudnn", "flex"] = setting(
        "auto", resume="free"
    )
    """Kernel of attention: math is the reference; flex leaves out blocks that a window or document
    hides, and needs compile; auto: PyTorch's own choice. One that is named must work on the
    device."""
    cuda_graphs: bool = setting(False, resume="free", needs={"train.compile": True})
    """Replay each micro-batch as a CUDA graph, for models so small that launching their kernels
    takes longer than running them; for one process."""
    cpu_kernels: Literal["plain", "fused"] = setting(
        "plain", resume="free", part_of={"train.compile": False}
    )
    """On a CPU in float32 or float64, norms, rotary embeddings, squared ReLU, attention and loss by
    PyTorch's operators, or with forward and backward passes by hand; the same to rounding."""
    cache_bf16_weights: bool = setting(False, resume="free")
    """Cast the blocks' weights to the compute precision once a step, not once a micro-batch."""
    prefetch_to_gpu: Literal["auto", "on", "off"] = setting("auto", resume="free")
    """Batches go to a GPU ahead, while the one before is computed, or inline with each
    micro-batch; auto: ahead on CUDA."""
    eval_every: PositiveInt = 125
    """Steps between validations; the last step always validates."""
    eval_tokens: PositiveInt = setting(10_485_760, not_swept=OTHER_TEXT)
    """Tokens of one validation, from the start of the validation stream."""
    eval_tasks: str | None = setting(None, resume="free", compare="ignored")
    """Standard tasks that the model is scored on at its end, as quintic evaluate --tasks does, with
    commas between them."""
    eval_tasks_every: PositiveInt | None = setting(
        None, resume="free", compare="ignored", part_of={"train.eval_tasks": ON}
    )
    """Steps between scores on the tasks; None: at the end alone."""
    eval_task_data: str | None = setting(
        None, resume="free", compare="ignored", ranks="own", part_of={"train.eval_tasks": ON}
    )
    """Folder of the tasks' data; None: the hub's, fetched once."""
    target_loss: PositiveFloat | None = setting(
        None,
        resume="free",
        not_swept="each run would end at it; see quintic compare --target for the steps to a loss",
    )
    """Validation loss, in nats per token, at which the run stops early; None: at none."""
    patience: PositiveInt | None = setting(None, resume="free")
    """Validations in a row without a loss below the lowest before, after which the run stops early;
    None: however many they are."""
    checkpoint_every: PositiveInt = setting(1000, resume="free", compare="ignored")
    """Steps between checkpoints; the end and a stop always save one."""
    keep_checkpoints: PositiveInt = setting(2, resume="free", compare="ignored")
    """Newest checkpoints kept; the best by validation loss is kept besides."""
    keep_before_cooldown: bool = setting(True, resume="free", compare="ignored")
    """Save a checkpoint where the trapezoid is about to fall, and keep it: a run of more steps goes
    on from there."""
    log_every: PositiveInt = setting(1, resume="free", compare="ignored")
    """Steps between the training losses that are written; all are checked for being finite."""
    diagnostics_every: PositiveInt | None = setting(None, resume="free", compare="ignored")
    """Steps between records of what the optimizer does to the matrices and what flows through the
    layers, in diagnostics.jsonl; None: no record."""
    log_to: Annotated[tuple[TrackerName, ...], Rule(distinct, "each may be named once")] = setting(
        ("tensorboard",), resume="free", compare="ignored"
    )
    """Trackers that get a copy of what is in metrics.jsonl, with spaces between them; no name after
    the option: none."""
    sample_tokens: NonNegativeInt = setting(64, resume="free", compare="ignored")
    """Tokens of the sample that is kept of each validation, in samples.jsonl; 0: none is taken."""
    report: bool = setting(True, resume="free", compare="ignored")
    """Write report.html at the end, as quintic report does."""
    export_at_end: Literal["none", "hf", "gguf", "onnx"] = setting(
        "none", resume="free", compare="ignored"
    )
    """Write the finished run's model as quintic export --to does, into the folder export of the
    run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.compile or self.attention != "flex",
            "train.attention flex is made for the model by train.compile, and that is off: use "
            "--train.compile, or another --train.attention",
        )
        require(
            self.mtp_tokens <= self.steps,
            f"train.mtp_tokens is {self.mtp_tokens} and train.steps {self.steps}: each "
            f"number of tokens has a part of the run, so use --train.mtp-tokens {self.steps}, or "
            "more --train.steps",
        )
        between = (self.steps - 1) // self.eval_every
        require(
            self.target_loss is None or between > 0,
            f"train.target_loss is {self.target_loss} and no validation lies between the first and "
            f"the last step: use a --train.eval-every below {self.steps}, or leave it out",
        )
        require(
            self.patience is None or self.patience <= between,
            f"train.patience is {self.patience}, more than the validations between the first and "
            f"the last step ({between}), so it never stops the run: use a smaller one, a smaller "
            "--train.eval-every, or leave it out",
        )
        require(
            self.sharding != "fsdp" or not self.cache_bf16_weights,
            "train.cache_bf16_weights keeps whole weights in two precisions, and train.sharding "
            "fsdp has no whole ones: use --train.sharding zero1, or --train.no-cache-bf16-weights",
        )


@dataclass(frozen=True)
class BatchSizes:
    """Gives the sequences of the global batch of every step, a pure function of the step.

    The steps are cut into `stages` parts, as equal as whole steps allow; a step of part i of n
    trains on i/n of `sequences`. Source: the speedrun's record 2025-11-29_BatchSizeSchedule
    (https://github.com/KellerJordan/modded-nanogpt), which has three.
    """

    sequences: int
    """Sequences of a step of the last stage; a multiple of `stages`."""
    stages: int = 1
    steps: int = 1
    """Steps of the whole run; what would come after them is as the last stage."""

    @property
    def smallest(self) -> int:
        """Return the sequences of a step of the first stage."""
        return self.sequences // self.stages

    def at(self, step: int) -> int:
        """Return the sequences of a step."""
        stage = min(step * self.stages // self.steps, self.stages - 1)
        return self.smallest * (stage + 1)

    def before(self, step: int) -> int:
        """Return the sequences of all steps before this one, which is the number of its first."""
        # Every stage adds its share to all steps from its own first one on.
        firsts = (-(-stage * self.steps // self.stages) for stage in range(self.stages))
        return self.smallest * sum(max(0, step - first) for first in firsts)
