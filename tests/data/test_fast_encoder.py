"""The fast encoders beside their references: a version that quintic is to use must pass the set of
texts."""

import importlib.util
import itertools
import json
import random
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from quintic.data.bpe_tokenizer import BpeTokenizer, train_bpe
from quintic.data.build import fast_encoder
from quintic.data.build.fast_encoder import (
    GIGATOKEN,
    SPLINTR,
    FastEncoder,
    FastPackage,
    fast_encoder_name,
    fast_package,
    is_for_the_reference,
)
from quintic.data.build.pipeline import build_dataset
from quintic.data.build.settings import BuildSettings
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.manifest import Manifest

ROOT = Path(__file__).parents[2]


def needs(package: FastPackage) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package.module) is None,
        reason=f"{package.name} (quintic[fast]) is not installed",
    )


needs_gigatoken = needs(GIGATOKEN)

WHITE = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u200b\u2003\u2028\u202f\u205f\u3000\ufeff"
SCRIPTS = {
    "han": range(0x4E00, 0x4F00),
    "arabic": range(0x600, 0x6FF),
    "marks": range(0x300, 0x370),
    "devanagari": range(0x900, 0x980),
    "hangul": range(0xAC00, 0xAD00),
    "emoji": range(0x1F300, 0x1F650),
    "digits": [*range(0x660, 0x66A), *range(0xFF10, 0xFF1A), *range(0x2150, 0x2190), 0xB2],
    "latin": [*range(0x20, 0x7F), *range(0xC0, 0x180)],
}


def english(draw: random.Random) -> Iterator[str]:
    syllables = ["in", "for", "ma", "tion", "the", "er", "ly", "con", "st", "ou", "gh", "ness"]
    for _ in range(300):
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 5))) for _ in range(200)]
        marks = draw.choices([" ", " ", " ", ", ", ". ", "'s ", "\u2019s ", "'ll ", "\n\n"], k=200)
        yield "".join(itertools.chain(*zip(words, marks, strict=True)))


def python(draw: random.Random) -> Iterator[str]:
    for _ in range(300):
        depth = draw.randint(0, 9)
        tabs = "\t" * depth
        name = "_".join(draw.choices(["get", "x", "Item", "__init__", "i2"], k=3))
        yield (
            f"{'    ' * depth}def {name}(self, *args: int) -> dict[str, Any]:\n"
            f"{tabs}return {{'a\\n': {draw.random()}, **self._{name}}}  # {'-' * depth}\r\n\n"
        )


def white_space(draw: random.Random) -> Iterator[str]:
    parts = [*WHITE, "  ", "\r\n", "a", "'s", "1", ".", "<|endoftext|>"]
    for _ in range(4000):
        yield "".join(draw.choices(parts, k=draw.randint(1, 60)))


def other_scripts(draw: random.Random) -> Iterator[str]:
    for _ in range(4000):
        chosen = draw.sample(list(SCRIPTS.values()), 2)
        yield "".join(
            chr(draw.choice(draw.choice(chosen))) if draw.random() < 0.85 else draw.choice(WHITE)
            for _ in range(draw.randint(1, 80))
        )


def long_texts(draw: random.Random) -> Iterator[str]:
    yield from ("a" * 100_000, "1" * 100_000, "=-" * 50_000, "\u6f22" * 50_000, " " * 60_000 + "x")
    yield "".join(draw.choices("abcdefgh", k=100_000))
    yield "<|endoftext|>" * 100 + "<|endoftext|"


def every_character(draw: random.Random) -> Iterator[str]:
    """Each beside letters, digits, punctuation and white space; other planes have none."""
    for begin in itertools.chain(range(0, 0x40000, 256), range(0xE0000, 0xE0200, 256)):
        characters = (chr(code) for code in range(begin, begin + 256) if code >> 11 != 0x1B)
        yield "".join(
            f"{c}a{c} {c}1{c}'s'{c}\n"
            for c in characters
            if unicodedata.category(c) != "Co" and not is_for_the_reference(c, c.encode())
        )


SETS = [english, python, white_space, other_scripts, long_texts, every_character]


