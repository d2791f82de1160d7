"""Parameter groups for any `nn.Module`: which parameters Muon updates, and which AdamW.

Muon is for the matrices of hidden layers. What goes to AdamW is told by the kind of a module, by
its place and by its name, none of which is certain; so the table is printed, names may be given,
and where the rules contradict each other the parameter is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from quintic.errors import QuinticError
from quintic.optim.matrices import Split, matrices_of
from quintic.optim.muon import update_scale
from quintic.optim.muon_checks import check_options
from quintic.optim.param_groups import ParamSpec, param_groups_table

HEADS = {
    *("classifier", "decoder", "embed_out", "head", "lm_head", "logits", "out_head", "output"),
    *("output_projection", "score", "to_logits", "unembed", "unembedding"),
    # Both of CLIP's, one at the end of each of its encoders.
    *("text_projection", "visual_projection"),
}
"""Names of a model's last layer, where it is in no list of layers."""

TABLES = {"emb", "embs", "pos", "position", "positions", "positional", "wpe", "wte"}
"""Words in the name of a bare parameter whose rows are looked up or added, one by one."""

CONVOLUTIONS = (nn.modules.conv._ConvNd,)

MATRIX_LAYERS = (nn.Linear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Layers of PyTorch whose weights of two axes are matrices that vectors are multiplied by."""

PARTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that are a part of a model, whose last `Linear` is no head."""

EMBEDDING = "embedding"
DECIDES = ("named", EMBEDDING)
"""Reasons before which the others of a tied parameter give way."""


class _Claim(NamedTuple):
    """Holds one name of a parameter and what the rules say of it."""

    name: str
    optimizer: str | None
    """None where no rule knows."""
    reason: str


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    adamw_lr: float,
    scale: str = "max_dim",
    weight_decay: float = 0.0,
    adamw_weight_decay: float = 0.0,
    muon: Sequence[str] = (),
    adamw: Sequence[str] = (),
    flatten: bool = False,
    split: Mapping[str, Split] | None = None,
    transposed: Sequence[str] = (),
    verbose: bool = True,
) -> list[dict[str, Any]]:
    """Return the groups of a model's parameters for `MuonWithAdamW`, and print them as a table.

    To AdamW go embeddings, the output head, vectors, scalars and biases, and convolutions unless
    `flatten` is set; to Muon all other matrices, at `lr` times their `scale`. Frozen parameters are
    in no group. A head is what `get_output_embeddings` returns (transformers), what is tied to an
    embedding, and a `Linear` in no list of layers that is called so; where there is none of these,
    the model's last `Linear`, unless it is in a list or in a transformer layer of PyTorch.
    Parameters that are no weight of a layer that is known to multiply by a matrix must be named,
    unless all axes but one are 1, which makes a vector.

    `muon` and `adamw` name parameters that the rules would give to the other, `split` those of
    which parts of the rows are orthogonalised apart, and `transposed` those that are stored as
    [in, out] (transformers' `Conv1D` is known), all as patterns of `fnmatch` such as `*.experts.*`;
    names are without what torch.compile and DDP put before them. Weight decay leaves out vectors
    and scalars. Each group has the key `optimizer`, muon or adamw, and its parameters with their
    names, as (name, parameter) pairs.

    Raises `QuinticError`, a `ValueError`, for a parameter that both or neither claim, and for a
    pattern that no parameter matches.
    """
    if not isinstance(model, nn.Module):
        raise QuinticError(f"param_groups: the model is {model!r:.60} and must be an nn.Module")
    model = _unwrapped(model)
    names_of, owners = _trained_parameters(model)
    names = [name for same in names_of.values() for name in same]
    if not isinstance(split, Mapping | None):
        raise QuinticError(
            f"split is {split!r} and must be a dict of patterns and their parts, such as "
            "{'*.qkv.weight': 3}"
        )
    for parts_of_rows in (split or {}).values():
        check_options({"split": parts_of_rows})
    given = {"muon": muon, "adamw": adamw, "split": tuple(split or ()), "transposed": transposed}
    for option, patterns in given.items():
        _check_patterns(option, patterns, names)
    rules = _Rules(model, tuple(muon), tuple(adamw), flatten)
    muons = {"lr": lr, "weight_decay": weight_decay, "scale": scale}
    check_options(muons)
    check_options({"lr": adamw_lr, "weight_decay": adamw_weight_decay}, whose="AdamW")
    groups: dict[str, dict[str, Any]] = {}
    specs = []
    for p, same in names_of.items():
        name = same[0]
        optimizer = _agreed([rules.claim(n, *owners[n], p) for n in same], p)
        cut = next((s for pattern, s in (split or {}).items() if fnmatchcase(name, pattern)), None)
        decay, factor = adamw_weight_decay if p.ndim >= 2 else 0.0, 1.0
        setting: dict[str, Any] = {"lr": adamw_lr, "weight_decay": decay}
        if optimizer == "muon":
            layer = owners[name][0]
            turned = _is_conv1d(layer) or any(fnmatchcase(name, t) for t in transposed)
            axes: dict[str, Any] = {
                "flatten": isinstance(layer, CONVOLUTIONS),
                "split": cut,
                "transposed": turned,
            }
            setting = {**muons, **axes}
            try:
                parts = matrices_of(p.shape, **axes)
            except ValueError as error:
                raise QuinticError(f"{name} has the shape {list(p.shape)}: {error}") from None
            factor = update_scale(scale, parts.rows[0], parts.columns)
        elif cut is not None:
            raise QuinticError(f"split names {name}, which AdamW updates: name it in muon too")
        group = {"params": [], "optimizer": optimizer, **setting}
        groups.setdefault(str(group), group)["params"].append((name, p))
        specs.append(
            ParamSpec(
                name, tuple(p.shape), optimizer, setting["lr"], factor, setting["weight_decay"]
            )
        )
    if verbose:
        print(param_groups_table(specs), end="")
    return sorted(groups.values(), key=lambda group: group["optimizer"] != "muon")


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in what torch.compile and DistributedDataParallel have made of it."""
    while True:
        if isinstance(model, DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _is_conv1d(module: nn.Module) -> bool:
    """Return whether a layer is transformers' `Conv1D`, a linear one whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_weight(module: nn.Module, attribute: str) -> bool:
    """Return whether a parameter is the weight, or a part of it, of a layer that multiplies by it.

    Of weight_norm it is the direction, and not the length [out, 1] of each row.
    """
    if isinstance(module, ParametrizationList):
        return attribute != "original0"
    known = isinstance(module, MATRIX_LAYERS) or _is_conv1d(module)
    return known and "weight" in attribute.split("_") and attribute != "weight_g"


