"""What public implementations of Muon do: `findings/muons.sh` runs this in their environments.

    muons.py measure NAME...    runs these implementations and prints one JSON object
    muons.py compare FILE...    compares such objects with the record; exits 1 where they differ
    muons.py record FILE...     writes them into the record
    muons.py table              prints the tables of docs/muons.md

Nothing of quintic is imported. The record is src/quintic/optim/muons.json, which `quintic muon
convert` reads too. Every implementation gets the same gradients in float32 on a CPU, of weights
that are zero where nothing is said; a matrix is (out, in) here, and turned where a library has
(in, out). Weight decay is off but where it is measured.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

RECORD = Path(__file__).parents[1] / "src/quintic/optim/muons.json"
SHAPES = [(64, 256), (256, 64), (128, 128)]
LR = 0.125
TEN = 10

# The references, from the posts: https://kellerjordan.github.io/posts/muon/ has the first, and
# https://leloykun.github.io/ponder/muon-opt-coeffs/ the idea of the second, whose numbers are the
# speedrun's (https://github.com/KellerJordan/modded-nanogpt, train_gpt_medium.py).
POLYNOMIALS = {
    "jordan": [(3.4445, -4.7750, 2.0315)] * 5,
    "five": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
}
SCALES: dict[str, Callable[[int, int], float]] = {
    "aspect": lambda r, c: max(1.0, r / c) ** 0.5,
    "max_dim": lambda r, c: max(r, c) ** 0.5,
    "rms": lambda r, c: 0.2 * max(r, c) ** 0.5,
    "none": lambda r, c: 1.0,
    "ratio": lambda r, c: (r / c) ** 0.5,
}


def orthogonalize(G: np.ndarray, polynomial: str = "jordan") -> np.ndarray:
    """Newton-Schulz in float64."""
    X = G.T if G.shape[0] > G.shape[1] else G
    X = X / max(np.linalg.norm(X), 1e-300)
    for a, b, c in POLYNOMIALS[polynomial]:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if G.shape[0] > G.shape[1] else X


def normal(seed: int, *shape: int) -> np.ndarray:
    """RandomState's stream is promised never to change."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def ten_gradients(shape: tuple[int, int]) -> list[np.ndarray]:
    """Gradients of ten steps: a signal whose singular values fall, noise, and a changing length."""
    random = np.random.RandomState(2)
    rank = min(shape) // 4
    left = random.standard_normal((shape[0], rank))
    right = random.standard_normal((rank, shape[1])) * (0.8 ** np.arange(rank))[:, None]
    lengths = random.uniform(0.3, 2.0, TEN)
    return [
        (length * (left @ right + random.standard_normal(shape))).astype(np.float32)
        for length in lengths
    ]


def reference_displacement(shape: tuple[int, int], scale: str) -> np.ndarray:
    """What ten steps of lr 1 add up to: summed momentum 0.95, Nesterov, Jordan's polynomial."""
    buffer, total = np.zeros(shape), np.zeros(shape)
    for gradient in ten_gradients(shape):
        buffer = 0.95 * buffer + gradient
        total -= orthogonalize(gradient + 0.95 * buffer)
    return total * SCALES[scale](*shape)


class Optimizer:
    """One optimizer over some arrays; `step` takes a gradient for each, or None."""

    @property
    def weights(self) -> list[np.ndarray]:
        raise NotImplementedError

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The arrays that it keeps of its one weight."""
        raise NotImplementedError

    def step(self, *gradients: np.ndarray | None) -> None:
        raise NotImplementedError


class Implementation:
    """How one is called; `options` are those of a variant."""

    package: str
    names: ClassVar = {"lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum"}

    def __init__(self, **options: Any) -> None:
        self.options = options

    def make(
        self, weights: Sequence[np.ndarray], *, lr: float = LR, weight_decay: float = 0.0
    ) -> Optimizer:
        raise NotImplementedError

    def signature(self) -> Callable[..., Any]:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What is true of this one alone."""
        return {}


