"""Named runs. Each recipe is a function that returns a whole `Config`; its docstring is its card.

A recipe derives from another where it can, so that reading one shows exactly what it changes.
`quintic recipes` prints the table, `quintic train NAME` runs one, and every field can be replaced
on the command line as `--section.field value`. A config in a file is a recipe too
(`read_recipe`), and `ladder:N` one whose fields all follow from a number (`quintic.ladder`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quintic.config import (
    AdamWConfig,
    Config,
    DataConfig,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from quintic.config.schema import advice_for_file
from quintic.errors import QuinticError
from quintic.files import parse_json
from quintic.ladder import Rung, parse_rung


@dataclass(frozen=True)
class Recipe:
    """Holds a recipe and what the table says of it."""

    build: Callable[[], Config]
    hardware: str
    expected: str

    @property
    def summary(self) -> str:
        """Return the first line of the card."""
        return [*(self.build.__doc__ or "").strip().splitlines(), ""][0]


RECIPES: dict[str, Recipe] = {}


def recipe(
    *, hardware: str, expected: str
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Register a function as the recipe of its name (underscores become hyphens)."""

    def register(build: Callable[[], Config]) -> Callable[[], Config]:
        RECIPES[build.__name__.replace("_", "-")] = Recipe(build, hardware, expected)
        return build

    return register


def find_recipe(name: str) -> Recipe | None:
    """Return the recipe of a name, a rung of the ladder among them; None where there is none.

    Raises `QuinticError` for a rung that the ladder does not have.
    """
    if (rung := parse_rung(name)) is None:
        return RECIPES.get(name)
    return Recipe(lambda: _rung_config(name, rung), hardware="any", expected="not measured")


def folder_stem(name: str) -> str:
    """Return what the folders of a recipe's runs begin with: its name, in which a rung's colons
    would make scp and rsync look for another machine."""
    return name.replace(":", "-")


