"""Every held-out byte is scored once, from what comes before it alone."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quintic.console import Console
from quintic.data.corpus import _dataset_of_tree, _documents, _read_sources, _split
from quintic.data.dataset import open_dataset
from quintic.errors import QuinticError
from quintic.track.score import bits_per_byte, check_causal
from quintic.track.texts import Corpus, SplitText, check_dataset, summed
from quintic.trained import load_trained


def test_the_score_is_that_of_each_token_by_hand_and_leaves_no_tail(
    text_run: Path, tiny_corpus: Corpus
) -> None:
    size = tiny_corpus["val"].bytes
    part, whole = bits_per_byte(text_run, [1000, None], tiny_corpus, Console())
    trained = load_trained(text_run)
    dataset, context = trained.open_data(Console()), trained.config.model.context
    ids = torch.from_numpy(dataset.val.read(0, len(dataset.val)))
    assert (len(ids) - 1) % context  # so that there is a tail
    lengths, bits, ends = dataset.load_tokenizer().byte_lengths, [0.0, 0.0], 0
    scored = [0, 0]
    with torch.no_grad():
        for target in range(1, len(ids)):
            # Windows adjoin, but for the last, which is full too and scores only what is left.
            start = min((target - 1) // context * context, len(ids) - 1 - context)
            logits = trained.model(ids[None, start:target])[0, -1].double()
            length = int(lengths[ids[target]])
            ends += length
            for place in [1, 0] if ends <= 1000 else [1]:
                if length:
                    bits[place] -= float(logits.log_softmax(-1)[ids[target]]) / math.log(2)
                    scored[place] += length
    assert (scored[1], ends) == (size, size)
    assert part == pytest.approx(bits[0] / scored[0], abs=1e-5)
    assert whole == pytest.approx(bits[1] / size, abs=1e-5)
    assert abs(part - whole) > 1e-3


def test_the_digest_of_a_corpus_does_not_depend_on_the_vocabulary_and_sees_every_byte(
    tmp_path: Path,
) -> None:
    (tmp_path / "library").mkdir()
    for index in range(30):
        lines = (f"def f_{index}_{n}(x):\n    return x + {n}  # é\n" for n in range(30))
        (tmp_path / "library" / f"module_{index}.py").write_text("".join(lines))
    texts = _split(_documents(_read_sources(tmp_path / "library")))
    assert not set(texts["train"]) & set(texts["val"])  # held-out files stay out of training
    corpus = {split: summed(t.encode() for t in texts[split]) for split in texts}
    for size in (290, 320):
        dataset = open_dataset(_dataset_of_tree(tmp_path / "library", size, tmp_path / "cache"))
        check_dataset(dataset, corpus)
    swapped: Corpus = {"train": corpus["val"], "val": corpus["train"]}
    moved: Corpus = {
        "train": summed(t.encode() for t in [*texts["train"], texts["val"][0]]),
        "val": corpus["val"],
    }
    for other in (swapped, moved):
        with pytest.raises(QuinticError, match="are not the text of the corpus: remove the folder"):
            check_dataset(dataset, other)
    assert summed([b"ab", b"c"]) != summed([b"a", b"bc"])
    made_here = b"#!/somewhere/bin/python3.11\n# -*- python -*-\n\n# Keep this script in sync"
    assert summed([b"ab", made_here]) == summed([b"ab"]) != summed([b"ab", made_here[2:]])
    assert summed([]) == SplitText(0, 0, summed([]).sha256)


class Leaky(nn.Module):
    """Gives each position, besides its own token, a part of the last one of its sequence."""

    def __init__(self, share: float, *, batch: bool = False) -> None:
        super().__init__()
        self.share, self.batch = share, batch

    def forward(self, ids_BT: Tensor) -> Tensor:
        own = ids_BT[..., None].float().repeat(1, 1, 8)
        leak = ids_BT.flip(0) if self.batch else ids_BT[:, -1:]
        return own + self.share * leak[..., None].float()


def test_a_model_that_sees_what_comes_after_or_another_sequence_gets_no_score() -> None:
    ids = torch.arange(32) * 7 % 31
    check_causal(Leaky(0.0), ids)  # type: ignore[arg-type]
    for model in (Leaky(0.01), Leaky(0.01, batch=True)):
        with pytest.raises(QuinticError, match=r"^the model predicts a token from what comes aft"):
            check_causal(model, ids)  # type: ignore[arg-type]
