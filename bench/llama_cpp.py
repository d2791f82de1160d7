"""Exports of small models in the tools that they are for: logits, greedy text, ids of texts.

    OUT=FOLDER findings/llama_cpp_vocabulary_keys.sh       # builds libllama, once
    export PYTHONPATH=$PWD:FOLDER/llama_cpp_python-0.3.36 LLAMA_CPP_LIB_PATH=FOLDER/build/bin
    python -m bench.llama_cpp [--texts FILE]   # writes docs/results/export-llama-cpp.json

It needs quintic[gguf,onnx], transformers, ctranslate2, and what llama-cpp-python's Python part
imports: diskcache and jinja2. There is a model of each architecture of llama.cpp with each kind of
vocabulary, which is trained, where it is quintic's own, on Python's standard library, and on FILE
where one is given (as `quintic data build` takes it). The weights are drawn: after a short training
greedy text is one token again and again, which many a wrong model would give as well. Each export
is compared with quintic: logits on a context, ids that continue prompts greedily, and in llama.cpp
the ids of every text, whole.

Shapes: T time, V vocabulary of the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import ctranslate2
import llama_cpp
import onnxruntime
import torch
import transformers

from bench.results import print_table, write_result
from quintic.cli.main import main as quintic
from quintic.console import Console
from quintic.data.build.chunks import DocumentFormat
from quintic.data.build.inputs import find_text_files
from quintic.data.build.vocabulary import sample_texts
from quintic.export.export import TARGETS, export
from quintic.export.source import Source, open_source
from quintic.generate import generate_ids, prompt_ids

VOCABULARIES = {"GPT-2's": "gpt2", "own, GPT-2's cut": "train:4096:gpt2", "own": "train:4096"}
"""The values of `quintic data build --tokenizer`, in words."""

SWITCHES = {
    "gpt2": ["--model.architecture", "gpt2"],
    "apertus": [],
    "arcee": ["--model.no-qk-norm"],
}
"""llama.cpp's architectures, and the switches of the models that they hold."""

SIZES = [
    *("--model.layers", "2", "--model.width", "64", "--model.heads", "2"),
    *("--model.context", "128", "--model.vocab-size", "None"),
    *("--train.steps", "2", "--train.batch-tokens", "512", "--train.eval-tokens", "512"),
    *("--train.device", "cpu", "--train.log-to"),
]

PROMPTS = ("The history of the", "def read(", "In 1789,", "class Test", "It isn't", "import")
TOKENS = 64
GGUF = "gguf/model-f32.gguf"

Greedy = Callable[[Sequence[int]], Sequence[int]]
"""Continues a prompt by `TOKENS` ids, each the most probable one."""


class Model(NamedTuple):
    """The figures of a model."""

    architecture: str
    vocabulary: str
    largest_logit: float
    llama_cpp_logits: float
    """Largest difference from quintic's, with a cache in float32."""
    llama_cpp_logits_default_cache: float
    greedy_tokens: int
    """Of all prompts together."""
    greedy_different: int
    """How many different ids they are."""
    greedy_equal: dict[str, int]
    """By tool, how many of them are those of quintic before the first that is not."""
    greedy_gap: dict[str, float]
    """By tool that takes another token: by how much quintic's logit of its own is the larger."""


class Ids(NamedTuple):
    """How many whole texts have the same ids in llama.cpp."""

    vocabulary: str
    texts: int
    tokens: int
    equal: int


def text_folder(folder: Path) -> Path:
    """Write the modules of Python's standard library, but not its packages, one a document."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_text(errors="replace") for path in sorted(library.glob("*.py"))]
    lines = [json.dumps({"text": text}) + "\n" for text in texts if text.strip()]
    (folder / "stdlib.jsonl").write_text("".join(lines))
    return folder / "stdlib.jsonl"


def agreement(
    greedy: Greedy, source: Source, prompts: Sequence[Sequence[int]], expected: list[list[int]]
) -> tuple[int, float]:
    """Return how many tokens are the expected ones, of each prompt up to the first that is not, and
    the largest gap of quintic's logits between the two there."""
    equal, gap = 0, 0.0
    for prompt, ids in zip(prompts, expected, strict=True):
        found = [*greedy(prompt)]
        found += [source.tokenizer.eot_id] * (len(ids) - len(found))
        differ = [i for i, token in enumerate(ids) if token != found[i]]
        same = differ[0] if differ else len(ids)
        equal += same
        if differ:
            logits_V = source.model(torch.tensor([[*prompt, *ids[:same]]]))[0, -1]
            gap = max(gap, (logits_V[ids[same]] - logits_V[found[same]]).item())
    return equal, gap


