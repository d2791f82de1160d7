"""The two numbers first: the operations a training step must do, and the bytes it must move.

Operations over the rate of the matrix units and bytes over memory bandwidth give two times, and no
version of the same mathematics runs faster than the larger. The bytes count each tensor that must
lie in device memory between two kernels, once for each writing and reading: what is kept for the
backward pass, gradients between matrix products, logits, weights and optimizer state. Fused kernels
can keep out of memory only what is not in this list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bench.overhead import muon_flops
from quintic.config import Config, resolve_vocabulary
from quintic.model.attention import mean_attention_span
from quintic.model.build import meta_model

HALF, FULL = 2, 4
"""Bytes of a bfloat16 and of a float32 number."""

NOMINAL_TFLOPS, NOMINAL_TB_PER_S = 798.0, 3.0
"""A bfloat16 product of 8,192 x 8,192 matrices and a copy, as seen on an H100: what the floor is
computed with where the ceilings of the device at hand are not measured."""

UPLOAD_GB_PER_S = 25.0
"""From page-locked memory to the device over PCIe 4; twice as much over PCIe 5."""

KEPT_BYTES = {"gpt": 42, "gpt2": 36}
"""Bytes that a compiled block keeps per token and unit of width (tests/test_device.py)."""

MICRO_BATCH_SEQUENCES = 64
"""Of a recipe that leaves it to the device, as it comes out for `modded` on 80 GB."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one step through device memory, by what moves."""

    kept: float
    """What the backward pass needs of the blocks: written, read by the next operation, read once
    more backward."""
    gradients: float
    """Of inputs and outputs of the blocks' products, in bfloat16: written and read. In units of
    the width these are 16: 1 and 3 of q, k, v together, 1 and 1 of o, 1 and 4, 4 and 1 of the
    MLP."""
    logits: float
    """In bfloat16: written, read by the softmax that overwrites them with their gradient, and read
    by two products."""
    casts: float
    """Of the blocks' float32 weights to bfloat16, for every micro-batch: read, written."""
    weights: float
    """The bfloat16 copies: read forward and backward, for every micro-batch."""
    weight_gradients: float
    """For every micro-batch: written in bfloat16, read, added to the float32 sum."""
    optimizer: float
    """Gradient, state and weight in float32, read and written; Muon's iterations besides, three
    passes in bfloat16 each."""

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(vars(self).values()))


def traffic(config: Config) -> Traffic:
    """The bytes of one step of `config`, on one device in bfloat16."""
    model = meta_model(config.model)
    tokens, layers, width = config.train.batch_tokens, config.model.layers, config.model.width
    blocks, everything = model.blocks_parameter_count(), model.parameter_count()
    sequences = config.train.micro_batch or math.gcd(config.batch_sequences, MICRO_BATCH_SEQUENCES)
    micro_batches = config.batch_sequences // sequences
    muon = blocks if config.optim.matrices == "muon" else 0
    passes = 2 + 3 * config.optim.muon.ns_steps  # the first two put in and take out
    return Traffic(
        kept=3.0 * KEPT_BYTES[config.model.architecture] * layers * width * tokens,
        gradients=2.0 * HALF * 16 * layers * width * tokens,
        logits=5.0 * HALF * model.vocab_size * tokens,
        casts=float((FULL + HALF) * blocks * micro_batches),
        weights=2.0 * HALF * everything * micro_batches,
        weight_gradients=float((2 * HALF + 2 * FULL) * everything * micro_batches),
        optimizer=5.0 * FULL * muon + 7.0 * FULL * (everything - muon) + HALF * passes * muon,
    )


def expected_gains(config: Config, tb_per_s: float) -> dict[str, float]:
    """What the switches of a step should save of it, before any of them is measured.

    `cast_once_ms` and `fewer_micro_batches_ms` (half as many) are bytes that are no longer moved;
    `upload_ahead_ms` the time of copying a batch of ids to the device. Attention is given as the
    operations of a step: at a rate of r TFLOP/s it takes `attention_tflop` / r seconds.
    """
    moved, ids_bytes = traffic(config), 2 * 8 * config.train.batch_tokens
    sequences = config.train.micro_batch or math.gcd(config.batch_sequences, MICRO_BATCH_SEQUENCES)
    micro_batches = config.batch_sequences // sequences
    again = moved.casts + moved.weights + moved.weight_gradients
    c = config.model
    seen = mean_attention_span(c.context, c.window, c.window_start)
    attention_flops = 12.0 * c.layers * seen * c.width * config.train.batch_tokens
    return {
        "cast_once_ms": round(moved.casts * (1 - 1 / micro_batches) / tb_per_s / 1e9, 3),
        "fewer_micro_batches_ms": round(again / 2 / tb_per_s / 1e9, 3)
        if micro_batches > 1
        else 0.0,
        "upload_ahead_ms": round(ids_bytes / UPLOAD_GB_PER_S / 1e6, 3),
        "attention_tflop": round(attention_flops / 1e12, 2),
    }


def floor(
    config: Config, tflops: float = NOMINAL_TFLOPS, tb_per_s: float = NOMINAL_TB_PER_S
) -> dict[str, Any]:
    """Operations, bytes and the two times of a step, at rates in TFLOP/s and TB/s."""
    config = resolve_vocabulary(config, config.model.vocab_size or config.data.embedded_vocab)
    model, tokens = meta_model(config.model), config.train.batch_tokens
    muon = config.optim.matrices == "muon"
    newton_schulz = muon_flops(model, config.optim.muon.ns_steps) if muon else 0.0
    flops = tokens * model.flops_per_token() + newton_schulz
    moved = traffic(config)
    arithmetic_s, memory_s = flops / tflops / 1e12, moved.total / tb_per_s / 1e12
    return {
        "assumed_tflops": tflops,
        "assumed_tb_per_s": tb_per_s,
        "gflop_per_token": round(model.flops_per_token() / 1e9, 4),
        "tflop_per_step": round(flops / 1e12, 2),
        "newton_schulz_share": round(newton_schulz / flops, 5),
        "mb_per_token": round(moved.total / tokens / 1e6, 4),
        "gb_per_step": {name: round(size / 1e9, 2) for name, size in vars(moved).items()},
        "arithmetic_ms": round(1000 * arithmetic_s, 1),
        "memory_ms": round(1000 * memory_s, 1),
        "expected_gains": expected_gains(config, tb_per_s),
        "floor_tokens_per_s": round(tokens / max(arithmetic_s, memory_s)),
        "one_after_the_other_tokens_per_s": round(tokens / (arithmetic_s + memory_s)),
    }