@pytest.fixture(scope="module", params=["gpt2", "quintic"])
def trained(request: pytest.FixtureRequest) -> BpeTokenizer:
    """A vocabulary of a text of every set, which cuts text as GPT-2's or as quintic's."""
    draw = random.Random(7)
    texts = [text for texts in SETS[:4] for text in itertools.islice(texts(draw), 300)]
    return train_bpe(texts, 2000, cut_as_gpt2=request.param == "gpt2")


@pytest.mark.parametrize("texts", SETS, ids=lambda texts: texts.__name__)
def test_ids_of_own_vocabularies_are_those_of_tokenizers(
    trained: BpeTokenizer, texts: Callable[[random.Random], Iterator[str]]
) -> None:
    package = fast_package(trained)
    assert package == {"gpt2": GIGATOKEN, "quintic": SPLINTR}[trained.cut or ""]
    pytest.importorskip(package.module, reason=f"{package.name} (quintic[fast]) is not installed")
    encoder = FastEncoder(trained)
    compared = 0
    for text in texts(random.Random(5)):
        ids = encoder.encode(text, text.encode())
        if ids is not None:
            compared += 1
            assert np.array_equal(ids, trained.encode_to_array(text)), text
    assert compared >= 7


@needs_gigatoken
@pytest.mark.usefixtures("gpt2_vocabulary")
@pytest.mark.parametrize("texts", SETS, ids=lambda texts: texts.__name__)
def test_ids_are_those_of_tiktoken(texts: object) -> None:
    reference = tiktoken.get_encoding("r50k_base")
    encoder = FastEncoder(load_tokenizer("gpt2"))
    compared = 0
    for text in texts(random.Random(5)):  # type: ignore[operator]
        ids = encoder.encode(text, text.encode())
        if ids is not None:
            compared += 1
            assert np.array_equal(ids, reference.encode_to_numpy(text, disallowed_special=())), text
    assert compared >= 7


def test_what_could_be_taken_in_two_ways_is_for_the_reference() -> None:
    def sent(text: str) -> bool:
        return is_for_the_reference(text, text.encode())

    for text in ("", "a" * 10**6, "漢字 \u2019s 🙂 한국어", " " * 50_000, "a " * 10**6):
        assert not sent(text)
    assert sent("a \u088f's")  # a letter since Unicode 17
    assert sent("a\u1add")  # a mark since Unicode 17
    assert sent("a\U000323b0")
    assert sent("\U0001fffd")  # no character yet
    for begin in (0, 5, 4095):
        assert sent("a" * begin + " " * (1 << 16) + "x")
        assert sent("a" * begin + "\u3000\n" * (1 << 15) + "x")


@needs_gigatoken
@pytest.mark.usefixtures("gpt2_vocabulary")
def test_words_are_forgotten_and_ids_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoder, "_TOKENS_BEFORE_FORGETTING", 3)
    encoder = FastEncoder(load_tokenizer("gpt2"))
    found = [encoder.encode(text, text.encode()) for text in ["two words", "more of them"] * 3]
    assert [ids.tolist() for ids in found if ids is not None] == [
        *([[11545, 2456], [3549, 286, 606]] * 3)
    ]


