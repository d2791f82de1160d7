"""The two ladders: techniques in the order in which they are tried, and the run they start from.

Folders named here are of records/track_1_short of the speedrun
(https://github.com/KellerJordan/modded-nanogpt); what each option does is in docs/techniques.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quintic.config import Config
from quintic.console import Console
from quintic.recipes import get_recipe
from quintic.setup import open_data

SMALL: dict[str, Any] = {
    "model.layers": 4,
    "model.width": 128,
    "model.heads": 2,
    "model.context": 256,
    "model.vocab_size": 4096,
    "data.tokenizer": None,
    "data.order": "shuffle",
    "optim.muon.scale": "aspect",
    "optim.muon.lr": 0.016,
    "optim.adamw.lr": 0.02,
    "optim.schedule.cooldown_fraction": 0.7,
    "train.steps": 600,
    "train.batch_tokens": 2048,
    "train.micro_batch": 8,
    "train.eval_every": 100,
    "train.eval_tokens": 65_536,
    "train.checkpoint_every": 5000,
    "train.keep_checkpoints": 1,
    "train.log_every": 10,
    "train.log_to": (),
}
"""`modded` at a size that a CPU core trains in four minutes: 1.3M parameters, 1.2M tokens. Learning
rates and cooldown are those that the sweeps of docs/claims.md found best."""

LR_OF_STAGES = 1.5**0.6
"""With stages of a third, two thirds and all of a batch that is half as large again, the second
stage is the batch from before; this gives it the learning rate from before as well."""


@dataclass(frozen=True)
class Technique:
    """What one rung tries, on top of what is kept."""

    name: str
    """Of its runs."""
    changes: dict[str, Any]
    record: str = ""
    """Where the speedrun took it up; nothing where it did not."""


@dataclass(frozen=True)
class Ladder:
    """A run, and what is tried on top of it."""

    name: str
    """Of what is written of it."""
    foot: Callable[[dict[str, Any]], Config]
    """The run that it starts from, with further fields changed."""
    techniques: Sequence[Technique]
    unit: str
    """Of the losses."""
    scale: Callable[[Config], float]
    """What a loss in nats per token is multiplied by for that."""


TECHNIQUES = (
    Technique("value-embeddings", {"model.value_embeddings": 2}, "2024-12-04_ValueEmbed"),
    Technique("embed-shortcut", {"model.x0_skip": True}, "2024-11-06_ShortcutsTweaks"),
    Technique(
        "momentum-warmup", {"optim.muon.momentum_warmup_steps": 60}, "2024-11-06_ShortcutsTweaks"
    ),
    Technique("softcap", {"model.logit_softcap": 15.0}, "2025-01-04_SoftCap"),
    Technique("unet-skips", {"model.unet_skips": True}, "2024-11-10_UNetDoubleLr"),
    # At equal steps and equal tokens: the mean of the three stages is the batch from before.
    Technique(
        "batch-stages",
        {
            "train.batch_tokens": 3072,
            "train.batch_stages": 3,
            "train.micro_batch": 4,
            "optim.muon.lr": round(0.016 * LR_OF_STAGES, 4),
            "optim.adamw.lr": round(0.02 * LR_OF_STAGES, 4),
        },
        "2025-11-29_BatchSizeSchedule",
    ),
    Technique(
        "polar-express", {"optim.muon.ns_coefficients": "polar_express"}, "2025-09-29_PolarExpress"
    ),
    Technique("normuon", {"optim.muon.normuon": True}, "2025-10-24_NorMuon"),
    # As much in all as there: weights times exp(-0.6) over a run, were no decay left out.
    Technique(
        "cautious-decay",
        {"optim.muon.weight_decay": 0.1, "optim.muon.cautious": True},
        "2025-11-10_CautiousWD",
    ),
    Technique("float8-head", {"train.float8_head": True}, "2025-01-13_Fp8LmHead"),
    Technique("predict-tokens", {"train.mtp_tokens": 3}, "2025-12-22_MultiTokenPrediction"),
    Technique("document-mask", {"model.document_mask": True}, "2024-11-19_FlexAttention"),
    # The record's head has a learning rate of 0.002 at a width of 768, which goes as 1 / width.
    Technique(
        "untied-head",
        {"model.tied_head": False, "model.embed_norm": True, "optim.adamw.head_lr": 0.012},
        "2024-11-03_UntieEmbed",
    ),
    Technique(
        "window-warmup", {"model.window": 256, "model.window_start": 64}, "2024-11-24_WindowWarmup"
    ),
)

SMALL_GAINS = Technique(
    "small-gains",
    {
        "model.unet_skips": True,
        "optim.muon.ns_coefficients": "polar_express",
        "optim.muon.normuon": True,
        "optim.muon.weight_decay": 0.1,
        "optim.muon.cautious": True,
    },
    "2025-11-10_CautiousWD",  # which has all four
)
"""What ended lower on the ladder by less than the noise, all at once. It is tried only where it is
asked for by name, with other seeds than those that chose it: `--only value-embeddings small-gains
--first-seed 4 --name ladder-again`."""


def small_modded(changes: dict[str, Any] | None = None) -> Config:
    """The run at the foot of the speedrun's ladder, with further fields changed."""
    return get_recipe("modded").override(SMALL | (changes or {}))


