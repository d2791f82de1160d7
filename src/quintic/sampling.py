"""The draw of the next token from a model's logits.

In this order, as in transformers: repetition penalty, temperature, top-k, top-p, min-p.

Shapes: V vocabulary, K tokens left to draw from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quintic.errors import QuinticError


@dataclass(frozen=True)
class Sampling:
    """Says how the next token is drawn; by default from the model's own distribution."""

    temperature: float = 1.0
    """The logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw among the K likeliest tokens; None: all."""
    top_p: float | None = None
    """Draw among the fewest likeliest tokens whose probabilities add up to this; None: all
    (https://arxiv.org/abs/1904.09751)."""
    min_p: float | None = None
    """Draw among the tokens at least this many times as likely as the likeliest; None: all
    (https://arxiv.org/abs/2407.01082)."""
    repetition_penalty: float | None = None
    """Positive logits of tokens that have occurred, in the prompt too, are divided by it, and
    negative ones multiplied; None: as they are (https://arxiv.org/abs/1909.05858)."""

    def check(self) -> None:
        """Raise `QuinticError` on a setting out of range."""
        if not 0 <= self.temperature < math.inf:
            raise QuinticError(
                f"--temperature is {self.temperature}: it must be finite, zero or positive"
            )
        if self.top_k is not None and self.top_k < 1:
            raise QuinticError(f"--top-k is {self.top_k}: it must be at least 1, or left out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise QuinticError(
                f"--top-p is {self.top_p}: it must be above 0 and at most 1, or left out"
            )
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise QuinticError(f"--min-p is {self.min_p}: it must be from 0 to 1, or left out")
        penalty = self.repetition_penalty
        if penalty is not None and not 0 < penalty < math.inf:
            raise QuinticError(
                f"--repetition-penalty is {penalty}: it must be positive, 1 changes nothing"
            )

    def probabilities(self, logits_V: Tensor, seen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the ids that may be drawn and their probabilities, [K] each.

        `seen` are the tokens so far. The temperature must not be 0.
        """
        logits_K = self._penalized(logits_V, seen)
        ids_K = torch.arange(len(logits_K))
        if self.top_k is not None:
            # By index and not by a threshold, since logits computed in bfloat16 have ties.
            logits_K, ids_K = logits_K.topk(min(self.top_k, len(logits_K)))
        # The largest becomes 0 first, so that no temperature is too small to divide by.
        p_K = torch.softmax((logits_K.double() - logits_K.max()) / self.temperature, dim=-1)
        if self.top_p is not None:
            # PyTorch sorts a vocabulary on the CPU in the time of a tenth of a token of 124M.
            falling_K = torch.from_numpy(np.sort(p_K.numpy())[::-1].copy())
            p_K, likeliest_K = p_K.topk(int((falling_K.cumsum(0) - falling_K < self.top_p).sum()))
            ids_K = ids_K[likeliest_K]
        if self.min_p is not None:
            kept_K = p_K >= self.min_p * p_K.max()
            ids_K, p_K = ids_K[kept_K], p_K[kept_K]
        return ids_K, p_K / p_K.sum()

    def draw(self, logits_V: Tensor, seen: Sequence[int], random: torch.Generator) -> int:
        """Return a token; logits and generator are on the CPU."""
        if self.temperature == 0 or self.top_k == 1:
            return int(self._penalized(logits_V, seen).argmax())
        ids_K, p_K = self.probabilities(logits_V, seen)
        # One number per draw, where `torch.multinomial` draws one for each token of a vocabulary.
        share = torch.rand((), dtype=torch.float64, generator=random)
        summed_K = p_K.cumsum(0)
        place = torch.searchsorted(summed_K, share * summed_K[-1], right=True)
        return int(ids_K[min(int(place), len(ids_K) - 1)])  # the product may round up to the sum

    def _penalized(self, logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        if self.repetition_penalty is None:
            return logits_V
        ids = torch.tensor(sorted({i for i in seen if i < len(logits_V)}), dtype=torch.int64)
        of_seen = logits_V[ids]
        penalty = self.repetition_penalty
        penalized = torch.where(of_seen > 0, of_seen / penalty, of_seen * penalty)
        return logits_V.index_copy(0, ids, penalized)
