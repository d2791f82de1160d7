"""`LanguageModel`, the part that both architectures share: key-value cache, head and loss.

Weights are float32 masters. Compute precision is explicit: every `Linear` casts its weight to the
precision of its input, and the model casts what it feeds them, so no autocast context decides
behind the reader's back.

Shapes: B batch, T time, D model width, H heads, K head width, V vocabulary, S cached time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintic.config import ModelConfig
from quintic.errors import QuinticError
from quintic.model.attention import mean_attention_span
from quintic.model.head import logits_of
from quintic.model.loss import CrossEntropy, Reduction
from quintic.model.multi_token import mtp_targets
from quintic.model.target_scores import TargetScores, target_scores
from quintic.model.token_tree import TokenTree


class KVCache:
    """Keys and values of the tokens seen so far, for generation one token at a time.

    It has room for R positions, a context unless told, [layers, B, H, R, K] twice, and for their
    tokens, which masks are made of. `length` counts the positions filled, which is the position of
    the next token; made less, it takes the newest positions back.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        room: int | None = None,
    ) -> None:
        room = config.context if room is None else room
        shape = (config.layers, batch, config.heads, room, config.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.tokens = torch.zeros((batch, room), dtype=torch.int64, device=device)
        self.vectors: dict[str, Tensor] = {}
        """Vectors by name, [B, 1 + R, D] each, where a position is given that of the one before."""
        self.length = 0

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the new positions; return those of all, [B, H, S, K]."""
        new = k_BHTK.shape[2]
        keys_BHRK, values_BHRK = self.keys[layer], self.values[layer]
        keys_BHRK.narrow(2, self.length, new).copy_(k_BHTK)
        values_BHRK.narrow(2, self.length, new).copy_(v_BHTK)
        end = self.length + new
        return keys_BHRK.narrow(2, 0, end), values_BHRK.narrow(2, 0, end)

    def append_tokens(self, tokens_BT: Tensor) -> Tensor:
        """Store the tokens of the new positions; return those of all, [B, S]."""
        end = self.length + tokens_BT.shape[1]
        self.tokens[:, self.length : end] = tokens_BT
        return self.tokens[:, :end]

    def append_vectors(self, name: str, x_BTD: Tensor) -> Tensor:
        """Store vectors of the new positions; return those of the position before each, zeros where
        there is none."""
        if name not in self.vectors:
            # The first row stands before the first position.
            shape = (len(x_BTD), 1 + self.tokens.shape[1], x_BTD.shape[2])
            self.vectors[name] = torch.zeros(shape, dtype=x_BTD.dtype, device=x_BTD.device)
        vectors_BRD, new = self.vectors[name], x_BTD.shape[1]
        vectors_BRD.narrow(1, self.length + 1, new).copy_(x_BTD)
        return vectors_BRD.narrow(1, self.length, new)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.tokens = self.tokens[rows]
        self.vectors = {name: x[rows] for name, x in self.vectors.items()}

    def require_room(self, new: int) -> None:
        """Raise `QuinticError` where it has no room for so many new positions."""
        room = self.tokens.shape[1]
        if self.length + new > room:
            raise QuinticError(
                f"{new} tokens after {self.length} in the cache are more than its room of "
                f"{room}: begin another cache with the newest ones"
            )


class Head(nn.Module):
    """A head that is not tied to the embedding, [V, D].

    It starts at zero: every token is equally likely at step 0, and the first gradient of the blocks
    is zero. Source: the speedrun's record of 2024-11-03, which the zeros are "a significant
    fraction" of
    (https://github.com/KellerJordan/modded-nanogpt, records/track_1_short/2024-11-03_UntieEmbed).
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.zeros(vocab_size, width))


class LanguageModel(nn.Module, ABC):
    """A decoder with its head tied to the embedding or not; subclasses define `features`.

    `compute_dtype` is the precision of the matrix products; the residual stream stays in the
    precision of the weights, as under the original's autocast.
    """

    embed: nn.Embedding
    head: Head
    """It is there where `model.tied_head` is off."""
    layers: nn.ModuleList
    """The transformer blocks; their matrices are Muon's."""
    window: Tensor
    """The window of this step, where `model.window_start` lets it grow; see `set_window`."""
    block_masks = False
    """True with `train.attention flex`, whose attention mask is one of blocks but in generation."""
    mtp_weights: Tensor | None
    """The weight in this step of each token that a position predicts, after `enable_mtp`."""

    def __init__(
        self, config: ModelConfig, compute_dtype: torch.dtype, cross_entropy: CrossEntropy
    ) -> None:
        super().__init__()
        assert config.vocab_size is not None, "resolve_vocabulary fills it in"
        self.config = config
        self.vocab_size = config.vocab_size
        self.compute_dtype = compute_dtype
        self.cross_entropy = cross_entropy
        self.register_buffer("mtp_weights", None, persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """Return the head's matrix [V, D]."""
        return self.embed.weight if self.config.tied_head else self.head.weight

    @abstractmethod
    def features(
        self, tokens_BT: Tensor, cache: KVCache | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        """Return the final normed activations x_BTD, the head's input, in `compute_dtype`.

        The rows are sequences, with a cache the ends of those in it, or else the `tree`, whose
        tokens they are.
        """

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits_BTV in float32 (float64 for float64), with a cache those of new tokens.

        Raises `QuinticError` where the cache has no room for them.
        """
        if cache is not None:
            cache.require_room(tokens_BT.shape[1])
        x_BTD = self.features(tokens_BT, cache)
        if cache is not None:
            cache.length += tokens_BT.shape[1]
        return logits_of(self.products(x_BTD), self.config.logit_softcap)

    def next_logits(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Return the logits of the token after the new ones, [B, V], as `forward` has them last."""
        cache.require_room(tokens_BT.shape[1])
        x_BD = self.features(tokens_BT, cache)[:, -1]
        cache.length += tokens_BT.shape[1]
        return logits_of(self.products(x_BD), self.config.logit_softcap)

    def products(self, x: Tensor) -> Tensor:
        """Return the head's products with features, [..., V], which logits are made of."""
        return F.linear(x, self.head_weight.to(x.dtype))

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return the mean next-token cross-entropy in nats per token, a scalar; where `reduction`
        is "none", which is for evaluation, that of each token, [B T].

        After `enable_mtp`, where there is a gradient, it is the weighted mean of that and of those
        of further tokens; validation is of the next token alone.
        """
        x_ND = self.features(inputs_BT).flatten(0, 1)
        targets, weights_M = targets_BT.flatten(), None
        if self.mtp_weights is not None and torch.is_grad_enabled():
            targets = mtp_targets(targets_BT, len(self.mtp_weights))
            weights_M = self.mtp_weights
        return self.cross_entropy(
            x_ND, self.head_weight, targets, self.config.logit_softcap, weights_M, reduction
        )

    def score_targets(
        self, tree: TokenTree, place_N: Tensor, behind_P: Tensor, target_P: Tensor, vocab_size: int
    ) -> TargetScores:
        """Return how likely each target is behind a token of the tree, among the first `vocab_size`
        tokens: rows that pad an embedding count for nothing, as in a model exported without them.

        `place_N` are the places, in the flattened rows, of the tokens behind which something is
        predicted; target p stands behind the token at `place_N[behind_P[p]]`.
        """
        x_ND = self.features(tree.tokens_BT, tree=tree).flatten(0, 1)[place_N]
        head_VD = self.head_weight[:vocab_size].to(x_ND.dtype)
        return target_scores(x_ND, head_VD, behind_P, target_P, self.config.logit_softcap)

    def enable_mtp(self, tokens: int) -> None:
        """Let each position predict so many tokens in training, the next one included."""
        weights = torch.full((tokens,), 1 / tokens)
        self.register_buffer("mtp_weights", weights, persistent=False)

    def set_mtp_weights(self, weights: Sequence[float]) -> None:
        """Give the tokens that a position predicts their weights in a step.

        In place, as `set_window`.
        """
        if self.mtp_weights is not None:
            # One number at a time: copying a list to a GPU would make the host wait.
            for place, weight in zip(self.mtp_weights, weights, strict=True):
                place.fill_(weight)

    def set_window(self, window: int | None) -> None:
        """Give the model the window of a step, where it has one that grows.

        In place, so that compiled code and CUDA graphs stay as they are.
        """
        if self.config.window_start is not None:
            assert window is not None, "the schedule of a window that grows gives one"
            self.window.fill_(window)

    def blocks_parameter_count(self) -> int:
        """Count the elements of the blocks' matrices, which multiply every token."""
        return sum(p.numel() for p in self.layers.parameters() if p.ndim == 2)

    def parameter_count(self) -> int:
        """Count all parameters, a tied head once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> float:
        """Return the floating-point operations to train on one token, forward and backward.

        6 * (block matrices + V * D) for the matrix products, each weight being multiplied and
        added once forward and twice backward, plus 6 * layers * T * D for causal attention: two
        products of T * D multiply-adds per token and layer, three times (forward, twice backward),
        halved because a token sees T / 2 others on average. `modded` has 0.80 GFLOP per token.
        Source: appendix B of PaLM (https://arxiv.org/abs/2204.02311), which does not halve.

        A window counts with the positions that a token attends to, and one that grows with their
        mean over the run. What a document mask hides depends on the text and is counted in full.
        """
        c = self.config
        matrices = self.blocks_parameter_count() + self.vocab_size * c.width
        span = mean_attention_span(c.context, c.window, c.window_start)
        return 6.0 * matrices + 12.0 * c.layers * span * c.width
