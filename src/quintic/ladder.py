"""One dial: a run whose sizes, batch, steps and rates all follow from its depth, by stated rules.

`ladder:N` is the rung of depth N, and `ladder:N:T` trains it on T tokens for each parameter of its
block matrices. It is `modded` (`quintic.recipes`), whose sizes and rates are replaced by those
below; `modded` is also where every rule starts from, so that rung 12 has its model. Each rule is
one line here and one in docs/scaling.md, which has the sources.

Parameters N are those of the block matrices, 12 x depth x width^2, so that no rule depends on the
vocabulary, which the dataset decides.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from quintic.errors import QuinticError

PREFIX = "ladder:"
DEEPEST = 48
TOKENS_PER_PARAMETER = 20.0
"""Tokens for each parameter of the block matrices, near compute-optimal for models that count so
(Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556)."""
MOST_TOKENS_PER_PARAMETER = 10_000.0

ASPECT = 64
"""Width for each block: fixed, as nanochat's (https://github.com/karpathy/nanochat)."""
HEAD_WIDTH, WIDE_HEAD_WIDTH, WIDE_HEADS_FROM = 64, 128, 12
"""Width of a head: 64, GPT-2's, and from this depth on 128, as `modded` and nanochat have it."""
CONTEXT = 1024
"""The same on every rung, since a loss depends on it."""

REFERENCE_WIDTH, REFERENCE_BATCH, REFERENCE_TOKENS = 768, 2**19, 5100 * 2**19
REFERENCE_ADAMW_LR = 3.6e-3
REFERENCE_MUON_LR = 3.6e-4 * math.sqrt(REFERENCE_WIDTH)
"""Muon's at scale `aspect`, which for the square matrices of `modded` is its 3.6e-4 at `max_dim`:
0.00998."""

BATCH_OF_TOKENS = 2 / 3
"""Exponent of the tokens of a batch in those of the run: 2/3 in parameters at a constant ratio
(Porian et al. 2024, https://arxiv.org/abs/2406.19146, and the ladder of OLMo-core), and it is the
tokens that count (https://arxiv.org/abs/2410.21676, https://arxiv.org/abs/2505.13738)."""
LR_OF_BATCH = 1 / 2
"""Exponent of learning rates in the batch (Malladi et al. 2022, https://arxiv.org/abs/2205.10287)."""
LR_OF_TOKENS = -0.32
"""Exponent of learning rates in the tokens of the run (Bjorck et al. 2024,
https://arxiv.org/abs/2409.19913)."""
MUON_SCALE, MUON_LR_OF_WIDTH = "aspect", 0.0
"""Muon's scale, and the exponent of its learning rate in the width: with updates of spectral norm
sqrt(out / in) the best should stay (https://arxiv.org/abs/2310.17813), and from width 64 to 256 it
does, as from 2 to 8 layers (docs/scaling.md: -0.20, 95% from -0.46 to 0.07)."""
ADAMW_LR_OF_WIDTH = -0.5
"""Exponent of AdamW's learning rate, which the tied matrix has, in the width, as nanochat's."""
TOTAL_DECAY = 0.6
"""Sum over the run of learning rate x weight decay, of Muon's matrices: the same on every rung
(Wang and Aitchison 2024, https://arxiv.org/abs/2405.13698), and as much as in the speedrun's record
2025-11-10_CautiousWD."""
COOLDOWN = 0.7
"""Share of the steps over which the learning rate falls: that of the small runs that were tuned
here (`laptop-plain`, the techniques of docs/speedrun.md); nanochat has 0.65."""

VALIDATIONS, EVAL_TOKENS = 10, 2**19
COMPILED_FROM = 8
"""Depth from which a run takes long enough for compilation; those below use the CPU's kernels."""
SHARDED_FROM = 32
"""Depth from which several processes divide the weights too (1.6B parameters)."""

_NAME = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}(?:\.[0-9]{1,9})?))?")