@needs_gigatoken
@pytest.mark.usefixtures("gpt2_vocabulary")
@pytest.mark.parametrize("workers", [1, 2])
def test_files_of_a_build_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    draw = random.Random(6)
    texts = [text for texts in SETS[:4] for text in texts(draw)]
    texts[100:100] = ["a\ud800b", " " * 1_100_000 + "x", "<|endoftext|>", "\u088f's"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = BuildSettings((str(path),), "a", shard_tokens=200_000)
    build_dataset(settings, tmp_path / "fast", workers=workers, max_bad=5000)
    with monkeypatch.context() as patch:
        patch.setattr(fast_encoder, "find_spec", lambda name: None)
        build_dataset(settings, tmp_path / "reference", workers=1, max_bad=5000)
    manifests = [Manifest.read(tmp_path / name) for name in ("fast", "reference")]
    assert manifests[0].shards == manifests[1].shards
    assert manifests[0].encoder == "gigatoken 0.10.0"
    assert manifests[1].encoder.startswith("tiktoken ")
    skipped = [(tmp_path / name / "skipped.txt").read_text() for name in ("fast", "reference")]
    assert skipped[0] == skipped[1]
    assert ":102: cannot be tokenized" in skipped[0]


@pytest.mark.parametrize("size", ["train:300", "train:300:gpt2"])
def test_files_of_a_build_with_a_vocabulary_of_its_own_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    package = GIGATOKEN if size.endswith("gpt2") else SPLINTR
    pytest.importorskip(package.module, reason=f"{package.name} (quintic[fast]) is not installed")
    draw = random.Random(6)
    texts = [text for texts in SETS[:4] for text in itertools.islice(texts(draw), 100)]
    texts[100:100] = ["a\ud800b", "<|endoftext|>", "\u088f's"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = BuildSettings((str(path),), "a", tokenizer=size, val_share=0.2)
    build_dataset(settings, tmp_path / "fast", workers=1, max_bad=100)
    with monkeypatch.context() as patch:
        patch.setattr(fast_encoder, "find_spec", lambda name: None)
        build_dataset(settings, tmp_path / "reference", workers=1, max_bad=100)
    manifests = [Manifest.read(tmp_path / name) for name in ("fast", "reference")]
    assert manifests[0].shards == manifests[1].shards
    assert manifests[0].encoder == f"{package.name} {package.version}"
    assert manifests[1].encoder.startswith("tokenizers ")


def test_versions_that_are_not_tested_are_not_used_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gpt2:
        fingerprint = "gpt2"

    lines: list[str] = []
    monkeypatch.setattr(fast_encoder, "version", lambda name: "0.11.0")
    monkeypatch.setattr(fast_encoder, "find_spec", lambda name: object())
    assert fast_encoder_name(Gpt2(), lines.append) is None  # type: ignore[arg-type]
    assert lines == ["gigatoken 0.11.0 is not used: tested is 0.10.0 (pip install 'quintic[fast]')"]


def changed(tokenizer: BpeTokenizer, **model: object) -> BpeTokenizer:
    content = json.loads(tokenizer.definition)
    content["model"] |= model
    return BpeTokenizer(json.dumps(content), "a changed vocabulary")


def test_other_vocabularies_have_no_fast_encoder() -> None:
    own = train_bpe(["x"], 257)
    assert fast_package(own) == SPLINTR
    assert fast_package(changed(own, ignore_merges=True)) is None
    content = json.loads(own.definition)
    content["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Contiguous"
    assert fast_package(BpeTokenizer(json.dumps(content), "cut otherwise")) is None
    content = json.loads(train_bpe(["x"], 257, cut_as_gpt2=True).definition)
    assert fast_package(BpeTokenizer(json.dumps(content), "as GPT-2")) == GIGATOKEN
    plain = {"id": 257, "content": "word", "special": False, "single_word": False}
    content["added_tokens"].append({**plain, "lstrip": False, "rstrip": False, "normalized": False})
    assert fast_package(BpeTokenizer(json.dumps(content), "with a token in text")) is None


def test_merges_that_are_no_ranks_are_for_the_reference_or_gigatoken() -> None:
    # Ids in the order of the merges, but "abc" is of "ab" and "c", which "bc" prevents.
    made = {"bc": 257, "ab": 258, "abc": 259}
    merges = [["b", "c"], ["a", "b"], ["ab", "c"]]
    for as_gpt2, package in ((True, GIGATOKEN), (False, None)):
        bpe = train_bpe(["x"], 257, cut_as_gpt2=as_gpt2)
        bpe = changed(
            bpe, vocab={**json.loads(bpe.definition)["model"]["vocab"], **made}, merges=merges
        )
        assert bpe.encode("abc") == [65, 257]
        assert not bpe.merges_by_rank
        assert fast_package(bpe) == package
        if package and importlib.util.find_spec(package.module):
            ids = FastEncoder(bpe).encode("abc", b"abc")
            assert ids is not None
            assert ids.tolist() == [65, 257]
    last_first = {"abc": 257, "ab": 258}
    bpe = train_bpe(["x"], 257)
    vocab = {**json.loads(bpe.definition)["model"]["vocab"], **last_first}
    assert not changed(bpe, vocab=vocab, merges=[["a", "b"], ["ab", "c"]]).merges_by_rank


def test_the_extra_installs_the_versions_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in (GIGATOKEN, SPLINTR):
        wanted = f"{package.name}=={package.version}"
        assert wanted in project["optional-dependencies"]["fast"]
        assert wanted in (ROOT / "constraints.txt").read_text().splitlines()
