"""The loss of a model and what it means in bits per byte, recomputed by other means."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.document import Document, read_text
from quintic.data.loader import NO_TARGET, rolling_batches, validation_batches
from quintic.data.shards import TokenStream, write_shard
from quintic.errors import QuinticError
from quintic.evaluate import LossSums, add_up, score_text, sum_losses
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.model.loss import Reduction

CPU = torch.device("cpu")
CONTEXT = 8


def model_of(vocab_size: int) -> LanguageModel:
    """A model in float64 that is as it was drawn."""
    sizes = ModelConfig(layers=1, width=16, heads=2, context=CONTEXT, vocab_size=vocab_size)
    return build_model(sizes, compute_dtype=torch.float64)


def nats_of(model: LanguageModel, context: Sequence[int], target: int) -> float:
    """The loss of one token behind a context, by the model's logits alone."""
    with torch.no_grad():
        logits = model(torch.tensor([context]))[0, -1].tolist()
    return math.log(sum(math.exp(logit) for logit in logits)) - float(logits[target])


def test_the_mean_is_over_tokens_and_not_over_batches() -> None:
    means = iter([1.0, 4.0])

    def loss(inputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        assert reduction == "none"
        return torch.full((targets.numel(),), next(means))

    batches = [(torch.zeros(3, 4), torch.zeros(3, 4)), (torch.zeros(1, 4), torch.zeros(1, 4))]
    assert sum_losses(loss, batches, CPU).mean == (12 * 1.0 + 4 * 4.0) / 16


def test_validation_loss_is_the_mean_over_tokens_for_every_micro_batch(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(32, (200,), generator=random)
    stream = TokenStream([write_shard(tmp_path / "x_val_000000.bin", ids.numpy())])
    model = model_of(32)
    log_p = model(ids[:88].view(11, 8)).log_softmax(-1).view(88, 32)
    losses = -log_p[torch.arange(88), ids[1:89]].detach()
    text = (ids[1:89] != 5) & (ids[1:89] != 9)
    assert 70 < text.sum() < 88
    for micro_batch in (1, 2, 4, 5, 11, 64):
        batches = validation_batches(stream, 8, 88, micro_batch)
        found = sum_losses(model.loss, batches, CPU, special_ids=(9, 5))
        assert found.tokens == 88
        assert found.mean == pytest.approx(float(losses.mean()), rel=1e-12), micro_batch
        assert found.text_nats == pytest.approx(float(losses[text].sum()), rel=1e-12), micro_batch


def test_validation_keeps_no_gradient() -> None:
    seen = []

    def loss(inputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return torch.ones(1)

    sum_losses(loss, [(torch.zeros(1, 1), torch.zeros(1, 1))], CPU)
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_an_infinite_loss_of_end_of_text_leaves_bits_per_byte_what_they_are() -> None:
    def loss(inputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        return torch.tensor([1.0, math.inf])

    batch = torch.tensor([[3, 4]]), torch.tensor([[4, 0]])
    found = sum_losses(loss, [batch], CPU, special_ids=(0,))
    assert (found.nats, found.text_nats) == (math.inf, 1.0)


def test_bits_per_byte_of_known_numbers() -> None:
    def bits(nats: float, text_bytes: int) -> float:
        return LossSums(1, nats, nats).bits_per_byte(text_bytes)

    assert bits(math.log(2), 1) == 1
    assert bits(math.log(256), 1) == pytest.approx(8)
    # A uniform guess over 65,536 tokens of 4 bytes each: 16 bits for 4 bytes.
    assert bits(math.log(65_536), 4) == pytest.approx(4)
    # GPT-2 on the benchmark corpus, say: 3.28 nats at 4.48 bytes a token.
    assert bits(100 * 3.28, 448) == pytest.approx(1.0563, abs=1e-4)
    # End of text has no bytes: its nats are in the mean and nowhere else.
    assert LossSums(2, math.log(8) + 99.0, math.log(8)).bits_per_byte(3) == pytest.approx(1)


def test_perplexity_of_known_numbers() -> None:
    assert LossSums(3, 0.0, 0.0).perplexity == 1
    assert LossSums(2, 2 * math.log(50_257), 0.0).perplexity == pytest.approx(50_257)
    assert LossSums(1, 5_000.0, 0.0).perplexity == math.inf


def test_sums_of_parts_are_those_of_the_whole() -> None:
    whole = add_up([LossSums(1, 2.0, 0.5), LossSums(3, 4.0, 4.0)])
    assert whole == LossSums(4, 6.0, 4.5)
    assert whole.mean == 1.5, "by token, and not the mean of the files' means"


def test_documents_of_eight_tokens_have_the_bits_of_their_bytes_alone(tmp_path: Path) -> None:
    """Every eighth target is end of text: what it costs is in the loss and not in bits per byte."""
    texts = [f"{a} plus {b} is {a + b}; " for a in range(7) for b in range(7)]
    bpe = train_bpe(texts, 270)
    documents = [[bpe.eot_id, *bpe.encode(text)[:7]] for text in texts]
    assert {len(document) for document in documents} == {8}
    ids = [id for document in documents for id in document]
    stream = TokenStream([write_shard(tmp_path / "x_val_000000.bin", ids)])
    model, tokens = model_of(272), 48 * 8

    total, text_nats, text_bytes, ends = 0.0, 0.0, 0, 0
    for position in range(1, tokens + 1):
        begin = (position - 1) // CONTEXT * CONTEXT
        nats = nats_of(model, ids[begin:position], ids[position])
        total += nats
        if ids[position] == bpe.eot_id:
            ends += 1
        else:
            text_nats += nats
            text_bytes += len(bpe.decode_bytes([ids[position]]))
    assert ends == 48

    batches = validation_batches(stream, CONTEXT, tokens, 5)
    sums = sum_losses(model.loss, batches, CPU, special_ids=bpe.special_ids)
    scores = score_text(sums, stream.read(1, tokens), bpe, None)
    assert sums.mean == pytest.approx(total / tokens, rel=1e-12)
    assert (scores.text_tokens, scores.text_bytes) == (tokens - 48, text_bytes)
    expected = text_nats / math.log(2) / text_bytes
    assert scores.bits_per_byte == pytest.approx(expected, rel=1e-12)
    assert total / math.log(2) / text_bytes > 1.1 * expected, "which was said for bits per byte"
    assert scores.unigram_bits_per_byte is None


TRAIN = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(60))
VALIDATION = "".join(f"def g{i}(y):\n    return y * {i} - 'ünseen'\n\n" for i in range(20))


def test_the_baselines_are_those_of_the_text_scored(tmp_path: Path) -> None:
    bpe = train_bpe([TRAIN], 270)
    train_ids = [bpe.eot_id, *bpe.encode(TRAIN)]
    ids = bpe.encode(VALIDATION)
    val_ids = [*ids, bpe.eot_id, *bpe.encode("never reached")]
    train = TokenStream([write_shard(tmp_path / "x_train_000001.bin", train_ids)])
    validation = TokenStream([write_shard(tmp_path / "x_val_000000.bin", val_ids)])
    tokens = len(ids)  # from the second token to the end of text, which is a target without text
    sums = LossSums(tokens, 2.5 * tokens, 2.25 * tokens)
    scores = score_text(sums, validation.read(1, tokens), bpe, train)

    text = VALIDATION.encode()[len(bpe.decode_bytes(ids[:1])) :]
    assert (scores.text_tokens, scores.text_bytes) == (tokens - 1, len(text))
    assert scores.bits_per_byte == pytest.approx(2.25 / math.log(2) * tokens / len(text))
    # gzip is zlib's stream with a header and a trailer of 18 bytes instead of 6.
    assert scores.gzip_bits_per_byte == 8 * (len(zlib.compress(text, 9)) + 12) / len(text)

    counts = Counter(train_ids)
    total = len(train_ids) + bpe.vocab_size
    bits = 0.0
    for target in ids[1:]:  # without that end of text, as the model's
        bits -= math.log2((counts[target] + 1) / total)
    assert scores.unigram_bits_per_byte == pytest.approx(bits / len(text), rel=1e-12)
    assert any(counts[target] == 0 for target in ids)  # and those cost a finite number of bits


def test_tokens_without_text_have_no_bits_per_byte() -> None:
    bpe = train_bpe([TRAIN], 270)
    with pytest.raises(QuinticError, match="none of these 3 tokens is text"):
        score_text(LossSums(3, 1.0, 0.0), np.full(3, bpe.eot_id), bpe, None)


# A document of any length -------------------------------------------------------------------------


def rolling_nats(model: LanguageModel, ids: Sequence[int]) -> list[float]:
    """The loss of each token of a document behind end of text, token by token, as
    lm-evaluation-harness conditions it: windows of the context adjoin, and one that would not be
    full begins as much earlier."""
    tokens, context, losses = len(ids) - 1, model.config.context, []
    for position in range(1, tokens + 1):
        begin = (position - 1) // context * context
        if begin + context > tokens:
            begin = max(0, tokens - context)
        losses.append(nats_of(model, ids[begin:position], ids[position]))
    return losses


@pytest.mark.parametrize("tokens", [1, 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 5])
def test_every_token_of_a_document_is_scored_once_with_the_context_it_has(tokens: int) -> None:
    random = np.random.default_rng(tokens)
    ids = random.integers(0, 40, tokens + 1)
    model, document = model_of(40), Document("text", b"", ids)
    expected = math.fsum(rolling_nats(model, ids.tolist()))
    for batch_sequences in (1, 2, 64):
        batches = list(rolling_batches(document, CONTEXT, tokens, batch_sequences))
        seen = torch.cat([targets[targets != NO_TARGET] for _, targets in batches])
        assert seen.tolist() == ids[1:].tolist(), "each once, in order"
        found = sum_losses(model.loss, batches, CPU)
        assert found.tokens == tokens
        assert found.nats == found.text_nats == pytest.approx(expected, rel=1e-12)


def test_a_closed_standard_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(QuinticError, match="standard input is closed: pipe the text in, or name a"):
        read_text(Path("-"))