class TorchOptimizer(Optimizer):
    def __init__(self, weights: Sequence[np.ndarray], build: Callable[[list[Any]], Any]) -> None:
        import torch

        self.torch = torch
        self.params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
        self.optimizer = build(self.params)
        self.overwrites = False

    @property
    def weights(self) -> list[np.ndarray]:
        return [p.detach().numpy().copy() for p in self.params]

    @property
    def state(self) -> dict[str, np.ndarray]:
        def tensors(part: Any, name: str) -> dict[str, np.ndarray]:
            if isinstance(part, dict):
                found: dict[str, np.ndarray] = {}
                for key, value in part.items():
                    found |= tensors(value, key if isinstance(key, str) else name)
                return found
            if isinstance(part, self.torch.Tensor):
                return {name: part.float().numpy().copy()}
            return {}

        return {
            name: value
            for name, value in tensors(dict(self.optimizer.state[self.params[0]]), "").items()
            if value.shape == tuple(self.params[0].shape)
        }

    def step(self, *gradients: np.ndarray | None) -> None:
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = None if g is None else self.torch.tensor(g)
        self.optimizer.step()
        self.overwrites = any(
            g is not None and not np.array_equal(p.grad.numpy(), g)
            for p, g in zip(self.params, gradients, strict=True)
            if p.grad is not None
        )


class InTorch(Implementation):
    def make(
        self, weights: Sequence[np.ndarray], *, lr: float = LR, weight_decay: float = 0.0
    ) -> TorchOptimizer:
        return TorchOptimizer(
            weights, lambda params: self.build(params, lr=lr, weight_decay=weight_decay)
        )

    def build(self, params: list[Any], **settings: Any) -> Any:
        return self.signature()(params, **settings, **self.options)


class Torch(InTorch):
    package = "torch"

    def signature(self) -> Callable[..., Any]:
        import torch

        return torch.optim.Muon


class MuonOptimizer(InTorch):
    package = "muon-optimizer"

    def signature(self) -> Callable[..., Any]:
        import muon

        return muon.SingleDeviceMuon

    def facts(self) -> dict[str, Any]:
        import muon

        G = normal(0, 8, 8)
        return {
            "Muon, the documented class, without a process group": outcome(
                lambda: TorchOptimizer([G], lambda params: muon.Muon(params, lr=LR)).step(G)
            )
        }


class HeavyBall(InTorch):
    package = "heavyball"
    names: ClassVar = {**Implementation.names, "momentum": "betas"}

    def signature(self) -> Callable[..., Any]:
        import heavyball

        return heavyball.Muon

    def build(self, params: list[Any], **settings: Any) -> Any:
        import heavyball

        heavyball.utils.compile_mode = None
        return super().build(params, **settings)

    def facts(self) -> dict[str, Any]:
        G = normal(0, 64, 256)
        one, two = first_step(self, G), first_step(self, G)
        return {"two runs are equal bit for bit": bool(np.array_equal(one, two))}


class PytorchOptimizer(InTorch):
    package = "pytorch_optimizer"

    def signature(self) -> Callable[..., Any]:
        import pytorch_optimizer

        return pytorch_optimizer.Muon

    def build(self, params: list[Any], **settings: Any) -> Any:
        return self.signature()([{"params": params, "use_muon": True, **settings, **self.options}])

    def facts(self) -> dict[str, Any]:
        G = normal(0, 8, 8)
        return {
            "a plain list of parameters": outcome(
                lambda: TorchOptimizer([G], lambda params: self.signature()(params)).step(G)
            )
        }


class Timm(InTorch):
    package = "timm"

    def signature(self) -> Callable[..., Any]:
        import torch

        # timm imports torchvision, which fails where its build is not for this PyTorch (both CPU or
        # both CUDA) for want of two operators; timm's optimizers use neither.
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            for operator in ("nms", "qnms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", schema)
        return importlib.import_module("timm.optim").Muon

    def facts(self) -> dict[str, Any]:
        import torch

        create_optimizer_v2 = importlib.import_module("timm.optim").create_optimizer_v2
        model = torch.nn.Sequential(torch.nn.Embedding(32, 16), torch.nn.Linear(16, 32))
        optimizer = create_optimizer_v2(model, "muon", lr=LR, weight_decay=0.0)
        for p in model.parameters():
            p.grad = torch.ones_like(p) * torch.randn(p.shape, generator=torch.manual_seed(0))
        optimizer.step()
        embedding, head, bias = (sorted(optimizer.state[p]) for p in model.parameters())
        return {
            "momentum through create_optimizer_v2": optimizer.param_groups[0]["momentum"],
            "state of an embedding": embedding,
            "state of a head": head,
            "state of its bias": bias,
        }