@dataclass(frozen=True)
class Rung:
    """Holds the dial's two numbers, and follows the rules from them."""

    depth: int
    tokens_per_parameter: float = TOKENS_PER_PARAMETER

    @property
    def name(self) -> str:
        """Return the name of the recipe, which says the tokens a parameter where they are others
        than usual."""
        if self.tokens_per_parameter == TOKENS_PER_PARAMETER:
            return f"{PREFIX}{self.depth}"
        ratio = f"{self.tokens_per_parameter:.9f}".rstrip("0").rstrip(".")
        return f"{PREFIX}{self.depth}:{ratio}"

    @property
    def head_width(self) -> int:
        """Return the width of a head."""
        return HEAD_WIDTH if self.depth < WIDE_HEADS_FROM else WIDE_HEAD_WIDTH

    @property
    def width(self) -> int:
        """Return the width: 64 x depth, rounded up to whole heads."""
        return -(-ASPECT * self.depth // self.head_width) * self.head_width

    @property
    def parameters(self) -> int:
        """Return the parameters of the block matrices."""
        return 12 * self.depth * self.width**2

    @property
    def wanted_tokens(self) -> float:
        """Return the tokens that the ratio asks for, which `steps` rounds to whole batches."""
        return self.tokens_per_parameter * self.parameters

    @property
    def batch_tokens(self) -> int:
        """Return the tokens of a batch, the nearest power of two, and at least one context."""
        wanted = REFERENCE_BATCH * (self.wanted_tokens / REFERENCE_TOKENS) ** BATCH_OF_TOKENS
        return max(CONTEXT, 1 << max(0, round(math.log2(wanted))))

    @property
    def steps(self) -> int:
        """Return the steps of the run."""
        return max(1, round(self.wanted_tokens / self.batch_tokens))

    def _lr(self, reference: float, of_width: float) -> float:
        """Return a learning rate, to three digits."""
        batch = (self.batch_tokens / REFERENCE_BATCH) ** LR_OF_BATCH
        tokens = (self.wanted_tokens / REFERENCE_TOKENS) ** LR_OF_TOKENS
        lr = reference * batch * tokens * (self.width / REFERENCE_WIDTH) ** of_width
        return float(f"{lr:.3g}")

    @property
    def muon_lr(self) -> float:
        """Return Muon's learning rate, before the scale."""
        return self._lr(REFERENCE_MUON_LR, MUON_LR_OF_WIDTH)

    @property
    def adamw_lr(self) -> float:
        """Return AdamW's learning rate."""
        return self._lr(REFERENCE_ADAMW_LR, ADAMW_LR_OF_WIDTH)

    @property
    def weight_decay(self) -> float:
        """Return Muon's weight decay, to three digits; a step decays by the schedule's part of it,
        whose mean over the run is 1 - COOLDOWN / 2."""
        decay = TOTAL_DECAY / (self.muon_lr * self.steps * (1 - COOLDOWN / 2))
        return float(f"{decay:.3g}")

    @property
    def changes(self) -> dict[str, Any]:
        """Return what the rung has otherwise than `modded`, by dotted names of fields."""
        compiled = self.depth >= COMPILED_FROM
        return {
            "model.layers": self.depth,
            "model.width": self.width,
            "model.heads": self.width // self.head_width,
            "model.context": CONTEXT,
            "model.vocab_size": None,
            "data.tokenizer": None,
            "optim.muon.lr": self.muon_lr,
            "optim.muon.scale": MUON_SCALE,
            "optim.muon.weight_decay": self.weight_decay,
            "optim.muon.cautious": True,
            "optim.adamw.lr": self.adamw_lr,
            "optim.schedule.cooldown_fraction": COOLDOWN,
            "train.steps": self.steps,
            "train.batch_tokens": self.batch_tokens,
            "train.compile": compiled,
            "train.cpu_kernels": "plain" if compiled else "fused",
            "train.sharding": "zero1" if self.depth < SHARDED_FROM else "fsdp",
            "train.eval_every": -(-self.steps // VALIDATIONS),
            "train.eval_tokens": EVAL_TOKENS,
        }


def parse_rung(name: str) -> Rung | None:
    """Return the rung that a recipe's name means; None for a name of another kind.

    Raises `QuinticError` for a depth or a ratio out of range.
    """
    if name.partition(":")[0] != PREFIX[:-1]:
        return None
    found = _NAME.fullmatch(name[len(PREFIX) :])
    if found is None or not 1 <= int(found[1]) <= DEEPEST:
        raise QuinticError(
            f"there is no recipe {name!r}: a rung is ladder:N, N blocks deep, a whole number from "
            f"1 to {DEEPEST}, such as ladder:6, or ladder:N:T with T tokens a parameter"
        )
    ratio = TOKENS_PER_PARAMETER if found[2] is None else float(found[2])
    if not 0 < ratio <= MOST_TOKENS_PER_PARAMETER:
        raise QuinticError(
            f"there is no recipe {name!r}: its tokens a parameter must be above 0 and at most "
            f"{MOST_TOKENS_PER_PARAMETER:,.0f}, such as ladder:{found[1]}:10"
        )
    return Rung(int(found[1]), ratio)


def with_tokens_per_parameter(name: str, ratio: float) -> str:
    """Return the name of a rung with so many tokens a parameter, for one that says none itself.

    Raises `QuinticError` for another recipe or rung, and for a ratio out of range.
    """
    if (rung := parse_rung(name)) is None:
        raise QuinticError(
            f"--tokens-per-parameter is of the rungs ladder:N, whose batch, steps and rates follow "
            f"from it, and {name} is none: name one first, or give --train.steps"
        )
    if name.count(":") > 1:
        raise QuinticError(
            f"{name} says its tokens a parameter, and --tokens-per-parameter others, {ratio:g}: "
            "leave one of the two out"
        )
    if not 0 < round(ratio, 9) <= MOST_TOKENS_PER_PARAMETER:
        raise QuinticError(
            f"--tokens-per-parameter is {ratio:g}: it must be above 0 and at most "
            f"{MOST_TOKENS_PER_PARAMETER:,.0f}"
        )
    return Rung(rung.depth, ratio).name
