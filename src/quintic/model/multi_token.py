"""Multi-token prediction: which tokens a position predicts besides the next one.

The same logits predict all of them, so it costs no parameters and no further product.
Source: the speedrun's record 2025-12-22_MultiTokenPrediction
(https://github.com/KellerJordan/modded-nanogpt); the idea, with a head for each token, is that of
Gloeckle et al., https://arxiv.org/abs/2404.19737
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, stack

NO_TOKEN = -1
"""Stands for a token beyond the end of its sequence, which nobody predicts."""


def mtp_targets(targets_BT: Tensor, tokens: int) -> Tensor:
    """targets_NM: the M = `tokens` ones that follow each of the B T = N positions.

    `targets_BT` are the next ones. Those beyond the sequence are `NO_TOKEN`.
    """
    shifted = [F.pad(targets_BT[:, ahead:], (0, ahead), value=NO_TOKEN) for ahead in range(tokens)]
    return stack(shifted, dim=-1).flatten(0, 1)


def target_weights(targets_CM: Tensor, weights_M: Tensor) -> tuple[Tensor, Tensor]:
    """Targets that can all be looked up, and the weight of each: none where there is no token."""
    return targets_CM.clamp(min=0), weights_M * (targets_CM != NO_TOKEN)
