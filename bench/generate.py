"""Tokens per second of `quintic generate`: one text, and several side by side.

    python -m bench.generate            # writes docs/results/generate-DEVICE-Nthreads.json

A model of GPT-2's size with drawn weights continues a prompt of 32 tokens by 64, greedily, in
float32 on a CPU. One text alone reads every weight for every token, so that memory's bandwidth is
the roof; texts side by side share that reading. Beside it are transformers' `generate` with the
same weights (GPT-2's), where that is installed, and the loop as it was in 0.1.0: the head of all
positions of the prompt, and `no_grad` where `inference_mode` is now.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import torch

from bench.results import interleaved, median_ratio, print_table, write_result
from quintic.config import ModelConfig
from quintic.device import choose_device
from quintic.export.hf import hf_config, to_hf
from quintic.generate import generate_rows
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model
from quintic.sampling import Sampling

SIZES = ModelConfig(layers=12, width=768, heads=12, context=1024, vocab_size=50304)
PROMPT, TOKENS = 32, 64


def prompts(count: int) -> list[list[int]]:
    ids = torch.randint(1, 50257, (count, PROMPT), generator=torch.Generator().manual_seed(0))
    return [[int(i) for i in row] for row in ids]


def side_by_side(model: LanguageModel, count: int) -> Callable[[], None]:
    """Continue so many prompts at once."""
    given = prompts(count)

    def run() -> None:
        drawn = list(generate_rows(model, given, tokens=TOKENS, sampling=Sampling(temperature=0)))
        assert len(drawn) == count * TOKENS

    return run


def as_in_0_1(model: LanguageModel) -> Callable[[], None]:
    """Continue one prompt as 0.1.0 did."""
    (prompt,) = prompts(1)

    @torch.no_grad()
    def run() -> None:
        device = model.embed.weight.device
        cache = KVCache(model.config, 1, dtype=model.compute_dtype, device=device)
        new = prompt
        for _ in range(TOKENS):
            logits_V = model(torch.tensor([new], device=device), cache)[0, -1].cpu()
            new = [int(logits_V.argmax())]

    return run


def by_transformers(model: LanguageModel) -> Callable[[], None]:
    """Continue one prompt with transformers' class and its own `generate`."""
    import transformers

    device = model.embed.weight.device
    settings = hf_config(model.config, vocab_size=50304, eot_id=0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).to(device).eval()
    theirs.load_state_dict(to_hf(model.config, dict(model.named_parameters()), 50304), strict=False)
    theirs.tie_weights()
    ids_BT = torch.tensor(prompts(1), device=device)

    def run() -> None:
        theirs.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def measure(architecture: str, device: torch.device, rounds: int, batch: int) -> dict[str, Any]:
    torch.manual_seed(0)
    config = ModelConfig(**{**vars(SIZES), "architecture": architecture})
    model = build_model(config).to(device).eval()
    cases = {
        "one text": side_by_side(model, 1),
        "as in 0.1.0": as_in_0_1(model),
        f"{batch} texts": side_by_side(model, batch),
    }
    if architecture == "gpt2" and importlib.util.find_spec("transformers"):
        cases["transformers"] = by_transformers(model)
    seconds = interleaved(cases, rounds=rounds, warmup=1)
    texts = {case: batch if case.endswith("texts") else 1 for case in cases}
    return {
        "architecture": architecture,
        "tokens_per_s": {
            case: round(texts[case] * TOKENS / statistics.median(s), 1)
            for case, s in seconds.items()
        },
        "times_one_text": {
            case: round(texts[case] * median_ratio(seconds["one text"], s), 3)
            for case, s in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    options = parser.parse_args()
    device = choose_device(options.device)
    rows = [
        measure(architecture, device, options.rounds, options.batch)
        for architecture in ("gpt2", "gpt")
    ]
    print_table(
        ["architecture", "case", "tokens/s", "times one text"],
        [
            [row["architecture"], case, f"{speed:,.1f}", f"{row['times_one_text'][case]:.2f}"]
            for row in rows
            for case, speed in row["tokens_per_s"].items()
        ],
    )
    threads = torch.get_num_threads()
    write_result(f"generate-{device.type}-{threads}threads", {"generation": rows}, device)


if __name__ == "__main__":
    main()