def _trained_parameters(
    model: nn.Module,
) -> tuple[dict[nn.Parameter, list[str]], dict[str, tuple[nn.Module, str]]]:
    """Return the names of every parameter that is not frozen, and of a name module and attribute.

    Names are without the prefixes of submodules that torch.compile compiled by themselves.
    """
    names_of: dict[nn.Parameter, list[str]] = {}
    owners = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{attribute}" if path else attribute
            name = name.replace("_orig_mod.", "")
            if p.requires_grad:
                names_of.setdefault(p, []).append(name)
                owners[name] = module, attribute
    return names_of, owners


def _check_patterns(option: str, patterns: Sequence[str], names: list[str]) -> None:
    # No iterator, which would have none left for the second who asks.
    texts = isinstance(patterns, Collection) and all(isinstance(p, str) for p in patterns)
    if isinstance(patterns, str) or not texts:
        raise QuinticError(f"{option} is {patterns!r} and must be a list of patterns")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f": did you mean {near[0]}?" if near else f", such as {names[0]}"
            raise QuinticError(f"{option}: {pattern} matches no parameter that is trained{hint}")


class _Rules:
    """Says whose a parameter is under one of its names."""

    def __init__(
        self, model: nn.Module, muon: tuple[str, ...], adamw: tuple[str, ...], flatten: bool
    ) -> None:
        self._named = {"muon": muon, "adamw": adamw}
        self._flatten = flatten
        self._head = _head_of(model)

    def claim(self, name: str, module: nn.Module, attribute: str, p: nn.Parameter) -> _Claim:
        named = [
            optimizer
            for optimizer, patterns in self._named.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if len(named) == 2:
            raise QuinticError(f"{name} is named in muon and in adamw: name it in one")
        if named:
            return _Claim(name, named[0], "named")
        if reason := self._not_hidden(name, module, attribute, p):
            return _Claim(name, "adamw", reason)
        if isinstance(module, CONVOLUTIONS):
            return _Claim(name, "muon" if self._flatten else "adamw", "convolution")
        hidden = p.ndim == 2 and _is_weight(module, attribute)
        return _Claim(name, "muon" if hidden else None, "matrix")

    def _not_hidden(
        self, name: str, module: nn.Module, attribute: str, p: nn.Parameter
    ) -> str | None:
        """Return what a parameter is, unless it is a matrix of a hidden layer."""
        if p.ndim < 2:
            return "vector or scalar"
        if attribute.startswith("bias"):
            return "bias"
        layer = isinstance(module, CONVOLUTIONS) or _is_weight(module, attribute)
        if p.numel() == max(p.shape) and not layer:
            return "vector"
        looked_up = "embed" in attribute or TABLES & set(attribute.split("_"))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or looked_up:
            return EMBEDDING
        return "output head" if module in self._head or attribute in HEADS else None


def _head_of(model: nn.Module) -> set[nn.Module]:
    """Return the last layer or layers: as the model says, by their name, or by their place."""
    get = getattr(model, "get_output_embeddings", None)
    told = get() if callable(get) else None
    linear = [(n.split("."), m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    heads: set[nn.Module] = {m for path, m in linear if _in_no_list(path) and path[-1] in HEADS}
    if isinstance(told, nn.Module):
        heads.add(told)
    if not heads and linear:
        path, last = linear[-1]
        inside = [".".join(path[:end]) for end in range(len(path))]
        if any(isinstance(model.get_submodule(name), PARTS) for name in inside):
            return heads
        # A Sequential numbers its layers too; one that lies in no list ends with the last.
        sequential = isinstance(model.get_submodule(".".join(path[:-1])), nn.Sequential)
        if _in_no_list(path[:-1] if sequential else path):
            heads.add(last)
    return heads


def _in_no_list(path: Sequence[str]) -> bool:
    return not any(part.isdigit() for part in path)


def _agreed(claims: Sequence[_Claim], p: nn.Parameter) -> str:
    """Return what the claims on a parameter under all its names come to."""
    # What is named decides; and a matrix that is tied to an embedding is its head.
    known = next(filter(None, ([c for c in claims if c.reason == r] for r in DECIDES)), claims)
    optimizers = {claim.optimizer for claim in known}
    if len(optimizers) > 1:
        tied = " = ".join(f"{c.name} ({c.optimizer}: {c.reason})" for c in claims)
        raise QuinticError(f"one tied parameter goes to both optimizers: {tied}; name it in one")
    (optimizer,) = optimizers
    if optimizer is None:
        matrices = (
            "a matrix that vectors are multiplied by" if p.ndim == 2 else "a batch of matrices"
        )
        raise QuinticError(
            f"{claims[0].name} has the shape {list(p.shape)}: name it in muon, where it is "
            f"{matrices}, or in adamw"
        )
    return optimizer