class EchoMuon(InTorch):
    package = "echomuon"

    def signature(self) -> Callable[..., Any]:
        from echomuon import EchoMuon

        return EchoMuon


class DeepSpeed(InTorch):
    package = "deepspeed"

    def signature(self) -> Callable[..., Any]:
        from deepspeed.runtime.zero.muon.original_muon import SingleDeviceMuon

        return SingleDeviceMuon

    def facts(self) -> dict[str, Any]:
        import torch
        from deepspeed import set_optimizer_flags
        from deepspeed.runtime.zero.muon.original_muon import Muon

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.wte = torch.nn.Embedding(8, 4)
                self.embed = torch.nn.Embedding(8, 4)
                self.linear = torch.nn.Linear(4, 4)
                self.conv = torch.nn.Conv2d(4, 4, 3)
                self.lm_head = torch.nn.Linear(4, 8)
                self.output = torch.nn.Linear(4, 8)

        class Config:
            optimizer_name = "muon"
            optimizer_params = None

        G, model = normal(0, 8, 8), Model()
        set_optimizer_flags(Config, model)
        return {
            "Muon without deepspeed.comm": outcome(
                lambda: TorchOptimizer([G], lambda params: Muon(params, lr=LR)).step(G)
            ),
            "deepspeed.initialize gives to Muon": [
                name for name, p in model.named_parameters() if p.use_muon
            ],
        }


class MuonFsdp2(InTorch):
    package = "muon-fsdp2"

    def signature(self) -> Callable[..., Any]:
        from muon_fsdp2 import Muon

        return Muon

    def build(self, params: list[Any], **settings: Any) -> Any:
        return self.signature()([{"params": params, "use_muon": True, **settings}])


class OptaxOptimizer(Optimizer):
    def __init__(self, weights: Sequence[np.ndarray], transform: Any) -> None:
        import jax.numpy as jnp

        self.jnp = jnp
        self.tree = {str(i): jnp.asarray(in_out(w)) for i, w in enumerate(weights)}
        self.transform, self.update = transform
        self.opt_state = self.transform.init(self.tree)

    @property
    def weights(self) -> list[np.ndarray]:
        return [in_out(np.asarray(w)) for w in self.tree.values()]

    @property
    def state(self) -> dict[str, np.ndarray]:
        mu = self.opt_state.inner_states["muon"].inner_state[0].mu["0"]
        return {"mu": in_out(np.asarray(mu))}

    def step(self, *gradients: np.ndarray | None) -> None:
        import optax

        grads = {
            str(i): None if g is None else self.jnp.asarray(in_out(g))
            for i, g in enumerate(gradients)
        }
        updates, self.opt_state = self.update(grads, self.opt_state, self.tree)
        self.tree = optax.apply_updates(self.tree, updates)


class Optax(Implementation):
    package = "optax"
    names: ClassVar = {"lr": "learning_rate", "weight_decay": "weight_decay", "momentum": "beta"}

    def signature(self) -> Callable[..., Any]:
        from optax.contrib import muon

        return muon

    def make(
        self, weights: Sequence[np.ndarray], *, lr: float = LR, weight_decay: float = 0.0
    ) -> OptaxOptimizer:
        return OptaxOptimizer(weights, self.compiled(lr, weight_decay))

    @functools.cache  # noqa: B019
    def compiled(self, lr: float, weight_decay: float) -> Any:
        import jax

        transform = self.signature()(lr, weight_decay=weight_decay, **self.options)
        return transform, jax.jit(transform.update)

    def facts(self) -> dict[str, Any]:
        import jax.numpy as jnp
        import optax

        # A Flax attention layer: its kernels are 3-D, (features, heads, head width).
        shapes = {"query kernel": (16, 4, 4), "query bias": (4, 4), "embedding": (32, 16)}
        tree = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        transform = self.signature()(1.0)
        grads = {name: jnp.asarray(normal(0, *shape)) for name, shape in shapes.items()}
        updates, _ = transform.update(grads, transform.init(tree), tree)
        return {
            "first updates of Adam's length, 1.474 lr": sorted(
                name for name, u in updates.items() if abs(rms(np.asarray(u)) - 1.474) < 0.01
            ),
            "ns_coeffs='muon', as documented": outcome(
                lambda: optax.contrib.muon(1.0, ns_coeffs="muon").init(tree)
            ),
        }


