"""The commands and their options. A docstring is what `--help` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from quintic.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

DEFAULT_RECIPE = "laptop"


@dataclass(frozen=True)
class _ConfigOptions:
    """Options for every field of a config."""

    recipe: Positional[str] = DEFAULT_RECIPE
    """Name of a recipe (see quintic recipes), ladder:N, or a config file, such as the best.json of
    a sweep; its values are the defaults shown here."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tokens_per_parameter: float | None = None
    """Of ladder:N: tokens for each parameter of its blocks, from which batch, steps and rates
    follow, as ladder:N:T says it too."""

    @property
    def config(self) -> Config:
        """Return the config that these options describe."""
        return Config(self.recipe, self.model, self.data, self.optim, self.train)


@dataclass(frozen=True)
class _TrainedOptions:
    """Options for finding a trained model."""

    run: Positional[Path]
    """Folder of the run."""
    checkpoint: Literal["newest", "best"] = "newest"
    """Newest, or best by validation loss."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, where neither dataset nor run names one."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to compute."""


@dataclass(frozen=True)
class _DatasetOptions:
    """Options for looking at a dataset."""

    path: Positional[Path]
    """Folder of shards."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, for folders without a manifest."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Train(_ConfigOptions):
    """Train a model: quintic train [RECIPE] [--section.field VALUE ...] [--out DIR]"""

    out: Path | None = None
    """Folder of the run; default runs/RECIPE-N with the next free N."""
    resume: Path | None = None
    """Continue the run in this folder. With --train.steps, a finished run goes on in a new folder,
    --out or by default DIR-to-STEPS, from the newest checkpoint that a run of so many steps has
    too: the one before the cooldown."""
    fresh_cooldown: bool = False
    """With --resume and --train.steps: go on from the newest checkpoint, with the learning rate
    that a run of so many steps has there."""
    force_data: bool = False
    """Resume on data with another fingerprint: in a new folder, with a new curve."""
    init_from: Path | None = None
    """Begin a new run with the weights of the run in this folder, whose model it takes."""
    checkpoint: Literal["newest", "best"] = "newest"
    """With --init-from: newest, or best by validation loss."""
    auto_resume: bool = False
    """Continue the run in --out where there is one, else start it: for schedulers that run the
    same command again."""
    procs: str | None = None
    """Processes on this machine, or auto for one on each GPU; default one."""
    max_restarts: int = 0
    """How often --procs starts all processes again when one of them died."""


@dataclass(frozen=True)
class Sweep(_ConfigOptions):
    """Train a recipe with many values of some fields, and say which are best.

    quintic sweep RECIPE --vary optim.muon.lr=1e-3,2e-3,4e-3 --seeds 3 [--section.field VALUE ...];
    interrupted, the same command continues, and with more values or seeds it extends the sweep.
    """

    vary: UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE,VALUE,... or, with --random, FIELD=LOW..HIGH; once for each field. Spaces
    separate the members of a pair."""
    seeds: int = 1
    """Runs of each combination, with train.seed and the seeds after it."""
    random: int | None = None
    """Draw so many combinations, ranges uniform in the logarithm; None: the whole grid."""
    jobs: int = 1
    """Runs at once."""
    out: Path | None = None
    """Folder of the sweep; default runs/RECIPE-sweep."""