# Tools --------------------------------------------------------------------------------------------


class LlamaCpp:
    """A GGUF file in llama.cpp, on one thread; its cache in float32, or as is its default."""

    def __init__(self, path: Path, source: Source, *, exact_cache: bool = True) -> None:
        cache = {"type_k": 0, "type_v": 0} if exact_cache else {}
        context = source.config.context
        self.vocab_size = source.tokenizer.vocab_size
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            verbose=False,
            **cache,
        )

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits of all positions, [T, V]."""
        self.model.reset()
        self.model.eval(ids)
        return torch.from_numpy(self.model.scores[: len(ids), : self.vocab_size].copy())

    def greedy(self, prompt: Sequence[int]) -> list[int]:
        """Continue a prompt, with the cache."""
        found = [int(self.logits(prompt)[-1].argmax())]
        while len(found) < TOKENS:
            self.model.eval(found[-1:])
            found.append(int(self.model.scores[self.model.n_tokens - 1].argmax()))
        return found

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, which the file has told llama.cpp to begin with end of text."""
        ids: list[int] = self.model.tokenize(text.encode(), add_bos=True, special=False)
        assert ids[0] == self.model.token_bos() == self.model.token_eos()
        return ids[1:]


def by_transformers(folder: Path) -> Greedy:
    """Return what continues a prompt with transformers' own `generate`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None

    def greedy(prompt: Sequence[int]) -> list[int]:
        ids_BT = torch.tensor([prompt])
        mask_BT = torch.ones_like(ids_BT)
        found: list[int] = model.generate(
            ids_BT, attention_mask=mask_BT, max_new_tokens=TOKENS, do_sample=False
        )[0].tolist()
        return found[len(prompt) :]

    return greedy


def by_onnxruntime(folder: Path) -> Greedy:
    """Return what continues a prompt with the graph, which has no cache."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def greedy(prompt: Sequence[int]) -> list[int]:
        ids = [*prompt]
        for _ in range(TOKENS):
            (logits_BTV,) = session.run(["logits"], {"input_ids": [ids]})
            ids.append(int(logits_BTV[0, -1].argmax()))
        return ids[len(prompt) :]

    return greedy


