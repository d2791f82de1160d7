"""A GPT trained by quintic (https://github.com/quintic-lm/quintic) as a model of transformers.

`quintic export --to hf` writes this file beside the weights where no class of transformers computes
the model: AutoModelForCausalLM loads both with `trust_remote_code=True`. It needs PyTorch and
transformers (5.20 or later), nothing of quintic. Modules and parameters have quintic's names. The
licence of this file is quintic's, MIT.

Rotary or learned positions, RMSNorm without parameters or LayerNorm, queries and keys that are
normalised or not, squared ReLU or GELU, no biases; and the speedrun's techniques
(https://github.com/KellerJordan/modded-nanogpt), each by its switch in `QuinticConfig`.

Matrix products are computed in the precision of the weights. The residual stream, norms, rotary
tables and logits are in float32 at least, so that bfloat16 weights compute as in training.

Shapes: B batch, T new positions (queries), S all positions so far (keys), D model width, H heads,
K head width, F MLP width (4 D), V vocabulary, E value tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name of the key-value cache: transformers 5.24 has given it another one."""

ROTARY_BASE = 10_000.0

NO_TOKEN = -1
"""Stands before the first token of a sequence or document."""


class QuinticConfig(PretrainedConfig):
    """The sizes and switches of a model; the names of sizes are transformers', the others
    quintic's, and the defaults are quintic's."""

    model_type = "quintic"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 - Trainer adds to it

    vocab_size: int = 50_304
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True
    positions: str = "rotary"
    """Or learned."""
    norm: str = "rmsnorm"
    """Or layernorm."""
    activation: str = "relu2"
    """Or gelu, in its tanh form."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head."""
    logit_softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""
    embed_norm: bool = False
    """RMS-normalise the embedded tokens."""
    token_smear: bool = False
    """Add the vector of the token before to a token's, each channel times a learned weight."""
    key_smear: bool = False
    """Add the attention keys of the token before, each channel times a learned weight."""
    bigram_embeddings: int = 0
    """Rows of a table of vectors for pairs of a token and the one before, found by a hash."""
    value_embeddings: int = 0
    """Tables of token embeddings mixed into attention values: of the first so many layers, and
    again of the last."""
    x0_skip: bool = False
    """Mix the embedded tokens into the input of every layer."""
    unet_skips: bool = False
    """Add the outputs of the first half of the layers to the inputs of the second, from the inside
    out."""
    window: int | None = None
    """Positions a token sees, itself included; None: all up to its own."""
    document_mask: bool = False
    """A token sees its own document only, which begins with the token `eot_id`."""
    eot_id: int | None = None
    initializer_range: float = 0.02
    """The standard deviation of weights that are not loaded."""
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


# Parts --------------------------------------------------------------------------------------------


class ScalarMix(nn.Module):
    """A sum of tensors, each times a learned scalar."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self, *tensors: Tensor) -> Tensor:
        mixed = self.weight[0] * tensors[0]
        for w, x in zip(self.weight[1:], tensors[1:], strict=True):
            mixed = mixed + w * x
        return mixed


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the precision of its input, whatever that of its gain and bias."""

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, gain, bias, self.eps)


rms_norm = partial(nn.RMSNorm, elementwise_affine=False)
"""x / rms(x); eps is that of the precision of x."""

NORMS: dict[str, Callable[[int], nn.Module]] = {"rmsnorm": rms_norm, "layernorm": LayerNorm}


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": squared_relu,
    "gelu": partial(F.gelu, approximate="tanh"),
}


class Rotation(NamedTuple):
    """Rotary tables of the new positions, [B or 1, 1, T, K / 2]."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x_BHTK: Tensor) -> Tensor:
        """Rotate the planes that the two halves of a head are: y1 = x1 cos + x2 sin, y2 = x2 cos -
        x1 sin. Llama's have the other sign."""
        x1, x2 = x_BHTK.chunk(2, dim=-1)
        y = (x1 * self.cos + x2 * self.sin, x2 * self.cos - x1 * self.sin)
        return torch.cat(y, dim=-1).to(x_BHTK.dtype)