@dataclass(frozen=True)
class Plan(_ConfigOptions):
    """What a training will take, before it is started: memory, time, disk, and what fits.

    quintic plan RECIPE [--gpus 8 --gpu h100] [--hours H] [--section.field VALUE ...]; each figure
    says whether it is a prediction or measured, and where.
    """

    gpu: str = "h100"
    """Kind of device: b200, h200, h100, a100, a100-40gb, l40s, l4, a10g, rtx5090, rtx4090, rtx3090,
    or cpu for this machine's."""
    gpus: int = 1
    """How many of them."""
    hours: float | None = None
    """Say what can be trained in so many hours: steps of this recipe, and the deepest ladder:N."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Evaluate(_TrainedOptions):
    """Loss, perplexity and bits per byte of a trained model, on the tokens the run validated on, on
    another dataset, or on files of text: quintic evaluate RUN --text FILE ...

    Or its scores on standard tasks: quintic evaluate RUN --tasks blimp,hellaswag"""

    data: Path | None = None
    """Folder of shards made with the run's tokenizer; default the run's own."""
    split: Literal["val", "train"] = "val"
    """Which part of the dataset."""
    tokens: int | None = None
    """Tokens of the dataset, from its beginning, a multiple of the context; default as the run, or
    all where another dataset has fewer."""
    text: tuple[Path, ...] | None = None
    """FILE: files of text instead, each of them a document; - is standard input."""
    tasks: str | None = None
    """Standard tasks instead, with commas between them: blimp, hellaswag, lambada_openai, arc_easy,
    arc_challenge, piqa, winogrande, openbookqa, sciq; NAME@COMMIT pins the hub's data."""
    task_data: Path | None = None
    """Folder of the tasks' data, such as hellaswag.jsonl; default the hub's, fetched once."""
    limit: int | None = None
    """First items of each task, or of each of its subtasks; scores of a part are not kept."""
    subtasks: bool = False
    """Print each subtask and not only their groups."""
    lm_eval: str | None = None
    """Tasks of lm-evaluation-harness instead, with commas between them, which it runs itself."""
    json: bool = False
    """Print one JSON object, with --tasks or --lm-eval."""


@dataclass(frozen=True)
class Generate(_TrainedOptions):
    """Text from a trained model."""

    data: str | None = None
    """Where the run's dataset lies now, if it moved."""
    prompt: str = ""
    """Text to continue; empty: begin a document."""
    prompts: str | None = None
    """FILE of prompts, one a line, or JSON lines with the key prompt where its name ends in .jsonl;
    - is standard input."""
    samples: int = 1
    """Continuations of each prompt, with the seed and those after it."""
    tokens: int = 200
    """Tokens to generate, at most."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation; they are not printed."""
    temperature: float = 0.8
    """0: always the likeliest token; 1: the model's own distribution."""
    top_k: int | None = 50
    """Draw among the K likeliest tokens; None: all."""
    top_p: float | None = None
    """Draw among the fewest tokens whose probabilities add up to P; None: all."""
    min_p: float | None = None
    """Draw among tokens at least P times as likely as the likeliest; None: all."""
    repetition_penalty: float | None = None
    """Make tokens that have occurred less likely, by a number above 1; None: do not."""
    seed: int = 0
    """Seed of the draw."""
    batch: int = 16
    """Continuations made at once."""
    weights: Literal["int8"] | None = None
    """int8: matrices in eight bits, on a CPU with AVX-512 VNNI; None: as the model has them."""
    draft: Literal["ngram"] | None = None
    """ngram: guess that the text goes on as it did before and let the model check several tokens
    at once, which gives the same text sooner; for one text at a time."""
    json: bool = False
    """Print a JSON object a line for each continuation."""
    logprobs: bool = False
    """With --json, the logarithm of the model's own probability of each token."""


@dataclass(frozen=True)
class Export:
    """A trained model in another tool's format, verified with it: quintic export RUN --to hf

    hf: a folder that transformers loads; gguf: a file for llama.cpp; onnx: a file for onnxruntime
    and others.
    """

    run: Positional[Path]
    """Folder of the run."""
    to: Literal["hf", "gguf", "onnx"]
    """Target: the tool that is to load it, or its format."""
    checkpoint: Literal["newest", "best"] = "newest"
    """Newest, or best by validation loss."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, where neither dataset nor run names one."""
    dtype: Literal["f32", "f16", "q8_0"] | None = None
    """With --to gguf, how matrices are stored; None: f32."""
    out: Path | None = None
    """Folder, new or empty; default RUN/export/TO, or RUN/export/TO-DTYPE."""
    push: str | None = None
    """hub:OWNER/NAME: upload it to the Hugging Face hub as well; created if it is not there."""


@dataclass(frozen=True)
class Import:
    """A model that another tool trained, as the folder of a run: quintic import SOURCE --out RUN

    It evaluates, generates and exports; a new run begins with its weights with quintic train RECIPE
    --init-from RUN.
    """

    source: Positional[str]
    """A folder of transformers, nanoGPT's ckpt.pt, llm.c's .bin, modded-nanogpt's .pt, or
    hub:OWNER/NAME[@REVISION] with config.json and model.safetensors."""
    out: Path
    """Folder of the run, new or empty."""
    format: Literal["auto", "hf", "nanogpt", "llm.c", "modded-nanogpt"] = "auto"
    """What the source is; auto: what its content says."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json; default the source's own, or gpt2 where the vocabulary has its
    size."""
    heads: int | None = None
    """Heads of a checkpoint of modded-nanogpt that does not hold its code."""
    context: int | None = None
    """Context of such a checkpoint."""


