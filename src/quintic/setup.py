"""A run, checked and built.

Everything a user can get wrong is found here, before step 0 and before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from quintic import run_dir
from quintic.config import (
    EMBEDDED,
    Config,
    ModelConfig,
    Precision,
    TrainConfig,
    differing_fields,
    field_facts,
    from_the_start,
    resolve_eot,
    resolve_vocabulary,
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
    compute_dtype,
)
from quintic.distributed.world import ALONE, World, check_identical
from quintic.errors import QuinticError, counted, memory_reason
from quintic.kernels.runnable import choose_loss, require_float8
from quintic.model.attention_backend import check_attention
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
from quintic.optim.step import LocalStepper, Stepper
from quintic.optim.zero1 import Zero1Stepper
from quintic.run import Run
from quintic.tasks.in_training import open_tasks
from quintic.trackers import check_trackers
from quintic.train_state import TrainState


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
