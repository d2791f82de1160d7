"""Validation loss and what it means in bits per byte, recomputed by other means."""

import math
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quintic.config import ModelConfig
from quintic.data.loader import validation_batches
from quintic.data.shards import TokenStream, write_shard
from quintic.data.tokenizer import train_bpe
from quintic.evaluate import (
    nats_to_bits_per_byte,
    perplexity,
    score_text,
    validation_loss,
)
from quintic.model.build import build_model

CPU = torch.device("cpu")


def test_the_mean_is_over_tokens_and_not_over_batches() -> None:
    losses = iter([1.0, 4.0])

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(next(losses))

    batches = [(torch.zeros(3, 4), torch.zeros(3, 4)), (torch.zeros(1, 4), torch.zeros(1, 4))]
    assert validation_loss(loss, batches, CPU) == (12 * 1.0 + 4 * 4.0) / 16


def test_validation_loss_is_the_mean_over_tokens_for_every_micro_batch(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(32, (200,), generator=random)
    stream = TokenStream([write_shard(tmp_path / "x_val_000000.bin", ids.numpy())])
    sizes = ModelConfig(layers=1, width=16, heads=2, context=8, vocab_size=32)
    model = build_model(sizes, compute_dtype=torch.float64)
    log_p = model(ids[:88].view(11, 8)).log_softmax(-1).view(88, 32)
    expected = -float(log_p[torch.arange(88), ids[1:89]].mean().detach())
    for micro_batch in (1, 2, 4, 5, 11, 64):
        batches = validation_batches(stream, 8, 88, micro_batch)
        found = validation_loss(model.loss, batches, CPU)
        assert found == pytest.approx(expected, rel=1e-12), micro_batch


def test_validation_keeps_no_gradient() -> None:
    seen = []

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return torch.tensor(1.0)

    validation_loss(loss, [(torch.zeros(1, 1), torch.zeros(1, 1))], CPU)
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_bits_per_byte_of_known_numbers() -> None:
    assert nats_to_bits_per_byte(math.log(2), 1) == 1
    assert nats_to_bits_per_byte(math.log(256), 1) == pytest.approx(8)
    # A uniform guess over 65,536 tokens of 4 bytes each: 16 bits for 4 bytes.
    assert nats_to_bits_per_byte(math.log(65_536), 4) == pytest.approx(4)
    # GPT-2 on the benchmark corpus, say: 3.28 nats at 4.48 bytes a token.
    assert nats_to_bits_per_byte(3.28, 4.48) == pytest.approx(1.0563, abs=1e-4)


def test_perplexity_of_known_numbers() -> None:
    assert perplexity(0) == 1
    assert perplexity(math.log(50_257)) == pytest.approx(50_257)
    assert perplexity(5_000) == math.inf
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert nats_to_bits_per_byte(math.log(8), 1.5) == pytest.approx(2)
    assert nats_to_bits_per_byte(math.log(8), 3.0) == pytest.approx(1)


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
    scores = score_text(2.5, train=train, validation=validation, tokens=tokens, tokenizer=bpe)

    text = VALIDATION.encode()[len(bpe.decode_bytes(ids[:1])) :]
    assert scores.bits_per_byte == pytest.approx(2.5 / math.log(2) * tokens / len(text))
    # gzip is zlib's stream with a header and a trailer of 18 bytes instead of 6.
    assert scores.gzip_bits_per_byte == 8 * (len(zlib.compress(text, 9)) + 12) / len(text)

    counts = Counter(train_ids)
    total = len(train_ids) + bpe.vocab_size
    bits = 0.0
    for target in val_ids[1 : tokens + 1]:
        bits -= math.log2((counts[target] + 1) / total)
    assert scores.unigram_bits_per_byte == pytest.approx(bits / len(text), rel=1e-12)
    assert any(counts[target] == 0 for target in val_ids)  # and those cost a finite number of bits
