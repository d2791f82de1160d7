"""The training loop: validate, save, stop or train a step, in this order and without callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import torch
from torch import Tensor

from quintic import run_dir
from quintic.checkpoint_writer import CheckpointWriter
from quintic.console import Console, RunProgress
from quintic.data.loader import Batch, validation_batches
from quintic.data.prefetch import Prefetcher, Uploader
from quintic.device import DeviceTimer, peak_flops
from quintic.diagnostics.in_training import Diagnostics
from quintic.distributed.signals import GracefulShutdown
from quintic.distributed.watchdog import Watchdog
from quintic.distributed.world import ALONE
from quintic.early_stop import why_stop
from quintic.errors import QuinticError, memory_reason, reason, start_lower, way_out
from quintic.evaluate import split_batch, sum_losses
from quintic.figure import draw_loss
from quintic.metrics import Metrics, NonFiniteLossError, Value
from quintic.metrics_file import METRICS, read_records
from quintic.optim.muon import Muon
from quintic.optim.schedule import scheduled
from quintic.run import Run
from quintic.run_checkpoints import due_steps, last_checkpoint
from quintic.samples import Samples
from quintic.tasks.curves import score_fields
from quintic.tasks.in_training import TrainingTasks
from quintic.tasks.score import save_scores
from quintic.trackers.processes import tracking

UNWATCHED = Watchdog(ALONE, math.inf)
"""Takes note of what is done outside the loop, and does nothing about it."""


def train_run(run: Run, console: Console) -> bool:
    """Train a run to its end, which may be early, and return True, or False where a signal stopped
    it first; either way it is saved.

    Raises `QuinticError` where the loss is not finite, memory does not suffice or a checkpoint
    cannot be written; every checkpoint on disk is whole then.
    """
    with ExitStack() as stack:
        if run.world.is_main:
            stack.callback(run_dir.lock(run.folder).release)
        with _errors_in_words(run):
            if run.world.is_main:
                run_dir.write_config(run.folder, run.config)
                kept = run_dir.keep_tokenizer(run.folder, run.dataset.tokenizer_spec)
                run_dir.record_environment(
                    run.folder,
                    run.device,
                    processes=run.world.size,
                    data=run.dataset.fingerprint,
                    flops_per_token=run.state.model.flops_per_token(),
                    **kept,
                )
            names = run.config.train.log_to if run.world.is_main else ()
            with tracking(run.folder, names, console) as trackers:
                _loop(run, console)
                trackers.outcome = "finished" if run.done else "stopped"
    return run.done


@contextmanager
def _errors_in_words(run: Run) -> Iterator[None]:
    """Raise `QuinticError` for what went wrong in training, with what is saved and the way out."""
    root = run.folder / run_dir.CHECKPOINTS
    try:
        yield
    except NonFiniteLossError as error:
        raise QuinticError(
            f"{error}: training has diverged, {last_checkpoint(root)}; "
            f"{start_lower(run.config.optim.lr_options, run.folder)}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if (found := memory_reason(error)) is None:
            raise
        micro_batch, smallest = run.config.train.micro_batch or 1, run.config.batches.smallest
        halves = (m for m in range(micro_batch // 2, 0, -1) if smallest % m == 0)
        smaller = next((f"--train.micro-batch {m}" for m in halves), "a smaller --model.context")
        raise QuinticError(
            f"train.micro_batch {micro_batch} does not fit into the memory of {run.device} "
            f"({found}): use {smaller}"
        ) from error
    except BrokenPipeError:
        raise  # whoever read the output went away; nothing is wrong with the run
    except OSError as error:
        raise QuinticError(
            f"{error.filename or run.folder}: {reason(error)}; {last_checkpoint(root)}: "
            f"{way_out(error)}, then continue with --resume {run.folder}"
        ) from error


def _loop(run: Run, console: Console) -> None:
    config, state, world = run.config, run.state, run.world
    steps, saved_step = config.train.steps, state.step  # there is nothing new to save yet
    root, saves = run.folder / run_dir.CHECKPOINTS, set(due_steps(config))
    with ExitStack() as stack:
        stack.enter_context(run.computing())
        # First, since it guards the closing of the rest.
        stop = stack.enter_context(GracefulShutdown(world).handling_signals())
        progress = stack.enter_context(RunProgress(console, steps, state.step))
        metrics = stack.enter_context(closing(_open_metrics(run, progress)))
        # It watches over the writing of the last checkpoint too, when all is closed.
        watchdog = stack.enter_context(Watchdog(world, config.train.hang_timeout_s).running())
        checkpoints = stack.enter_context(closing(CheckpointWriter(root, config, world)))
        samples = Samples(run, console)
        diagnostics = stack.enter_context(closing(Diagnostics(run)))
        drawer = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        batches = stack.enter_context(
            Prefetcher(
                lambda step: run.loader.batch(step, run.rows(step)),
                state.step,
                steps,
                pin=run.device.type == "cuda",
                upload=Uploader(run.device) if run.prefetches_to_gpu else None,
            )
        )
        stop.cast_vote()
        while True:
            step = state.step
            watchdog.at(step, "the vote on stopping", waits=True)
            stopping = stop.agreed()
            # A resumed run begins with the validation of its step, so a stop need not wait for it.
            measured = step % config.train.eval_every == 0 or step == config.continued_from.anew
            if run.done or (measured and not stopping):
                watchdog.at(step, "validation")
                metrics.flush()
                began = time.perf_counter()
                state.val_loss = evaluate_run(run, watchdog)
                seconds = time.perf_counter() - began
                run.stopped_early = _why_stop(run, [*metrics.val_losses, state.val_loss])
                metrics.validation(step, state.val_loss, seconds, stopped_early=run.stopped_early)
                if world.is_main:
                    watchdog.at(step, "the sample")
                    samples.take()
                    drawer.submit(_draw, run, console)
                    metrics.restart_clock()
                stop.cast_vote()
                stopping = stop.agreed()

            if run.tasks is not None and run.tasks.due(step, done=run.done) and not stopping:
                metrics.flush()
                began = time.perf_counter()
                found = score_run(run, run.tasks, watchdog)
                metrics.scores(step, found, time.perf_counter() - began)
                if world.is_main:
                    drawer.submit(_draw, run, console)
                stop.cast_vote()
                stopping = stop.agreed()

            due = step in saves or run.done or stopping
            if due and (step != saved_step or run.stopped_early):
                watchdog.at(step, "the checkpoint", waits=True)
                metrics.flush()
                state.elapsed_s = metrics.elapsed_s
                checkpoints.save(state)
                saved_step = step
                metrics.restart_clock()

            if run.done or stopping:
                break

            watchdog.at(step, "reading its batch")
            batch = batches.get(step)
            values = apply_schedule(run, step)
            if diagnostics.due(step):
                watchdog.at(step, "diagnostics")
                metrics.flush()
                diagnostics.begin(step, batch)
                metrics.restart_clock()
            loss = forward_backward(run, batch, watchdog)
            stop.cast_vote()
            timer = DeviceTimer(run.device)
            grad_norm = run.stepper.step(config.optim.clip_norm)
            values["optimizer_ms"] = timer.stop()
            if grad_norm is not None:
                values["grad_norm"] = grad_norm
            state.step, state.val_loss = step + 1, None
            metrics.train(step, loss, **values)
            if diagnostics.due(step):
                watchdog.at(step, "diagnostics")
                metrics.flush()
                diagnostics.end(step, partial(watchdog.at, step, "diagnostics"))
                metrics.restart_clock()


def _why_stop(run: Run, losses: list[float]) -> str | None:
    """Return why the run stops early; rank 0, which has all of its validation losses, decides for
    every process."""
    train, world = run.config.train, run.world
    if run.state.step >= train.steps or (train.target_loss is None and train.patience is None):
        return None
    why = why_stop(train, losses) if world.is_main else None
    # Not `on_main`, whose group a checkpoint that is still being written may be using.
    stops = bool(world.all_reduce(torch.tensor([float(why is not None)])).item())
    return why or "rank 0 said so" if stops else None


def forward_backward(run: Run, batch: Batch, watchdog: Watchdog = UNWATCHED) -> Tensor:
    """Accumulate the gradient of this process's rows of the global batch, and with the last of
    them begin to add up all processes'; return the mean loss of the batch, on the device.

    The batch is as large as that of `state.step`.
    """
    step = run.state.step
    micro_batches, sequences = run.micro_batches(step), run.config.batches.at(step)
    total = torch.zeros((), device=run.device)
    if run.weight_cache is not None:
        run.weight_cache.renew()
    parts = split_batch(batch, micro_batches)
    for number, ((inputs_BT, targets_BT), weight) in enumerate(parts, 1):
        watchdog.at(step, f"forward and backward pass {number} of {micro_batches}")
        run.stepper.set_requires_gradient_sync(number == micro_batches)
        loss = run.loss(
            inputs_BT.to(run.device, non_blocking=True),
            targets_BT.to(run.device, non_blocking=True),
        )
        part = loss * (weight / sequences)
        part.backward()
        total = total + part.detach()
    watchdog.at(step, "adding up gradients and updating weights", waits=True)
    return run.world.all_reduce(total)


def apply_schedule(run: Run, step: int) -> dict[str, Value]:
    """Set what the schedules decide for a step; return what the block matrices get, to log."""
    now = scheduled(run.config, step)
    for optimizer in run.state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * now.lr_factor
            if isinstance(optimizer, Muon):
                group["momentum"] = now.momentum
    run.state.model.set_window(now.window)
    run.state.model.set_mtp_weights(now.token_weights)
    return {"lr": run.config.optim.matrix_lr * now.lr_factor, "lr_factor": now.lr_factor}


def evaluate_run(run: Run, watchdog: Watchdog = UNWATCHED) -> float:
    """Return the validation loss in nats per token on the first `train.eval_tokens` of the stream;
    `run.validation` has its sums.

    The model is taken as it is at `state.step`: a window that grows is that of this step.
    """
    config = run.config
    assert config.train.micro_batch is not None, "set_up resolves it"
    run.state.model.set_window(scheduled(config, run.state.step).window)
    if run.weight_cache is not None:
        run.weight_cache.renew()
    batches = validation_batches(
        run.dataset.val,
        config.model.context,
        config.train.eval_tokens,
        config.train.micro_batch * run.world.size,
    )

    def noted() -> Iterator[Batch]:
        for batch in batches:
            watchdog.at(run.state.step, "validation")
            yield batch

    special_ids = run.dataset.special_ids
    run.validation = sum_losses(run.loss, noted(), run.device, run.world, special_ids)
    return run.validation.mean


def score_run(
    run: Run, tasks: TrainingTasks, watchdog: Watchdog = UNWATCHED
) -> dict[str, dict[str, float]]:
    """Return what a record says of the scores on the run's tasks, by task and name; those of its
    end are kept in its folder, item by item."""
    step = run.state.step
    run.state.model.set_window(scheduled(run.config, step).window)
    if run.weight_cache is not None:
        run.weight_cache.renew()
    found = tasks.score(run.state.model, run.world, lambda what: watchdog.at(step, what))
    if run.world.is_main and run.done:
        for scores in found:
            save_scores(run.folder, step, scores)
    return {scores.task: score_fields(scores) for scores in found}


def _open_metrics(run: Run, progress: RunProgress) -> Metrics:
    peak = peak_flops(run.device, run.state.model.compute_dtype)
    return Metrics(
        run.folder if run.world.is_main else None,
        step=run.state.step,
        elapsed_s=run.state.elapsed_s,
        tokens_before=run.config.tokens_before,
        flops_per_token=run.state.model.flops_per_token(),
        peak_flops=peak and peak * run.world.size,
        device=run.device,
        log_every=run.config.train.log_every,
        on_record=progress.show,
    )


def _draw(run: Run, console: Console) -> None:
    title = f"{run.folder.name}, {run.state.model.parameter_count():,} parameters"
    try:
        draw_loss(read_records(run.folder / METRICS), run.folder / run_dir.FIGURE, title)
    except Exception as error:  # a picture is not worth a run
        console.line(f"{run_dir.FIGURE} was not drawn: {reason(error)}")