@dataclass(frozen=True)
class Compare:
    """Runs side by side: table, statistics, figure. Seeds of one config are a group."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(help_behavior_hint="(required)")]
    """RUN: folders of runs, or text logs of modded-nanogpt or llm.c; the first is the reference."""
    target: float | None = None
    """A validation loss, nats per token: what each takes to reach it, and whether it does."""
    x: Literal["auto", "tokens", "steps", "seconds", "flops"] = "auto"
    """What the loss is drawn against, and what the runs are compared by; auto: tokens, or steps
    where a log does not say its tokens; flops: the operations of training, for models of different
    sizes."""
    out: Path | None = None
    """Write a figure (.png), an interactive page (.html) or all numbers (.json)."""
    paired: bool = False
    """Test each seed against the same seed of the reference, which needs fewer runs."""
    batch_tokens: int | None = None
    """Tokens of a step, for logs that do not say: 524288 in llm.c's GPT-2."""
    force: bool = False
    """Side by side although the data differ, so that the losses do not compare."""


@dataclass(frozen=True)
class Scale:
    """A law of the loss across sizes, fitted to finished runs: predictions, and the best size.

    L = E + A / N^a + B / D^b of N parameters and D tokens, or L = E + A / C^a of C FLOPs where D
    follows N.
    """

    runs: Positional[tuple[Path, ...]]
    """RUN: folders of finished runs, or one .csv of columns parameters, tokens, loss (or flops in
    place of one of the first two)."""
    law: Literal["auto", "two-term", "flops", "parameters"] = "auto"
    """Law in N and D, or of one term in C or N; auto: in C where D follows N, else in N and D."""
    count: Literal["auto", "all", "blocks"] = "auto"
    """What N counts in predictions, all parameters (auto) or the matrices of the blocks alone; laws
    of both are shown."""
    drop_highest_loss: int = 0
    """Leave out so many runs of the highest loss."""
    predict: tuple[str, ...] = ()
    """N,D: foresee the loss of so many parameters on so many tokens, such as 124e6,2.5e9; or N,D,C
    with the FLOPs, which else follow from those of the runs."""
    predict_config: tuple[str, ...] = ()
    """RECIPE: foresee the loss of a recipe or config file."""
    budget: tuple[float, ...] = ()
    """FLOPs in all: the best N and D for them."""
    hours: tuple[float, ...] = ()
    """The same for so many hours at --flop-per-s."""
    flop_per_s: float | None = None
    """FLOPs a second that training reaches."""
    draws: int = 2000
    """Draws of the bootstrap, which the intervals are made of."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """Write a figure (.png), an interactive page (.html) or all numbers (.json)."""


@dataclass(frozen=True)
class Watch:
    """A live page of all runs under some folders, in the browser: quintic watch [DIR...]

    It only reads, also what other processes and machines write there, and serves this machine
    alone.
    """

    # Spelled so, None first, tyro knows None at once; for a tuple, and for every other spelling, it
    # imports typeguard, which takes 70 ms.
    folders: Annotated[
        Positional[Union[None, tuple[Path, ...]]],  # noqa: UP007, RUF036
        arg(metavar="[DIR [DIR ...]]", help_behavior_hint="(default: runs)"),
    ] = None
    """DIR: folders that hold runs, at any depth, or runs themselves."""
    port: int = 0
    """Port on 127.0.0.1; 0: a free one."""
    browser: bool = True
    """Open the page in a browser, where there is one."""


@dataclass(frozen=True)
class Report(_TrainedOptions):
    """One page that a person can send: what a run trained, how well, and where its loss is."""

    out: Path | None = None
    """File of the page; default report.html in the folder of the run."""
    data: Path | None = None
    """Folder of the run's data, where that lies elsewhere now."""


