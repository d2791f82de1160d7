"""The `quintic` command: parse, call, print. The only file that knows the command-line library.

Anything a user can cause ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from quintic.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, unknown_field
from quintic.errors import QuinticError
from quintic.recipes import RECIPES, get_recipe

DEFAULT_RECIPE = "laptop"


@dataclass(frozen=True)
class Train:
    """Train a model: quintic train [RECIPE] [--section.field VALUE ...] [--out DIR]"""

    recipe: Positional[str] = DEFAULT_RECIPE
    """Name of a recipe (see quintic recipes); its values are the defaults shown here."""
    out: Path | None = None
    """Folder of the run; default runs/RECIPE-N with the next free N."""
    resume: Path | None = None
    """Continue the run in this folder."""
    force_data: bool = False
    """Resume on data with another fingerprint."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Evaluate:
    """Validation loss of a trained model, on the tokens the run validated on."""

    run: Positional[Path]
    """Folder of the run."""
    checkpoint: Literal["newest", "best"] = "newest"
    """Newest, or best by validation loss."""
    tokens: int | None = None
    """Validation tokens; default as the run."""
    data: str | None = None
    """Where the run's dataset lies now, if it moved."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Generate:
    """Text from a trained model."""

    run: Positional[Path]
    """Folder of the run."""
    prompt: str = ""
    """Text to continue; empty: begin a document."""
    tokens: int = 200
    """Tokens to generate, at most."""
    temperature: float = 0.8
    """0: always the likeliest token; 1: the model's own distribution."""
    top_k: int | None = 50
    """Draw among the K likeliest tokens; None: all."""
    seed: int = 0
    """Seed of the draw."""
    checkpoint: Literal["newest", "best"] = "newest"
    """Newest, or best by validation loss."""
    data: str | None = None
    """Where the run's dataset lies now, if it moved; its tokenizer is needed."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class Recipes:
    """The recipes: parameters, tokens, hardware, expected loss."""


@dataclass(frozen=True)
class DataInfo:
    """What is in a dataset."""

    path: Positional[Path]
    """Folder of shards."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, for folders without a manifest."""


@dataclass(frozen=True)
class DataCheck:
    """Verify a dataset: checksums, counts, ids within the vocabulary."""

    path: Positional[Path]
    """Folder of shards."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, for folders without a manifest."""


