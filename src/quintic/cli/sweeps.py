"""quintic sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintic.cli.grid import parse_vary
from quintic.cli.options import Sweep
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.sweep.plan import Plan, PlannedRun, make_plan

if TYPE_CHECKING:
    from quintic.console import Console
    from quintic.sweep.execute import Job
    from quintic.sweep.record import Outcomes
    from quintic.sweep.summary import Found


def run_sweep(command: Sweep) -> None:
    if command.jobs < 1:
        raise QuinticError(f"--jobs is {command.jobs}: it must be at least 1")
    base = Config(
        recipe=command.recipe,
        model=command.model,
        data=command.data,
        optim=command.optim,
        train=command.train,
    )
    varied = [parse_vary(text) for text in command.vary]
    plan = make_plan(base, varied, seeds=command.seeds, draws=command.random)
    folder = command.out or Path("runs") / f"{command.recipe}-sweep"

    from quintic.console import Console
    from quintic.run_dir import lock
    from quintic.sweep.record import begin

    console = Console()
    begin(folder, plan)  # before anything that takes time or writes
    _check_runs(plan, console)
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    try:
        _sweep_in(folder, plan, command.jobs, console, begin(folder, plan))
    finally:
        held.release()


def _check_runs(plan: Plan, console: Console) -> None:
    """Raise `QuinticError` for what would make every run fail: no such data or device.

    Builds the embedded corpus where that is the data, once instead of in every run.
    """
    from quintic.config import resolve_vocabulary
    from quintic.device import choose_device, compute_dtype
    from quintic.setup import open_data

    vocabulary = open_data(plan.base, console).vocab_size
    for run in plan.runs:
        resolve_vocabulary(run.config, vocabulary)
        train = run.config.train
        compute_dtype(train.precision, choose_device(train.device))


def _sweep_in(folder: Path, plan: Plan, jobs: int, console: Console, outcomes: Outcomes) -> None:
    from quintic.compare.table import print_table
    from quintic.sweep.execute import execute
    from quintic.sweep.summary import summarize_sweep, table

    done = sum(outcome.final for outcome in outcomes.values())
    first = plan.base.train.seed
    console.line(
        f"sweep   {len(plan.runs)} runs in {folder}: {', '.join(plan.fields)} in "
        f"{len(plan.runs) // plan.seeds} combinations, "
        f"{f'seeds {first} to {first + plan.seeds - 1}' if plan.seeds > 1 else f'seed {first}'}, "
        f"{jobs} at once{f'; {done} done' if done else ''}"
    )
    with _Watch(folder, plan, outcomes, console) as watch:
        whole = execute(
            plan, folder, outcomes, jobs=jobs, on_change=watch.changed, on_end=watch.ended
        )
    found = summarize_sweep(plan, outcomes)
    print_table(console.rich, "final loss in nats per token, best first", table(found))
    _conclude(folder, found, console)
    if not whole:
        console.line("stopped and saved; the same command continues the sweep")
        raise SystemExit(130)
    failed = [name for name, outcome in outcomes.items() if outcome.kind == "failed"]
    for name in failed:
        console.line(f"failed: {name}: {outcomes[name].message}")
    if failed:
        raise QuinticError(
            f"{len(failed)} of {len(outcomes)} runs failed, see above and {folder / failed[0]}.log:"
            " the same command tries them again"
        )


class _Watch:
    """Keeps sweep.json and the console up to date while runs go on; a context manager."""

    def __init__(self, folder: Path, plan: Plan, outcomes: Outcomes, console: Console) -> None:
        from quintic.console import SweepProgress

        self.folder, self.plan, self.outcomes, self.console = folder, plan, outcomes, console
        self._bar = SweepProgress(
            console,
            runs=len(plan.runs),
            steps=sum(run.config.train.steps for run in plan.runs),
            steps_done=self._steps([]),
        )
        self._said: set[str] = set()
        self._best = ""

    def __enter__(self) -> _Watch:
        self._write()
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def changed(self, going: list[Job]) -> None:
        """Called often."""
        for job in going:
            name = f"{job.run.name} (waits)" if job.waits else job.run.name
            if name not in self._said:
                self._said.add(name)
                self.console.line(
                    f"{job.run.name} is still trained by an earlier start of this sweep: waiting"
                    if job.waits
                    else f"training {job.run.name}"
                )
        self._bar.show(self._ended(), self._steps(going), self._best)

    def ended(self, run: PlannedRun) -> None:
        """Called once for each run, with its outcome noted."""
        self._write()
        outcome = self.outcomes[run.name]
        if outcome.kind == "unfinished":
            self.console.line(f"stopped {run.name}")
            return
        what = outcome.kind if outcome.val_loss is None else f"loss {outcome.val_loss:.4f}"
        if outcome.kind == "failed":
            what += f" ({outcome.message})"
        self._bar.ended(
            self._ended(), self._steps([]), f"{run.name}: {what}  {self._best}".rstrip()
        )

    def _ended(self) -> int:
        return sum(outcome.kind != "unfinished" for outcome in self.outcomes.values())

    def _steps(self, going: list[Job]) -> int:
        from quintic.sweep.record import steps_done

        done = (r for r in self.plan.runs if self.outcomes[r.name].kind != "unfinished")
        return sum(run.config.train.steps for run in done) + sum(
            steps_done(job.folder) for job in going
        )

    def _write(self) -> None:
        from quintic.sweep.record import write
        from quintic.sweep.summary import summarize_sweep

        found = summarize_sweep(self.plan, self.outcomes)
        write(self.folder, self.plan, self.outcomes, found.to_dict())
        if (leader := found.leader) is not None and leader.loss is not None:
            self._best = f"best so far {leader.loss.mean:.4f} ({leader.name})"


def _conclude(folder: Path, found: Found, console: Console) -> None:
    """Write the figure and the best as a recipe, and say what the sweep says."""
    from quintic.files import write_json
    from quintic.sweep.figure import draw_sweep
    from quintic.sweep.record import BEST, FIGURE

    if any(combination.count("unfinished") == 0 for combination in found.ranked):
        draw_sweep(found, folder / FIGURE)
        console.line(f"figure  {folder / FIGURE}")
    if found.best is None:
        (folder / BEST).unlink(missing_ok=True)
        console.line("best    none yet: of no combination has every seed come to its end")
        return
    write_json(folder / BEST, found.best.config.to_dict())
    console.line(f"best    {found.best.name}: quintic train {folder / BEST}")
    if found.edges:
        console.line(f"note: {'; '.join(found.edges)}: extend the sweep beyond it")
