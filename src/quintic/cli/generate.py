"""quintic generate."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from quintic.cli.options import Generate
from quintic.console import Console
from quintic.generate import check_sampling, generate_ids, stream_text
from quintic.trained import load_trained


def run(command: Generate, _arguments: Sequence[str]) -> None:
    """Print the prompt and what the model makes of it, as it comes."""
    check_sampling(
        tokens=command.tokens,
        temperature=command.temperature,
        top_k=command.top_k,
        seed=command.seed,
    )
    trained = load_trained(command.run, which=command.checkpoint, device=command.device)
    for problem in trained.checkpoint.damaged:
        print(f"skipped: {problem}", file=sys.stderr)
    tokenizer = trained.load_tokenizer(Console(), path=command.data, tokenizer=command.tokenizer)
    # A document begins with end of text; so does a prompt, which is the beginning of one.
    ids = generate_ids(
        trained.model,
        [tokenizer.eot_id, *tokenizer.encode(command.prompt)],
        tokens=command.tokens,
        temperature=command.temperature,
        top_k=command.top_k,
        seed=command.seed,
        vocab_size=tokenizer.vocab_size,
        stop_id=tokenizer.eot_id,
    )
    print(command.prompt, end="", flush=True)
    for text in stream_text(tokenizer, ids):
        print(text, end="", flush=True)
    print(flush=True)