class KerasOptimizer(Optimizer):
    def __init__(self, weights: Sequence[np.ndarray], optimizer: Any) -> None:
        import keras

        self.variables = [keras.Variable(in_out(w), name=f"w{i}") for i, w in enumerate(weights)]
        self.optimizer = optimizer
        optimizer.build(self.variables)

    @property
    def weights(self) -> list[np.ndarray]:
        return [in_out(np.asarray(v.value)) for v in self.variables]

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {
            v.name.split("_")[-1]: in_out(np.asarray(v.value))
            for v in self.optimizer.variables
            if tuple(v.shape) == tuple(self.variables[0].shape)
        }

    def step(self, *gradients: np.ndarray | None) -> None:
        import keras

        grads = [None if g is None else keras.ops.convert_to_tensor(in_out(g)) for g in gradients]
        self.optimizer.apply(grads, self.variables)


class Keras(Implementation):
    package = "keras"
    names: ClassVar = {**Implementation.names, "lr": "learning_rate"}

    def signature(self) -> Callable[..., Any]:
        import keras

        return keras.optimizers.Muon

    def make(
        self, weights: Sequence[np.ndarray], *, lr: float = LR, weight_decay: float = 0.0
    ) -> KerasOptimizer:
        optimizer = self.signature()(lr, weight_decay=weight_decay or None, **self.options)
        return KerasOptimizer(weights, optimizer)

    def facts(self) -> dict[str, Any]:
        import keras

        inputs = keras.Input((4, 16))
        attended = keras.layers.MultiHeadAttention(4, 4, name="attention")(inputs, inputs)
        model = keras.Model(inputs, keras.layers.Dense(8, name="head")(attended))
        optimizer = self.signature()()
        optimizer.build(model.trainable_variables)
        return {
            "to Muon": sorted(
                v.path for v in model.trainable_variables if not optimizer._should_use_adamw(v)
            )
        }


class MlxOptimizer(Optimizer):
    def __init__(self, weights: Sequence[np.ndarray], optimizer: Any) -> None:
        import mlx.core as mx

        self.mx, self.optimizer = mx, optimizer
        self.tree = {str(i): mx.array(w) for i, w in enumerate(weights)}
        optimizer.init(self.tree)

    @property
    def weights(self) -> list[np.ndarray]:
        return [np.array(w) for w in self.tree.values()]

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {name: np.array(value) for name, value in self.optimizer.state["0"].items()}

    def step(self, *gradients: np.ndarray | None) -> None:
        grads = {str(i): self.mx.array(g) for i, g in enumerate(gradients) if g is not None}
        self.tree = self.optimizer.apply_gradients(grads, self.tree)
        self.mx.eval(self.tree)


class Mlx(Implementation):
    package = "mlx"
    names: ClassVar = {**Implementation.names, "lr": "learning_rate"}

    def signature(self) -> Callable[..., Any]:
        from mlx.optimizers import Muon

        return Muon

    def make(
        self, weights: Sequence[np.ndarray], *, lr: float = LR, weight_decay: float = 0.0
    ) -> MlxOptimizer:
        optimizer = self.signature()(lr, weight_decay=weight_decay, **self.options)
        return MlxOptimizer(weights, optimizer)

    def facts(self) -> dict[str, Any]:
        W = normal(1, 64, 256)
        optimizer = self.make([W], weight_decay=0.01)
        optimizer.step(np.zeros_like(W))
        moved = rms(optimizer.weights[0] - W) / LR
        return {"a zero gradient and the default decay move by, RMS / lr": round(moved, 3)}


