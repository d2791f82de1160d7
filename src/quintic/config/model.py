"""Sizes of the model, its ablations and techniques."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quintic.config.checks import not_negative, one_of, positive, require

GPT_SWITCHES = (
    *("positions", "norm", "activation", "init", "qk_norm"),  # ablations
    *("tied_head", "logit_softcap", "embed_norm"),  # techniques of the speedrun
    *("value_embeddings", "x0_skip", "unet_skips", "window", "window_start"),
    "document_mask",
)
"""Fields of `ModelConfig` that take a part of the modernised GPT away or add a technique to it;
gpt2 has none of them."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model."""

    architecture: Literal["gpt", "gpt2"] = "gpt"
    """gpt: the modernised GPT (RoPE, RMSNorm, squared ReLU); gpt2: the classic one."""
    layers: int = 12
    """Transformer blocks."""
    width: int = 768
    """Model width D."""
    heads: int = 6
    """Attention heads; width / heads is the head width."""
    context: int = 1024
    """Tokens the model sees at once, T."""
    vocab_size: int | None = None
    """Rows of the embedding; None: the dataset's vocabulary, rounded up to a multiple of 128."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Ablation of gpt: rotary embeddings, or GPT-2's learned ones."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Ablation of gpt: RMSNorm without parameters, or GPT-2's LayerNorm with gain and bias."""
    activation: Literal["relu2", "gelu"] = "relu2"
    """Ablation of gpt: squared ReLU or GELU."""
    init: Literal["zero", "classic"] = "zero"
    """Ablation of gpt: output projections start at zero, or are divided by sqrt(2 layers)."""
    qk_norm: bool = True
    """Ablation of gpt: RMS-normalise queries and keys per head."""
    tied_head: bool = True
    """The head is the embedding's matrix; or one of its own, which starts at zero."""
    logit_softcap: float | None = None
    """Bound logits smoothly by +-this: softcap * tanh(logits / softcap); None: no bound."""
    embed_norm: bool = False
    """RMS-normalise the embedded tokens."""
    value_embeddings: int = 0
    """Tables of token embeddings mixed into attention values: of the first so many layers, and
    again of the last; at most half of the layers."""
    x0_skip: bool = False
    """Mix the embedded tokens into the input of every layer, with learned scalars."""
    unet_skips: bool = False
    """Add the outputs of the first half of the layers to the inputs of the second, from the inside
    out, with learned scalars."""
    window: int | None = None
    """Positions a token sees, itself included; None: all up to its own."""
    window_start: int | None = None
    """The window at step 0, which grows evenly to `window` over the run; None: it is constant."""
    document_mask: bool = False
    """A token sees its own document only."""
    eot_id: int | None = None
    """The token that begins a document, for document_mask; None: that of the dataset's
    tokenizer."""

    def __post_init__(self) -> None:
        one_of("model", self, "architecture", "positions", "norm", "activation", "init")
        positive("model", self, "layers", "width", "heads", "context", "vocab_size")
        positive("model", self, "logit_softcap", "window", "window_start")
        for name in GPT_SWITCHES if self.architecture != "gpt" else ():
            value, default = getattr(self, name), getattr(type(self), name)
            require(
                value == default,
                f"model.{name} is {value!r}, which model.architecture {self.architecture} cannot "
                f"heed: leave it at {default!r}, or use --model.architecture gpt",
            )
        require(
            self.width % self.heads == 0,
            f"model.width {self.width} is not divisible by model.heads {self.heads}: "
            f"choose a multiple, for example --model.width {self._nearest_width()}",
        )
        require(
            self.architecture != "gpt" or self.positions != "rotary" or self.head_width % 2 == 0,
            f"the head width model.width / model.heads = {self.width} / {self.heads} = "
            f"{self.head_width} is odd, and rotary embeddings rotate pairs: make it even",
        )
        not_negative("model", self, "value_embeddings")
        require(
            2 * self.value_embeddings <= self.layers,
            f"model.value_embeddings is {self.value_embeddings}: each serves two of the "
            f"{self.layers} layers, so there can be at most {self.layers // 2}",
        )
        require(
            not self.unet_skips or self.layers > 1,
            "model.unet_skips is True and there is one layer: a skip needs two",
        )
        require(
            self.window is None or self.window <= self.context,
            f"model.window is {self.window} and model.context {self.context}: a token sees no more "
            "than the context, so choose a smaller window or leave it out",
        )
        require(
            self.window_start is None or self.window_start <= (self.window or 0),
            f"model.window_start is {self.window_start} and model.window {self.window}: the window "
            "grows, so --model.window must be at least as large",
        )
        require(
            self.eot_id is None or self.document_mask,
            f"model.eot_id is {self.eot_id}, which serves model.document_mask alone: leave it out, "
            "or use --model.document-mask",
        )
        require(
            self.eot_id is None or 0 <= self.eot_id < (self.vocab_size or 2**63),
            f"model.eot_id is {self.eot_id}: it must be a token of the vocabulary"
            + (f", from 0 to {self.vocab_size - 1}" if self.vocab_size else ""),
        )

    def _nearest_width(self) -> int:
        return max(1, round(self.width / self.heads)) * self.heads

    @property
    def has_scalars(self) -> bool:
        """Whether there are learned scalars, which weigh shortcuts."""
        return self.value_embeddings > 0 or self.x0_skip or self.unet_skips

    @property
    def head_width(self) -> int:
        """K = width / heads."""
        return self.width // self.heads
