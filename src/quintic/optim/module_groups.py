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

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from quintic.errors import QuinticError
from quintic.optim.matrices import Split, matrices_of
from quintic.optim.muon import update_scale
from quintic.optim.muon_checks import check_options
from quintic.optim.param_groups import ParamSpec, param_groups_table

HEADS = {
    *("action_net", "bbox_pred", "decoder", "embed_out", "output", "output_projection"),
    *("qa_outputs", "seq_relationship", "unembed", "unembedding", "value_net"),
    # Both of CLIP's, one at the end of each of its encoders.
    *("text_projection", "visual_projection"),
}
"""Names of a model's last layer, where it is in no list of layers."""

HEAD_WORDS = {
    *("actor", "classifier", "classifiers", "critic", "head", "heads", "logit", "logits", "policy"),
    *("predictor", "predictors", "score", "scores"),
}
"""Last words in the name of a last layer, of a module that ends with one, or of a list of these."""

HEAD_MODULES = {"bbox_embed", "class_embed", "value"}
"""Whole names of the same."""

OUTERMOST_HEADS = {"fc_out", "final", "out", "proj_out"}
"""Names of a last layer that is an attribute of the model itself."""

ATTENTION = {
    *("in_proj", "k", "k_proj", "key", "keys", "kv", "q", "q_proj", "qkv", "queries", "query"),
    *("to_kv", "to_q", "to_qkv", "wk", "wq"),
}
"""Names of layers beside which one called `value` or `out` is a part of an attention too."""

TABLES = {"emb", "embs", "pos", "position", "positions", "positional", "wpe", "wte"}
"""Words in the name of a bare parameter whose rows are looked up or added, one by one."""

CONVOLUTIONS = (nn.modules.conv._ConvNd,)
TRANSPOSED_CONVOLUTIONS = (nn.modules.conv._ConvTransposeNd,)
"""Their weights are [in, out, ...]."""

