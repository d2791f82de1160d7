"""Tokens per second of `quintic generate`: one text, and several side by side.

    python -m bench.generate              # writes docs/results/generate-DEVICE-Nthreads.json
    python -m bench.generate --products   # the matrices alone, by the rows they are multiplied with
    python -m bench.generate --int8-loss RUN   # what eight bits add to the validation loss
    python -m bench.generate --drafts RUN      # a trained model with tokens guessed ahead

A model of GPT-2's size with drawn weights continues a prompt of 32 tokens by 64, in float32 on a
CPU, greedily unless the case is "drawn": at temperature 1, as `quintic generate` comes. One text
alone reads every weight for every token, so that memory's bandwidth is the roof, which is the case
"weights read"; texts side by side share that reading. Beside it are, with the same weights and
where they are installed, transformers' `generate` (GPT-2's) and llama.cpp's of llama-cpp-python and
gguf, in float32 and, beside quintic's int8, in q8_0; and the loop as it was in 0.1.0: the model's
own operators, the head of all positions of the prompt, and `no_grad` where `inference_mode` is now.

Where other programs run as well, `--processor-time` with one thread (OMP_NUM_THREADS=1) tells more
than the clock on the wall.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from bench.results import interleaved, median_ratio, print_table, write_result
from quintic.config import ModelConfig
from quintic.console import Console
from quintic.data.gpt2_tokenizer import GPT2
from quintic.device import choose_device
from quintic.export.gguf import architecture, held_model, model_keys, to_gguf
from quintic.export.gguf_file import STORAGES, write_file
from quintic.export.hf import hf_config, to_hf
from quintic.generate import generate_rows
from quintic.model.base import KVCache, LanguageModel
from quintic.model.build import build_model
from quintic.model.decoding import DecodingParts, PackedMatrix
from quintic.model.int8 import int8_parts, runs_int8
from quintic.model.linear import Linear
from quintic.sampling import Sampling
from quintic.trained import load_trained

SIZES = ModelConfig(layers=12, width=768, heads=12, context=1024, vocab_size=50304)
PROMPT, TOKENS = 32, 64
GREEDY = Sampling(temperature=0)


def prompts(count: int) -> list[list[int]]:
    ids = torch.randint(1, 50257, (count, PROMPT), generator=torch.Generator().manual_seed(0))
    return [[int(i) for i in row] for row in ids]


def side_by_side(
    model: LanguageModel,
    count: int,
    sampling: Sampling = GREEDY,
    parts: DecodingParts | None = None,
) -> Callable[[], None]:
    """Continue so many prompts at once."""
    given = prompts(count)

    def run() -> None:
        drawn = list(generate_rows(model, given, tokens=TOKENS, sampling=sampling, parts=parts))
        assert len(drawn) == count * TOKENS

    return run


def weights_read(model: LanguageModel) -> Callable[[], None]:
    """Read so many bytes as the weights have, once a token, and do nothing else."""
    device, width = model.embed.weight.device, model.config.width
    weights_ND = torch.ones((model.parameter_count() // width, width), device=device)
    ones_D = torch.ones(width, device=device)

    def run() -> None:
        for _ in range(TOKENS):
            torch.mv(weights_ND, ones_D)[0].item()

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


def by_llama_cpp(model: LanguageModel, storage: Literal["f32", "q8_0"]) -> Callable[[], None]:
    """Continue one prompt with llama.cpp, its matrices stored so and its cache in float32."""
    import llama_cpp

    ids = prompts(1)[0]
    config, tensors = held_model(model.config, dict(model.named_parameters()), GPT2.vocab_size)
    keys = model_keys(config) | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [str(index) for index in range(GPT2.vocab_size)],
        "tokenizer.ggml.merges": ["1 2"],
    }
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "model.gguf")
        write_file(path, architecture(config), keys, to_gguf(config, tensors), STORAGES[storage])
        theirs = llama_cpp.Llama(
            str(path),
            n_ctx=config.context,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def run() -> None:
        theirs.reset()  # it would keep the prompt's keys and values
        drawn = theirs.generate(ids, temp=0.0, repeat_penalty=1.0)
        assert len(list(itertools.islice(drawn, TOKENS))) == TOKENS

    return run


def measure(
    name: str, device: torch.device, rounds: int, batch: int, clock: Callable[[], float]
) -> dict[str, Any]:
    torch.manual_seed(0)
    config = ModelConfig(**{**vars(SIZES), "architecture": name})
    model = build_model(config).to(device).eval()
    cases = {
        "one text": side_by_side(model, 1),
        "one text, drawn": side_by_side(model, 1, Sampling()),
        "as in 0.1.0": as_in_0_1(model),
        f"{batch} texts": side_by_side(model, batch),
        f"{batch} texts, drawn": side_by_side(model, batch, Sampling()),
        "weights read": weights_read(model),
    }
    if name == "gpt2" and importlib.util.find_spec("transformers"):
        cases["transformers"] = by_transformers(model)
    if device.type == "cpu" and all(map(importlib.util.find_spec, ("llama_cpp", "gguf"))):
        cases["llama.cpp"] = by_llama_cpp(model, "f32")
    if device.type == "cpu" and runs_int8():
        parts = int8_parts(model)
        cases["one text, int8"] = side_by_side(model, 1, parts=parts)
        cases[f"{batch} texts, int8"] = side_by_side(model, batch, parts=parts)
        if "llama.cpp" in cases:
            cases["llama.cpp, q8_0"] = by_llama_cpp(model, "q8_0")
    seconds = interleaved(cases, rounds=rounds, warmup=1, clock=clock)
    texts = {case: batch if case.startswith(f"{batch} texts") else 1 for case in cases}
    return {
        "architecture": name,
        "tokens_per_s": {
            case: round(texts[case] * TOKENS / statistics.median(s), 1)
            for case, s in seconds.items()
        },
        "times_one_text": {
            case: round(texts[case] * median_ratio(seconds["one text"], s), 3)
            for case, s in seconds.items()
        },
    }


def measure_products(rounds: int, clock: Callable[[], float]) -> list[list[object]]:
    """Return rows, and milliseconds of all products of a step on a CPU as they come and packed."""
    model = build_model(SIZES)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    weights = [*(linear.weight.detach() for linear in linears), model.head_weight.detach()]
    found: list[list[object]] = []
    for rows in (1, 2, 3, 4, 6, 8, 12, 16, 32):
        inputs = {width: torch.randn(rows, width) for width in (SIZES.width, 4 * SIZES.width)}
        pairs = [(inputs[w.shape[1]], w, PackedMatrix(w, rows=rows)) for w in weights]

        def as_they_come(pairs: Any = pairs) -> None:
            for x, weight, _ in pairs:
                F.linear(x, weight)

        def packed(pairs: Any = pairs) -> None:
            for x, _, weight in pairs:
                weight.product(x)

        cases: dict[str, Callable[[], Any]] = {"F.linear": as_they_come, "packed": packed}
        seconds = interleaved(cases, rounds=rounds, clock=clock)
        found.append([rows, *(f"{1e3 * statistics.median(s):.1f}" for s in seconds.values())])
    return found


@torch.no_grad()
def measure_int8_loss(folder: Path, sequences: int) -> dict[str, Any]:
    """Return the validation loss of a run on its first sequences, and what eight bits add to it."""
    trained = load_trained(folder, device="cpu")
    model, context = trained.model, trained.config.model.context
    ids = trained.open_data(Console(quiet=True)).val.read(0, sequences * context + 1)
    inputs_NT, targets_NT = (
        torch.from_numpy(part).view(-1, context) for part in (ids[:-1], ids[1:])
    )
    parts, exact, added, shift, largest = int8_parts(model), [], [], 0.0, 0.0
    for inputs_BT, targets_BT in zip(inputs_NT.split(4), targets_NT.split(4), strict=True):
        logits_BTV = model(inputs_BT)
        with parts.used():
            rounded_BTV = model(inputs_BT)
        losses = [
            F.cross_entropy(x.flatten(0, 1).double(), targets_BT.flatten(), reduction="none")
            for x in (logits_BTV, rounded_BTV)
        ]
        exact.append(losses[0])
        added.append(losses[1] - losses[0])
        shift = max(shift, (rounded_BTV - logits_BTV).abs().max().item())
        largest = max(largest, logits_BTV.abs().max().item())
    loss, difference = torch.cat(exact), torch.cat(added)
    return {
        "tokens": len(loss),
        "loss": round(loss.mean().item(), 4),
        "added": round(difference.mean().item(), 5),
        "standard_error": round(difference.std().item() / len(loss) ** 0.5, 5),
        "largest_logit": round(largest, 2),
        "largest_difference": round(shift, 3),
    }


def measure_drafts(folder: Path, rounds: int, clock: Callable[[], float]) -> list[Sequence[object]]:
    """Return rows of how a run continues pieces of its validation text, one text at a time, with
    guesses and without: tokens a pass of the model, tokens per second, and what these are times."""
    trained = load_trained(folder, device="cpu")
    ids = trained.open_data(Console(quiet=True)).val.read(0, 8 * 4096)
    given = [ids[start : start + PROMPT].tolist() for start in range(0, len(ids), 4096)]
    model, tokens = trained.model, min(200, trained.config.model.context - PROMPT)
    passes = 0

    def counted(*arguments: Any) -> None:
        nonlocal passes
        passes += 1

    model.embed.register_forward_hook(counted)

    def texts(sampling: Sampling, draft: Literal["ngram"] | None) -> list[int]:
        return [
            drawn.token
            for prompt in given
            for drawn in generate_rows(
                model, [prompt], tokens=tokens, sampling=sampling, draft=draft
            )
        ]

    rows: list[Sequence[object]] = []
    for name, sampling in {
        "greedy": GREEDY,
        "temperature 0.8, top-p 0.9": Sampling(0.8, top_p=0.9),
        "temperature 1": Sampling(),
    }.items():
        alone = texts(sampling, None)
        passes = 0
        same = sum(a == b for a, b in zip(texts(sampling, "ngram"), alone, strict=True))
        a_pass = len(alone) / passes
        seconds = interleaved(
            {
                "alone": partial(texts, sampling, None),
                "guessed": partial(texts, sampling, "ngram"),
            },
            rounds=rounds,
            clock=clock,
        )
        speeds = (f"{len(alone) / statistics.median(s):,.0f}" for s in seconds.values())
        ratio = median_ratio(seconds["alone"], seconds["guessed"])
        rows.append([name, f"{same / len(alone):.1%}", f"{a_pass:.2f}", *speeds, f"{ratio:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--int8-loss", type=Path, metavar="RUN")
    parser.add_argument("--drafts", type=Path, metavar="RUN")
    parser.add_argument("--sequences", type=int, default=128, help="of --int8-loss")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.products:
        print_table(["rows", "F.linear ms", "packed ms"], measure_products(options.rounds, clock))
        return
    if options.int8_loss is not None:
        print(measure_int8_loss(options.int8_loss, options.sequences))
        return
    if options.drafts is not None:
        print_table(
            ["draw", "same tokens", "tokens a pass", "tokens/s", "with guesses", "times"],
            measure_drafts(options.drafts, options.rounds, clock),
        )
        return
    device = choose_device(options.device)
    rows = [measure(name, device, options.rounds, options.batch, clock) for name in ("gpt2", "gpt")]
    print_table(
        ["architecture", "case", "tokens/s", "times one text"],
        [
            [row["architecture"], case, f"{speed:,.1f}", f"{row['times_one_text'][case]:.2f}"]
            for row in rows
            for case, speed in row["tokens_per_s"].items()
        ],
    )
    threads = torch.get_num_threads()
    figures = {"clock": clock.__name__, "generation": rows}
    write_result(f"generate-{device.type}-{threads}threads", figures, device)


if __name__ == "__main__":
    main()
