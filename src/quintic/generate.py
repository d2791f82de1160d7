"""Generation of text, a token at a time, with a key-value cache."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError
from quintic.model.base import KVCache, LanguageModel


@torch.no_grad()
def generate_ids(
    model: LanguageModel,
    prompt: Sequence[int],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
    stop_id: int | None = None,
) -> Iterator[int]:
    """Yield up to `tokens` ids that continue the prompt, and end at `stop_id` without yielding it.

    The model sees at most its trained context. Where the text grows beyond, the cache is rebuilt
    from the newest half of a context, so a token is predicted from at least that much; positions
    never leave the trained range, which works for learned and rotary positions alike.

    Temperature 0 takes the likeliest token. `vocab_size` keeps padding rows of the embedding from
    being drawn. The draw is made on the CPU, so a seed gives the same text on every device up to
    rounding. Raises `QuinticError` on settings out of range.
    """
    check_sampling(tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
    if not prompt:
        raise QuinticError("the prompt has no tokens: begin with the end-of-text token")
    device, context = model.embed.weight.device, model.config.context
    random = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    cache, new = _empty_cache(model), ids[-context:]
    for _ in range(tokens):
        if cache.length + len(new) > context:
            cache, new = _empty_cache(model), ids[-max(1, context // 2) :]
        logits_V = model(torch.tensor([new], device=device), cache)[0, -1, :vocab_size].cpu()
        token = _draw(logits_V, temperature, top_k, random)
        if token == stop_id:
            return
        ids.append(token)
        new = [token]
        yield token


def check_sampling(*, tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    """Raise `QuinticError` on sampling settings out of range."""
    if tokens < 1:
        raise QuinticError(f"--tokens is {tokens}: it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise QuinticError(f"--temperature is {temperature}: it must be zero or positive")
    if top_k is not None and top_k < 1:
        raise QuinticError(f"--top-k is {top_k}: it must be at least 1, or left out")
    if not 0 <= seed < 2**64:
        raise QuinticError(f"--seed is {seed}: it must be from 0 to 2**64 - 1")


def _empty_cache(model: LanguageModel) -> KVCache:
    return KVCache(
        model.config, batch=1, dtype=model.compute_dtype, device=model.embed.weight.device
    )


def _draw(logits_V: Tensor, temperature: float, top_k: int | None, random: torch.Generator) -> int:
    if temperature == 0 or top_k == 1:
        return int(logits_V.argmax())
    # By index and not by a threshold, since logits computed in bfloat16 have ties.
    logits_K, ids_K = logits_V.topk(min(top_k or len(logits_V), len(logits_V)))
    # The largest becomes 0 first, so that no temperature is too small to divide by.
    p_K = torch.softmax((logits_K.double() - logits_K[0].double()) / temperature, dim=-1)
    return int(ids_K[torch.multinomial(p_K, 1, generator=random)])


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode ids as they come; a character is held back until all its bytes are there."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