IMPLEMENTATIONS: dict[str, Implementation] = {
    "torch": Torch(),
    "torch:match_rms_adamw": Torch(adjust_lr_fn="match_rms_adamw"),
    "muon-optimizer": MuonOptimizer(),
    "heavyball": HeavyBall(),
    "pytorch_optimizer": PytorchOptimizer(),
    "pytorch_optimizer:use_adjusted_lr": PytorchOptimizer(use_adjusted_lr=True),
    "timm": Timm(),
    "timm:nesterov": Timm(nesterov=True),
    "timm:original": Timm(adjust_lr_fn="original"),
    "timm:rms_to_rms": Timm(adjust_lr_fn="rms_to_rms"),
    "echomuon": EchoMuon(),
    "deepspeed": DeepSpeed(),
    "deepspeed:standard": DeepSpeed(ns_method="standard"),
    "muon-fsdp2": MuonFsdp2(),
    "optax": Optax(),
    "optax:consistent_rms": Optax(consistent_rms=0.2),
    "keras": Keras(),
    "keras:no_rms_rate": Keras(rms_rate=None),
    "mlx": Mlx(),
}


def in_out(W: np.ndarray) -> np.ndarray:
    """(out, in) as (in, out), and back; of other shapes nothing changes."""
    return W.T if W.ndim == 2 else W


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "runs"


def updates_after(implementation: Implementation, *gradients: np.ndarray) -> np.ndarray:
    """The last step's update, divided by -lr, from zero weights."""
    optimizer = implementation.make([np.zeros_like(gradients[0])])
    for gradient in gradients[:-1]:
        optimizer.step(gradient)
    before = optimizer.weights[0]
    optimizer.step(gradients[-1])
    return (before - optimizer.weights[0]) / LR


def first_step(implementation: Implementation, G: np.ndarray) -> np.ndarray:
    return updates_after(implementation, G)


def scale_law(ratio: dict[tuple[int, int], float]) -> str:
    """The law that update lengths follow, given what they are to those of scale 1."""
    for law, factor in SCALES.items():
        off = [r / factor(*shape) for shape, r in ratio.items()]
        if min(off) > 0.95 and max(off) < 1.25:
            return law
    return "unknown"


def newest_share(implementation: Implementation, before: int) -> float:
    """The share s of the newest gradient in the direction, after `before` steps of another one.

    It is the s for which a fresh optimizer's first step along (1 - s) old + s new is the same: so
    whatever orthogonalises is its own.
    """
    old, new = normal(3, 32, 32), normal(4, 32, 32)
    update = updates_after(implementation, *[old] * before, new)

    def distance(share: float) -> float:
        return rms(first_step(implementation, (1 - share) * old + share * new) - update)

    near, step = 0.5, 0.16
    while step > 0.004:
        around = [s for s in near + step * np.arange(-3, 4) if 0 < s < 1]
        near, step = around[int(np.argmin([distance(s) for s in around]))], step / 3
    return float(near)


def bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def shape_outcome(implementation: Implementation, *shape: int) -> str:
    """What becomes of a parameter that is no matrix."""
    G = normal(0, *shape)
    try:
        optimizer = implementation.make([np.zeros_like(G)])
    except Exception as error:
        return f"{type(error).__name__} at construction"
    try:
        optimizer.step(G)
    except Exception as error:
        return f"{type(error).__name__} in the step"
    U = -optimizer.weights[0] / LR

    def close(other: np.ndarray) -> bool:
        return bool(np.linalg.norm(U - other.reshape(shape)) < 0.05 * np.linalg.norm(other))

    if close(np.sign(G) * rms(U)):
        return f"as Adam, {rms(U):.3f} lr"
    ways: dict[str, Callable[[], np.ndarray]] = {
        "flat": lambda: first_step(implementation, G.reshape(shape[0], -1)),
        "each matrix": lambda: np.stack([first_step(implementation, g) for g in G]),
    }
    for name, way in ways.items() if len(shape) > 2 else ():
        with contextlib.suppress(Exception):
            other = way()
            longer = float(np.linalg.norm(U) / np.linalg.norm(other))
            if close(other):
                return name
            if close(other * longer):
                return f"{name}, times {longer:.2f}"
    if close(G * (rms(U) / rms(G))):
        return f"along the gradient, {rms(U) / rms(G):.4f} of it"
    return f"something else, {rms(U):.3f} lr"