MATRIX_LAYERS = (nn.Linear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Layers of PyTorch whose weights of two axes are matrices that vectors are multiplied by."""

PARTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that are a part of a model, whose last `Linear` is no head."""

EMBEDDING = "embedding"
DECIDES = ("named", EMBEDDING)
"""Reasons before which the others of a tied parameter give way."""


class _Owner(NamedTuple):
    """Says which module a parameter belongs to, under one of its names."""

    module: nn.Module
    """Where it is parametrized, the layer that is, and not the `ParametrizationList` inside."""
    attribute: str
    parametrized: ParametrizationList | None = None
    part: str = ""
    """What the `ParametrizationList` calls it: original, original0, ..."""


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

    To AdamW go embeddings, the output head, vectors, scalars and biases, transposed convolutions,
    and others unless `flatten` is set; to Muon all other matrices, at `lr` times their `scale`. The
    table says why. Frozen parameters are in no group. A head is what `get_output_embeddings`
    returns (transformers), what is tied to an embedding, and, outside lists of layers, a layer that
    is called so (`HEADS`, `HEAD_WORDS`) and the last `Linear` of a module or of each in a list that
    is, such as policy_head or heads; where there is none of these, the model's last `Linear`,
    unless it is in a list or in a transformer layer of PyTorch. Parameters that are no weight of a
    layer that is known to multiply by a matrix must be named, unless all axes but one are 1, which
    makes a vector. What a parametrization such as weight_norm keeps goes where its layer's goes.

    `muon` and `adamw` name parameters that the rules would give to the other, `split` those of
    which parts of the rows are orthogonalised apart, and `transposed` those that are stored as
    [in, out], or [e, in, out] (transformers' `Conv1D` is known), all as patterns of `fnmatch` such
    as `*.experts.*`; names are without what torch.compile and DDP put before them. Vectors and
    biases, also those of experts, [e, out], remain AdamW's unless `muon` has their whole name.
    Weight decay leaves out vectors, scalars and biases. Each group has the key `optimizer`, muon or
    adamw, and its parameters with their names, as (name, parameter) pairs; rates that are tensors
    are copied for each.

    Raises `QuinticError`, a `ValueError`, for a parameter that both or neither claim, for a pattern
    that no parameter matches, and for one of `muon`, `split` or `transposed` that matches none of
    Muon's.
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
        owner = owners[name]
        optimizer, reason = _agreed([rules.claim(n, owners[n], p) for n in same], p)
        factor = 1.0
        setting: dict[str, Any] = {
            "lr": adamw_lr,
            "weight_decay": 0.0 if _not_matrix(owner, p) else adamw_weight_decay,
        }
        if optimizer == "muon":
            cuts = [s for pattern, s in (split or {}).items() if _matches(same, [pattern])]
            axes: dict[str, Any] = {
                "flatten": isinstance(owner.module, CONVOLUTIONS),
                "split": cuts[0] if cuts else None,
                "transposed": _is_conv1d(owner.module) or _matches(same, transposed),
            }
            setting = {**muons, **axes}
            try:
                parts = matrices_of(p.shape, **axes)
            except ValueError as error:
                raise QuinticError(f"{name} has the shape {list(p.shape)}: {error}") from None
            factor = update_scale(scale, parts.rows[0], parts.columns)
        group = {"params": [], "optimizer": optimizer, **setting}
        if str(group) not in groups:
            copies = {k: v.detach().clone() for k, v in group.items() if isinstance(v, Tensor)}
            groups[str(group)] = group | copies
        groups[str(group)]["params"].append((name, p))
        rates = float(setting["lr"]), factor, float(setting["weight_decay"])
        specs.append(ParamSpec(name, tuple(p.shape), optimizer, *rates, reason))
    orthogonalised = {spec.name for spec in specs if spec.optimizer == "muon"}
    for option in ("muon", "split", "transposed"):
        _check_muons(option, given[option], list(names_of.values()), orthogonalised)
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
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return named and hasattr(module, "nf")


def _is_weight(owner: _Owner) -> bool:
    """Return whether a parameter is the weight, or a part of it, of a layer that multiplies by it.

    Of weight_norm it is the direction, and not the length [out, 1] of each row; of several parts
    of another parametrization, which may be factors, none is known to be.
    """
    module, attribute, parametrized, part = owner
    if part not in ("", "original") and not (
        part == "original1" and type(parametrized[0]).__name__ == "_WeightNorm"  # type: ignore[index]
    ):
        return False
    known = isinstance(module, (*MATRIX_LAYERS, *CONVOLUTIONS)) or _is_conv1d(module)
    return known and "weight" in attribute.split("_") and attribute != "weight_g"


def _not_matrix(owner: _Owner, p: nn.Parameter) -> str | None:
    """Return what a parameter is where it has one axis that counts, or adds to outputs."""
    if p.ndim < 2:
        return "vector or scalar"
    if owner.attribute.startswith("bias") or owner.attribute.endswith("_bias"):
        return "bias"
    return "vector" if p.numel() == max(p.shape) and not _is_weight(owner) else None


def _trained_parameters(
    model: nn.Module,
) -> tuple[dict[nn.Parameter, list[str]], dict[str, _Owner]]:
    """Return the names of every parameter that is not frozen, and whose each name is.

    Names are without the prefixes of submodules that torch.compile compiled by themselves.
    """
    names_of: dict[nn.Parameter, list[str]] = {}
    owners = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{attribute}" if path else attribute
            name = name.replace("_orig_mod.", "")
            if not p.requires_grad:
                continue
            if isinstance(p, nn.UninitializedParameter):
                raise QuinticError(f"{name} has no shape yet: run the model once before")
            names_of.setdefault(p, []).append(name)
            owners[name] = _Owner(module, attribute)
            if isinstance(module, ParametrizationList):
                *layer, _, parametrized = path.split(".")
                owner = model.get_submodule(".".join(layer))
                owners[name] = _Owner(owner, parametrized, module, attribute)
    return names_of, owners


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_muons(
    option: str, patterns: Sequence[str], names: Sequence[list[str]], orthogonalised: set[str]
) -> None:
    """Raise `QuinticError` for a pattern that matches parameters of AdamW's only; `names` has all
    of each parameter, and `orthogonalised` the first of Muon's."""
    for pattern in patterns:
        matched = [same[0] for same in names if _matches(same, [pattern])]
        if not orthogonalised & set(matched):
            hint = "" if option == "muon" else ": name it in muon too, if it is a matrix"
            raise QuinticError(f"{option} names {matched[0]}, which AdamW updates{hint}")


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
        self._heads = _heads_of(model)

    def claim(self, name: str, owner: _Owner, p: nn.Parameter) -> _Claim:
        named = [
            optimizer
            for optimizer, patterns in self._named.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if len(named) == 2:
            raise QuinticError(f"{name} is named in muon and in adamw: name it in one")
        turned = isinstance(owner.module, TRANSPOSED_CONVOLUTIONS)
        reason = _not_matrix(owner, p)
        if named == ["muon"] and turned and not reason:
            raise QuinticError(
                f"{name} is a transposed convolution's, [in, out, ...], of which Muon makes no "
                "matrix: leave it to AdamW"
            )
        # A pattern takes the matrices of what it matches.
        if named and not (named == ["muon"] and reason and name not in self._named["muon"]):
            return _Claim(name, named[0], "named")
        if reason := reason or self._not_hidden(owner):
            return _Claim(name, "adamw", reason)
        if turned:
            return _Claim(name, "adamw", "transposed convolution")
        if isinstance(owner.module, CONVOLUTIONS) and _is_weight(owner):
            return _Claim(name, "muon" if self._flatten else "adamw", "convolution")
        hidden = p.ndim == 2 and _is_weight(owner)
        return _Claim(name, "muon" if hidden else None, "matrix")

    def _not_hidden(self, owner: _Owner) -> str | None:
        """Return what a matrix is, unless it is one of a hidden layer."""
        module, attribute = owner.module, owner.attribute
        looked_up = "embed" in attribute or TABLES & set(attribute.split("_"))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) or looked_up:
            return EMBEDDING
        return self._heads.get(module) or ("output head" if attribute in HEADS else None)


def _heads_of(model: nn.Module) -> dict[nn.Module, str]:
    """Return the last layer or layers, each with what tells it: the model, its name, or its
    place."""
    # Paths are without what torch.compile puts between.
    modules = {
        tuple(part for part in name.split(".") if part not in ("", "_orig_mod")): module
        for name, module in model.named_modules()
    }
    layers = {p: m for p, m in modules.items() if isinstance(m, (nn.Linear, *CONVOLUTIONS))}
    linear = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]

    def may_be(path: tuple[str, ...], named: tuple[str, ...] = ()) -> bool:
        """Return whether a layer, inside a module that is named as a head if any, is in no list of
        blocks, no transformer layer and no attention."""
        lists = (nn.Sequential, nn.ModuleList) if named else nn.Sequential
        # One that lies in no list itself ends with the last layer that it numbers.
        numbered = isinstance(modules[path[:-1]], lists)
        outside = _in_no_list(path[len(named) : -1 if numbered else None])
        parts = (modules[path[:end]] for end in range(len(path)))
        attention = named and any((*path[:-1], other) in modules for other in ATTENTION)
        return outside and not attention and not any(isinstance(part, PARTS) for part in parts)

    heads: dict[nn.Module, str] = {}
    get = getattr(model, "get_output_embeddings", None)
    told = get() if callable(get) else None
    if isinstance(told, nn.Module):
        heads[_unwrapped(told)] = "output head, by get_output_embeddings"
    for path, module in modules.items():
        if not (path and _in_no_list(path) and _is_called_head(path, module in layers.values())):
            continue
        lists = isinstance(module, nn.ModuleList | nn.ModuleDict)
        for end in [(*path, name) for name, _ in module.named_children()] if lists else [path]:
            inside = [p for p in layers if p[: len(end)] == end]
            if inside and may_be(inside[-1], end):
                heads.setdefault(layers[inside[-1]], f"output head, by the name {'.'.join(path)}")
    if not heads and linear and may_be(linear[-1]):
        heads[layers[linear[-1]]] = "output head, as the last Linear"
    return heads


def _is_called_head(path: Sequence[str], layer: bool) -> bool:
    """Return whether the name of a layer says that it is a last one, or that of another module that
    its last layer is."""
    *outer, name = path
    words = name.lower().split("_")
    if words[-1] in HEAD_WORDS or words[0] == "head" or name in HEAD_MODULES:
        return True
    return layer and (name in HEADS or (not outer and name in OUTERMOST_HEADS))


def _in_no_list(path: Sequence[str]) -> bool:
    return not any(part.isdigit() for part in path)


def _agreed(claims: Sequence[_Claim], p: nn.Parameter) -> tuple[str, str]:
    """Return whose a parameter is by the claims under all its names, and why."""
    # What is named decides; and a matrix that is tied to an embedding is its head.
    known = next(filter(None, ([c for c in claims if c.reason == r] for r in DECIDES)), claims)
    if len({claim.optimizer for claim in known}) > 1:
        tied = " = ".join(f"{c.name} ({c.optimizer}: {c.reason})" for c in claims)
        raise QuinticError(f"one tied parameter goes to both optimizers: {tied}; name it in one")
    optimizer, reason = known[0][1:]
    if optimizer is None:
        matrices = {
            2: "in muon, where it is a matrix that vectors are multiplied by, or ",
            3: "in muon, where it is a batch of matrices, or ",
        }
        raise QuinticError(
            f"{claims[0].name} has the shape {list(p.shape)}: name it "
            f"{matrices.get(p.ndim, '')}in adamw"
        )
    return optimizer, reason