def rotation(position_BT: Tensor, head_width: int, dtype: torch.dtype) -> Rotation:
    """Return the rotation of positions: plane i turns by t / base^(2i/K), computed in float64."""
    device, half = position_BT.device, head_width // 2
    if device.type == "mps":  # has no float64
        position_BT = position_BT.cpu()
    i_K = torch.arange(half, dtype=torch.float64, device=position_BT.device)
    angle_B1TK = position_BT[:, None, :, None] * ROTARY_BASE ** (-i_K / half)
    return Rotation(*(table.to(dtype).to(device) for table in (angle_B1TK.cos(), angle_B1TK.sin())))


class Previous:
    """Gives each new position what the position before it has, if that is of the same document and
    no padding.

    The cache keeps it as keys and values of further layers, behind the blocks' own, so that it is
    reordered and cut as they are.
    """

    def __init__(self, cache: Cache | None, layers: int, past: int) -> None:
        self.cache, self.layers, self.past = cache, layers, past
        self.valid_BT: Tensor | None = None
        """False where there is nothing before, or nothing of the same document."""

    def all(self, x_BTX: Tensor, place: int) -> Tensor:
        """Return what all positions so far have, [B, S, X], of what the new ones have; `place`
        tells it apart from other such tensors."""
        if self.cache is None:
            return x_BTX
        layer = self.layers + place
        while len(self.cache.layers) <= layer:
            self.cache.layers.append(DynamicLayer())
        x_B1TX = x_BTX[:, None]
        x_B1SX: Tensor = self.cache.update(x_B1TX, x_B1TX[..., :0], layer)[0]
        return x_B1SX[:, 0]

    def of(self, x_BTX: Tensor, place: int) -> Tensor:
        """Return what the position before each has, zeros where that is nothing."""
        before_BTX = F.pad(self.all(x_BTX, place)[:, :-1], (0, 0, 1, 0))[:, self.past :]
        assert self.valid_BT is not None, "it is set before"
        return before_BTX * self.valid_BT.unsqueeze(-1)


class Smear(nn.Module):
    """A sum of what a position and the one before have, each channel times a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(width))
        self.before = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: Tensor, before_BTD: Tensor) -> Tensor:
        own, before = self.own.to(x_BTD.dtype), self.before.to(x_BTD.dtype)
        return torch.addcmul(own * x_BTD, before, before_BTD)


class BigramEmbedding(nn.Module):
    """A vector for each pair of a token and the one before; pairs share rows by a hash."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, ids_BT: Tensor, previous_BT: Tensor) -> Tensor:
        row_BT = (ids_BT * 10_007 + previous_BT * 1_000_003) % self.weight.shape[0]
        return F.embedding(row_BT, self.weight)