def missing_outcome(implementation: Implementation) -> str:
    """What becomes of a parameter without a gradient, beside one that has one."""
    W, G = normal(1, 16, 16), normal(0, 16, 16)
    optimizer = implementation.make([W, W], weight_decay=0.1)
    try:
        optimizer.step(G, None)
        after = optimizer.weights
    except Exception as error:
        return f"raises {type(error).__name__}"
    if len(after) == 1:
        return "missing in the result"
    if np.array_equal(after[1], W):
        return "left alone"
    return "decayed" if np.allclose(after[1], W * (1 - 0.1 * LR), atol=1e-6) else "changed"


def default(implementation: Implementation, what: str) -> Any:
    parameters = inspect.signature(implementation.signature()).parameters
    name = implementation.names[what]
    value = parameters[name].default if name in parameters else inspect.Parameter.empty
    if isinstance(value, (tuple, list)):
        value = value[0]
    return None if value is inspect.Parameter.empty else value


def measure(implementation: Implementation) -> dict[str, Any]:
    """Everything that is measured of one implementation, as JSON has it."""
    version = importlib.metadata.version(implementation.package).partition("+")[0]
    found: dict[str, Any] = {"version": version}
    try:
        first_step(implementation, normal(0, 8, 8))
    except Exception as error:
        return {**found, "step": f"raises {type(error).__name__}"}
    first = {shape: first_step(implementation, normal(0, *shape)) for shape in SHAPES}
    found["first_rms"] = {f"{r}x{c}": round(rms(u), 4) for (r, c), u in first.items()}
    scale = scale_law({s: rms(u) / rms(orthogonalize(normal(0, *s))) for s, u in first.items()})
    found["scale"] = scale
    found["lr"] = default(implementation, "lr")
    found["momentum"] = default(implementation, "momentum")
    found["weight_decay"] = default(implementation, "weight_decay")

    G = normal(0, 64, 256)
    optimizer = implementation.make([np.zeros_like(G)])
    optimizer.step(G)
    found["state"] = {
        name: round(float(np.vdot(value, G) / np.vdot(G, G)), 3)
        for name, value in optimizer.state.items()
    }
    if isinstance(optimizer, TorchOptimizer):
        found["overwrites_gradient"] = optimizer.overwrites
    found["newest"] = [round(newest_share(implementation, n), 2) for n in (1, 98)]

    # A diagonal gradient shows the polynomial on singular values of its choice.
    values = np.geomspace(1.0, 1e-3, 16)
    values /= np.linalg.norm(values)
    unit = SCALES[scale](16, 16)
    image = np.diag(first_step(implementation, np.diag(values).astype(np.float32))) / unit
    distance = {
        name: np.abs(image - np.diag(orthogonalize(np.diag(values), name))).max()
        for name in POLYNOMIALS
    }
    nearest = min(distance, key=lambda name: distance[name])
    # bfloat16 spreads the images by up to 0.1; the two polynomials are 0.4 apart.
    found["polynomial"] = nearest if distance[nearest] < 0.15 else "unknown"
    square = first[(128, 128)] / SCALES[scale](128, 128)
    coarse = np.abs(square - bfloat16(square)) <= 1e-6 * np.abs(square)
    found["dtype"] = "bfloat16" if coarse.all() else "float32"
    ordinary, tiny = (first_step(implementation, normal(0, 64, 256) * k) for k in (1.0, 1e-8))
    found["change_at_norm_1e-6"] = round(rms(tiny - ordinary) / rms(ordinary), 2)

    W = normal(1, 64, 256)
    with_decay, without = (implementation.make([W], weight_decay=wd) for wd in (0.1, 0.0))
    with_decay.step(G)
    without.step(G)
    decay = (without.weights[0] - with_decay.weights[0]).astype(np.float64)
    share = float(np.vdot(decay, W) / np.vdot(W, W)) / (LR * 0.1)
    found["decay"] = "decoupled" if abs(share - 1) < 0.02 else "through the gradient"
    found["decay_share"] = round(share, 2)

    found["vector"] = shape_outcome(implementation, 64)
    found["experts"] = shape_outcome(implementation, 4, 32, 16)
    found["convolution"] = shape_outcome(implementation, 16, 8, 3, 3)
    found["missing_gradient"] = missing_outcome(implementation)

    worst = {"difference": 0.0, "factor": 1.0, "cosine": 1.0}
    for shape in SHAPES:
        moved = displacement(implementation, shape).astype(np.float64)
        reference = reference_displacement(shape, scale)
        factor = float(np.vdot(moved, reference) / np.vdot(reference, reference))
        difference = rms(moved / factor - reference) / rms(reference)
        if difference >= worst["difference"]:
            cosine = np.vdot(moved, reference) / np.linalg.norm(moved) / np.linalg.norm(reference)
            worst = {
                "difference": round(difference, 3),
                "factor": round(factor, 2),
                "cosine": round(float(cosine), 4),
            }
    found["ten_steps"] = worst
    moved = displacement(implementation, (256, 64))
    found["ten_steps_of_256x64"] = [round(float(v), 4) for v in moved[::51, 0]]
    found["facts"] = implementation.facts()
    return found