def by_ctranslate2(folder: Path, out: Path, vocabulary: Sequence[str]) -> Greedy:
    """Return what continues a prompt with ctranslate2, whose own converter writes into `out`; it
    takes tokens in characters."""
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out))
    model = ctranslate2.Generator(str(out), intra_threads=1)

    def greedy(prompt: Sequence[int]) -> list[int]:
        (result,) = model.generate_batch(
            [[vocabulary[index] for index in prompt]],
            max_length=TOKENS,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        found: list[int] = result.sequences_ids[0]
        return found

    return greedy


# Models -------------------------------------------------------------------------------------------


def drawn(run: Path) -> Source:
    """Return a run with weights drawn at random, none of which is zero or one."""
    source = open_source(run, Console(quiet=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in source.model.named_parameters():
            own = 0.2 * torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + own if is_gain else own)
    return source


def exported(folder: Path, data: Path, architecture: str) -> tuple[Source, Path]:
    """Return a model, and the folder with its exports for every tool, by target."""
    run = folder / f"{architecture}-{data.name}"
    options = ["--data.path", str(data), *SWITCHES[architecture], *SIZES, "--out", str(run)]
    quintic(["train", "laptop-plain", *options])
    source = drawn(run)
    for target in TARGETS:
        export(source, target, run / "export" / target, print)
    return source, run / "export"


@torch.no_grad()
def measure(source: Source, exports: Path, architecture: str, vocabulary: str, text: str) -> Model:
    """Return the figures of a model; logits are compared on the first tokens of a text."""
    model, tokenizer = source.model, source.tokenizer
    llama = LlamaCpp(exports / GGUF, source)
    ids = prompt_ids(tokenizer, text)[: source.config.context]
    logits_TV = model(torch.tensor([ids]))[0, :, : tokenizer.vocab_size]

    def difference(other: LlamaCpp) -> float:
        return float(f"{(other.logits(ids) - logits_TV).abs().max().item():.2g}")

    prompts = [prompt_ids(tokenizer, text) for text in PROMPTS]
    expected = [
        [*generate_ids(model, p, tokens=TOKENS, temperature=0, vocab_size=tokenizer.vocab_size)]
        for p in prompts
    ]
    tools: dict[str, Greedy] = {
        "llama.cpp": llama.greedy,
        "transformers": by_transformers(exports / "hf"),
        "onnxruntime": by_onnxruntime(exports / "onnx"),
    }
    if architecture == "gpt2":  # of quintic's models it has that alone
        content = json.loads((exports / "hf/tokenizer.json").read_text())
        by_id = {i: token for token, i in content["model"]["vocab"].items()}
        by_id |= {token["id"]: token["content"] for token in content["added_tokens"]}
        tools["ctranslate2"] = by_ctranslate2(
            exports / "hf", exports / "ctranslate2", [by_id[i] for i in sorted(by_id)]
        )
    found = {tool: agreement(f, source, prompts, expected) for tool, f in tools.items()}
    return Model(
        architecture=architecture,
        vocabulary=vocabulary,
        largest_logit=round(logits_TV.abs().max().item(), 1),
        llama_cpp_logits=difference(llama),
        llama_cpp_logits_default_cache=difference(
            LlamaCpp(exports / GGUF, source, exact_cache=False)
        ),
        greedy_tokens=sum(map(len, expected)),
        greedy_different=len({token for ids in expected for token in ids}),
        greedy_equal={tool: equal for tool, (equal, _) in found.items()},
        greedy_gap={tool: float(f"{gap:.2g}") for tool, (_, gap) in found.items() if gap},
    )


def compare_ids(source: Source, exports: Path, vocabulary: str, texts: Sequence[str]) -> Ids:
    """Return how many texts llama.cpp gives the ids of quintic."""
    encoded = [source.tokenizer.encode(text) for text in texts]
    found = map(LlamaCpp(exports / GGUF, source).ids, texts)
    equal = sum(ids == expected for ids, expected in zip(found, encoded, strict=True))
    return Ids(vocabulary, len(texts), sum(map(len, encoded)), equal)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", nargs="*", default=[], help="more documents")
    given = parser.parse_args().texts
    torch.set_num_threads(1)
    models, vocabularies = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = [str(text_folder(folder)), *given]
        files, _ = find_text_files(inputs, leave_out=folder / "data")
        texts = [*sample_texts(files, DocumentFormat("text", None), val_share=0)]
        for number, (words, spec) in enumerate(VOCABULARIES.items()):
            data = folder / f"data{number}"
            quintic(["data", "build", *inputs, "--tokenizer", spec, "--out", str(data)])
            for architecture in SWITCHES:
                source, exports = exported(folder, data, architecture)
                models.append(measure(source, exports, architecture, words, texts[0]))
                print(models[-1])
            vocabularies.append(compare_ids(source, exports, words, texts))
            print(vocabularies[-1])
    print_table(
        ["architecture", "vocabulary", "logits to", "off by", "default cache", "greedy"],
        [
            [
                *(row.architecture, row.vocabulary, row.largest_logit),
                *(row.llama_cpp_logits, row.llama_cpp_logits_default_cache),
                " ".join(f"{t} {n}/{row.greedy_tokens}" for t, n in row.greedy_equal.items()),
            ]
            for row in models
        ],
    )
    packages = ("gguf", "transformers", "tokenizers", "onnx", "onnxruntime", "ctranslate2")
    library = Path(llama_cpp.llama_cpp._lib._name)
    versions = {package: version(package) for package in packages}
    versions |= {"llama-cpp-python": llama_cpp.__version__, "libllama": library.resolve().name}
    figures = {
        "versions": versions,
        "models": [row._asdict() for row in models],
        "vocabularies": [row._asdict() for row in vocabularies],
    }
    write_result("export-llama-cpp", figures, torch.device("cpu"), module="bench.llama_cpp")


if __name__ == "__main__":
    main()