@dataclass(frozen=True)
class Data:
    """Datasets: info, check."""

    action: (
        Annotated[DataInfo, subcommand("info", prefix_name=False)]
        | Annotated[DataCheck, subcommand("check", prefix_name=False)]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; raises `SystemExit` with 2 for what a user got wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _one_line_errors():
            command = _parse(arguments)
        _run(command)
    except QuinticError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}:{where}: make room or choose another folder")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(message: str) -> None:
    print(f"quintic: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _parse(arguments: list[str]) -> Any:
    """The command line as one of the dataclasses above.

    What is known of a run before parsing, its recipe or the folder it resumes, gives the defaults
    that the command line replaces.
    """
    train = Train()
    if arguments[:1] == ["train"]:
        train = _train_defaults(arguments[1:])
    commands = (
        Annotated[Train, subcommand("train", default=train), arg(name="")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Recipes, subcommand("recipes")]
        | Annotated[Data, subcommand("data")]
    )
    command = tyro.cli(
        commands,
        prog="quintic",
        description="Pretrain GPT-2-class language models with Muon.",
        args=arguments or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    if isinstance(command, Train) and command.recipe != train.recipe:
        raise QuinticError(
            f"the recipe {command.recipe!r} must come first: quintic train {command.recipe} ..."
        )
    return command


def _train_defaults(arguments: list[str]) -> Train:
    named = arguments[0] if arguments and not arguments[0].startswith("-") else None
    resumed = _value_of("--resume", arguments)
    if resumed is not None and resumed != "None":
        from quintic.runfolder import read_config

        config = read_config(Path(resumed))
        if named is not None and named != config.recipe:
            raise QuinticError(
                f"--resume {resumed} continues a run of {config.recipe}, not of {named}: "
                "leave the recipe out"
            )
    else:
        config = get_recipe(named or DEFAULT_RECIPE)
    return Train(
        recipe=named or config.recipe,
        model=config.model,
        data=config.data,
        optim=config.optim,
        train=config.train,
    )


def _value_of(option: str, arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None


@contextlib.contextmanager
def _one_line_errors() -> Any:
    """Turn the library's boxed complaints on standard error into one `QuinticError`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as error:
        if not error.code:
            raise
        raise QuinticError(_condense(complaint.getvalue())) from None


def _condense(boxed: str) -> str:
    """The message of a box of the command-line library, on one line."""
    unknown = re.search(r"Unrecognized options:\s*--(\w+(?:[.\-]\w+)+)", boxed)
    if unknown and "." in unknown[1]:
        return unknown_field(unknown[1].replace("-", "_"))
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in boxed.splitlines()[1:]]
    text = " ".join(line for line in lines if line)
    return re.sub(r"\s+", " ", text.split(" Argument helptext:")[0])


def _run(command: Any) -> None:
    # PyTorch takes seconds to import: not for --help or a mistyped option.
    if isinstance(command, Train):
        _run_train(command)
    elif isinstance(command, Evaluate):
        _run_evaluate(command)
    elif isinstance(command, Generate):
        _run_generate(command)
    elif isinstance(command, Recipes):
        _run_recipes()
    elif isinstance(command.action, DataInfo):
        _run_data_info(command.action)
    else:
        _run_data_check(command.action)


def _run_train(command: Train) -> None:
    from quintic.console import Console
    from quintic.report import closing_lines, opening_lines
    from quintic.run import resume, start
    from quintic.runfolder import default_folder
    from quintic.train import train

    config = Config(
        recipe=command.recipe,
        model=command.model,
        data=command.data,
        optim=command.optim,
        train=command.train,
    )
    console = Console()
    if command.resume is not None:
        if command.out is not None:
            raise QuinticError("--resume continues in its own folder: leave --out away")
        run = resume(command.resume, config, console, force_data=command.force_data)
        if run.done:
            console.line(f"{run.folder} is complete: all {run.config.train.steps} steps are done")
            return
    else:
        folder = command.out or default_folder(command.recipe)
        run = start(config, folder, console)
    for line in opening_lines(run):
        console.line(line)
    if train(run, console):
        for line in closing_lines(run):
            console.line(line)
    else:
        console.line(
            f"stopped and saved at step {run.state.step} of {run.config.train.steps}; continue "
            f"with: quintic train --resume {run.folder}"
        )


def _run_evaluate(command: Evaluate) -> None:
    from quintic.console import Console
    from quintic.data.loader import validation_batches
    from quintic.evaluate import validation_loss
    from quintic.report import score_lines
    from quintic.run import load_trained

    console = Console()
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    dataset = trained.open_data(console, path=command.data)
    config = trained.config
    tokens = command.tokens or config.train.eval_tokens
    batches = validation_batches(
        dataset.val, config.model.context, tokens, config.train.micro_batch or 1
    )
    loss = validation_loss(trained.model.loss, batches, trained.device)
    console.line(f"{trained.found.path}, {tokens:,} validation tokens")
    for line in score_lines(dataset, loss, tokens):
        console.line(line)


def _run_generate(command: Generate) -> None:
    from quintic.console import Console
    from quintic.generate import check_sampling, generate_ids, stream_text
    from quintic.run import load_trained

    check_sampling(tokens=command.tokens, temperature=command.temperature, top_k=command.top_k)
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    tokenizer = trained.open_data(Console(), path=command.data).load_tokenizer()
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
    print()


def _run_recipes() -> None:
    from rich.console import Console
    from rich.table import Table

    from quintic.config import resolve_vocabulary
    from quintic.model.build import meta_model

    table = Table("recipe", "parameters", "tokens", "hardware", "expected loss", "what it is")
    for name, recipe in RECIPES.items():
        config = recipe.build()
        config = resolve_vocabulary(config, config.data.embedded_vocab)
        table.add_row(
            name,
            f"{meta_model(config.model).parameter_count() / 1e6:.1f}M",
            f"{config.train.steps * config.train.batch_tokens / 1e6:,.0f}M",
            recipe.hardware,
            recipe.expected,
            recipe.summary,
        )
    Console().print(table)


def _run_data_info(command: DataInfo) -> None:
    from rich.console import Console
    from rich.table import Table

    from quintic.data.check import describe_dataset

    info = describe_dataset(command.path, command.tokenizer)
    table = Table("split", "shards", "tokens", "documents", "bytes per token", "document tokens")
    for name, split in (("train", info.train), ("val", info.val)):
        lengths = ", ".join(f"{p}%: {length:,}" for p, length in split.document_tokens.items())
        table.add_row(
            name,
            f"{split.shards:,}",
            f"{split.tokens:,}",
            "unknown" if split.documents is None else f"{split.documents:,}",
            "unknown" if split.bytes_per_token is None else f"{split.bytes_per_token:.3f}",
            lengths or "unknown",
        )
    console = Console(highlight=False)
    console.print(f"dataset      {info.path}", markup=False, soft_wrap=True)
    vocabulary = "unknown" if info.vocab_size is None else f"{info.vocab_size:,}"
    console.print(
        f"tokenizer    {info.tokenizer or 'unknown'}, vocabulary {vocabulary}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"fingerprint  {info.fingerprint}", markup=False, soft_wrap=True)
    console.print(table)
    for sample in info.samples:
        console.print(f"sample: {sample!r}", markup=False, soft_wrap=True)
    for note in info.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _run_data_check(command: DataCheck) -> None:
    from quintic.console import Console
    from quintic.data.check import check_dataset

    console = Console()
    report = check_dataset(command.path, command.tokenizer, progress=console.stage)
    for note in report.notes:
        console.line(f"note: {note}")
    for problem in report.problems:
        console.line(f"problem: {problem}")
    if not report.ok:
        raise QuinticError(f"{report.path} has {len(report.problems)} problems: see above")
    console.line(f"{report.path} is in order: {report.shards} shards, {report.tokens:,} tokens")