@dataclass(frozen=True)
class Recipes:
    """The recipes: parameters, tokens, hardware, expected loss."""

    ladder: bool = False
    """Rungs of ladder:N instead, with what each takes."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class DataInfo(_DatasetOptions):
    """What is in a dataset: counts, lengths of documents, frequent tokens, samples."""

    figure: Path | None = None
    """FILE.png: draw lengths, sources, bytes per token, frequent tokens, longest documents."""
    html: Path | None = None
    """FILE.html: write these as a page, with sampled documents token by token."""
    seed: int = 0
    """Seed of the draw of the samples."""


@dataclass(frozen=True)
class DataCheck(_DatasetOptions):
    """Verify a dataset: checksums, counts, ids within the vocabulary."""


@dataclass(frozen=True)
class DataFetch:
    """Fetch ready-made shards: quintic data fetch fineweb10B --shards 27

    What is in the folder already is not fetched again: the same command continues where it was
    interrupted, and with more --shards adds to them.
    """

    name: Positional[str]
    """fineweb10B, fineweb100B, finewebedu10B, or hub:OWNER/NAME[@REVISION]."""
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
    """INPUT: files (.txt, .md, .jsonl, .json.gz, .jsonl.zst, .csv, .wet, .parquet, .arrow and
    others), folders or patterns of them, - for standard input, or
    hub:OWNER/NAME[@REVISION][:CONFIG]."""
    out: Path
    """Folder of the dataset; new, empty, or of the same build."""
    name: str | None = None
    """Shards are named NAME_train_000001.bin; default the folder's name."""
    field: str | None = None
    """Field of JSON objects, or column, that holds the text, or a path to it such as
    message.content; default text, or with --messages messages."""
    messages: str | None = None
    r"""The field holds a list of chat messages, or of texts: chatml, or a template for each, such
    as '{role}: {content}\n'."""
    separator: str | None = None
    r"""What stands between the documents of a text file, \n for a line end, also CR LF; default: a
    file is a document."""
    kind: Literal["text", "json", "csv", "tsv", "warc"] | None = None
    """What standard input is, and files whose names do not say it; default what their first bytes
    say."""
    tokenizer: str = "gpt2"
    """gpt2, a tokenizer.json, or train:SIZE for a new vocabulary, train:SIZE:gpt2 for one that cuts
    text as GPT-2 does, which llama.cpp can; all much faster with pip install 'quintic[fast]'."""
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
class DataImport:
    """Make a dataset of token files of other tools: of nanoGPT, Megatron, llm.c, build-nanogpt,
    litdata, MDS, datatrove, and rows of ids in parquet and Arrow (Hugging Face datasets)."""

    source: Positional[Path]
    """Folder of the files, or one of them."""
    out: Path
    """Folder of the dataset; new or empty."""
    tokenizer: str
    """gpt2 or a tokenizer.json: the vocabulary that made the ids."""
    name: str | None = None
    """Shards are named NAME_train_000001.bin; default the folder's name."""
    shard_tokens: int = 100_000_000
    """Tokens of a shard."""
    val_share: float = 0.01
    """Share of the documents for validation, 0 to 1, where no file says what it is for."""
    val_tokens: int | None = None
    """Tokens for validation instead: the last documents, of so many or a little more."""
    rows: Literal["documents", "pieces"] | None = None
    """What a row, item or sample is: a document, or a piece of a stream of documents; default
    pieces where all have one length."""
    dtype: Literal["uint16", "uint32", "int32", "int64"] | None = None
    """Type of ids that lie as bytes, as a column of MDS may have them."""


@dataclass(frozen=True)
class DataExport:
    """A dataset as token files of another tool: quintic data export DIR --to megatron --out OUT"""

    path: Positional[Path]
    """Folder of shards."""
    to: Literal["megatron", "nanogpt", "hf-datasets"]
    """Tool that is to read them."""
    out: Path
    """Folder; new or empty."""
    tokenizer: str | None = None
    """gpt2 or a tokenizer.json, for folders without a manifest."""


@dataclass(frozen=True)
class Data:
    """Datasets: fetch, build, import, export, info, check, push."""

    action: (
        Annotated[DataFetch, subcommand("fetch", prefix_name=False)]
        | Annotated[DataBuild, subcommand("build", prefix_name=False)]
        | Annotated[DataImport, subcommand("import", prefix_name=False)]
        | Annotated[DataExport, subcommand("export", prefix_name=False)]
        | Annotated[DataPush, subcommand("push", prefix_name=False)]
        | Annotated[DataInfo, subcommand("info", prefix_name=False)]
        | Annotated[DataCheck, subcommand("check", prefix_name=False)]
    )


