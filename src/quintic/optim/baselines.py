"""The optimizers that Muon is compared with: AdamW, SGD, SOAP and Shampoo.

AdamW and SGD are PyTorch's. SOAP and Shampoo come from the package pytorch_optimizer, an extra of
this one, whose state is turned into named tensors here so that checkpoints and exact resume hold
for them too. None but AdamW decays weights, as Muon does not where they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quintic.config import AdamWConfig, SGDConfig, ShampooConfig, SOAPConfig
from quintic.optim.matrix_optimizer import Groups, Placement


def adamw(config: AdamWConfig, groups: Groups, placement: Placement) -> torch.optim.AdamW:
    """PyTorch's AdamW, fused where it can be, its state allocated as its first step would."""
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=placement.device.type in ("cpu", "cuda"),
    )
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                # The fused kernel counts on the device, the others on the CPU.
                "step": torch.zeros((), device=p.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    return optimizer


def sgd(config: SGDConfig, groups: Groups, _: Placement) -> torch.optim.SGD:
    """SGD with Nesterov momentum: Muon without its orthogonalisation and scale.

        buffer = momentum * buffer + gradient
        weight = weight - lr * (gradient + momentum * buffer)

    Source: Sutskever et al., https://proceedings.mlr.press/v28/sutskever13.html, in the form that
    PyTorch gives it, which is also Muon's.
    """
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            # PyTorch's first step sets the buffer to the gradient, which is the same.
            optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}
    return optimizer


def soap(config: SOAPConfig, groups: Groups, _: Placement) -> NamedState:
    """Adam in the eigenbasis of Shampoo's preconditioners, which is renewed every few steps.

    The first step only begins the preconditioners and moves nothing.
    Source: Vyas et al., https://arxiv.org/abs/2409.11321
    """
    import pytorch_optimizer

    return NamedState(
        pytorch_optimizer.SOAP(
            groups,
            lr=config.lr,
            betas=config.betas,
            precondition_frequency=config.precondition_frequency,
            weight_decay=0.0,
        )
    )


def shampoo(config: ShampooConfig, groups: Groups, _: Placement) -> NamedState:
    """Shampoo as it is used: running averages, blocks, and the length of an RMSProp update.

        L = beta2 L + (1 - beta2) G G^T,   R = beta2 R + (1 - beta2) G^T G
        direction = L^(-1/4) G R^(-1/4),   as long as G / sqrt(running average of G^2)

    then Nesterov momentum as a running average. Matrices are cut into blocks of at most 512 x 512,
    each with its own L and R; the roots are renewed every `precondition_frequency` steps, and until
    the first time the step is RMSProp's.
    Source: Gupta et al., https://arxiv.org/abs/1802.09568, with the blocks and the borrowed step
    length of Anil et al., https://arxiv.org/abs/2002.09018
    """
    import pytorch_optimizer
    from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

    return NamedState(
        pytorch_optimizer.ScalableShampoo(
            groups,
            lr=config.lr,
            betas=config.betas,
            moving_average_for_momentum=True,
            start_preconditioning_step=config.precondition_frequency,
            preconditioning_compute_steps=config.precondition_frequency,
            # It would fold a small matrix into one long vector, and precondition nothing.
            shape_interpretation=False,
            graft_type=LayerWiseGrafting.RMSPROP,
        )
    )


class NamedState(torch.optim.Optimizer):
    """Wraps an optimizer of pytorch_optimizer: its state is named tensors, allocated up front.

    The library keeps lists and objects, creates them in the first step and replaces tensors in
    later ones; it counts steps in the parameter group. Here `state[p]` holds one tensor for each of
    theirs, the same one from the beginning to the end, and `step`. Between steps the library's
    structures refer to these tensors, so a checkpoint that is loaded into them is what the next
    step reads.
    """

    def __init__(self, library: torch.optim.Optimizer) -> None:
        super().__init__(library.param_groups, {})
        self.param_groups = library.param_groups
        self._library = library
        self._create()
        for p in self._parameters():
            for name, holder, key, tensor in _tensors(library.state[p]):
                # Contiguous, as a checkpoint's are: products round by the order of the memory.
                self.state[p][name] = holder[key] = tensor.contiguous()
            self.state[p]["step"] = torch.zeros((), dtype=torch.int64)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    def _create(self) -> None:
        """Let the library build its structures, from zero gradients for want of others."""
        before = [p.grad for p in self._parameters()]
        for p in self._parameters():
            p.grad = torch.zeros_like(p)
        for group in self.param_groups:
            self._library.init_group(group)  # type: ignore[attr-defined]
        for p, gradient in zip(self._parameters(), before, strict=True):
            p.grad = gradient

    @contextmanager
    def _random(self) -> Iterator[None]:
        """Make random numbers depend on the step alone: Shampoo's search for the largest eigenvalue
        begins with some, and a run must repeat whatever was drawn before it."""
        devices = {p.device for p in self._parameters() if p.is_cuda}
        with torch.random.fork_rng(devices=devices):
            for generator in (
                torch.default_generator,
                *(torch.cuda.default_generators[device.index] for device in devices),
            ):
                generator.manual_seed(self.param_groups[0]["step"])
            yield

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix from its `.grad`."""
        assert closure is None, "the loss is evaluated once a step"
        for group in self.param_groups:
            group["step"] = int(self.state[group["params"][0]]["step"])
            if group["step"] == 0:
                # SOAP's first basis is that of the first gradient.
                for p in group["params"]:
                    del self._library.state[p]
        with self._random():
            self._library.step()
        for p in self._parameters():
            own = self.state[p]
            own["step"] += 1
            for name, holder, key, tensor in _tensors(self._library.state[p]):
                if tensor is not own[name]:
                    holder[key] = own[name].copy_(tensor)


def _tensors(holder: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, Tensor]]:
    """Yield (name, holder, key, tensor) of every tensor in a nest of lists and objects."""
    from pytorch_optimizer.optimizer.utils.graft import Graft
    from pytorch_optimizer.optimizer.utils.preconditioner import PreConditioner

    for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name, holder, key, value
        elif isinstance(value, dict | list):
            yield from _tensors(value, f"{name}.")
        elif isinstance(value, Graft | PreConditioner):
            yield from _tensors(vars(value), f"{name}.")
