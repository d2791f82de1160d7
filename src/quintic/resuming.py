"""The continuation of a run that is on disk, in its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from quintic import run_dir
from quintic.checkpoint import load_state
from quintic.config import Config
from quintic.config.schema import require
from quintic.console import Console
from quintic.continuity import check_continues, check_same_config, check_same_data
from quintic.distributed.world import ALONE, World
from quintic.early_stop import stopped_early
from quintic.metrics_file import METRICS, lost_records
from quintic.run import Run
from quintic.run_checkpoints import check_none_lost, has_step, newest_whole
from quintic.setup import set_up


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
        check_continues(folder, saved, config, found.state["step"] if found else 0)
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
