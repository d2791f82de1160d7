"""quintic train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from quintic.cli.options import Train
from quintic.cli.parsing import opening_notes
from quintic.config.schema import require
from quintic.console import Console
from quintic.continuation import continue_run, continued_folder, needs_new_folder, start_from
from quintic.device import choose_device
from quintic.distributed.failures import first_failure_speaks
from quintic.distributed.rendezvous import connect, launched_size
from quintic.distributed.signals import stop_with_launcher
from quintic.distributed.world import World
from quintic.errors import QuinticError, in_command, reason
from quintic.malloc import keep_freed_memory
from quintic.recipes import folder_stem
from quintic.resuming import resume
from quintic.run import Run
from quintic.run_checkpoints import has_step
from quintic.run_dir import REPORT, default_folder
from quintic.run_lines import closing_lines, opening_lines
from quintic.setup import check_divided, start
from quintic.threads import choose_threads
from quintic.track.attempt import check_no_attempt
from quintic.train import train_run

REPORT_S = 20.0
"""Seconds that the report at the end may measure losses for."""


def run(command: Train, arguments: Sequence[str]) -> None:
    """Train in this process, or start several that do; `arguments` is what they are started with.

    Of several, this is called once to start them, and once in each of them.
    """
    resumes = command.resume is not None or command.auto_resume
    for option, given in (
        ("force-data", command.force_data),
        ("fresh-cooldown", command.fresh_cooldown),
    ):
        require(
            resumes or not given,
            f"--{option} is for a run that continues: give --resume, or leave it out",
        )
    require(
        command.resume is None or command.init_from is None,
        "--init-from begins a new run and --resume continues one: leave one of them out",
    )
    require(
        command.init_from is not None or command.checkpoint == "newest",
        f"--checkpoint {command.checkpoint} chooses the weights of --init-from: give that, or "
        "leave it out",
    )
    require(
        command.max_restarts >= 0, f"--max-restarts is {command.max_restarts}: it must be 0 or more"
    )
    require(
        command.procs is not None or command.max_restarts == 0,
        "--max-restarts is for processes that --procs starts: give --procs, or leave it out",
    )
    launched = "TORCHELASTIC_RUN_ID" in os.environ  # by the line below, or by torchrun
    if command.procs is not None and not launched and launched_size() > 1:
        raise QuinticError(
            f"--procs {command.procs} starts processes of its own, and WORLD_SIZE is "
            f"{launched_size()} in the environment, as if this were one of several already: unset "
            "WORLD_SIZE and RANK, or leave --procs out"
        )
    if command.procs is not None and not launched:
        from quintic.distributed.launch import launch, process_count

        procs = process_count(command.procs)
        check_divided(command.config, procs)  # before thousands are started
        with ExitStack() as taken:
            if command.out is None and (out := new_folder(command, taken)) is not None:
                # Chosen here, so that all processes and their restarts have the same.
                arguments = [*arguments, "--out", str(out)]
            code = launch(arguments, procs, command.max_restarts)
        raise SystemExit(code)

    if launched_size() > 1:
        stop_with_launcher()
    device = choose_device(command.train.device)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cpu" and launched_size() == 1 and (chosen := choose_threads(command.resume)):
        Console(unheard=True).line(chosen)
    world = connect(device.type)
    with first_failure_speaks(world), ExitStack() as taken:
        train_here(command, opening_notes(command.config, arguments), world, taken)


def new_folder(command: Train, taken: ExitStack) -> Path | None:
    """Return the folder of the run that begins; None where one continues in its own. One that
    nobody named is taken as long as `taken` is open.

    Raises `QuinticError` where a scheduler's next start would not find it.
    """
    if command.resume is None:
        return command.out or taken.enter_context(default_folder(folder_stem(command.recipe)))
    if command.out is not None:
        return command.out
    folder, config = command.resume, command.config
    begins = command.force_data or command.fresh_cooldown or needs_new_folder(folder, config)
    require(
        not (begins and command.auto_resume),
        # The next start would have to find what this one began.
        f"{folder} stays as it is, and what goes on from it has a folder of its own, which "
        f"--auto-resume must know: give --resume {folder} and another --out",
    )
    return continued_folder(folder, config.train.steps) if begins else None


def train_here(command: Train, notes: Sequence[str], world: World, taken: ExitStack) -> None:
    """Do this process's part of a run, in a folder that `taken` may hold; `notes` are said when it
    begins."""
    # A reader that goes away, as `| tee` does at a Ctrl-C, is no reason to lose what is trained.
    console = Console(quiet=not world.is_main, unheard=True)
    if len(set(world.all_gather_object(command.resume is not None))) > 1:
        # Each node's torchrun counts its own restarts, and none where a node comes back.
        raise QuinticError(
            "some processes would continue a run and others begin one: give all of them "
            "--auto-resume, the same --out, and a file system that all of them see"
        )
    config, folder = command.config, world.on_main(lambda: new_folder(command, taken))
    if command.resume is not None and folder is not None:
        run = continue_run(
            command.resume,
            config,
            folder,
            console,
            world,
            force_data=command.force_data,
            fresh_cooldown=command.fresh_cooldown,
        )
    elif command.resume is not None:
        check_no_attempt(command.resume)
        run = resume(command.resume, config, console, world)
        if run.stopped_early:
            console.line(
                f"{run.folder} stopped early, at step {run.state.step} of "
                f"{run.config.train.steps}: {run.stopped_early}; to go on, give another "
                "--train.target-loss or --train.patience with --resume, or None for none"
            )
            return
        if run.done:
            steps = run.config.train.steps
            all_steps = "its one step is" if steps == 1 else f"all {steps} steps are"
            console.line(f"{run.folder} is complete: {all_steps} done")
            return
    elif command.init_from is not None:
        assert folder is not None, "a new run has one"
        which = command.checkpoint
        run = start_from(command.init_from, config, folder, console, world, which=which)
    else:
        assert folder is not None, "a new run has one"
        run = start(config, folder, console, world)
    for line in [*opening_lines(run), *notes]:
        console.line(line)
    done = train_run(run, console)
    if not world.is_main:
        return
    if done:
        for line in closing_lines(run):
            console.line(line)
        if run.config.train.report:
            _report(run, console)
        if run.config.train.export_at_end != "none":
            _export(run, console)
    else:
        place = f"at step {run.state.step} of {run.config.train.steps}"
        saved = has_step(run.folder, run.state.step)
        console.line(
            (f"stopped and saved {place}; continue" if saved else f"stopped {place}; begin again")
            + f" with: quintic train --resume {in_command(run.folder)}"
        )


def _report(run: Run, console: Console) -> None:
    """Write the report of a run that is done; where that cannot be, say why, since the run is whole
    without."""
    from quintic.report.contents import measure, note_failure, read_contents
    from quintic.report.page import write_report

    path = run.folder / REPORT
    try:
        contents = read_contents(run.folder)
        try:
            if run.sharded:
                raise QuinticError(
                    f"the weights were divided among processes: quintic report {run.folder} "
                    "measures them"
                )
            with run.computing():
                contents.measured = measure(
                    run.state.model,
                    run.dataset,
                    run.config,
                    run.state.step,
                    contents.missing,
                    longest_s=REPORT_S,
                )
        except Exception as error:
            note_failure(contents, error)
        write_report(contents, path)
    except Exception as error:  # a page is not worth a run
        why = error if isinstance(error, QuinticError) else reason(error)
        console.line(f"no report: {why}; see quintic report {run.folder}")
    else:
        console.line(f"report  {path}")


def _export(run: Run, console: Console) -> None:
    """Export the model of a run that is done, or say why that cannot be: the run is whole without,
    and starting it again would not help."""
    from quintic.export.export import default_out, export
    from quintic.export.source import open_source

    target = run.config.train.export_at_end
    try:
        out = default_out(run.folder, target)
        export(open_source(run.folder, console), target, out, console.line)
    except (QuinticError, OSError) as error:
        why = error if isinstance(error, QuinticError) else reason(error)
        console.line(f"not exported: {why}; see quintic export {run.folder} --to {target}")
    else:
        console.line(f"export  {out}")
