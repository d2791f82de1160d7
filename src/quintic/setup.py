"""A run, checked and built: a new one, or the continuation of one on disk.

Everything a user can get wrong is found here, before step 0 and before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from quintic import run_dir
from quintic.checkpoint import (
    STATE,
    TrainState,
    WholeCheckpoint,
    check_none_lost,
    folder_name,
    load_state,
    newest_whole,
)
from quintic.config import (
    EMBEDDED,
    Config,
    ModelConfig,
    Precision,
    TrainConfig,
    differing_fields,
    field_facts,
    flatten,
    from_the_start,
    resolve_eot,
    resolve_vocabulary,
    without_effect,
)
from quintic.config.schema import require
from quintic.console import Console
from quintic.data.corpus import embedded_dataset
from quintic.data.dataset import Dataset, check_tokens, open_dataset
from quintic.data.hub.catalog import fetch_command
from quintic.data.loader import Loader, validation_batches
from quintic.device import (
    auto_micro_batch,
    check_cache_folder,
    check_compiler,
    choose_device,
    compiling,
    compute_dtype,
    reproducible,
)
from quintic.distributed.world import ALONE, World, check_identical
from quintic.early_stop import stopped_early
from quintic.errors import QuinticError, counted, memory_reason, require_package
from quintic.evaluate import LossSums
from quintic.kernels.runnable import choose_loss, require_float8
from quintic.metrics_file import METRICS, lost_records
from quintic.model.attention_backend import attention_backend, check_attention
from quintic.model.base import LanguageModel
from quintic.model.build import build_model, checkpoint_activations
from quintic.model.fused import fuse
from quintic.model.linear import Linear, WeightCache
from quintic.optim.fsdp import FsdpStepper, WholeAtOwners, shard_model
from quintic.optim.param_groups import (
    ParamSpec,
    assign_parameters,
    check_param_specs,
    optimizers_for,
    param_groups_table,
)
from quintic.optim.schedule import steps_alike
from quintic.optim.step import LocalStepper, Stepper
from quintic.optim.zero1 import Zero1Stepper
from quintic.tasks.in_training import TrainingTasks, open_tasks


@dataclass
class Run:
    """Holds what the loop needs."""

    config: Config
    folder: Path
    world: World
    device: torch.device
    dataset: Dataset
    loader: Loader
    loss: Callable[..., Tensor]
    """`LanguageModel.loss`; the model's own, or that compiled."""
    specs: list[ParamSpec]
    stepper: Stepper
    state: TrainState
    weight_cache: WeightCache | None = None
    """Where `train.cache_bf16_weights` is on."""
    tasks: TrainingTasks | None = None
    """Where `train.eval_tasks` names some."""
    validation: LossSums | None = None
    """Of the newest validation."""
    stopped_early: str | None = None
    """Why the run ended before its last step, in words, where it did."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Set what was chosen for the whole process, around everything that computes."""
        with ExitStack() as stack:
            if self.config.train.compile:
                stack.enter_context(compiling())
                stack.enter_context(reproducible(self.device))
            stack.enter_context(attention_backend(self.config.train.attention))
            yield

    @property
    def prefetches_to_gpu(self) -> bool:
        """True where a batch is on its way to the device while the one before is computed."""
        return self.device.type == "cuda" and self.config.train.prefetch_to_gpu != "off"

    def rows(self, step: int) -> range:
        """Return this process's sequences of a step's global batch: at least one, and on no process
        more than one beyond another's."""
        each, more = divmod(self.config.batches.at(step), self.world.size)
        first = self.world.rank * each + min(self.world.rank, more)
        return range(first, first + each + (self.world.rank < more))

    def micro_batches(self, step: int) -> int:
        """Return the forward and backward passes of a step, as many on every process."""
        assert self.config.train.micro_batch is not None, "set_up resolves it"
        most = -(-self.config.batches.at(step) // self.world.size)
        return -(-most // self.config.train.micro_batch)

    @property
    def sharded(self) -> bool:
        """True where this process has only some rows of the weights."""
        return isinstance(self.state.model, FSDPModule)

    @property
    def done(self) -> bool:
        """True where all steps are trained, or the run has stopped early."""
        return self.state.step >= self.config.train.steps or self.stopped_early is not None


def open_data(config: Config, console: Console) -> Dataset:
    """Open the dataset of a config; builds the embedded corpus on first use."""
    if config.data.path == EMBEDDED:
        return open_dataset(
            embedded_dataset(config.data.embedded_vocab, on_progress=console.stage),
            config.data.tokenizer,
        )
    path = Path(config.data.path)
    fetching = fetch_command(path, config.tokens)
    if fetching and not any(path.glob("*.bin")):
        raise QuinticError(
            f"dataset {path} is not there: fetch it with `{fetching}`, or name a folder with "
            "*_train_*.bin and *_val_*.bin, with --data.path when training, with --data in other "
            "commands"
        )
    return open_dataset(path, config.data.tokenizer)


def set_up(config: Config, folder: Path, console: Console, world: World = ALONE) -> Run:
    """Resolve, check and build, on every process; writes nothing. PyTorch's global random numbers
    begin at `train.seed`.

    Raises `QuinticError` for anything a user can get wrong.
    """
    device, dtype = _choose_device(config, world)
    config, dataset, loader = _check_data(config, device, dtype, console, world)
    world.on_main(lambda: check_trackers(config.train.log_to))
    tasks = open_tasks(config, dataset, console, world)
    with _memory_suffices(config.model):
        model, specs, stepper = _build(config, device, dtype, world)
        linears = [module for module in model.modules() if isinstance(module, Linear)]
        cached = config.train.cache_bf16_weights
        weight_cache = WeightCache(linears, model.compute_dtype) if cached else None
    torch.manual_seed(config.train.seed)  # for what draws, such as an optimizer of one's own
    return Run(
        config=config,
        folder=folder,
        world=world,
        device=device,
        dataset=dataset,
        loader=loader,
        loss=_loss(model, config.train),
        specs=specs,
        stepper=stepper,
        state=TrainState(
            model,
            stepper.optimizers,
            dataset.fingerprint,
            shapes={spec.name: spec.shape for spec in specs},
        ),
        weight_cache=weight_cache,
        tasks=tasks,
    )


def check_trackers(names: Sequence[str]) -> None:
    """Raise `QuinticError` where the package of a tracker is missing, which only rank 0 needs."""
    for name in names:
        require_package(name, name, f"train.log_to {name}")


def _choose_device(config: Config, world: World) -> tuple[torch.device, torch.dtype]:
    """Return the device and the compute precision.

    Raises `QuinticError` where something that the config asks for does not work there.
    """
    train = config.train
    device = choose_device(train.device, world)
    dtype = compute_dtype(train.precision, device)
    if train.compile:
        check_compiler(device)
    check_cache_folder(compiles=train.compile)
    choose_loss(train.loss, device)  # raises where it cannot run
    if train.float8_head:
        require_float8(device, dtype)
    check_attention(config.model, train.attention, device, dtype)
    require(
        not uses_cpu_kernels(train, device) or dtype in (torch.float32, torch.float64),
        f"train.cpu_kernels fused computes in float32 and float64, and train.precision is "
        f"{_name(dtype)}: use --train.cpu-kernels plain, or --train.precision float32",
    )
    cuda = device.type == "cuda"
    require(
        cuda or train.prefetch_to_gpu != "on",
        f"train.prefetch_to_gpu on is for CUDA devices and this run is on {device.type}: use "
        "--train.prefetch-to-gpu auto",
    )
    require(
        cuda or not train.cuda_graphs,
        f"train.cuda_graphs is for CUDA devices and this run is on {device.type}: use "
        "--train.no-cuda-graphs",
    )
    require(
        world.size == 1 or not train.cuda_graphs,
        f"train.cuda_graphs is for one process and there are {world.size}, whose gradients move "
        "between them: use --train.no-cuda-graphs",
    )
    require(
        dtype not in (torch.float32, torch.float64) or not train.cache_bf16_weights,
        "train.cache_bf16_weights has nothing to cast: the weights are computed with in "
        f"{_name(dtype)}, as they are; use --train.precision bfloat16, or "
        "--train.no-cache-bf16-weights",
    )
    return device, dtype


def uses_cpu_kernels(train: TrainConfig, device: torch.device) -> bool:
    """Return whether a run computes by the kernels for a CPU; elsewhere the device has its own."""
    return train.cpu_kernels == "fused" and device.type == "cpu"


def check_divided(config: Config, processes: int) -> None:
    """Raise `QuinticError` where a batch has fewer sequences than there are processes."""
    smallest, context = config.batches.smallest, config.model.context
    enough = processes * config.train.batch_stages * context
    require(
        smallest >= processes,
        f"a batch of {counted(smallest, 'sequence')} cannot be divided among {processes:,} "
        f"processes: start at most {smallest}, or use --train.batch-tokens {enough}",
    )


def _check_data(
    config: Config, device: torch.device, dtype: torch.dtype, console: Console, world: World
) -> tuple[Config, Dataset, Loader]:
    """Return the dataset, its loader, and the config with everything filled in that was left to
    quintic.

    Raises `QuinticError` where the data do not suffice or do not fit the model, and where another
    rank is about to do something else.
    """
    check_divided(config, world.size)
    context = config.model.context
    with world.first_on_each_node():
        dataset = open_data(config, console)
        config = resolve_eot(resolve_vocabulary(config, dataset.vocab_size), dataset.eot_id)
        vocab_size, eval_tokens = config.model.vocab_size, config.train.eval_tokens
        assert vocab_size is not None
        if world.local_rank == 0:  # reads every token, once on each machine
            shuffled = config.data.order == "shuffle"  # then the first steps read everywhere
            read = None if shuffled else config.tokens + 1
            check_tokens(dataset, vocab_size, read, eval_tokens + 1)
        dataset = dataset.for_model(vocab_size)
    path = config.data.path
    config = replace(
        config,
        data=replace(config.data, path=path if path == EMBEDDED else str(Path(path).absolute())),
        train=replace(
            config.train,
            precision=cast(Precision, _name(dtype)),
            micro_batch=config.train.micro_batch or auto_micro_batch(config, device, world.size),
        ),
    )
    _check_same_everywhere(config, dataset, world)
    loader = Loader(
        dataset.train,
        context=context,
        batches=config.batches,
        seed=config.train.seed,
        order=config.data.order,
    )
    validation_batches(dataset.val, context, eval_tokens, 1)  # raises where it is too short
    return config, dataset, loader


def _check_same_everywhere(config: Config, dataset: Dataset, world: World) -> None:
    """Raise `QuinticError` where a rank is about to do something else than rank 0."""
    check_identical(world, {"data": dataset.fingerprint})
    own = {name for name, facts in field_facts(Config).items() if facts.ranks == "own"}
    configs = world.all_gather_object(config)
    for rank, other in enumerate(configs):
        if fields := set(differing_fields(configs[0], other)) - own:
            raise QuinticError(
                f"rank {rank} was started with another {', '.join(sorted(fields))} than rank 0: "
                "give all the same options"
            )


def _build(
    config: Config, device: torch.device, dtype: torch.dtype, world: World
) -> tuple[LanguageModel, list[ParamSpec], Stepper]:
    """Return the model on the device, its parameter groups, and what turns gradients into weights:
    on one process, or divided among several."""
    train = config.train
    sharded = train.sharding == "fsdp" and world.size > 1
    model = build_model(
        config.model,
        seed=train.seed,
        compute_dtype=dtype,
        loss=choose_loss(train.loss, device),
        float8_head=train.float8_head,
        mtp_tokens=train.mtp_tokens,
        block_masks=train.attention == "flex",
    )
    if not sharded:  # else a block at a time, since the whole may not fit
        model = model.to(device)
    specs = assign_parameters(model, config.optim)
    check_param_specs(model, specs)
    if uses_cpu_kernels(train, device):
        fuse(model, attention=train.attention == "auto")
    if train.activation_checkpointing:
        checkpoint_activations(model)
    build = partial(optimizers_for, config=config.optim, device=device)
    if sharded:
        shard_model(model, world, device)
        whole = WholeAtOwners(world)
        return model, specs, FsdpStepper(model, specs, partial(build, whole=whole), world)
    build, parameters = partial(build, compile=train.compile), dict(model.named_parameters())
    if world.size > 1:
        return model, specs, Zero1Stepper(parameters, specs, build, world)
    keep = train.cuda_graphs
    return model, specs, LocalStepper(parameters, specs, build, keep_gradients=keep)


@contextmanager
def _memory_suffices(model: ModelConfig) -> Iterator[None]:
    """Raise `QuinticError` where the memory does not suffice for a model.

    Where the weights are more than the machine has, at once: the system may notice it late.
    """
    weights = 12 * model.layers * model.width**2 + (model.vocab_size or 0) * model.width
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        if 4 * weights > memory:
            raise MemoryError
        yield
    except (MemoryError, RuntimeError) as error:
        # A size beyond 64 bits overflows before anybody is asked for memory.
        found = "its size" if "overflow" in str(error) else memory_reason(error)
        if found is None:
            raise
        raise QuinticError(
            f"the model of {counted(model.layers, 'layer')} x {model.width}, context "
            f"{model.context:,}, does not fit into memory ({found}): use fewer --model.layers, "
            "or a smaller --model.width or --model.context"
        ) from error


def _loss(model: LanguageModel, train: TrainConfig) -> Callable[..., Tensor]:
    """Return the model's loss, compiled and each micro-batch a replay of its graph where that is
    asked for."""
    if not train.compile:
        return model.loss
    if isinstance(model, FSDPModule):
        for block in model.layers:  # the gathering of the next block's weights stays outside
            block.compile(dynamic=False)
        return model.loss
    if not train.cuda_graphs:
        return torch.compile(model.loss, dynamic=False)
    replayed = torch.compile(model.loss, dynamic=False, mode="reduce-overhead")

    def loss(inputs_BT: Tensor, targets_BT: Tensor, **options: Any) -> Tensor:
        # What the micro-batch before left in the graph's memory is no longer needed.
        torch.compiler.cudagraph_mark_step_begin()
        value: Tensor = replayed(inputs_BT, targets_BT, **options)
        return value

    return loss


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def start(config: Config, folder: Path, console: Console, world: World = ALONE) -> Run:
    """Set up a new run, with weights drawn from its seed, and create its folder."""
    config = from_the_start(config)
    world.on_main(lambda: run_dir.check_free(folder))
    run = set_up(config, folder, console, world)
    world.on_main(lambda: run_dir.create(folder, run.config, param_groups_table(run.specs)))
    return run


def resume(folder: Path, config: Config, console: Console, world: World = ALONE) -> Run:
    """Set up the run in `folder` and load its newest whole checkpoint.

    `config` is the run's own with what the user replaced. A run that was killed before its first
    checkpoint begins again at step 0, which gives the same run. The folder is held meanwhile, since
    a process that trains in it takes checkpoints away.

    Raises `QuinticError` where the folder is in use, where the replacement would change what was
    already computed, where the data is another, where no checkpoint is whole, and as
    `check_same_config` and `check_none_lost` do.
    """
    saved, root = world.on_main(lambda: run_dir.read_config(folder)), folder / run_dir.CHECKPOINTS
    check_trained_here(folder, saved)
    config = replace(config, continued_from=saved.continued_from, init_from=saved.init_from)
    with held_unless_finished(folder, config, world) as (last_step, why):
        found = world.on_main(lambda: newest_whole(root))
        if found:
            check_same_config(saved, found)
        else:
            _check_begins_at_0(folder, saved)
            world.on_main(lambda: check_none_lost(root, saved))
        _check_continues(folder, saved, config, found.state["step"] if found else 0)
        run = set_up(config, folder, console, world)
        if found is None:
            console.line(f"no checkpoint in {folder} yet: beginning again at step 0")
            return run
        for problem in found.damaged:
            console.line(f"skipped: {problem}")
        check_same_data(
            run.dataset,
            found,
            "name the folder where that data lies now, or train on with this one in a new run with "
            "--resume and --force-data",
        )
        load_state(found, run.state, world)
        run.stopped_early = why if run.state.step == last_step else None
        console.line(f"resuming from {found.path}")
        note_lost_records(folder, saved, run, console)
        return run


def note_lost_records(folder: Path, saved: Config, run: Run, console: Console) -> None:
    """Say which losses the metrics of the run in `folder` lack, where `run` goes on with them."""
    metrics, step = folder / METRICS, run.state.step
    if not run.done and (lost := run.world.on_main(lambda: lost_records(metrics, saved, step))):
        console.line(f"note: {lost}")


def check_trained_here(folder: Path, config: Config) -> None:
    """Raise `QuinticError` where a run cannot continue, since its model was imported."""
    require(
        not config.is_imported,
        f"{folder} keeps a model that was imported from {config.imported.source}, without its "
        f"optimizer and data, so nothing can continue: begin a new run with its weights, quintic "
        f"train RECIPE --init-from {folder}",
    )


def end_of(folder: Path, config: Config) -> tuple[int, str | None]:
    """Return the last step of a run, and why it is that where the run stopped early; of an imported
    model 0."""
    if config.is_imported:
        return 0, None
    return stopped_early(folder, config.train) or (config.train.steps, None)


def no_checkpoint(folder: Path, config: Config, purpose: str) -> str:
    """Return in words that a run has no checkpoint, with the way out."""
    if config.is_imported:
        return (
            f"{folder} was imported, and no validation has measured its one checkpoint, so there "
            "is no best: leave --checkpoint out, or import it again where that is gone"
        )
    return f"{folder} has no checkpoint {purpose}: train further with --resume {folder}"


def has_step(folder: Path, step: int) -> bool:
    """Return whether a run has the checkpoint of a step."""
    return (folder / run_dir.CHECKPOINTS / folder_name(step)).exists()


@contextmanager
def held_unless_finished(
    folder: Path, config: Config, world: World
) -> Iterator[tuple[int, str | None]]:
    """Hold the folder of a run, since a process that trains in it takes checkpoints away; yield
    what `end_of` returns.

    A finished run is only looked at, and may lie where nobody can write.
    """
    with ExitStack() as stack:

        def hold() -> tuple[int, str | None]:
            end = end_of(folder, config)
            if not has_step(folder, end[0]):
                stack.callback(run_dir.lock(folder).release)
            return end

        yield world.on_main(hold)


def _check_begins_at_0(folder: Path, config: Config) -> None:
    """Raise `QuinticError` where a run without a checkpoint did not begin with drawn weights."""
    began = config.init_from.run or config.continued_from.run
    require(
        began is None,
        f"{folder} began with a checkpoint of {began} and has none any more: restore one, or begin "
        f"again from {began} with another --out",
    )


def check_same_data(dataset: Dataset, found: WholeCheckpoint, way_out: str) -> None:
    """Raise `QuinticError` where a checkpoint was trained on other data."""
    trained_on = found.state["fingerprint"]
    if trained_on != dataset.fingerprint:
        raise QuinticError(
            f"{dataset.path} is not the data that {found.path} was trained on (fingerprint "
            f"{dataset.fingerprint[:12]}, not {trained_on[:12]}): {way_out}"
        )


def check_same_config(config: Config, found: WholeCheckpoint) -> None:
    """Raise `QuinticError` where the config of a run would not have led to a checkpoint in its
    folder: one of the two was put there, or edited.

    A checkpoint of quintic 0.1 does not say what it was trained with, and is believed.
    """
    if "config" not in found.state:
        return
    try:
        trained = Config.from_dict(found.state["config"])
    except QuinticError as error:
        raise QuinticError(f"{found.path / STATE}: {error}") from error
    if changed := _changed(trained, config, found.state["step"]):
        was, now = flatten(trained), flatten(config)
        fields = ", ".join(f"{name} {was[name]!r}, not {now[name]!r}" for name in sorted(changed))
        raise QuinticError(
            f"{found.path} was trained with {fields} as the {run_dir.CONFIG} of its run says: put "
            f"the run's own {run_dir.CONFIG} or checkpoint back"
        )


def _check_continues(folder: Path, saved: Config, config: Config, done: int) -> None:
    """Raise `QuinticError` where `config` would not have led to the checkpoint, of `done` steps."""
    if changed := _changed(saved, config, done):
        why = (
            f"the {done} steps done were trained otherwise; "
            if done
            else f"{folder} was begun otherwise; remove it, of which no step is saved, or "
        )
        raise QuinticError(
            f"--resume cannot change {', '.join(sorted(changed))}: {why}start a new run with "
            "another --out"
        )


def _changed(saved: Config, config: Config, done: int) -> set[str]:
    """Return the fields in which `config` would have trained the steps already done otherwise."""
    changed, schedule = changed_fields(saved, config), changed_schedule(saved, config)
    alike = schedule and done <= config.train.steps and done <= steps_alike(saved, config)
    return changed - schedule if alike else changed


def changed_fields(saved: Config, config: Config) -> set[str]:
    """Return the fields in which two configs differ and which matter to what is computed."""
    facts = field_facts(Config)
    changed = {f for f in differing_fields(saved, config) if facts[f].resume != "free"}
    # What has no effect any more goes with the field that took it away.
    return changed - set(without_effect(Config, flatten(config)))


def changed_schedule(saved: Config, config: Config) -> set[str]:
    """Return those of the changed fields that may change as long as the schedules of the steps
    already done are as they were: a trapezoid can be prolonged until its cooldown begins."""
    facts = field_facts(Config)
    return {f for f in changed_fields(saved, config) if facts[f].resume == "schedule"}
