"""The `quintic` command: parse, call, print. The only file that knows the command-line library.

Anything a user can cause ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import json
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from quintic.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, nearest_name
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
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, where neither dataset nor run names one."""
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
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, where neither dataset nor run names one."""
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
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class DataCheck:
    """Verify a dataset: checksums, counts, ids within the vocabulary."""

    path: Positional[Path]
    """Folder of shards."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, for folders without a manifest."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class DataFetch:
    """Fetch ready-made shards: quintic data fetch fineweb10B --shards 27

    What is in the folder already is not fetched again: the same command continues where it was
    interrupted, and with more --shards adds to them.
    """

    name: Positional[str]
    """fineweb10B, fineweb100B, finewebedu10B, hub:OWNER/NAME[@REVISION], or an https:// address of
    a page that links to shards or of a manifest.json."""
    shards: int | None = None
    """Training shards, the first by name, besides the validation; default all."""
    out: Path | None = None
    """Folder; default data/NAME."""


@dataclass(frozen=True)
class DataPush:
    """Upload a dataset, with a card, to the Hugging Face hub."""

    path: Positional[Path]
    """Folder of shards; checked first."""
    to: Positional[str]
    """hub:OWNER/NAME; created if it is not there."""
    private: bool = False
    """Create the repository as a private one."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, for folders without a manifest."""


@dataclass(frozen=True)
class DataBuild:
    """Make a dataset of text; interrupted, the same command continues."""

    inputs: Positional[tuple[str, ...]]
    """INPUT: files (.txt, .md, .jsonl, .json.gz, .jsonl.zst, .parquet), folders or patterns of
    them, or hub:OWNER/NAME[@REVISION][:CONFIG]."""
    out: Path
    """Folder of the dataset; new, empty, or of the same build."""
    name: str | None = None
    """Shards are named NAME_train_000001.bin; default the folder's name."""
    field: str = "text"
    """Field of JSON objects, or column, that holds the text."""
    separator: str | None = None
    r"""What stands between the documents of a text file, \n for a line end; default: a file is a
    document."""
    tokenizer: str = "gpt2"
    """gpt2, a tokenizer.json, or train:SIZE for a new vocabulary."""
    shard_tokens: int = 100_000_000
    """Tokens of a shard."""
    val_share: float = 0.01
    """Share of the documents for validation, 0 to 1; a document's text decides."""
    shuffle: int | None = None
    """Seed of a shuffle of the documents; None: the input's order."""
    workers: int | None = None
    """Processes that tokenize; None: one for each core."""
    max_bad: int = 0
    """Bad documents that may be skipped: invalid UTF-8, broken JSON, no text."""


@dataclass(frozen=True)
class Data:
    """Datasets: fetch, build, info, check, push."""

    action: (
        Annotated[DataFetch, subcommand("fetch", prefix_name=False)]
        | Annotated[DataBuild, subcommand("build", prefix_name=False)]
        | Annotated[DataPush, subcommand("push", prefix_name=False)]
        | Annotated[DataInfo, subcommand("info", prefix_name=False)]
        | Annotated[DataCheck, subcommand("check", prefix_name=False)]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; raises `SystemExit` with 2 for what a user got wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes what a terminal may not show
    try:
        with _one_line_errors(arguments):
            command = _parse(arguments)
        _run(command)
    except QuinticError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}: make room or choose another folder")
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
        if command.recipe not in RECIPES:
            raise QuinticError(
                f"train does not understand {command.recipe!r}: a recipe comes first, and a switch "
                "such as --train.compile or --train.no-compile takes no value"
            )
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


def _value_of(option: str, arguments: list[str], count: int = 1) -> str | None:
    """What is given for an option, the last time that it is."""
    for i, argument in reversed(list(enumerate(arguments))):
        if argument == option and i + 1 < len(arguments):
            return " ".join(arguments[i + 1 : i + 1 + count])
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None


