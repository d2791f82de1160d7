"""Generation of text, a token at a time for several texts at once, with a key-value cache.

Shapes: B texts, T new positions, S new positions whose next token is drawn, V vocabulary.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError
from quintic.model.base import KVCache, LanguageModel
from quintic.model.decoding import DecodingParts
from quintic.ngram_draft import DRAFTED, NgramDraft
from quintic.sampling import Sampling


class Drawn(NamedTuple):
    """Holds a token that continues one of several texts."""

    row: int
    """Which text."""
    token: int
    logprob: float | None
    """The natural logarithm of the model's own probability, before temperature and the like; None
    unless asked for."""


@torch.inference_mode()
def generate_rows(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    vocab_size: int | None = None,
    stop_id: int | None = None,
    ended: Collection[int] = (),
    logprobs: bool = False,
    parts: DecodingParts | None = None,
    draft: Literal["ngram"] | None = None,
) -> Iterator[Drawn]:
    """Yield up to `tokens` ids that continue each prompt, all texts a token further in turn.

    A text ends at `stop_id`, which is not yielded, and where the caller puts its row into `ended`.

    The model sees at most its trained context. Where a text grows beyond, the cache is rebuilt
    from the newest half of a context, so a token is predicted from at least that much; positions
    never leave the trained range, which works for learned and rotary positions alike. All texts
    are at the same position: where prompts are of different lengths, the longer ones are fed
    further while the shorter are continued already.

    `vocab_size` keeps padding rows of the embedding from being drawn. Draws are made on the CPU
    with a seed for each text, so that a text is the same on every device and beside any others, up
    to rounding. `parts` are those that the model is to compute by, as `int8_parts` makes them;
    None: those that suit so many texts.

    With a `draft`, which is for one text alone, up to `DRAFTED` tokens are guessed ahead. The model
    computes the logits behind all of them in one pass, which reads its weights once, and draws from
    these as without guesses, to the first token that was guessed wrong. So the text and its random
    numbers are the same, up to rounding, where speculative sampling
    (https://arxiv.org/abs/2211.17192) keeps the distribution.

    Raises `QuinticError` on settings out of range.
    """
    sampling = sampling or Sampling()
    seeds = range(len(prompts)) if seeds is None else seeds
    check_generation(tokens=tokens, seeds=seeds)
    sampling.check()
    if not all(prompts):
        raise QuinticError("the prompt has no tokens: begin with the end-of-text token")
    if draft is not None and len(prompts) > 1:
        raise QuinticError(
            f"--draft is for one text at a time, and {len(prompts)} come at once: leave it out, "
            f"which is faster for several, or add --batch 1"
        )
    device, context = model.embed.weight.device, model.config.context
    texts = [list(prompt) for prompt in prompts]
    left = [tokens] * len(texts)
    random = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = list(range(len(texts)))
    fed = [text[-context:] for text in texts]
    """What the cache has of a text, or is to get next."""
    room = min(context, max(map(len, fed), default=0) + tokens)
    cache = _empty_cache(model, len(rows), room)
    ahead = None if draft is None else NgramDraft()
    several = parts or DecodingParts(
        model, texts=len(rows) if ahead is None else 1 + DRAFTED, tokens=tokens
    )
    one = parts or (several if ahead is None else DecodingParts(model, texts=1, tokens=tokens))
    while rows:
        start, new = cache.length, min(len(fed[row]) for row in rows) - cache.length
        if start + new > context:
            half = max(1, context // 2)
            fed = [text[-half:] for text in texts]
            cache, start, new = _empty_cache(model, len(rows), room), 0, half
        guesses: list[int] = []
        if ahead is not None and new == 1:
            guesses = ahead.guess(texts[0], min(DRAFTED, left[0] - 1, room - start - new))
        new_BT = torch.tensor(
            [[*fed[row][start : start + new], *guesses] for row in rows], device=device
        )
        with (several if guesses else one).used():
            if guesses:
                logits_BSV = model(new_BT, cache)
            else:
                logits_BSV = model.next_logits(new_BT, cache).unsqueeze(1)
        logits_BSV = logits_BSV[..., :vocab_size].cpu()
        done = set()
        for place, row in enumerate(rows):
            if len(fed[row]) > start + new:  # its prompt goes on
                continue
            for logits_V, guess in zip(logits_BSV[place], [*guesses, None], strict=True):
                token = sampling.draw(logits_V, texts[row], random[row])
                if token == stop_id:
                    done.add(row)
                    break
                texts[row].append(token)
                fed[row].append(token)
                left[row] -= 1
                logprob = None
                if logprobs:
                    logprob = float(logits_V.double().log_softmax(0)[token])
                yield Drawn(row, token, logprob)
                if not left[row] or row in ended:
                    done.add(row)
                    break
                if token != guess:
                    break
        if guesses:  # of which some may be wrong
            cache.length = len(fed[0]) - 1
        if done:
            kept = [place for place, row in enumerate(rows) if row not in done]
            rows = [rows[place] for place in kept]
            cache.keep(kept)


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
    parts: DecodingParts | None = None,
) -> Iterator[int]:
    """Yield up to `tokens` ids that continue one prompt, and end at `stop_id` without yielding it.

    `generate_rows` says the rest. Raises `QuinticError` on settings out of range.
    """
    sampling = Sampling(temperature, top_k)
    for drawn in generate_rows(
        model,
        [prompt],
        tokens=tokens,
        sampling=sampling,
        seeds=[seed],
        vocab_size=vocab_size,
        stop_id=stop_id,
        parts=parts,
    ):
        yield drawn.token


def check_generation(*, tokens: int, seeds: Sequence[int]) -> None:
    """Raise `QuinticError` on settings out of range."""
    if tokens < 1:
        raise QuinticError(f"--tokens is {tokens}: it must be at least 1")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise QuinticError(f"--seed is {seed}: it must be from 0 to 2**64 - 1")


def _empty_cache(model: LanguageModel, batch: int, room: int) -> KVCache:
    device = model.embed.weight.device
    return KVCache(model.config, batch, dtype=model.compute_dtype, device=device, room=room)


# Text ---------------------------------------------------------------------------------------------


class TextStream:
    """Decodes ids as they come, up to the first of the strings that end a text.

    A character is held back until all its bytes are there, and text that may be the beginning of
    such a string until it is known not to be.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """True once one of the strings has come; it is no part of the text."""

    def feed(self, token: int) -> str:
        """Return the text that is certain with a further token; it may be empty."""
        return self._certain(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """Return what was held back."""
        text = self._certain(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _certain(self, new: str) -> str:
        if self.stopped:
            return ""
        text, self._held = self._held + new, ""
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                text, self._held = text[:-length], text[-length:]
                break
        return text


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode ids as they come; a character is held back until all its bytes are there."""
    stream = TextStream(tokenizer)
    for token in ids:
        if text := stream.feed(token):
            yield text
    if text := stream.finish():
        yield text


@dataclass
class Sample:
    """Holds what a model makes of a prompt."""

    prompt: int
    """Which of the prompts."""
    seed: int
    text: str = ""
    """What follows the prompt, without the string that ended it."""
    ids: list[int] = field(default_factory=list)
    """The tokens that were drawn; with a stop string these go to the one that completed it."""
    finish_reason: Literal["length", "stop", "end_of_text"] = "length"
    logprobs: list[float] | None = None
    """The natural logarithm of the model's own probability of each token."""


def generate_samples(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    samples: int = 1,
    stop: Sequence[str] = (),
    batch: int = 16,
    logprobs: bool = False,
    parts: DecodingParts | None = None,
    draft: Literal["ngram"] | None = None,
) -> Iterator[Sample]:
    """Yield `samples` continuations of each prompt, in the order of the prompts, `batch` at a time.

    A document begins with end of text, and so does a prompt, which is the beginning of one. Sample
    i has the seed `seed` + i, so that it is the same whatever else is asked for, up to rounding.
    `parts` and `draft` are as in `generate_rows`. Raises `QuinticError` on settings out of range.
    """
    check_text(samples=samples, stop=stop, batch=batch)
    given = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    wanted = [Sample(p, seed + i) for p in range(len(prompts)) for i in range(samples)]
    for first in range(0, len(wanted), batch):
        together = wanted[first : first + batch]
        streams = [TextStream(tokenizer, stop) for _ in together]
        ended: set[int] = set()
        if logprobs:
            for sample in together:
                sample.logprobs = []
        for row, token, logprob in generate_rows(
            model,
            [given[sample.prompt] for sample in together],
            tokens=tokens,
            sampling=sampling,
            seeds=[sample.seed for sample in together],
            vocab_size=tokenizer.vocab_size,
            stop_id=tokenizer.eot_id,
            ended=ended,
            logprobs=logprobs,
            parts=parts,
            draft=draft,
        ):
            sample, stream = together[row], streams[row]
            sample.ids.append(token)
            sample.text += stream.feed(token)
            if sample.logprobs is not None and logprob is not None:
                sample.logprobs.append(logprob)
            if stream.stopped:
                ended.add(row)
        for sample, stream in zip(together, streams, strict=True):
            sample.text += stream.finish()
            if stream.stopped:
                sample.finish_reason = "stop"
            elif len(sample.ids) < tokens:
                sample.finish_reason = "end_of_text"
            yield sample


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return a prompt's tokens: end of text, as before every document, and the text's."""
    return [tokenizer.eot_id, *tokenizer.encode(prompt)]


def check_text(*, samples: int, stop: Sequence[str], batch: int) -> None:
    """Raise `QuinticError` on settings out of range."""
    for option, value in {"--samples": samples, "--batch": batch}.items():
        if value < 1:
            raise QuinticError(f"{option} is {value}: it must be at least 1")
    if "" in stop:
        raise QuinticError("--stop is an empty text, which would end every text: leave it out")