class ForwardContext(NamedTuple):
    """The arguments that all blocks of a forward pass share."""

    rotate: Rotation | None
    attn_mask: Tensor | None
    """A mask [B or 1, 1, T, S]; None where attention is causal and T = S, or T = 1 sees all."""
    cache: Cache | None
    previous: Previous
    x0_BTD: Tensor


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: QuinticConfig, layer: int) -> None:
        super().__init__()
        D, self.heads, self.layer = config.hidden_size, config.num_attention_heads, layer
        self.qk_norm = rms_norm(D // self.heads) if config.qk_norm else nn.Identity()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.key_smear = Smear(D) if config.key_smear else None
        if value_table(config, layer) is not None:
            self.value_mix = ScalarMix(0.5, 0.5)

    def split(self, x_BTD: Tensor) -> Tensor:
        """Return one part of the width for each head, [B, H, T, K]."""
        x_BHTK: Tensor = x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x_BHTK

    def forward(self, x_BTD: Tensor, value_BTD: Tensor | None, ctx: ForwardContext) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        if self.key_smear is not None:
            before_BTD = ctx.previous.of(k_BTD, 2 + self.layer)  # behind ids and embeddings
            k_BTD = self.key_smear(k_BTD, before_BTD)
        q_BHTK, k_BHSK, v_BHSK = (self.split(y_BTD) for y_BTD in (q_BTD, k_BTD, v_BTD))
        if value_BTD is not None:
            v_BHSK = self.value_mix(v_BHSK, self.split(value_BTD))
        q_BHTK, k_BHSK = self.qk_norm(q_BHTK), self.qk_norm(k_BHSK)
        if ctx.rotate is not None:
            q_BHTK, k_BHSK = ctx.rotate(q_BHTK), ctx.rotate(k_BHSK)
        if ctx.cache is not None:
            k_BHSK, v_BHSK = ctx.cache.update(k_BHSK, v_BHSK, self.layer)
        is_causal = ctx.attn_mask is None and q_BHTK.shape[2] == k_BHSK.shape[2]
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=ctx.attn_mask, is_causal=is_causal
        )
        y_BTD: Tensor = self.o(y_BHTK.transpose(1, 2).flatten(-2))
        return y_BTD


class MLP(nn.Module):
    """A linear layer from D to 4 D, the activation, a linear layer back to D."""

    def __init__(self, config: QuinticConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False)
        self.down = nn.Linear(4 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(self.activation(self.up(x_BTD)))
        return y_BTD


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: QuinticConfig, layer: int) -> None:
        super().__init__()
        self.shortcut = ScalarMix(1.0, 0.0) if config.x0_skip else None
        self.attention_norm = NORMS[config.norm](config.hidden_size)
        self.attention = Attention(config, layer)
        self.mlp_norm = NORMS[config.norm](config.hidden_size)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, value_BTD: Tensor | None, ctx: ForwardContext) -> Tensor:
        dtype = self.mlp.up.weight.dtype
        if self.shortcut is not None:
            x_BTD = self.shortcut(x_BTD, ctx.x0_BTD)
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD).to(dtype), value_BTD, ctx)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD).to(dtype))
        return x_BTD


def value_table(config: QuinticConfig, layer: int) -> int | None:
    """Return which value embedding a layer has, if any: E tables serve the first E layers and, in
    the same order, the last E."""
    tables, left = config.value_embeddings, config.num_hidden_layers - layer
    if layer < tables:
        return layer
    return tables - left if left <= tables else None


# The model ----------------------------------------------------------------------------------------


