"""quintic generate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from quintic.cli.options import Generate
from quintic.console import Console
from quintic.data.document import read_text
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError
from quintic.generate import (
    Sample,
    TextStream,
    check_generation,
    check_text,
    generate_rows,
    generate_samples,
    prompt_ids,
)
from quintic.model.base import LanguageModel
from quintic.model.decoding import DecodingParts
from quintic.model.int8 import int8_parts
from quintic.sampling import Sampling
from quintic.trained import load_trained


def run(command: Generate, _arguments: Sequence[str]) -> None:
    """Print prompts and what the model makes of them."""
    sampling = Sampling(
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        min_p=command.min_p,
        repetition_penalty=command.repetition_penalty,
    )
    sampling.check()
    check_text(samples=command.samples, stop=command.stop, batch=command.batch)
    check_generation(
        tokens=command.tokens, seeds=(command.seed, command.seed + command.samples - 1)
    )
    if command.logprobs and not command.json:
        raise QuinticError("--logprobs are printed with --json: add that")
    prompts = _prompts(command)
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    for problem in trained.checkpoint.damaged:
        print(f"skipped: {problem}", file=sys.stderr)
    tokenizer = trained.load_tokenizer(Console(), path=command.data, tokenizer=command.tokenizer)
    parts = int8_parts(trained.model) if command.weights == "int8" else None
    for number, prompt in enumerate(prompts, start=1):
        length, context = len(prompt_ids(tokenizer, prompt)), trained.config.model.context
        if length > context:
            name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            print(
                f"{name} has {length:,} tokens: the model sees the last {context:,}, its context",
                file=sys.stderr,
            )
    if len(prompts) * command.samples == 1 and not command.json:
        _stream(command, sampling, trained.model, tokenizer, prompts[0], parts)
        return
    found = generate_samples(
        trained.model,
        tokenizer,
        prompts,
        tokens=command.tokens,
        sampling=sampling,
        seed=command.seed,
        samples=command.samples,
        stop=command.stop,
        batch=command.batch,
        logprobs=command.logprobs,
        parts=parts,
        draft=command.draft,
    )
    for line in _json_lines(prompts, found) if command.json else _blocks(prompts, found):
        print(line, flush=True)


def _prompts(command: Generate) -> list[str]:
    """Return the prompts, that of --prompt or those of a file.

    Raises `QuinticError` where both are given, and where the file has none or is not what it says.
    """
    if command.prompts is None:
        return [command.prompt]
    if command.prompt:
        raise QuinticError("--prompt is one text and --prompts a file of them: leave one out")
    name = command.prompts
    # Not by splitlines, which ends lines at characters that JSON and prompts may hold, as U+2028.
    lines = [line.removesuffix("\r") for line in read_text(Path(name)).split("\n")]
    prompts = [
        _prompt_of(line, f"{name}:{number}") if name.endswith(".jsonl") else line
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise QuinticError(f"{name} has no prompt: write one a line")
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise QuinticError(f"{where} is no JSON: {error}") from error
    prompt = found.get("prompt") if isinstance(found, dict) else found
    if not isinstance(prompt, str):
        raise QuinticError(f'{where} must be a text, or an object with a text "prompt"')
    return prompt


def _stream(
    command: Generate,
    sampling: Sampling,
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    parts: DecodingParts | None,
) -> None:
    """Print one text as it comes."""
    stream = TextStream(tokenizer, command.stop)
    print(prompt, end="", flush=True)
    for drawn in generate_rows(
        model,
        [prompt_ids(tokenizer, prompt)],
        tokens=command.tokens,
        sampling=sampling,
        seeds=[command.seed],
        vocab_size=tokenizer.vocab_size,
        stop_id=tokenizer.eot_id,
        parts=parts,
        draft=command.draft,
    ):
        print(stream.feed(drawn.token), end="", flush=True)
        if stream.stopped:
            break
    print(stream.finish(), flush=True)


def _blocks(prompts: list[str], samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        yield f"--- prompt {sample.prompt + 1}, seed {sample.seed}"
        yield prompts[sample.prompt] + sample.text


def _json_lines(prompts: list[str], samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        found = {
            "prompt": prompts[sample.prompt],
            "seed": sample.seed,
            "text": sample.text,
            "finish_reason": sample.finish_reason,
            "ids": sample.ids,
        }
        if sample.logprobs is not None:
            found["logprobs"] = sample.logprobs
        yield json.dumps(found)