def displacement(implementation: Implementation, shape: tuple[int, int]) -> np.ndarray:
    """Where ten steps lead, divided by lr."""
    optimizer = implementation.make([np.zeros(shape, np.float32)])
    for gradient in ten_gradients(shape):
        optimizer.step(gradient)
    return optimizer.weights[0] / LR


TOLERANCE = {"first_rms": 0.001, "ten_steps_of_256x64": 0.15, "newest": 0.015}
"""How far a figure may be off, where another processor or a random rounding can make it so."""


def same(found: Any, recorded: Any, tolerance: float = 0.03) -> bool:
    """Return whether two parts of measurements are equal, numbers to a tolerance."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        return found.keys() == recorded.keys() and all(
            same(found[k], recorded[k], TOLERANCE.get(k, tolerance)) for k in found
        )
    if isinstance(found, list) and isinstance(recorded, list):
        return len(found) == len(recorded) and all(
            same(a, b, tolerance) for a, b in zip(found, recorded, strict=True)
        )
    if isinstance(found, float) and isinstance(recorded, (int, float)):
        return abs(found - recorded) <= tolerance
    return bool(found == recorded)


def run(arguments: Sequence[str]) -> int:
    command, *rest = arguments
    if command == "measure":
        warnings.simplefilter("ignore")
        logging.disable()
        chatter = io.StringIO()
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            found = {name: measure(IMPLEMENTATIONS[name]) for name in rest}
        print(json.dumps(found, indent=1))
        return 0
    record = json.loads(RECORD.read_text())
    if command == "table":
        print(table(record))
        return 0
    measured = {k: v for file in rest for k, v in json.loads(Path(file).read_text()).items()}
    if command == "record":
        for name, row in measured.items():
            record.setdefault(name, {})["measured"] = row
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        return 0
    wrong = False
    for name, row in measured.items():
        recorded = record[name]["measured"]
        differing = [
            key
            for key in sorted(row.keys() | recorded.keys())
            if not same({key: row.get(key)}, {key: recorded.get(key)})
        ]
        wrong |= bool(differing)
        print(f"{name} {row['version']}: {'CHANGED' if differing else 'as recorded'}")
        for key in differing or row:
            was = f", recorded {recorded.get(key)}" if differing else ""
            print(f"    {key}: {row.get(key)}{was}")
    return int(wrong)


SCALE_FORMULAS = {
    "aspect": "sqrt(max(1, out/in))",
    "max_dim": "sqrt(max(out, in))",
    "rms": "0.2 sqrt(max(out, in))",
    "ratio": "sqrt(out/in)",
    "none": "1",
}
NESTEROV = {
    (0.68, 0.1): "gradient + m buffer",
    (0.73, 0.1): "gradient + m buffer, both corrected for their start",
    (0.51, 0.05): "none",
    (0.92, 0.55): "gradient + average, m = 0.9",
}
UNKNOWN = "not known"
POLYNOMIAL_NAMES = {"jordan": "Jordan's", "five": "five sets", "polar_express": "Polar Express"}


COMMITS = {
    "emerging-optimizers": "https://github.com/NVIDIA-NeMo/Emerging-Optimizers/tree/fd77292",
    "dion": "https://github.com/microsoft/dion/tree/0a059a4",
}
"""Of those that were read at a commit."""


def version_link(name: str, row: dict[str, Any]) -> str:
    """The version with a link to the package or commit, and whether it was read only."""
    package, version = name.partition(":")[0], (row.get("measured") or row["read"])["version"]
    link = COMMITS.get(package, f"https://pypi.org/project/{package}/{version}/")
    return f"[{version}]({link}){'' if 'measured' in row else ' (read)'}"


def nearest_key(keys: Any, value: Sequence[float]) -> Any:
    return min(keys, key=lambda key: sum(abs(k - v) for k, v in zip(key, value, strict=True)))


def equal_to_quintic(facts: dict[str, Any]) -> str:
    """Say with which scale of quintic a learning rate makes the implementation equal to it."""
    law = facts["scale"]
    scale = f"`{law}`" if law in ("aspect", "max_dim", "rms", "none") else "by shape"
    if "ten_steps" not in facts:
        same_form = facts["polynomial"] == "jordan" and facts["newest"] == [0.68, 0.1]
        return f"{scale}, by its source" if same_form else f"no; nearest {scale}, by its source"
    steps = facts["ten_steps"]
    off, factor = f"{steps['difference']:.1%}", steps["factor"]
    if facts["newest"] == [0.73, 0.1]:
        return f"{scale}, after its first steps ({off})"
    if steps["difference"] < 0.02:
        return f"{scale} ({off})"
    return f"no ({off}); nearest {scale} at {factor:g} x lr"


def table(record: dict[str, Any]) -> str:
    """The record as two tables in Markdown."""
    updates = [
        "| name | version | scale | lr | weight decay | momentum buffer | Nesterov "
        "| polynomial, dtype on a CPU | equal to quintic's scale (off after ten steps) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    others = [
        "| name | momentum | eps | goes to Adam, at which rate | vectors | experts (3-D) "
        "| convolutions (4-D) | missing gradient | overwrites `.grad` "
        "| change at gradient norm 1e-6 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record.items():
        facts = row.get("measured") or row["read"]
        version = version_link(name, row)
        if "scale" not in facts:
            updates.append(f"| `{name}` | {version} | the step {facts['step']} | | | | | | |")
            continue
        lr = "none" if facts["lr"] is None else f"{facts['lr']:g}"
        decay = f"{facts['weight_decay'] or 0:g}, {facts['decay']}"
        ratio = max(facts["state"].values())
        buffer = f"{'sum' if ratio == 1 else 'average'}, `{'`, `'.join(facts['state'])}`"
        nesterov = NESTEROV[nearest_key(NESTEROV, facts["newest"])]
        polynomial = f"{POLYNOMIAL_NAMES[facts['polynomial']]}, {facts['dtype']}"
        scale = SCALE_FORMULAS[facts["scale"]]
        equal = equal_to_quintic(facts)
        updates.append(
            f"| `{name}` | {version} | {scale} | {lr} | {decay} | {buffer} | {nesterov} "
            f"| {polynomial} | {equal} |"
        )
        if ":" not in name:
            keys = ("vector", "experts", "convolution", "missing_gradient")
            outcomes = " | ".join(facts.get(key, UNKNOWN) for key in keys)
            overwrites = {True: "yes", False: "no"}.get(facts.get("overwrites_gradient"), "")
            change = facts.get("change_at_norm_1e-6")
            others.append(
                f"| `{name}` | {facts['momentum']:g} | {row.get('eps', UNKNOWN)} "
                f"| {row.get('to_adam', UNKNOWN)} | {outcomes} "
                f"| {overwrites if change is not None else UNKNOWN} "
                f"| {UNKNOWN if change is None else format(change, '.0%')} |"
            )
    return "\n".join([*updates, "", *others])


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    sys.exit(run(sys.argv[1:]))
