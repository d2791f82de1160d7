"""Pure functions of the step, counted from 0: everything that changes from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from quintic.config import MOMENTUM_START, Config

BATCH_LR_EXPONENT = 0.6
"""Learning rates go with the batch to this power, as in the speedrun's record
2025-11-29_BatchSizeSchedule (https://github.com/KellerJordan/modded-nanogpt)."""


def trapezoid(step: int, *, steps: int, warmup: int, cooldown: int) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, linear to zero.

    The warm-up's first step is 1 / warmup and its last 1; the cooldown's first step (that is
    `steps - cooldown`) is 1 and its last 1 / cooldown. Source: Hägele et al.,
    https://arxiv.org/abs/2405.18392
    """
    if step < warmup:
        return (step + 1) / warmup
    if step >= steps - cooldown:
        return (steps - step) / cooldown if cooldown else 0.0
    return 1.0


def cosine(step: int, *, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate: linear warm-up, half a cosine to 0, as llm.c's."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def lr_factor(config: Config, step: int) -> float:
    """Return the factor of every learning rate at a step of a run."""
    schedule, steps, batches = config.optim.schedule, config.train.steps, config.batches
    share = math.pow(batches.at(step) / batches.sequences, BATCH_LR_EXPONENT)
    shapes: dict[str, Callable[..., float]] = {
        "trapezoid": partial(trapezoid, cooldown=config.cooldown_steps),
        "cosine": cosine,
    }
    return share * shapes[schedule.kind](step, steps=steps, warmup=schedule.warmup_steps)


def momentum_at(step: int, *, momentum: float, warmup: int) -> float:
    """Return Muon's momentum: linear from `MOMENTUM_START` over `warmup` steps, then constant."""
    if step >= warmup:
        return momentum
    return MOMENTUM_START + (momentum - MOMENTUM_START) * step / warmup


def window_at(step: int, *, steps: int, start: int | None, window: int | None) -> int | None:
    """Return how many positions a token sees, from `start` at step 0 evenly to `window` at the end.

    Source: the speedrun's record 2024-11-24_WindowWarmup
    (https://github.com/KellerJordan/modded-nanogpt), from 64 to 1,792.
    """
    if start is None or window is None:
        return window
    return start + (window - start) * min(step, steps) // steps


def token_weights_at(step: int, *, steps: int, tokens: int) -> tuple[float, ...]:
    """Return the weights of the tokens that a position predicts, the next first; they sum to 1.

    The run has `tokens` equal parts. In the first all are predicted, each further token with half
    the weight of the one before, and the last of them fades to 0 until the part ends; so each part
    has one less, and the last is of the next token alone. For three, before they are divided by
    their sum: 1, 0.5, 0.25 to 0; then 1, 0.5 to 0; then 1.
    Source: the speedrun's record 2025-12-22_MultiTokenPrediction
    (https://github.com/KellerJordan/modded-nanogpt).
    """
    place = min(step, steps) * tokens / steps
    part = min(int(place), tokens - 1)
    last = tokens - 1 - part
    weights = [0.5**token if token <= last else 0.0 for token in range(tokens)]
    if last > 0:
        weights[last] *= 1 - (place - part)
    return tuple(weight / sum(weights) for weight in weights)


class Scheduled(NamedTuple):
    """Holds everything of a step that a schedule decides."""

    lr_factor: float
    """Factor of every learning rate."""
    momentum: float
    """Muon's."""
    window: int | None
    """Positions that a token sees; None: all up to its own."""
    batch_sequences: int
    """Sequences in the global batch."""
    token_weights: tuple[float, ...]
    """Weights of the tokens that a position predicts, the next one first."""


def scheduled(config: Config, step: int) -> Scheduled:
    """Return all of a step; the one after the last is that of a trained model."""
    muon, model = config.optim.muon, config.model
    return Scheduled(
        lr_factor=lr_factor(config, step),
        momentum=momentum_at(step, momentum=muon.momentum, warmup=muon.momentum_warmup_steps),
        window=window_at(
            step, steps=config.train.steps, start=model.window_start, window=model.window
        ),
        batch_sequences=config.batches.at(step),
        token_weights=token_weights_at(
            step, steps=config.train.steps, tokens=config.train.mtp_tokens
        ),
    )


def steps_alike(one: Config, other: Config) -> int:
    """Return how many steps from the first on two runs have in common, as far as schedules decide.

    A checkpoint of one of them is a checkpoint of the other too, exactly where it is of no later
    step. Steps that were trained otherwise than the config says do not count as different.
    """
    most = min(one.train.steps, other.train.steps)
    steps = range(one.continued_from.anew, most)
    return next((step for step in steps if scheduled(one, step) != scheduled(other, step)), most)


def steps_before_cooldown(config: Config) -> int | None:
    """Return the steps of a trapezoid after which it falls, which every longer run has too; None
    where there are none.

    The cooldown's first step is still at the full rate. Where something else depends on the length
    of the run, longer runs have no steps in common with it.
    """
    steps, cooldown = config.train.steps, config.cooldown_steps
    others = config.train.batch_stages > 1 or config.train.mtp_tokens > 1
    if not 0 < cooldown < steps or others or config.model.window_start is not None:
        return None
    return steps - cooldown + 1
