"""quintic train."""

from __future__ import annotations

import os
from collections.abc import Sequence

from quintic.cli.options import Train
from quintic.config.schema import require
from quintic.console import Console
from quintic.device import choose_device
from quintic.distributed.failures import first_failure_speaks
from quintic.distributed.rendezvous import connect, launched_size
from quintic.distributed.signals import stop_with_launcher
from quintic.distributed.world import World
from quintic.errors import QuinticError
from quintic.report import closing_lines, opening_lines
from quintic.run_dir import default_folder
from quintic.setup import resume, start
from quintic.train import train_run


def run(command: Train, arguments: Sequence[str]) -> None:
    """Train in this process, or start several that do; `arguments` is what they are started with.

    Of several, this is called once to start them, and once in each of them.
    """
    if command.resume is not None and command.out is not None:
        raise QuinticError("--resume continues in its own folder: leave --out away")
    require(
        command.resume is not None or not command.force_data or command.auto_resume,
        "--force-data is for a run that continues: give --resume, or leave it out",
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

        if command.resume is None and command.out is None:
            # Chosen here, so that all processes and their restarts have the same.
            arguments = [*arguments, "--out", str(default_folder(command.recipe))]
        code = launch(arguments, process_count(command.procs), command.max_restarts)
        raise SystemExit(code)

    if launched_size() > 1:
        stop_with_launcher()
    world = connect(choose_device(command.train.device).type)
    with first_failure_speaks(world):
        train_here(command, world)


def train_here(command: Train, world: World) -> None:
    """Do this process's part of a run."""
    console = Console(quiet=not world.is_main)
    if len(set(world.all_gather_object(command.resume is not None))) > 1:
        # Each node's torchrun counts its own restarts, and none where a node comes back.
        raise QuinticError(
            "some processes would continue a run and others begin one: give all of them "
            "--auto-resume, the same --out, and a file system that all of them see"
        )
    if command.resume is not None:
        run = resume(command.resume, command.config, console, world, force_data=command.force_data)
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
    else:
        folder = command.out or world.on_main(lambda: default_folder(command.recipe))
        run = start(command.config, folder, console, world)
    for line in opening_lines(run):
        console.line(line)
    done = train_run(run, console)
    if not world.is_main:
        return
    if done:
        for line in closing_lines(run):
            console.line(line)
    else:
        console.line(
            f"stopped and saved at step {run.state.step} of {run.config.train.steps}; continue "
            f"with: quintic train --resume {run.folder}"
        )