@dataclass(frozen=True)
class MuonConvert:
    """Learning rate, weight decay and, for quintic, all other options that make the same update in
    another implementation of Muon.

    quintic muon convert --from torch --lr 0.02 --shape 768x3072 [--to optax]; what they cannot
    match is said, with figures. quintic muon table lists the names.
    """

    source: Annotated[str | None, arg(name="from")] = None
    """Implementation that the rates are of, such as torch or torch:match_rms_adamw, or a scale of
    quintic; default that of --model with its rates."""
    to: str = "quintic"
    """Implementation that is to do the same; quintic: with the scale of the other, if it has it."""
    lr: float | None = None
    """Learning rate in --from; default its own."""
    weight_decay: float | None = None
    """Weight decay in --from; default its own."""
    shape: tuple[str, ...] = ()
    """Shapes of matrices, such as 768x3072, as the library of --from has them: (out, in) in PyTorch
    and MLX, (in, out) in optax (Flax) and keras."""
    model: str | None = None
    """Folder of a run, or a recipe, such as speedrun or ladder:8: all its matrices."""
    groups: Path | None = None
    """JSON file of optimizer.param_groups without their params, instead of --lr and
    --weight-decay."""
    json: bool = False
    """Print it as JSON, for quintic with the fields of optim.muon."""


@dataclass(frozen=True)
class MuonTable:
    """What public implementations of Muon do, from the record of docs/muons.md."""


@dataclass(frozen=True)
class Muon:
    """Muon elsewhere: convert, table."""

    action: (
        Annotated[MuonConvert, subcommand("convert", prefix_name=False)]
        | Annotated[MuonTable, subcommand("table", prefix_name=False)]
    )


@dataclass(frozen=True)
class TrackList:
    """The records of the laptop track, oldest first."""

    json: bool = False
    """Print them whole, with every run, as JSON."""
    markdown: bool = False
    """Print the table as docs/track.md has it."""
    figure: Path | None = None
    """FILE.png: draw their history as well."""


@dataclass(frozen=True)
class TrackRun(_ConfigOptions):
    """Make an attempt at a record: a recipe and the reference in turn, and a verdict by the rules.

    quintic track run RECIPE [--section.field VALUE ...] [--out DIR]; interrupted, the same command
    continues, and with more seeds or pairs it adds to them.
    """

    seeds: int = 5
    """Runs of the recipe, with the seeds from 1 on; a record has 5."""
    pairs: int = 5
    """Runs of it that have a run of the reference beside them; a record has 5 that agree."""
    threads: int | None = None
    """Threads of a run, over all of its processes; default the cores."""
    processes: int = 1
    """Processes of a run of the recipe, which share the threads."""
    out: Path | None = None
    """Folder of the attempt; default runs/RECIPE-track."""
    reference_checkout: str | None = None
    """Checkout of quintic, or a revision of the repository that this one lies in, that trains the
    reference; default the reference's own commit where the repository has it, else this quintic."""
    note: str | None = None
    """What the recipe does otherwise, for the record; default the fields that differ."""


@dataclass(frozen=True)
class Track:
    """The laptop track, a speedrun on a CPU: list, run."""

    action: (
        Annotated[TrackList, subcommand("list", prefix_name=False)]
        | Annotated[TrackRun, subcommand("run", prefix_name=False)]
    )


COMMANDS: dict[str, Any] = {
    "train": Train,
    "sweep": Sweep,
    "plan": Plan,
    "evaluate": Evaluate,
    "generate": Generate,
    "export": Export,
    "import": Import,
    "compare": Compare,
    "scale": Scale,
    "watch": Watch,
    "report": Report,
    "recipes": Recipes,
    "data fetch": DataFetch,
    "data build": DataBuild,
    "data import": DataImport,
    "data export": DataExport,
    "data push": DataPush,
    "data info": DataInfo,
    "data check": DataCheck,
    "muon convert": MuonConvert,
    "muon table": MuonTable,
    "track list": TrackList,
    "track run": TrackRun,
}
"""Every command by the words that call it; module `quintic.cli.WORD` runs it, `WORD_` where that is
one of Python's own words."""
