"""A run, checked and built: a new one, or the continuation of one on disk.

Everything a user can get wrong is found here, before step 0 and before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from quintic import run_dir
from quintic.checkpoint import (
    Found,
    TrainState,
    best_checkpoint,
    load_state,
    load_tensors,
    newest_whole,
    read_state,
)
from quintic.config import (
    EMBEDDED,
    Config,
    Precision,
    differing_fields,
    resolve_eot,
    resolve_vocabulary,
)
from quintic.console import Console
from quintic.data.corpus import embedded_dataset
from quintic.data.dataset import Dataset, check_tokens, open_dataset
from quintic.data.hub.catalog import fetch_command
from quintic.data.loader import Loader, validation_batches
from quintic.device import (
    auto_micro_batch,
    check_compiler,
    choose_device,
    compute_dtype,
    reproducible,
)
from quintic.distributed.world import World, check_identical
from quintic.errors import QuinticError
from quintic.kernels.runnable import require_float8, require_triton
from quintic.model.attention_backend import attention_backend, check_attention
from quintic.model.base import LanguageModel, Linear
from quintic.model.build import build_model, checkpoint_activations
from quintic.model.weight_cache import WeightCache
from quintic.optim.fsdp import FsdpStepper, WholeAtOwners, shard_model
from quintic.optim.param_groups import (
    ParamSpec,
    assign_parameters,
    check_param_specs,
    optimizers_for,
    param_groups_table,
)
from quintic.optim.schedule import scheduled
from quintic.optim.step import LocalStepper, Stepper, Zero1Stepper

RESUME_MAY_CHANGE = frozenset(
    {
        "data.path",
        "optim.muon.kernel",
        "train.device",
        "train.compile",
        "train.loss",
        "train.micro_batch",
        "train.sharding",
        "train.activation_checkpointing",
        "train.attention",
        "train.cuda_graphs",
        "train.cache_bf16_weights",
        "train.prefetch_to_gpu",
        "train.hang_timeout_s",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.tensorboard",
    }
)
"""Fields that change nothing of what is computed, up to rounding."""


@dataclass
class Run:
    """What the loop needs."""

    config: Config
    folder: Path
    world: World
    device: torch.device
    dataset: Dataset
    loader: Loader
    loss: Callable[[Tensor, Tensor], Tensor]
    """(inputs_BT, targets_BT) -> mean nats per token; the model's own, or that compiled."""
    specs: list[ParamSpec]
    stepper: Stepper
    state: TrainState
    weight_cache: WeightCache | None = None
    """With `train.cache_bf16_weights`."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around everything that computes: what was chosen for the whole process."""
        with ExitStack() as stack:
            if self.config.train.compile:
                stack.enter_context(reproducible(self.device))
            stack.enter_context(attention_backend(self.config.train.attention))
            yield

    @property
    def uploads_ahead(self) -> bool:
        """Whether a batch is on its way to the device while the one before is computed."""
        return self.device.type == "cuda" and self.config.train.prefetch_to_gpu != "off"

    def rows(self, step: int) -> range:
        """The sequences of a step's global batch that are this process's: at least one, and on no
        process more than one beyond another's."""
        each, more = divmod(self.config.batches.at(step), self.world.size)
        first = self.world.rank * each + min(self.world.rank, more)
        return range(first, first + each + (self.world.rank < more))

    def micro_batches(self, step: int) -> int:
        """Forward and backward passes of a step, as many on every process."""
        assert self.config.train.micro_batch is not None, "set_up resolves it"
        most = -(-self.config.batches.at(step) // self.world.size)
        return -(-most // self.config.train.micro_batch)

    @property
    def sharded(self) -> bool:
        """Whether this process has only some rows of the weights."""
        return _sharded(self.config, self.world)

    @property
    def done(self) -> bool:
        """All steps are trained."""
        return self.state.step >= self.config.train.steps


def open_data(config: Config, console: Console) -> Dataset:
    """The dataset of a config; builds the embedded corpus on first use."""
    if config.data.path == EMBEDDED:
        return open_dataset(
            embedded_dataset(config.data.embedded_vocab, progress=console.stage),
            config.data.tokenizer,
        )
    path = Path(config.data.path)
    fetching = fetch_command(path, config.tokens)
    if fetching and not any(path.glob("*.bin")):
        raise QuinticError(
            f"dataset {path} is not there: fetch it with `{fetching}`, or give --data.path a "
            "folder with *_train_*.bin and *_val_*.bin"
        )
    return open_dataset(path, config.data.tokenizer)


def set_up(config: Config, folder: Path, console: Console, world: World | None = None) -> Run:
    """Resolve, check and build, on every process; writes nothing.

    Raises `QuinticError` for anything a user can get wrong.
    """
    world = world or World()
    device = choose_device(config.train.device, world)
    dtype = compute_dtype(config.train.precision, device)
    if config.train.compile:
        check_compiler(device)
    if config.train.loss == "fused":
        require_triton(device, asked="train.loss fused", instead="--train.loss chunked")
    if config.train.float8_head:
        require_float8(device, dtype)
    check_attention(config.model, config.train.attention, device, dtype)
    _check_switches(config, device, dtype, world)
    if (smallest := config.batches.smallest) < world.size:
        enough = world.size * config.train.batch_stages * config.model.context
        raise QuinticError(
            f"a batch of {smallest} sequences cannot be divided among {world.size} processes: "
            f"start at most {smallest}, or use --train.batch-tokens {enough}"
        )
    with world.first_on_each_node():
        dataset = open_data(config, console)
        config = _resolve(config, dataset, device, dtype, world)
        assert config.model.vocab_size is not None
        if world.local_rank == 0:  # reads every token, once on each machine
            shuffled = config.data.order == "shuffle"  # then the first steps read everywhere
            check_tokens(
                dataset,
                config.model.vocab_size,
                None if shuffled else config.tokens + 1,
                config.train.eval_tokens + 1,
            )
    _check_same_everywhere(config, dataset, world)
    loader = Loader(
        dataset.train,
        context=config.model.context,
        batches=config.batches,
        seed=config.train.seed,
        order=config.data.order,
    )
    validation_batches(dataset.val, config.model.context, config.train.eval_tokens, 1)

    compiled = config.train.compile
    sharded = _sharded(config, world)
    try:
        model = build_model(
            config.model,
            seed=config.train.seed,
            compute_dtype=dtype,
            loss=config.train.loss,
            float8_head=config.train.float8_head,
            mtp_tokens=config.train.mtp_tokens,
            block_masks=config.train.attention == "flex",
        )
        if not sharded:  # else a block at a time, since the whole may not fit
            model = model.to(device)
        specs = assign_parameters(model, config.optim)
        check_param_specs(model, specs)
        if config.train.activation_checkpointing:
            checkpoint_activations(model)
        stepper = _build_stepper(model, specs, config, device, world)
        weight_cache = _weight_cache(model) if config.train.cache_bf16_weights else None
    except (MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and not re.search("memory|overflow", reason):
            raise
        raise QuinticError(
            f"the model of {config.model.layers} layers x {config.model.width}, context "
            f"{config.model.context:,}, does not fit into memory ({reason}): make it smaller"
        ) from error
    if sharded and compiled:
        for block in model.layers:  # the gathering of the next block's weights stays outside
            block.compile(dynamic=False)
    return Run(
        config=config,
        folder=folder,
        world=world,
        device=device,
        dataset=dataset,
        loader=loader,
        loss=_compiled(model, config) if compiled and not sharded else model.loss,
        specs=specs,
        stepper=stepper,
        state=TrainState(
            model,
            stepper.optimizers,
            dataset.fingerprint,
            shapes={spec.name: spec.shape for spec in specs},
        ),
        weight_cache=weight_cache,
    )


def _check_switches(config: Config, device: torch.device, dtype: torch.dtype, world: World) -> None:
    """Raise `QuinticError` where a switch of the step cannot be heeded here."""
    train, cuda = config.train, device.type == "cuda"
    if train.prefetch_to_gpu == "on" and not cuda:
        raise QuinticError(
            f"train.prefetch_to_gpu on is for CUDA devices and this run is on {device.type}: leave it at "
            "auto"
        )
    if train.cuda_graphs and not cuda:
        raise QuinticError(
            f"train.cuda_graphs is for CUDA devices and this run is on {device.type}: use "
            "--train.no-cuda-graphs"
        )
    if train.cuda_graphs and world.size > 1:
        raise QuinticError(
            f"train.cuda_graphs is for one process and there are {world.size}, whose gradients "
            "move between them: use --train.no-cuda-graphs"
        )
    if train.cache_bf16_weights and dtype in (torch.float32, torch.float64):
        raise QuinticError(
            f"train.cache_bf16_weights has nothing to cast: the weights are computed with in "
            f"{str(dtype).removeprefix('torch.')}, as they are; use --train.precision bfloat16, or "
            "--train.no-cache-bf16-weights"
        )


def _weight_cache(model: LanguageModel) -> WeightCache:
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    return WeightCache(linears, model.compute_dtype)


def _compiled(model: LanguageModel, config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's loss, compiled; each micro-batch a replay of its graph where that is asked."""
    if not config.train.cuda_graphs:
        return torch.compile(model.loss, dynamic=False)
    replayed = torch.compile(model.loss, dynamic=False, mode="reduce-overhead")

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        # What the micro-batch before left in the graph's memory is no longer needed.
        torch.compiler.cudagraph_mark_step_begin()
        value: Tensor = replayed(inputs_BT, targets_BT)
        return value

    return loss


def _sharded(config: Config, world: World) -> bool:
    return config.train.sharding == "fsdp" and world.size > 1


def _build_stepper(
    model: LanguageModel, specs: list[ParamSpec], config: Config, device: torch.device, world: World
) -> Stepper:
    """How gradients become weights: on one process, or divided among several."""
    build = partial(optimizers_for, config=config.optim, device=device)
    parameters = dict(model.named_parameters())
    if world.size == 1:
        build = partial(build, compile=config.train.compile)
        return LocalStepper(parameters, specs, build, keep_gradients=config.train.cuda_graphs)
    if _sharded(config, world):
        shard_model(model, world, device)
        build = partial(build, whole=WholeAtOwners(world))
        return FsdpStepper(model, specs, build, world)
    build = partial(build, compile=config.train.compile)
    return Zero1Stepper(parameters, specs, build, world)


def _check_same_everywhere(config: Config, dataset: Dataset, world: World) -> None:
    """Raise `QuinticError` where a rank is about to do something else than rank 0."""
    check_identical(world, {"data": dataset.fingerprint})
    # Each machine may keep its data in another place.
    places = {"data.path", "data.tokenizer"}
    configs = world.all_gather_object(config)
    for rank, other in enumerate(configs):
        if fields := set(differing_fields(configs[0], other)) - places:
            raise QuinticError(
                f"rank {rank} was started with another {', '.join(sorted(fields))} than rank 0: "
                "give all the same options"
            )


def start(config: Config, folder: Path, console: Console, world: World | None = None) -> Run:
    """Set up a new run and create its folder."""
    world = world or World()
    world.on_main(lambda: run_dir.check_free(folder))
    run = set_up(config, folder, console, world)
    world.on_main(lambda: run_dir.create(folder, run.config, param_groups_table(run.specs)))
    return run


def resume(
    folder: Path,
    config: Config,
    console: Console,
    world: World | None = None,
    *,
    force_data: bool = False,
) -> Run:
    """Set up the run in `folder` and load its newest whole checkpoint.

    `config` is the run's own with what the user replaced. A run that was killed before its first
    checkpoint begins again at step 0, which gives the same run.

    Raises `QuinticError` where the replacement would change what was already computed, where the
    data is another (unless forced), and where no checkpoint is whole.
    """
    world = world or World()
    found = world.on_main(lambda: newest_whole(folder / run_dir.CHECKPOINTS))
    saved = world.on_main(lambda: run_dir.read_config(folder))
    _check_continues(saved, config, found.state["step"] if found else 0)
    run = set_up(config, folder, console, world)
    if found is None:
        console.line(f"no checkpoint in {folder} yet: beginning again at step 0")
        return run
    for problem in found.damaged:
        console.line(f"skipped: {problem}")
    if not force_data:
        check_same_data(run.dataset, found)
    load_state(found, run.state, world)
    console.line(f"resuming from {found.path}")
    return run


def check_same_data(dataset: Dataset, found: Found) -> None:
    """Raise `QuinticError` where a checkpoint was trained on other data."""
    trained_on = found.state["fingerprint"]
    if trained_on != dataset.fingerprint:
        raise QuinticError(
            f"{dataset.path} is not the data that {found.path} was trained on (fingerprint "
            f"{dataset.fingerprint[:12]}, not {trained_on[:12]}): name the folder where that data "
            "lies now, or train on this one all the same with --resume and --force-data"
        )


@dataclass
class Trained:
    """A model out of a run folder."""

    config: Config
    device: torch.device
    model: LanguageModel
    found: Found

    def open_data(
        self, console: Console, *, path: str | None = None, tokenizer: str | None = None
    ) -> Dataset:
        """The dataset of the run, at `path` if it moved, with its tokenizer named if need be.

        Raises `QuinticError` if it is another dataset or a tokenizer with more ids than the model.
        """
        named = {"data.path": path, "data.tokenizer": tokenizer}
        config = self.config.override({k: v for k, v in named.items() if v is not None})
        dataset = open_data(config, console)
        check_same_data(dataset, self.found)
        resolve_vocabulary(config, dataset.vocab_size)
        return dataset


def load_trained(folder: Path, *, which: str = "newest", device: str = "auto") -> Trained:
    """The model of a run, from its newest whole checkpoint or the best by validation loss.

    Raises `QuinticError` where the folder holds no run or no such checkpoint.
    """
    config = run_dir.read_config(folder)
    root = folder / run_dir.CHECKPOINTS
    if which == "best":
        best = best_checkpoint(root)
        found = Found(best, read_state(best), []) if best else None
    else:
        found = newest_whole(root)
    if found is None:
        raise QuinticError(
            f"{folder} has no checkpoint to load: train further with --resume {folder}"
        )
    chosen = choose_device(device)
    # The CPU computes in float32 what a GPU trained in bfloat16.
    precision = config.train.precision
    if precision == "bfloat16" and chosen.type != "cuda":
        precision = "float32"
    model = build_model(config.model, compute_dtype=compute_dtype(precision, chosen))
    load_tensors(found.path, {f"model.{n}": p.detach() for n, p in model.named_parameters()})
    model.set_window(scheduled(config, found.state["step"]).window)
    return Trained(config, chosen, model.to(chosen), found)


def _resolve(
    config: Config, dataset: Dataset, device: torch.device, dtype: torch.dtype, world: World
) -> Config:
    """The config with everything that was left to quintic filled in."""
    path = config.data.path
    return replace(
        resolve_eot(resolve_vocabulary(config, dataset.vocab_size), dataset.eot_id),
        data=replace(config.data, path=path if path == EMBEDDED else str(Path(path).absolute())),
        train=replace(
            config.train,
            precision=cast(Precision, str(dtype).removeprefix("torch.")),
            micro_batch=config.train.micro_batch or auto_micro_batch(config, device, world.size),
        ),
    )


def _check_continues(saved: Config, config: Config, done: int) -> None:
    """Raise `QuinticError` where `config` would not have led to the checkpoint.

    The number of steps may change as long as it leaves the schedules of the steps already done
    as they were: a trapezoid can be prolonged until its cooldown begins.
    """
    changed = set(differing_fields(saved, config)) - RESUME_MAY_CHANGE
    if "train.steps" in changed:
        past = range(done)
        if done <= config.train.steps and all(
            scheduled(saved, step) == scheduled(config, step) for step in past
        ):
            changed.remove("train.steps")
    if changed:
        raise QuinticError(
            f"--resume cannot change {', '.join(sorted(changed))}: the {done} steps done were "
            "trained otherwise; start a new run with another --out"
        )
