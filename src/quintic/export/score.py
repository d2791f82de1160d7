"""The loss of a model that leaves, on the beginning of its run's validation tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from quintic.console import Console
from quintic.data.loader import validation_batches
from quintic.errors import QuinticError
from quintic.evaluate import LossSums, sum_losses
from quintic.export.source import Source

MOST_SCORED_TOKENS = 16_384


def validation_sums(source: Source) -> tuple[LossSums, npt.NDArray[np.int64]]:
    """Return the losses of the model without the rows that pad its vocabulary, on the first
    validation tokens of its run, with those tokens.

    Raises `QuinticError` and `OSError` where the run's data is not at hand.
    """
    trained, context = source.trained, source.config.context
    if trained.config.is_imported:  # open_data would say what `quintic evaluate` can do
        raise QuinticError(f"{trained.folder} was imported, and its data is not known here")
    dataset = trained.open_data(Console(quiet=True))
    tokens = min(trained.config.train.eval_tokens, max(1, MOST_SCORED_TOKENS // context) * context)

    def loss(inputs_BT: Tensor, targets_BT: Tensor, reduction: str) -> Tensor:
        logits_BTV = source.model(inputs_BT)[..., : source.tokenizer.vocab_size]
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction=reduction)

    batches = validation_batches(dataset.val, context, tokens, 1)
    sums = sum_losses(loss, batches, torch.device("cpu"), special_ids=dataset.special_ids)
    return sums, dataset.val.read(1, sums.tokens)
