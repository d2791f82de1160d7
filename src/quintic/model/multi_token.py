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
    """Return targets_NM: the M = `tokens` that follow each of the B T = N positions.

    `targets_BT` are the next tokens. Those beyond the sequence are `NO_TOKEN`.
    """
    shifted = [F.pad(targets_BT[:, ahead:], (0, ahead), value=NO_TOKEN) for ahead in range(tokens)]
    return stack(shifted, dim=-1).flatten(0, 1)
