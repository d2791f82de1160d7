"""The score of a run of the track: bits per byte of the held-out files, every byte once.

One procedure for every model and vocabulary: the held-out files are one stream, cut into adjoining
windows of the model's context, and each token is predicted from those before it in its window. The
tokens are scored by this quintic, whoever trained the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from quintic.console import Console
from quintic.data.loader import rolling_batches
from quintic.errors import QuinticError
from quintic.model.base import LanguageModel
from quintic.track.texts import Corpus, check_dataset
from quintic.trained import load_trained

LEAK = 1e-4
"""Change of a logit, over the size of the largest, from which on it is none of rounding."""


def bits_per_byte(
    folder: Path,
    first_bytes: Sequence[int | None],
    corpus: Corpus,
    console: Console,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[float, ...]:
    """Return the bits per byte of the trained model in a run's folder, on the first so many bytes
    of the held-out files; None stands for all of them.

    A token whose text ends beyond them is none of the first bytes. `on_batch` is called after each
    batch. Raises `QuinticError` where the run was trained on another text than the corpus, and
    where a prediction depends on what comes after it.
    """
    trained = load_trained(folder, device="cpu")
    dataset = trained.open_data(console)  # raises for other tokens than those it was trained on
    check_dataset(dataset, corpus)
    tokens = len(dataset.val) - 1
    targets = dataset.val.read(1, tokens)
    check_causal(trained.model, torch.from_numpy(dataset.val.read(0, trained.config.model.context)))
    batch = trained.config.train.micro_batch or 1
    batches = rolling_batches(dataset.val, trained.config.model.context, tokens, batch)

    def nats() -> Iterator[np.ndarray]:
        for inputs_BT, targets_BT in batches:
            losses = trained.model.loss(inputs_BT, targets_BT.clamp(min=0), reduction="none")
            yield losses.double().numpy()[(targets_BT >= 0).flatten().numpy()]
            on_batch()

    with torch.no_grad():
        nats_N = np.concatenate(list(nats()))
    sizes_N = dataset.load_tokenizer().byte_lengths[targets]
    ends_N = np.cumsum(sizes_N)
    assert len(nats_N) == tokens  # `check_dataset` has found that these are all of the text
    return tuple(
        float(nats_N[inside].sum() / math.log(2) / sizes_N[inside].sum())
        for inside in ((ends_N <= (most or ends_N[-1])) & (sizes_N > 0) for most in first_bytes)
    )


def check_causal(model: LanguageModel, ids_T: torch.Tensor) -> None:
    """Raise `QuinticError` where a logit depends on later tokens, or on another sequence of the
    batch."""
    before_2T = ids_T.repeat(2, 1)
    middle = len(ids_T) // 2
    after_2T = before_2T.clone()
    others = torch.arange(1, 2 * len(ids_T) + 1).view(2, -1)
    after_2T[0, middle:] = (before_2T[0, middle:] + others[0, middle:]) % int(ids_T.max() + 1)
    after_2T[1] = (before_2T[1] + others[1]) % int(ids_T.max() + 1)
    with torch.no_grad():
        before, after = (model(ids_2T)[0, :middle] for ids_2T in (before_2T, after_2T))
    if float((before - after).abs().max()) > LEAK * max(1.0, float(before.abs().max())):
        raise QuinticError(
            "the model predicts a token from what comes after it: the rules of the track allow no "
            "position to see beyond itself"
        )