@contextlib.contextmanager
def _one_line_errors(arguments: list[str]) -> Iterator[None]:
    """Turn the library's boxed complaints on standard error into one `QuinticError`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as error:
        if not error.code:
            raise
        cause = error.__context__
        while cause is not None:
            if isinstance(cause, QuinticError):  # a section's own check, reported in a box
                raise cause from None
            cause = cause.__context__
        raise QuinticError(_explain(complaint.getvalue(), arguments)) from None


COMMANDS: dict[str, Any] = {
    "train": Train,
    "evaluate": Evaluate,
    "generate": Generate,
    "recipes": Recipes,
    "data fetch": DataFetch,
    "data push": DataPush,
    "data info": DataInfo,
    "data check": DataCheck,
    "data build": DataBuild,
}


def _explain(boxed: str, arguments: list[str]) -> str:
    """A complaint of the command-line library, in a box and on a terminal in colour, as one line:
    the value, the rule and the way out."""
    rows = [re.sub(r"\x1b\[[\d;]*m", "", row).strip(" |│") for row in boxed.splitlines()]
    text = " ".join(row for row in rows[1:] if row.strip("-─╰╯'+"))
    text = " ".join(re.split(r"For full helptext|Perhaps you meant", text)[0].split())
    name = next((n for n in (" ".join(arguments[:2]), *arguments[:1]) if n in COMMANDS), "")
    options = _options(COMMANDS[name]) if name else {}
    way_out = f"see {' '.join(['quintic', *name.split()])} --help"

    if not name:
        if found := re.search(r"^Expected one of \{(.*)\}", text):
            return f"{arguments[0]} needs one of {found[1]}: see quintic {arguments[0]} --help"
        if found := re.search(r"options: (\S+?)(?:, .*|) Available subcommands: (.*)", text):
            close = difflib.get_close_matches(found[1], found[2].split(", "), n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            return f"there is no command {found[1]!r}: {hint}the commands are {found[2]}"
    for argument in arguments if name else ():
        option = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and option not in options:
            nearest = nearest_name(option.removeprefix("--"), [o[2:] for o in options])
            hint = f"did you mean --{nearest}?" if nearest else way_out
            return f"there is no option {argument.split('=')[0]}: {hint}"
    if found := re.search(r"^Unrecognized options: (\S+?)(?:,|$)", text):
        return f"{name} does not understand {found[1]!r}: {way_out}"
    if found := re.search(r"Missing from .+?: \S+ (.+?)\.? \(required\)", text):
        return f"{name} needs the {found[1][0].lower()}{found[1][1:]}: {way_out}"
    if found := re.search(r"Missing value for argument '(.+?)'. Expected (\d+)", text):
        return f"{found[1]} needs {_kind(options.get(found[1]))}: {way_out}"
    if found := re.search(r"invalid choice '(.*)' for argument '(.+?)'. .* one of \((.*)\)", text):
        return f"{found[2]} is {found[1]!r}: it must be one of {found[3].replace(chr(39), '')}"
    if found := re.search(r"Error parsing (--\S+):", text):
        kind = options.get(found[1])
        given = [a if not a.startswith("--") else a.replace("_", "-") for a in arguments]
        value = _value_of(found[1], given, 2 if typing.get_origin(kind) is tuple else 1)
        return f"{found[1]} is {value!r}: it must be {_kind(kind)}"
    return text


def _options(command: Any, prefix: str = "--") -> dict[str, Any]:
    """The options of a command, each with its type; a switch also by the name that denies it."""
    options: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(command).items():
        name = name.replace("_", "-")
        if is_dataclass(hint):
            options |= _options(hint, f"{prefix}{name}.")
        else:
            options[f"{prefix}{name}"] = hint
        if hint is bool:
            options[f"{prefix}no-{name}"] = hint
    return options


def _kind(hint: Any) -> str:
    """What a value of a type is called."""
    parts = typing.get_args(hint)
    if type(None) in parts:
        return f"{_kind(parts[0])} or None"
    if typing.get_origin(hint) is tuple:
        return f"{len(parts)} values, each {_kind(parts[0])}"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(parts)}"
    return {int: "an integer", float: "a number", Path: "a folder"}.get(hint, "a value")


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
    elif isinstance(command.action, DataFetch):
        _run_data_fetch(command.action)
    elif isinstance(command.action, DataBuild):
        _run_data_build(command.action)
    elif isinstance(command.action, DataPush):
        _run_data_push(command.action)
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


def _run_generate(command: Generate) -> None:
    from quintic.console import Console
    from quintic.generate import check_sampling, generate_ids, stream_text
    from quintic.run import load_trained

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


def _run_recipes() -> None:
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
            f"{config.train.steps * config.train.batch_tokens / 1e6:,.0f}M",
            recipe.hardware,
            recipe.expected,
        )
    console = Console(highlight=False)
    console.print(table)
    for name, recipe in RECIPES.items():
        console.print(f"{name}: {recipe.summary}", markup=False)


def _run_data_fetch(command: DataFetch) -> None:
    from quintic.console import Console, TransferProgress
    from quintic.data.fetch import fetch

    console = Console()
    with TransferProgress(console, "fetched") as bar:
        dataset = fetch(
            command.name,
            command.out,
            shards=command.shards,
            progress=bar.show,
            say=console.line,
        )
    for split, stream in dataset.streams.items():
        console.line(f"{split:<6} {len(stream.shards):,} shards, {len(stream):,} tokens")
    console.line(f"{dataset.path} is whole; train on it with --data.path {dataset.path}")


def _run_data_build(command: DataBuild) -> None:
    from quintic.console import BuildProgress, Console
    from quintic.data.build import BuildSettings, build_dataset, default_name
    from quintic.data.buildfolder import SKIPPED_FILE
    from quintic.data.manifest import SPLITS

    console = Console()
    separator = command.separator
    for escape, character in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
        separator = separator and separator.replace(escape, character)
    settings = BuildSettings(
        inputs=command.inputs,
        name=default_name(command.out) if command.name is None else command.name,
        field=command.field,
        separator=separator,
        tokenizer=command.tokenizer,
        shard_tokens=command.shard_tokens,
        val_share=command.val_share,
        shuffle=command.shuffle,
    )
    try:
        with BuildProgress(console) as progress:
            report = build_dataset(
                settings,
                command.out,
                workers=command.workers,
                max_bad=command.max_bad,
                progress=progress.show,
            )
    except KeyboardInterrupt:
        print("quintic: the same command continues this build", file=sys.stderr)
        raise
    for note in report.notes:
        console.line(f"note: {note}")
    if report.skipped:
        path = command.out / SKIPPED_FILE
        console.line(f"skipped {report.skipped:,} bad documents, all listed in {path}; the first:")
        with path.open(encoding="utf-8") as file:
            for line in itertools.islice(file, 10):
                console.line(f"  {line.rstrip()}")
    for split in SPLITS:
        records = [record for record in report.shards if record.split == split]
        documents, tokens = sum(r.documents for r in records), sum(r.tokens for r in records)
        console.line(
            f"{split}: {documents:,} documents, {tokens:,} tokens in {len(records):,} shards"
        )
    done = "is built" if report.built else "was built before"
    console.line(f"{command.out} {done}; train on it with: quintic train --data.path {command.out}")


def _run_data_push(command: DataPush) -> None:
    from quintic.console import Console, TransferProgress
    from quintic.data.push import push

    console = Console()
    with TransferProgress(console, "pushed") as bar:
        pushed = push(
            command.path,
            command.to,
            tokenizer=command.tokenizer,
            private=command.private,
            progress=bar.show,
        )
    if pushed.kept_card:
        console.line("the repository has a card of its own, which stays as it is")
    console.line(f"pushed to {pushed.page}; fetch it with: quintic data fetch {command.to}")


def _run_data_info(command: DataInfo) -> None:
    from rich.console import Console
    from rich.table import Table

    from quintic.data.check import describe_dataset

    info = describe_dataset(command.path, command.tokenizer)
    if command.json:
        print(json.dumps({**asdict(info), "path": str(info.path)}))
        return
    table = Table("split", "shards", "tokens", "documents", "bytes per token", "document tokens")
    for name, split in info.splits.items():
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
    progress = None if command.json else console.stage
    report = check_dataset(command.path, command.tokenizer, progress=progress)
    if command.json:
        print(json.dumps({**asdict(report), "path": str(report.path), "ok": report.ok}))
        if not report.ok:
            raise SystemExit(2)
        return
    for note in report.notes:
        console.line(f"note: {note}")
    for problem in report.problems:
        console.line(f"problem: {problem}")
    if not report.ok:
        raise QuinticError(f"{report.path} has {len(report.problems)} problems: see above")
    console.line(f"{report.path} is in order: {report.shards} shards, {report.tokens:,} tokens")
