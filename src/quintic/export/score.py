"""The loss of a model that leaves, on the beginning of its run's validation tokens."""

from __future__ import annotations

from quintic.console import Console
from quintic.data.loader import validation_batches
from quintic.evaluate import sum_losses
from quintic.export.source import Source
from quintic.model.base import LanguageModel

MOST_SCORED_TOKENS = 16_384


def validation_loss(source: Source, model: LanguageModel) -> tuple[int, float]:
    """Return the number of the first validation tokens, and a model's loss on them in nats per
    token; the model may know fewer tokens than the run's, but all of the tokenizer's.

    Raises `QuinticError` and `OSError` where the run's data is not at hand.
    """
    context = source.config.context
    dataset = source.trained.open_data(Console(quiet=True))
    most = max(1, MOST_SCORED_TOKENS // context) * context
    tokens = min(source.trained.config.train.eval_tokens, most)
    batches = validation_batches(dataset.val, context, tokens, 1)
    sums = sum_losses(model.loss, batches, source.trained.device)
    return sums.tokens, sums.mean
