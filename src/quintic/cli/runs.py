"""quintic train, evaluate, generate and recipes.

PyTorch takes seconds to import, so each command imports what it needs itself: not for `--help` or
a mistyped option.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quintic.cli.options import Evaluate, Generate, Train
from quintic.config import Config
from quintic.errors import QuinticError
from quintic.recipes import RECIPES

if TYPE_CHECKING:
    from quintic.distributed.world import World


def run_train(command: Train, arguments: Sequence[str]) -> None:
    """Train in this process, or start several that do; `arguments` is what they are started with.

    Of several, this is called once to start them, and once in each of them.
    """
    if command.resume is not None and command.out is not None:
        raise QuinticError("--resume continues in its own folder: leave --out away")
    if command.procs is not None and "RANK" not in os.environ:
        from quintic.distributed.launch import launch, process_count
        from quintic.run_dir import default_folder

        if command.resume is None and command.out is None:
            # Chosen here, so that all processes and their restarts have the same.
            arguments = [*arguments, "--out", str(default_folder(command.recipe))]
        code = launch(arguments, process_count(command.procs), command.max_restarts)
        raise SystemExit(code)

    from quintic.device import choose_device
    from quintic.distributed.signals import stop_with_launcher
    from quintic.distributed.world import connect, first_failure_speaks, launched_size

    if launched_size() > 1:
        stop_with_launcher()
    world = connect(choose_device(command.train.device).type)
    with first_failure_speaks(world):
        _train_here(command, world)


def _train_here(command: Train, world: World) -> None:
    """This process's part of a run."""
    from quintic.console import Console
    from quintic.report import closing_lines, opening_lines
    from quintic.run_dir import default_folder
    from quintic.setup import resume, start
    from quintic.train import train

    config = Config(
        recipe=command.recipe,
        model=command.model,
        data=command.data,
        optim=command.optim,
        train=command.train,
    )
    console = Console(quiet=not world.is_main)
    if len(set(world.all_gather_object(command.resume is not None))) > 1:
        # Each node's torchrun counts its own restarts, and none where a node comes back.
        raise QuinticError(
            "some processes would continue a run and others begin one: give all of them "
            "--auto-resume, the same --out, and a file system that all of them see"
        )
    if command.resume is not None:
        run = resume(command.resume, config, console, world, force_data=command.force_data)
        if run.done:
            console.line(f"{run.folder} is complete: all {run.config.train.steps} steps are done")
            return
    else:
        folder = command.out or world.on_main(lambda: default_folder(command.recipe))
        run = start(config, folder, console, world)
    for line in opening_lines(run):
        console.line(line)
    done = train(run, console)
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


def run_evaluate(command: Evaluate) -> None:
    from quintic.console import Console
    from quintic.data.loader import validation_batches
    from quintic.evaluate import validation_loss
    from quintic.report import score_lines
    from quintic.setup import load_trained

    console = Console()
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    dataset = trained.open_data(console, path=command.data, tokenizer=command.tokenizer)
    config = trained.config
    tokens = config.train.eval_tokens if command.tokens is None else command.tokens
    batches = validation_batches(
        dataset.val, config.model.context, tokens, config.train.micro_batch or 1
    )
    loss = validation_loss(trained.model.loss, batches, trained.device)
    for problem in trained.found.damaged:
        console.line(f"skipped: {problem}")
    console.line(f"{trained.found.path}, {tokens:,} validation tokens")
    for line in score_lines(dataset, loss, tokens):
        console.line(line)


def run_generate(command: Generate) -> None:
    from quintic.console import Console
    from quintic.generate import check_sampling, generate_ids, stream_text
    from quintic.setup import load_trained

    check_sampling(
        tokens=command.tokens,
        temperature=command.temperature,
        top_k=command.top_k,
        seed=command.seed,
    )
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    for problem in trained.found.damaged:
        print(f"skipped: {problem}", file=sys.stderr)
    dataset = trained.open_data(Console(), path=command.data, tokenizer=command.tokenizer)
    tokenizer = dataset.load_tokenizer()
    # A document begins with end of text; so does a prompt, which is the beginning of one.
    ids = generate_ids(
        trained.model,
        [tokenizer.eot_id, *tokenizer.encode(command.prompt)],
        tokens=command.tokens,
        temperature=command.temperature,
        top_k=command.top_k,
        seed=command.seed,
        vocab_size=tokenizer.vocab_size,
        stop_id=tokenizer.eot_id,
    )
    print(command.prompt, end="", flush=True)
    for text in stream_text(tokenizer, ids):
        print(text, end="", flush=True)
    print(flush=True)


def run_recipes() -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from quintic.config import resolve_vocabulary
    from quintic.model.build import meta_model

    table = Table("recipe", "parameters", "tokens", "hardware", "expected loss", box=SIMPLE_HEAD)
    for name, recipe in RECIPES.items():
        config = recipe.build()
        config = resolve_vocabulary(config, config.data.embedded_vocab)
        table.add_row(
            name,
            f"{meta_model(config.model).parameter_count() / 1e6:.1f}M",
            f"{config.tokens / 1e6:,.0f}M",
            recipe.hardware,
            recipe.expected,
        )
    console = Console(highlight=False)
    console.print(table)
    for name, recipe in RECIPES.items():
        console.print(f"{name}: {recipe.summary}", markup=False)