SHORT: dict[str, Any] = {
    "train.steps": 125,
    "train.eval_every": 1000,
    "train.eval_tokens": 32_768,
    "train.checkpoint_every": 5000,
    "train.keep_checkpoints": 1,
    "train.cpu_kernels": "fused",
    "train.sample_tokens": 0,
    "train.report": False,
    "train.log_to": (),
}
"""`laptop-plain` on 256,000 tokens, a twelfth of its corpus, in half a minute of a core."""

LAPTOP_TECHNIQUES = (
    Technique("key-smear", {"model.key_smear": True}),
    Technique(
        "untied-head",
        {"model.tied_head": False, "model.embed_norm": True, "optim.adamw.head_lr": 0.024},
        "2024-11-03_UntieEmbed",
    ),
    # At equal tokens.
    Technique("half-batch", {"train.batch_tokens": 1024, "train.steps": 250}),
    Technique("higher-rates", {"optim.muon.lr": 0.012, "optim.adamw.lr": 0.04}),
    # The neighbour is learned through the embedding: with its rate eight times as high, once more.
    Technique("key-smear-again", {"model.key_smear": True}),
    Technique("token-smear", {"model.token_smear": True}, "2025-09-18_Smear"),
    Technique("value-embeddings", {"model.value_embeddings": 2}, "2024-12-04_ValueEmbed"),
    Technique("pairs", {"model.bigram_embeddings": 16_384}),
    # From here on what `laptop` does not have. With as many FLOPs as 250 steps have before, and,
    # with another vocabulary, validated on the same 102,500 bytes to half a percent.
    Technique(
        "vocabulary-4096",
        {"data.embedded_vocab": 4096, "train.steps": 205, "train.eval_tokens": 28_672},
    ),
    Technique(
        "vocabulary-1024",
        {"data.embedded_vocab": 1024, "train.steps": 281, "train.eval_tokens": 38_656},
    ),
    Technique("three-layers", {"model.layers": 3, "model.value_embeddings": 1, "train.steps": 310}),
    Technique("normuon", {"optim.muon.normuon": True}, "2025-10-24_NorMuon"),
    Technique("momentum-0.9", {"optim.muon.momentum": 0.9}),
    Technique("32768-pairs", {"model.bigram_embeddings": 32_768}),
    Technique(
        "polar-express", {"optim.muon.ns_coefficients": "polar_express"}, "2025-09-29_PolarExpress"
    ),
)


def short_laptop_plain(changes: dict[str, Any] | None = None) -> Config:
    """The run at the foot of the laptop track's ladder, with further fields changed."""
    return get_recipe("laptop-plain").override(SHORT | (changes or {}))


def bits_per_byte(config: Config) -> float:
    """Bits per byte of the text that a config validates on, for a nat per token of it. Ends of text
    count as tokens and have no bytes."""
    dataset = open_data(config, Console(quiet=True))
    tokens = config.train.eval_tokens
    sizes_N = dataset.load_tokenizer().byte_lengths[dataset.val.read(1, tokens)]
    return tokens / math.log(2) / int(sizes_N.sum())


LADDERS = {
    "modded": Ladder("ladder", small_modded, TECHNIQUES, "nats per token", lambda config: 1.0),
    "laptop": Ladder(
        "laptop-ladder", short_laptop_plain, LAPTOP_TECHNIQUES, "bits per byte", bits_per_byte
    ),
}