def get_recipe(name: str) -> Config:
    """Return the config of a recipe, by its name or by a file of it, which ends in .json.

    Raises `QuinticError` for an unknown name, with the nearest, and as `read_recipe` does.
    """
    if name.endswith(".json"):
        return read_recipe(Path(name))
    if (found_recipe := find_recipe(name)) is None:
        if (found := Path(name) / "config.json").is_file():
            raise QuinticError(
                f"{name} is the folder of a run and no recipe: name its {found} for a new run of "
                f"that config, or continue it with quintic train --resume {name}"
            )
        if (found := Path(name) / "best.json").is_file():
            raise QuinticError(
                f"{name} is the folder of a sweep and no recipe: name its {found} for the config "
                "that it found best"
            )
        close = difflib.get_close_matches(name, [*RECIPES, "ladder:N"], n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise QuinticError(
            f"there is no recipe {name!r}: {hint}the recipes are {', '.join(RECIPES)}, and ladder:N"
        )
    return found_recipe.build()


def _rung_config(name: str, rung: Rung) -> Config:
    """Return `modded` with the sizes and rates of a rung of the ladder."""
    return modded().override({"recipe": name, **rung.changes})


def read_recipe(path: Path) -> Config:
    """Return the config in a file, such as the `config.json` of a run or the best of a sweep.

    Raises `QuinticError` where the file is none.
    """
    if not path.is_file():
        raise QuinticError(
            f"there is no recipe file {path}: name the best.json of a sweep or the config.json of "
            "a run"
        )
    try:
        config = Config.from_dict(parse_json(path.read_bytes()))
    except QuinticError as error:
        raise QuinticError(f"{path}: {advice_for_file(Config, str(error))}") from error
    except (ValueError, RecursionError) as error:
        raise QuinticError(f"{path} is not valid JSON: {error}; restore it") from error
    name = config.recipe
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        raise QuinticError(
            f"{path}: recipe is {config.recipe!r}: it names the folder of the run, so it must be a "
            "name without slashes"
        )
    return config


@recipe(hardware="2 to 4 CPU cores, or any GPU", expected="1.47 bits per byte")
def laptop() -> Config:
    """A small GPT on the text that every Python installation carries: a minute or two on a CPU.

    Command   quintic train
    Data      the standard library, 11 MB of Python; a BPE vocabulary of 2,048 trained on it
    Result    1.47 bits per byte of held-out files, where gzip -9 has 2.28
    Source    the newest record of the laptop track, trained longer (docs/track.md): `laptop-plain`
              with what lowered its loss most for the time (docs/log.md)
    """
    return laptop_plain().override(
        {
            "recipe": "laptop",
            "model.tied_head": False,
            "model.embed_norm": True,
            "model.value_embeddings": 2,
            "model.token_smear": True,
            "model.key_smear": True,
            "model.bigram_embeddings": 16_384,
            "optim.muon.lr": 0.012,
            "optim.adamw.lr": 0.04,
            "optim.adamw.head_lr": 0.024,
            "train.steps": 1000,
            "train.batch_tokens": 1024,
            "train.cpu_kernels": "fused",
        }
    )


@recipe(hardware="2 to 4 CPU cores, or any GPU", expected="1.62 bits per byte")
def laptop_plain() -> Config:
    """`modded` at the size of `laptop`, without later techniques: what the track's time is against.

    Command   quintic train laptop-plain
    Data      as `laptop`
    Result    1.62 bits per byte of held-out files with the default seed
    Source    sizes and learning rates tuned for two CPU cores and four minutes (docs/log.md)
    """
    return Config(
        recipe="laptop-plain",
        model=ModelConfig(layers=4, width=128, heads=2, context=256),
        data=DataConfig(order="shuffle", embedded_vocab=2048),
        optim=OptimConfig(
            muon=MuonConfig(lr=0.006, scale="aspect"),
            adamw=AdamWConfig(lr=0.005),
            schedule=ScheduleConfig(cooldown_fraction=0.7),
        ),
        train=TrainConfig(
            steps=1100,
            batch_tokens=2048,
            eval_every=125,
            eval_tokens=65_536,
            checkpoint_every=250,
        ),
    )


@recipe(hardware="one 80 GB GPU", expected="3.28 FineWeb")
def modded() -> Config:
    """The original's run: GPT-2 (124M) quality in 2.67B tokens of FineWeb, with Muon.

    Command   quintic train modded --data.path DIR
    Data      FineWeb, 27 shards of 100M GPT-2 tokens
    Result    the original run of 2024-10-14 ended at 3.2741. Along the way (step: loss): 125 4.949,
              250 4.329, 500 3.919, 1000 3.682, 2000 3.514, 3000 3.441, 4000 3.371, 5100 3.274;
              the noise of one run is about 0.0013.
    Source    https://github.com/KellerJordan/modded-nanogpt, the record of 2024-10-14.
    """
    return Config(
        recipe="modded",
        model=ModelConfig(layers=12, width=768, heads=6, context=1024, vocab_size=50_304),
        data=DataConfig(path="data/fineweb10B", tokenizer="gpt2"),
        optim=OptimConfig(
            muon=MuonConfig(lr=3.6e-4, momentum=0.95, scale="max_dim", ns_steps=5),
            adamw=AdamWConfig(lr=3.6e-3, betas=(0.9, 0.95)),
            schedule=ScheduleConfig(kind="trapezoid", cooldown_fraction=1450 / 5100),
        ),
        train=TrainConfig(
            steps=5100,
            batch_tokens=512 * 1024,
            compile=True,
            eval_every=125,
            eval_tokens=10_485_760,
            checkpoint_every=1000,
        ),
    )


@recipe(hardware="one 80 GB GPU", expected="above modded")
def modded_adamw() -> Config:
    """`modded` with AdamW on the block matrices too: the baseline that Muon is compared with.

    Command   quintic train modded-adamw --data.path DIR
    Source    the values found best in about 20 public attempts on 2024-10-29: lr 1.8e-3 on the
              block matrices, betas (0.9, 0.95), no weight decay; the tied matrix keeps 3.6e-3.
    """
    changes = {"optim.matrices": "adamw", "optim.adamw.matrix_lr": 1.8e-3}
    return modded().override({"recipe": "modded-adamw", **changes})


@recipe(hardware="one 80 GB GPU", expected="not measured")
def speedrun() -> Config:
    """`modded`'s loss in fewer tokens: what each rung of our ladder has shown to help, and no more.

    Command   quintic train speedrun --data.path DIR
    Data      FineWeb, 21 shards of 100M GPT-2 tokens
    Result    not measured at this size; at 1.3M parameters `modded`'s loss in 0.69 of its steps
              (docs/speedrun.md)
    Source    value embeddings (three tables, as the speedrun's record of 2024-12-17) and an untied
              head behind a normed embedding (its learning rate and all, 2024-11-03). The records
              that took them up went from 1,750 steps to 1,530 and from 5,100 to 4,578: both
              together are 4,000 of 5,100.
    """
    return modded().override(
        {
            "recipe": "speedrun",
            "model.value_embeddings": 3,
            "model.tied_head": False,
            "model.embed_norm": True,
            "optim.adamw.head_lr": 0.002,
            "train.steps": 4000,
        }
    )


@recipe(hardware="8 x 80 GB GPUs", expected="not measured")
def modded_medium() -> Config:
    """`modded` at GPT-2 medium's size, 353M parameters, on 20 tokens a parameter.

    Command   quintic train modded-medium --procs 8 --data.path DIR
    Data      FineWeb, 71 shards of 100M GPT-2 tokens
    Result    not measured: the learning rates are those of `modded` and nobody tuned them here
    """
    size = {"model.layers": 24, "model.width": 1024, "model.heads": 8}
    return modded().override({"recipe": "modded-medium", **size, "train.steps": 13_500})


@recipe(hardware="8 x 80 GB GPUs", expected="not measured")
def modded_xl() -> Config:
    """`modded` at GPT-2 XL's size, 1.55B parameters, weights and optimizer sharded (FSDP2).

    Command   quintic train modded-xl --procs 8 --data.path DIR
    Data      FineWeb, 103 shards of 100M GPT-2 tokens, in three epochs
    Result    not measured: the learning rates are those of `modded` and nobody tuned them here
    """
    size = {"model.layers": 52, "model.width": 1536, "model.heads": 12}
    train = {"train.steps": 59_000, "train.sharding": "fsdp"}
    return modded().override({"recipe": "modded-xl", **size, **train})


@recipe(hardware="one 80 GB GPU", expected="3.285 FineWeb")
def gpt2() -> Config:
    """llm.c's GPT-2 (124M), the baseline the original measures itself against: 9.9B tokens.

    Command   quintic train gpt2 --data.path DIR
    Data      FineWeb, 99 shards of 100M GPT-2 tokens
    Result    a validation loss near 3.285
    Source    https://github.com/karpathy/llm.c/discussions/481
    """
    return Config(
        recipe="gpt2",
        model=ModelConfig(
            architecture="gpt2", layers=12, width=768, heads=12, context=1024, vocab_size=50_304
        ),
        data=DataConfig(path="data/fineweb10B", tokenizer="gpt2"),
        optim=OptimConfig(
            matrices="adamw",
            adamw=AdamWConfig(lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=700),
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=18_865,
            batch_tokens=524_288,
            compile=True,
            eval_every=250,
            eval_tokens=10_485_760,
            checkpoint_every=1000,
        ),
    )
