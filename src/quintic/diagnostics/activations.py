"""What flows through the layers: attention logits, the residual stream, units that never fire.

One extra forward pass of a few sequences, eager and without gradients, so that training itself
computes nothing more. Which sequences does not depend on the number of processes.

Shapes: B batch, H heads, T queries, S keys, K head width, F MLP width; L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quintic.data.loader import Batch
from quintic.distributed.world import World
from quintic.model.base import LanguageModel
from quintic.model.fused import unfused

LayerFacts = dict[str, Any]
"""The numbers of one layer, by the names of `docs/diagnostics.md`."""

SAMPLE_TOKENS = 1024
"""Tokens that are looked at, about: whole sequences, the first of the global batch, at least one.
Enough to tell that a unit of an MLP never fires, and a small part of a batch of a GPU."""


def sample_rows(rows: range, sequences: int, context: int, processes: int) -> list[int | None]:
    """Return the rows of a process's own batch that it looks at, one in each forward pass; None
    where it has none left, and must compute all the same: processes may share weights.

    `rows` are its sequences of the `sequences` of the global batch.
    """
    count = min(max(1, SAMPLE_TOKENS // context), sequences)
    passes = min(count, -(-sequences // processes))
    own = [row - rows.start for row in rows if row < count]
    return [*own, *[None] * (passes - len(own))]


@torch.no_grad()
def observe_layers(
    model: LanguageModel, batch: Batch, rows: list[int | None], device: torch.device, world: World
) -> list[LayerFacts]:
    """Return the numbers of every layer on the chosen rows of all processes' batches.

    Collective: every process calls it, with as many rows. The model is left as it was.
    """
    observer = _Observer(model, device)
    with observer.observing():
        for row in rows:
            observer.counts = row is not None
            inputs_BT, targets_BT = (t[row or 0].unsqueeze(0).to(device) for t in batch)
            # The method that FSDP knows; the loss itself is not needed.
            model.loss(inputs_BT, targets_BT)
    return observer.reduce(world)


class _Observer(TorchFunctionMode):
    """Sees every block's output, the input of every MLP's second matrix, and each call of
    attention.

    Queries and keys are seen where PyTorch's attention gets them, after norm and rotation, so no
    model needs to know of it.
    """

    def __init__(self, model: LanguageModel, device: torch.device) -> None:
        super().__init__()
        config = model.config
        # MPS has no float64, and knows no other processes.
        sums = torch.float32 if device.type == "mps" else torch.float64
        zeros = torch.zeros(config.layers, dtype=sums, device=device)
        self.counts = True
        self._model, self._layer = model, 0
        self._squares_L, self._elements_L = zeros, zeros.clone()
        self._logit_max_LH = zeros.new_full((config.layers, config.heads), -math.inf)
        self._fires_LF: Tensor | None = None
        if config.architecture == "gpt" and config.activation == "relu2":
            self._fires_LF = zeros.new_zeros((config.layers, 4 * config.width))

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Look at what the model computes while open; in eager code, whatever is compiled."""
        model, blocks = self._model, self._model.layers
        masks, model.block_masks = model.block_masks, False
        with ExitStack() as stack:
            stack.callback(setattr, model, "block_masks", masks)
            stack.enter_context(unfused(model))
            for layer, block in enumerate(blocks):
                down: nn.Module = block.mlp.down  # type: ignore[union-attr, assignment]
                for handle in (
                    block.register_forward_pre_hook(self._entering(layer)),
                    block.register_forward_hook(self._block_output),
                    down.register_forward_pre_hook(self._mlp_hidden),
                ):
                    stack.callback(handle.remove)
            if any(block._compiled_call_impl is not None for block in blocks):  # as FSDP's are
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self)
            yield

    def _entering(self, layer: int) -> Any:
        def enter(*_: Any) -> None:
            self._layer = layer

        return enter

    def _block_output(self, _: nn.Module, __: Any, x_BTD: Tensor) -> None:
        if self.counts:
            self._squares_L[self._layer] += x_BTD.to(self._squares_L.dtype).square().sum()
            self._elements_L[self._layer] += x_BTD.numel()

    def _mlp_hidden(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if self.counts and self._fires_LF is not None:
            fires_F = (inputs[0].flatten(0, -2) != 0).any(dim=0)
            self._fires_LF[self._layer] += fires_F

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.counts:
            self._attention(args[0], args[1], kwargs.get("attn_mask"))
        return func(*args, **kwargs)

    def _attention(self, q_BHTK: Tensor, k_BHSK: Tensor, attn_mask: Tensor | None) -> None:
        if attn_mask is None:
            attn_mask = torch.ones(
                (q_BHTK.shape[2], k_BHSK.shape[2]), dtype=torch.bool, device=q_BHTK.device
            ).tril()
        exact = torch.promote_types(q_BHTK.dtype, torch.float32)
        logits_BHTS = q_BHTK.to(exact) @ k_BHSK.to(exact).mT / math.sqrt(q_BHTK.shape[-1])
        most_H = logits_BHTS.masked_fill(~attn_mask, -math.inf).amax(dim=(0, 2, 3))
        before_H = self._logit_max_LH[self._layer]
        before_H.copy_(torch.maximum(before_H, most_H))

    def reduce(self, world: World) -> list[LayerFacts]:
        """Return the numbers over what all processes have seen."""
        world.all_reduce_max(self._logit_max_LH).wait()
        sums = torch.stack([self._squares_L, self._elements_L])
        squares, elements = world.all_reduce(sums).tolist()
        shares: list[float | None] = [None] * len(squares)
        if self._fires_LF is not None:
            shares = (world.all_reduce(self._fires_LF) == 0).double().mean(dim=1).tolist()
        return [
            {"attention_logit_max": logits, "residual_rms": math.sqrt(s / n), "dead_units": dead}
            for logits, s, n, dead in zip(
                self._logit_max_LH.tolist(), squares, elements, shares, strict=True
            )
        ]