class QuinticForCausalLM(PreTrainedModel, GenerationMixin):
    """The whole decoder, token ids to logits."""

    config: QuinticConfig
    config_class = QuinticConfig
    base_model_prefix = ""
    _input_embed_layer = "embed"
    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012 - a dict to transformers
    _supports_sdpa = True

    def __init__(self, config: QuinticConfig) -> None:
        super().__init__(config)
        V, D, layers = config.vocab_size, config.hidden_size, config.num_hidden_layers
        self.embed = nn.Embedding(V, D)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_position_embeddings, D)
        self.embed_norm = rms_norm(D) if config.embed_norm else nn.Identity()
        if config.token_smear:
            self.smear = Smear(D)
        if config.bigram_embeddings:
            self.bigram_embed = BigramEmbedding(config.bigram_embeddings, D)
        if config.value_embeddings:
            self.value_embed = nn.Embedding(V, config.value_embeddings * D)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(layers))
        skips = layers // 2 if config.unet_skips else 0
        self.skips = nn.ModuleList(ScalarMix(1.0) for _ in range(skips))
        self.final_norm = NORMS[config.norm](D)
        self.head = nn.Linear(D, V, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        embed: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        if self.config.value_embeddings:
            self.value_embed = self._get_resized_embeddings(self.value_embed, embed.num_embeddings)
        return embed

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ScalarMix):
            init.copy_(module.weight, torch.tensor(module.start))
        if isinstance(module, Smear):
            init.ones_(module.own)
            init.zeros_(module.before)
        if isinstance(module, BigramEmbedding):
            init.zeros_(module.weight)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the last `logits_to_keep` positions (0: of all), [B, T, V], and with
        labels, [B, T], the mean cross-entropy in nats of those that are not -100.

        The attention mask, [B, S], is zero for padding, on either side. Raises `ValueError` for
        what it does not compute.
        """
        if input_ids is None:
            raise ValueError("QuinticForCausalLM takes input_ids and no other embeddings")
        if output_attentions:
            raise ValueError("QuinticForCausalLM does not return attentions")
        config = self.config
        cache = past_key_values if cache is None else cache
        if cache is None and (config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=config)
        if cache is not None and cache.is_compileable:
            raise ValueError("QuinticForCausalLM takes a dynamic cache, not one of a fixed size")
        hidden = self.hidden_states(input_ids, attention_mask, position_ids, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        x_BTD = hidden[-1][:, kept]
        products_BTV = self.head(x_BTD.to(self.head.weight.dtype))
        logits_BTV = products_BTV.to(x_BTD.dtype)
        if config.logit_softcap is not None:
            logits_BTV = config.logit_softcap * torch.tanh(logits_BTV / config.logit_softcap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, vocab_size=config.vocab_size, **kwargs)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            **{CACHE: cache},
        )

    def hidden_states(
        self,
        ids_BT: Tensor,
        attention_mask_BS: Tensor | None,
        position_BT: Tensor | None,
        cache: Cache | None,
    ) -> list[Tensor]:
        """Return the embedded tokens and the output of every block, the last one normed."""
        config, (B, T) = self.config, ids_BT.shape
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask_BS is not None and attention_mask_BS.shape != (B, past + T):
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask_BS.shape)} and must have "
                f"{(B, past + T)}: a number for every token, those in the cache included"
            )
        if position_BT is None:
            position_BT = torch.arange(past, past + T, device=ids_BT.device)[None]
            if attention_mask_BS is not None:  # counted without padding
                position_BT = (attention_mask_BS.long().cumsum(1)[:, past:] - 1).clamp(min=0)
        x_BTD = self._embedded(ids_BT, position_BT, past)
        previous = Previous(cache, config.num_hidden_layers, past)
        all_BS: Tensor | None = None
        if (
            config.document_mask
            or config.token_smear
            or config.key_smear
            or config.bigram_embeddings
        ):
            all_BS = previous.all(ids_BT[..., None], 0)[..., 0]
            previous.valid_BT = self._has_previous(all_BS, attention_mask_BS)[:, past:]
            x_BTD = self._with_previous(x_BTD, all_BS, previous)
        rotate = None
        if config.positions == "rotary":
            head_width = config.hidden_size // config.num_attention_heads
            rotate = rotation(position_BT, head_width, x_BTD.dtype)
        mask = self._attn_mask(ids_BT, attention_mask_BS, all_BS, past)
        ctx = ForwardContext(rotate, mask, cache, previous, x0_BTD=x_BTD)
        values = self._values(ids_BT, x_BTD.dtype)
        hidden = [x_BTD]
        skipped: list[Tensor] = []  # outputs of the first half that the second has yet to get
        for layer, block in enumerate(self.layers):
            opposite = config.num_hidden_layers - 1 - layer
            if opposite < len(self.skips):
                x_BTD = x_BTD + self.skips[opposite](skipped.pop())
            x_BTD = block(x_BTD, values[layer], ctx)
            if layer < len(self.skips):
                skipped.append(x_BTD)
            hidden.append(x_BTD)
        return [*hidden[:-1], self.final_norm(x_BTD)]

    def _embedded(self, ids_BT: Tensor, position_BT: Tensor, past: int) -> Tensor:
        """Return the embedded tokens, in the precision of the residual stream."""
        stream = torch.promote_types(self.embed.weight.dtype, torch.float32)
        x_BTD: Tensor = self.embed(ids_BT).to(stream)
        if self.config.positions == "learned":
            length, context = past + ids_BT.shape[1], self.config.max_position_embeddings
            if length > context:
                raise ValueError(
                    f"{length} tokens are more than the {context} positions that were learned: "
                    "begin again with the newest ones"
                )
            x_BTD = x_BTD + self.positions(position_BT).to(stream)
        x_BTD = self.embed_norm(x_BTD)
        return x_BTD

    def _has_previous(self, all_BS: Tensor, attention_mask_BS: Tensor | None) -> Tensor:
        """Return whether a position of the same document, no padding, is before each, [B, S]."""
        before_BS = torch.ones_like(all_BS, dtype=torch.bool)
        if attention_mask_BS is not None:
            before_BS = attention_mask_BS.bool()
        found_BS = F.pad(before_BS[:, :-1], (1, 0), value=False)
        if self.config.document_mask:
            found_BS = found_BS & (all_BS != self.config.eot_id)
        return found_BS

    def _with_previous(self, x_BTD: Tensor, all_BS: Tensor, previous: Previous) -> Tensor:
        """Return the embedded tokens with what the token before each adds to them."""
        config, past, valid_BT = self.config, previous.past, previous.valid_BT
        if config.token_smear:
            x_BTD = self.smear(x_BTD, previous.of(x_BTD, 1))
        if config.bigram_embeddings:
            assert valid_BT is not None, "it is set before"
            before_BT = F.pad(all_BS[:, :-1], (1, 0))[:, past:].masked_fill(~valid_BT, NO_TOKEN)
            x_BTD = x_BTD + self.bigram_embed(all_BS[:, past:], before_BT).to(x_BTD.dtype)
        return x_BTD

    def _values(self, ids_BT: Tensor, stream: torch.dtype) -> list[Tensor | None]:
        """Return for each layer its value embedding of the tokens, [B, T, D], or None."""
        config = self.config
        each: Sequence[Tensor] = ()
        if config.value_embeddings:
            e_BTED = self.value_embed(ids_BT)
            e_BTED = (e_BTED.to(stream) * math.sqrt(config.hidden_size)).to(e_BTED.dtype)
            each = e_BTED.chunk(config.value_embeddings, dim=-1)
        tables = (value_table(config, layer) for layer in range(config.num_hidden_layers))
        return [None if table is None else each[table] for table in tables]

    def _attn_mask(
        self,
        ids_BT: Tensor,
        attention_mask_BS: Tensor | None,
        all_BS: Tensor | None,
        past: int,
    ) -> Tensor | None:
        """Return which keys the new positions see; None where those are all, or all up to itself
        and nothing is cached."""
        config, T = self.config, ids_BT.shape[1]
        plain = attention_mask_BS is None and config.window is None and not config.document_mask
        if plain and (T == 1 or not past):
            return None
        key_S = torch.arange(past + T, device=ids_BT.device)
        query_T1 = key_S[past:, None]
        mask_BTS = (key_S <= query_T1)[None]
        if config.window is not None:
            mask_BTS = mask_BTS & (query_T1 - key_S < config.window)
        if config.document_mask:
            assert config.eot_id is not None and all_BS is not None, "documents begin with it"
            document_BS = all_BS.eq(config.eot_id).cumsum(1)
            mask_BTS = mask_BTS & (document_BS[:, past:, None] == document_BS[:, None])
        if attention_mask_BS is not None:
            # Padding sees itself, so that no kernel is given a softmax of nothing.
            mask_BTS = mask_BTS & attention_mask_BS.bool()[:, None] | (key_S == query_T1)
        return mask_BTS[:, None]
