"""A sweep from its first run to what it found: sweep.json, lines on the console, figure, best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic.config import resolve_vocabulary
from quintic.console import Console, SweepProgress
from quintic.device import choose_device, compute_dtype
from quintic.errors import QuinticError, counted, in_command
from quintic.files import write_json
from quintic.run_dir import lock
from quintic.setup import open_data
from quintic.sweep.execute import Job, execute
from quintic.sweep.figure import draw_sweep
from quintic.sweep.plan import Plan, PlannedRun
from quintic.sweep.record import BEST, FIGURE, Outcomes, read_outcomes, steps_done, write_record
from quintic.sweep.summary import SweepSummary, summarize_sweep, table


def run_sweep(plan: Plan, folder: Path, *, jobs: int) -> None:
    """Train what the folder lacks of a plan, and write and say what the sweep found.

    Raises `QuinticError` where the folder holds something else, where no run of the plan could
    train here and where runs failed, and `SystemExit` with 130 where a signal stopped it.
    """
    console = Console()
    read_outcomes(folder, plan)  # before anything that takes time or writes
    _check_runs(plan, console)
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    try:
        _sweep_in(folder, plan, jobs, console, read_outcomes(folder, plan))
    finally:
        held.release()


def _check_runs(plan: Plan, console: Console) -> None:
    """Raise `QuinticError` for what would make every run fail: no such data or device.

    Builds the embedded corpus where that is the data, once instead of in every run.
    """
    vocabulary = open_data(plan.base, console).vocab_size
    for run in plan.runs:
        resolve_vocabulary(run.config, vocabulary)
        train = run.config.train
        compute_dtype(train.precision, choose_device(train.device))


def _sweep_in(folder: Path, plan: Plan, jobs: int, console: Console, outcomes: Outcomes) -> None:
    done = sum(outcome.final for outcome in outcomes.values())
    first = plan.base.train.seed
    console.line(
        f"sweep   {counted(len(plan.runs), 'run')} in {folder}: {', '.join(plan.fields)} in "
        f"{counted(len(plan.runs) // plan.seeds, 'combination')}, "
        f"{f'seeds {first} to {first + plan.seeds - 1}' if plan.seeds > 1 else f'seed {first}'}, "
        f"{jobs} at once{f'; {done} done' if done else ''}"
    )
    watch = _Watch(folder, plan, outcomes, console)
    with watch.bar:
        whole = execute(
            plan.runs, folder, outcomes, jobs=jobs, on_change=watch.changed, on_end=watch.ended
        )
    summary = summarize_sweep(plan, outcomes)
    console.table(table(summary), "final loss in nats per token, best first")
    _conclude(folder, summary, console)
    if not whole:
        console.line("stopped and saved; the same command continues the sweep")
        raise SystemExit(130)
    failed = [name for name, outcome in outcomes.items() if outcome.kind == "failed"]
    for name in failed:
        console.line(f"failed: {name}: {outcomes[name].message}")
    if failed:
        raise QuinticError(
            f"{len(failed)} of {counted(len(outcomes), 'run')} failed, see above and "
            f"{folder / failed[0]}.log: the same command tries them again"
        )


class _Watch:
    """Keeps sweep.json and the console up to date while runs go on."""

    def __init__(self, folder: Path, plan: Plan, outcomes: Outcomes, console: Console) -> None:
        self.folder, self.plan, self.outcomes, self.console = folder, plan, outcomes, console
        self.bar = SweepProgress(
            console,
            runs=len(plan.runs),
            steps=sum(run.config.train.steps for run in plan.runs),
            steps_done=self._done()[1],
        )
        self._announced: set[tuple[str, bool]] = set()
        self._best = ""
        self._write()

    def changed(self, going: list[Job]) -> None:
        """Show what goes on; called often."""
        for job in going:
            if (key := (job.run.name, job.waits)) not in self._announced:
                self._announced.add(key)
                self.console.line(
                    f"{job.run.name} is still trained by an earlier start of this sweep: waiting"
                    if job.waits
                    else f"training {job.run.name}"
                )
        self.bar.show(*self._done(going), self._best)

    def ended(self, run: PlannedRun) -> None:
        """Record the outcome of a run and print it; called once for each."""
        self._write()
        outcome = self.outcomes[run.name]
        if outcome.kind == "unfinished":
            self.console.line(f"stopped {run.name}")
            return
        result = outcome.kind if outcome.val_loss is None else f"loss {outcome.val_loss:.4f}"
        if outcome.kind == "failed" or outcome.learned_nothing:
            result += f" ({outcome.message})"
        self.bar.ended(*self._done(), f"{run.name}: {result}  {self._best}".rstrip())

    def _done(self, going: Sequence[Job] = ()) -> tuple[int, int]:
        """Return how many runs have ended, and the steps of these and of those that go on."""
        ended = [r for r in self.plan.runs if self.outcomes[r.name].kind != "unfinished"]
        steps = sum(run.config.train.steps for run in ended)
        return len(ended), steps + sum(steps_done(job.folder) for job in going)

    def _write(self) -> None:
        summary = summarize_sweep(self.plan, self.outcomes)
        write_record(self.folder, self.plan, self.outcomes, summary.to_dict())
        if (leader := summary.leader) is not None and leader.loss is not None:
            self._best = f"best so far {leader.loss.mean:.4f} ({leader.name})"


def _conclude(folder: Path, summary: SweepSummary, console: Console) -> None:
    """Write the figure and the best as a recipe, and say what the sweep says."""
    if any(combination.count("unfinished") == 0 for combination in summary.ranked):
        draw_sweep(summary, folder / FIGURE)
        console.line(f"figure  {folder / FIGURE}")
    if summary.best is None:
        (folder / BEST).unlink(missing_ok=True)
        console.line("best    none yet: of no combination has every seed come to its end")
        return
    write_json(folder / BEST, summary.best.config.to_dict())
    console.line(f"best    {summary.best.name}: quintic train {in_command(folder / BEST)}")
    if summary.best.learned_nothing:
        console.line(f"note: of {summary.best.name}, {summary.best.learned_nothing}")
    if summary.edges:
        console.line(f"note: {'; '.join(summary.edges)}: extend the sweep beyond it")
