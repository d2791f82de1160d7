"""The memory of a step, counted: what operators allocate, and what is alive at once."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from quintic.config import Config
from quintic.model.build import build_model
from quintic.model.loss import CHUNK_ELEMENTS, plain_cross_entropy
from quintic.plan.memory import LOGIT_BYTES, MemoryModel, PassBytes, PeakOfStorages, Setting
from quintic.recipes import get_recipe
from tests.test_device import saved_activation_bytes

KIB = 1024


def small(changes: dict[str, Any] | None = None) -> Config:
    sizes = {"model.layers": 3, "model.width": 64, "model.heads": 2, "model.context": 64}
    return get_recipe("ladder:1").override(
        {
            **sizes,
            "model.vocab_size": 320,
            "train.cpu_kernels": "plain",
            "train.batch_tokens": 64 * 64,
            "train.eval_tokens": 64,
            **(changes or {}),
        }
    )


def test_the_peak_is_of_what_is_alive_at_once_and_counts_views_once() -> None:
    with PeakOfStorages() as storages:
        first = torch.zeros(KIB)
        second = first + 1
        assert storages.bytes == storages.peak == 8 * KIB
        del first
        assert storages.bytes == 4 * KIB
        view = second[:10].view(2, 5)
        del second
        assert storages.bytes == 4 * KIB
        del view
        assert (storages.bytes, storages.peak) == (0, 8 * KIB)
        torch.zeros(4 * KIB)
        assert storages.peak == 16 * KIB


def test_what_a_pass_has_alive_is_what_autograd_saves_and_the_loss() -> None:
    config = small()
    counted = PassBytes(config, torch.float32, "cpu")(8)
    model = build_model(config.model)
    saved = saved_activation_bytes(model, model.loss, 8)
    logits = 8 * 64 * 320 * 4
    # Beside what is saved: the logits and their logarithms of probabilities, the gradient of the
    # head, and a few vectors for each token.
    head = 320 * 64 * 4
    assert saved + 2 * logits <= counted <= saved + 2 * logits + 2 * head + 6 * 8 * 64 * 64 * 4


@pytest.mark.parametrize("changes", [{}, {"train.activation_checkpointing": True}])
def test_more_layers_and_sequences_are_told_from_few(changes: dict[str, Any]) -> None:
    deep = small({"model.layers": 5, **changes})
    told = PassBytes(deep, torch.float32, "cpu")
    five = told._counted(5, 8)
    assert told._exactly(8) == pytest.approx(five, rel=0.001)
    shallow = PassBytes(replace(deep, model=replace(deep.model, layers=2)), torch.float32, "cpu")
    shallow._one_chunk, shallow._two_chunks = 0.0, 4
    assert shallow(24) == pytest.approx(shallow._exactly(24), rel=0.001)


def test_checkpointing_takes_less_and_plain_loss_more() -> None:
    setting = Setting(16, "zero1", checkpointing=False)
    model = MemoryModel(small(), "cpu", 1)
    plain, again = model(setting), model(replace(setting, checkpointing=True))
    assert again.activations < 0.6 * plain.activations
    assert (again.weights, again.optimizer) == (plain.weights, plain.optimizer)
    logits = 16 * 64 * 320 * 4
    whole = MemoryModel(small({"train.loss": "plain"}), "cpu", 1)(setting)
    assert whole.activations > plain.activations + 0.5 * logits


def test_a_compiled_plain_loss_keeps_its_logits_once_in_the_compute_precision() -> None:
    """As the plan counts it, and as autograd saves of the loss alone."""
    setting = Setting(16, "zero1", checkpointing=False)
    whole, chunked = (
        MemoryModel(small({"train.compile": True, "train.loss": loss}), "cuda", 1)(setting)
        for loss in ("plain", "chunked")
    )
    logits = 16 * 64 * 320
    assert whole.activations == chunked.activations + 2 * logits - LOGIT_BYTES * logits
    x_ND = torch.randn(256, 16, dtype=torch.bfloat16, requires_grad=True)
    weight_VD, targets_N = (
        torch.randn(320, 16, requires_grad=True),
        torch.zeros(256, dtype=torch.long),
    )
    saved: list[torch.Tensor] = []
    loss = torch.compile(plain_cross_entropy, dynamic=False, backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t) or t,  # type: ignore[func-returns-value]
        lambda t: t,
    ):
        loss(x_ND, weight_VD, targets_N)
    (of_logits,) = (t for t in saved if t.numel() == 256 * 320)
    assert of_logits.dtype == torch.bfloat16


def test_weights_gradients_and_state_are_counted_exactly() -> None:
    parameters, blocks = 3 * 12 * 64**2 + 320 * 64, 3 * 12 * 64**2
    memory = MemoryModel(small(), "cpu", 1)(Setting(16, "zero1", checkpointing=False))
    assert memory.weights == memory.gradients == 4 * parameters
    # Momentum of the blocks, two moments and a count of the embedding.
    assert memory.optimizer == 4 * blocks + 8 * (parameters - blocks) + 4
    assert memory.gathered == 0
    whole = MemoryModel(small(), "cpu", 1)(Setting(64, "zero1", checkpointing=False))
    assert whole.gradients == 0, "one pass makes them while activations go"


def test_several_devices_divide_the_state_and_with_fsdp_all_that_lasts() -> None:
    alone = MemoryModel(small(), "cuda", 1)(Setting(8, "zero1", checkpointing=False))
    model = MemoryModel(small(), "cuda", 4)
    zero1, fsdp = (model(Setting(8, s, checkpointing=False)) for s in ("zero1", "fsdp"))
    assert (zero1.weights, zero1.optimizer) == (alone.weights, -(-alone.optimizer // 4))
    assert (fsdp.weights, fsdp.gradients) == (alone.weights // 4, alone.gradients // 4)
    assert fsdp.activations == zero1.activations
    assert fsdp.gathered == 4 * (3 * 12 * 64**2 + 2 * 320 * 64)


def test_the_chunk_of_logits_is_the_devices_while_it_is_counted_and_only_then() -> None:
    before = dict(CHUNK_ELEMENTS)
    cpu, cuda = (PassBytes(small(), torch.bfloat16, device)(4) for device in ("cpu", "cuda"))
    assert cpu == cuda, "both chunks hold all of it"
    assert before == CHUNK_ELEMENTS


def test_with_a_large_vocabulary_and_few_tokens_more_sequences_take_more() -> None:
    config = small({"model.vocab_size": 65_537, "train.compile": False})
    of = MemoryModel(config, "cuda", 1)
    taken = [of(Setting(n, "zero1", False)).activations for n in (1, 2, 4, 8, 16, 32, 64)]
    assert taken[0] > 0
    assert taken == sorted(taken)
