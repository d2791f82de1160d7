"""Sizes of the model, its ablations and techniques."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quintic.config.schema import (
    ON,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    require,
    setting,
)
from quintic.errors import counted

GPT = {"model.architecture": "gpt"}
"""What the fields need that take a part of the modernised GPT away or add a technique to it; gpt2
has none of them."""


@dataclass(frozen=True)
class ModelConfig(Section, name="model"):
    """Sizes of the model."""

    architecture: Literal["gpt", "gpt2"] = "gpt"
    """gpt: the modernised GPT (RoPE, RMSNorm, squared ReLU); gpt2: the classic one."""
    layers: PositiveInt = 12
    """Transformer blocks."""
    width: PositiveInt = 768
    """Model width D."""
    heads: PositiveInt = 6
    """Attention heads; width / heads is the head width."""
    context: PositiveInt = 1024
    """Tokens the model sees at once, T."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding; None: the dataset's vocabulary, rounded up to a multiple of 128."""
    positions: Literal["rotary", "learned"] = setting("rotary", needs=GPT)
    """Ablation of gpt: rotary embeddings, or GPT-2's learned ones."""
    norm: Literal["rmsnorm", "layernorm"] = setting("rmsnorm", needs=GPT)
    """Ablation of gpt: RMSNorm without parameters, or GPT-2's LayerNorm with gain and bias."""
    activation: Literal["relu2", "gelu"] = setting("relu2", needs=GPT)
    """Ablation of gpt: squared ReLU or GELU."""
    init: Literal["zero", "classic"] = setting("zero", needs=GPT)
    """Ablation of gpt: output projections start at zero, or are divided by sqrt(2 layers)."""
    qk_norm: bool = setting(True, needs=GPT)
    """Ablation of gpt: RMS-normalise queries and keys per head."""
    tied_head: bool = setting(True, needs=GPT)
    """The head is the embedding's matrix; or one of its own, which starts at zero."""
    logit_softcap: PositiveFloat | None = setting(None, needs=GPT)
    """Bound logits smoothly by +-this: softcap * tanh(logits / softcap); None: no bound."""
    embed_norm: bool = setting(False, needs=GPT)
    """RMS-normalise the embedded tokens."""
    token_smear: bool = setting(False, needs=GPT)
    """Add the vector of the token before to a token's, each channel times a learned weight."""
    bigram_embeddings: NonNegativeInt = setting(0, needs=GPT)
    """Rows of a table of vectors for pairs of a token and the one before, which share rows by a
    hash; a pair's vector is added to the token's."""
    key_smear: bool = setting(False, needs=GPT)
    """Add the attention keys of the token before to a token's, each channel times a learned
    weight."""
    value_embeddings: NonNegativeInt = setting(0, needs=GPT)
    """Tables of token embeddings mixed into attention values: of the first so many layers, and
    again of the last; at most half of the layers."""
    x0_skip: bool = setting(False, needs=GPT)
    """Mix the embedded tokens into the input of every layer, with learned scalars."""
    unet_skips: bool = setting(False, needs=GPT)
    """Add the outputs of the first half of the layers to the inputs of the second, from the inside
    out, with learned scalars."""
    window: PositiveInt | None = setting(None, needs=GPT)
    """Positions a token sees, itself included; None: all up to its own."""
    window_start: PositiveInt | None = setting(None, needs=GPT, part_of={"model.window": ON})
    """The window at step 0, which grows evenly to `window` over the run; None: it is constant."""
    document_mask: bool = setting(False, needs=GPT)
    """A token sees its own document only."""
    eot_id: int | None = setting(None, part_of={"model.document_mask": True})
    """The token that begins a document, for document_mask; None: that of the dataset's
    tokenizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.width % self.heads == 0,
            f"model.width {self.width} is not divisible by model.heads {self.heads}: "
            "choose a multiple, for example --model.width "
            f"{max(1, round(self.width / self.heads / 2)) * 2 * self.heads}",
        )
        require(
            self.architecture != "gpt" or self.positions != "rotary" or self.head_width % 2 == 0,
            f"the head width model.width / model.heads = {self.width} / {self.heads} = "
            f"{self.head_width} is odd, and rotary embeddings rotate pairs: make it even, for "
            f"example with --model.width {max(1, round(self.head_width / 2)) * 2 * self.heads}",
        )
        require(
            2 * self.value_embeddings <= self.layers,
            f"model.value_embeddings is {self.value_embeddings}: each serves two of the "
            f"{counted(self.layers, 'layer')}, so use --model.value-embeddings "
            f"{self.layers // 2}",
        )
        require(
            not self.unet_skips or self.layers > 1,
            "model.unet_skips is True and there is one layer: a skip needs two, so use "
            "--model.no-unet-skips or more --model.layers",
        )
        require(
            self.window is None or self.window <= self.context,
            f"model.window is {self.window} and model.context {self.context}: a token sees no more "
            f"than the context, so use --model.window {self.context}, or None for no window",
        )
        require(
            self.window_start is None or self.window is None or self.window_start <= self.window,
            f"model.window_start is {self.window_start} and model.window {self.window}: the window "
            f"grows, so use --model.window-start {self.window}, or a larger --model.window",
        )
        require(
            self.eot_id is None or 0 <= self.eot_id < (self.vocab_size or 2**63),
            f"model.eot_id is {self.eot_id}: it must be a token of the vocabulary"
            + (f", from 0 to {self.vocab_size - 1}" if self.vocab_size else ""),
        )

    @property
    def head_width(self) -> int:
        """Return K = width / heads."""
        return self.width // self.heads
