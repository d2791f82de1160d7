import hashlib
import json
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import requests
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from quintic.data import gpt2_tokenizer
from quintic.data.bpe_tokenizer import BpeTokenizer, train_bpe
from quintic.data.gpt2_tokenizer import Gpt2Tokenizer
from quintic.data.load_tokenizer import load_tokenizer, tokenizer_info
from quintic.data.tokenizer import Tokenizer
from quintic.errors import QuinticError
from tests.waiting import LAST_BOUND_S

TEXTS = [f"def f{i}(x):\n    if x:\n        return x + {i}\n\n\nclass C{i}:\n" for i in range(50)]
BPE = train_bpe(TEXTS, 300)
CUT_AS_GPT2 = train_bpe(TEXTS, 300, cut_as_gpt2=True)

# White space of all kinds, letters, marks, digits and the special token's characters come up often.
text_strategy = (
    st.text()
    | st.text(alphabet=" \t\r\n\x0b\u00a0\u3000a'_1\u0301é漢🙂<|>")
    | st.just("a<|endoftext|>b")
)


@pytest.mark.parametrize("bpe", [BPE, CUT_AS_GPT2], ids=["own cut", "GPT-2's cut"])
@given(text=text_strategy)
@settings(deadline=None, max_examples=200)
def test_bpe_round_trip(bpe: BpeTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.decode_bytes(ids) == text.encode()
    assert int(bpe.byte_lengths[ids].sum()) == len(text.encode())
    assert bpe.eot_id not in ids


def test_bpe_round_trip_of_every_character() -> None:
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert BPE.decode(BPE.encode(text)) == text


def test_bpe_is_deterministic_and_batches_like_single_texts() -> None:
    again = train_bpe(iter(TEXTS), 300)
    assert again.fingerprint == BPE.fingerprint
    assert again.definition == BPE.definition
    assert BPE.vocab_size == 300
    assert BPE.encode_batch(TEXTS) == [BPE.encode(text) for text in TEXTS]
    assert train_bpe(TEXTS, 290).fingerprint != BPE.fingerprint


def test_bpe_joins_a_line_end_with_its_indentation_but_not_with_punctuation() -> None:
    line, body = "def f1(x):", "\n    if x:"
    assert BPE.encode(line + body) == BPE.encode(line) + BPE.encode(body)
    assert BPE.decode(BPE.encode(body)[:1]) == "\n    "


def test_bpe_cut_as_gpt2_joins_all_that_gpt2_does_not_part(tmp_path: Path) -> None:
    # Every word is there twice, and merged until it is one token.
    words = ["It", "'s", " they", "'ll", " 1234567", "é", " Привет漢字", "!?", " ", " مرحبا", "_'"]
    words += ["S", "\r\n", "\t", "if", " x", ":", "\n   ", " y", "\n\n"]
    texts = ["".join(words)] * 2
    trained = train_bpe(texts, 311, cut_as_gpt2=True)
    assert [trained.decode([index]) for index in trained.encode(texts[0])] == words
    trained.save(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.info == trained.info
    assert loaded.encode(texts[0]) == trained.encode(texts[0])
    assert CUT_AS_GPT2.fingerprint != BPE.fingerprint


def test_bpe_saved_and_loaded(tmp_path: Path) -> None:
    path = BPE.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    for spec in (str(path), str(tmp_path)):
        loaded = load_tokenizer(spec)
        assert loaded.info == BPE.info
        assert loaded.encode(TEXTS[7]) == BPE.encode(TEXTS[7])


def test_end_of_text_is_shown_to_readers_and_is_no_bytes() -> None:
    ids = [BPE.eot_id, *BPE.encode("hé"), BPE.eot_id]
    assert BPE.decode(ids) == "<|endoftext|>hé<|endoftext|>"
    assert BPE.decode_bytes(ids) == "hé".encode()
    assert BPE.byte_lengths[BPE.eot_id] == 0


def test_half_a_character_is_replaced_for_readers_and_exact_in_bytes() -> None:
    ids = BPE.encode("é")[:1]
    assert BPE.decode(ids) == "\ufffd"
    assert BPE.decode_bytes(ids) == b"\xc3"


def test_lone_surrogates_are_replaced() -> None:
    # What a terminal with invalid bytes hands to a Python program.
    assert BPE.decode(BPE.encode("a\udcffb")) == "a\ufffdb"


@pytest.mark.parametrize("index", [-1, 300])
def test_foreign_ids_are_refused(index: int) -> None:
    with pytest.raises(QuinticError, match=rf"token id {index} .*0 to 299"):
        BPE.decode([index])
    with pytest.raises(QuinticError, match=rf"token id {index} "):
        BPE.decode_bytes([index])


def test_vocabulary_sizes_that_cannot_be() -> None:
    with pytest.raises(QuinticError, match=r"256 tokens is too small.*257"):
        train_bpe(TEXTS, 256)
    with pytest.raises(QuinticError, match=r"5000 tokens cannot be trained.*ask for at most"):
        train_bpe(["a b a b"], 5000)
    assert train_bpe(TEXTS, 257).vocab_size == 257


def test_unknown_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match=r"'gtp2' is neither 'gpt2' nor a tokenizer\.json"):
        load_tokenizer("gtp2")
    with pytest.raises(QuinticError, match=r"no file .*tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def _damaged(**changes: object) -> str:
    content = json.loads(BPE.definition)
    content.update(changes)
    return json.dumps(content)


def _without_byte(byte: str) -> str:
    """Its last token takes the id of the byte, so that no gap gives it away."""
    vocabulary = dict(MODEL["vocab"])
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[last] = vocabulary.pop(byte)
    return _damaged(model={**MODEL, "vocab": vocabulary})


MODEL = json.loads(BPE.definition)["model"]
(END,) = json.loads(BPE.definition)["added_tokens"]
MARK = {**END, "id": 300, "content": "<mark>", "special": False}
QUOTES = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
ADDED_BLANK = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"},
}


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("{", "not a byte-level BPE"),
        ("[]", "not a byte-level BPE"),
        ("\udcff", "is no UTF-8"),
        (_damaged(model={"type": "BPE"}), "not a byte-level BPE"),
        (_damaged(added_tokens=[]), "no token <|endoftext|>"),
        (_damaged(normalizer={"type": "Lowercase"}), "does not give back every text"),
        (_damaged(pre_tokenizer={"type": "Whitespace"}), "does not give back every text"),
        (_damaged(normalizer=QUOTES), "does not give back every text"),
        (_damaged(pre_tokenizer=ADDED_BLANK), "does not give back every text"),
        (_without_byte("Z"), "does not give back every text"),
        (_damaged(model={**MODEL, "dropout": 0.1}), "model.dropout is 0.1"),
        (_damaged(added_tokens=[END, {**MARK, "lstrip": True}]), "strips the blanks beside"),
        (_damaged(added_tokens=[END, {**MARK, "rstrip": True}]), "strips the blanks beside"),
    ],
)
def test_broken_tokenizer_files_are_refused(tmp_path: Path, definition: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(definition.encode("utf-8", "surrogateescape"))
    with pytest.raises(QuinticError) as caught:
        load_tokenizer(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncation_and_padding_are_left_out_and_not_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(_damaged(truncation=TRUNCATION, padding=PADDING))
    loaded = load_tokenizer(str(path))
    assert isinstance(loaded, BpeTokenizer)
    assert loaded.switched_off == ["truncation", "padding"]
    for text in ("a", TEXTS[7] * 10):
        assert loaded.encode(text) == BPE.encode(text)
    assert loaded.info == BPE.info
    loaded.save(tmp_path)
    again = load_tokenizer(str(path))
    assert isinstance(again, BpeTokenizer)
    assert again.switched_off == []


def test_tokenizers_that_encode_differently_differ_also_where_their_vocabularies_do_not() -> None:
    """Fails where merges that are ignored, or a token that is found in text, are no difference."""
    *merges, last = MODEL["merges"]
    fewer = {**MODEL, "merges": merges}  # the last token comes of no merge
    found = {}
    for name, definition in {
        "plain": _damaged(model=fewer, added_tokens=[END, {**MARK, "special": True}]),
        "in text": _damaged(model=fewer, added_tokens=[END, MARK]),
        "alone": _damaged(model=fewer, added_tokens=[END, {**MARK, "single_word": True}]),
        "ignoring": _damaged(
            model={**fewer, "ignore_merges": True}, added_tokens=[END, {**MARK, "special": True}]
        ),
    }.items():
        found[name] = BpeTokenizer(definition, source=name)
    texts = "".join(last).replace("Ġ", " "), "<mark>", "a<mark>b"
    assert len({str([one.encode(text) for text in texts]) for one in found.values()}) == 4
    assert len({tokenizer.fingerprint for tokenizer in found.values()}) == 4
    assert len({tokenizer.fingerprint_0_1 for tokenizer in found.values()}) == 1
    plain = found["plain"]
    assert plain.fingerprint == plain.fingerprint_0_1 != BPE.fingerprint


def test_round_trip_is_judged_by_length_and_by_the_bytes_of_the_beginning() -> None:
    text = "a\udcffb" + TEXTS[7]
    ids = BPE.encode_to_array(text)
    assert BPE.gives_back(text, ids, len(ids))
    assert not BPE.gives_back(text, ids[:-1], 0)
    assert not BPE.gives_back("ab", BPE.encode_to_array("ac"), 2)
    assert BPE.gives_back("ab", BPE.encode_to_array("ac"), 1)


def test_settings_without_effect_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(
        _damaged(
            normalizer={"type": "Sequence", "normalizers": []},
            model={**MODEL, "dropout": 0.0},
            # Special tokens in a text are text, whatever they would strip.
            added_tokens=[END, {**MARK, "special": True, "lstrip": True, "rstrip": True}],
        )
    )
    text = "hello  <mark> x"
    loaded = load_tokenizer(str(path))
    assert loaded.decode(loaded.encode(text)) == text
    # So the special token itself stands for no bytes of any text.
    assert loaded.special_ids == (loaded.eot_id, 300)
    assert loaded.byte_lengths[300] == 0
    assert loaded.decode([300]) == "<mark>", "for a reader"


@pytest.mark.usefixtures("gpt2_vocabulary")
class TestGpt2:
    @pytest.fixture
    def gpt2(self) -> Tokenizer:
        return load_tokenizer("gpt2")

    def test_known_ids(self, gpt2: Tokenizer) -> None:
        assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
        assert gpt2.encode("The quick brown fox") == [464, 2068, 7586, 21831]
        assert gpt2.encode("\n\n    x") == [628, 220, 220, 220, 2124]
        assert gpt2.encode("") == []

    def test_numbers(self, gpt2: Tokenizer) -> None:
        assert (gpt2.vocab_size, gpt2.eot_id, gpt2.fingerprint) == (50257, 50256, "gpt2")
        assert gpt2.info == tokenizer_info("gpt2")

    def test_special_tokens_in_text_are_text(self, gpt2: Tokenizer) -> None:
        text = "a<|endoftext|>b"
        assert gpt2.eot_id not in gpt2.encode(text)
        assert gpt2.decode(gpt2.encode(text)) == text
        assert gpt2.decode_bytes([gpt2.eot_id]) == b""
        assert gpt2.decode([gpt2.eot_id]) == "<|endoftext|>"

    def test_round_trip(self, gpt2: Tokenizer) -> None:
        texts = [*TEXTS, "Ünïcode 漢字 🙂\r\n\t \x00", ""]
        encoded = [gpt2.encode(text) for text in texts]
        assert [gpt2.decode(ids) for ids in encoded] == texts
        assert [int(gpt2.byte_lengths[ids].sum()) for ids in encoded] == [
            len(text.encode()) for text in texts
        ]

    def test_ids_of_a_padded_vocabulary_are_refused(self, gpt2: Tokenizer) -> None:
        with pytest.raises(QuinticError, match="50300"):
            gpt2.decode([50300])


class TestGpt2AgainstTiktoken:
    """Text is cut by another pattern than tiktoken's own, and the ids are its own."""

    @pytest.fixture
    def gpt2(self, gpt2_vocabulary: None) -> Tokenizer:
        return load_tokenizer("gpt2")

    @pytest.fixture
    def tiktokens(self, gpt2_vocabulary: None) -> tiktoken.Encoding:
        return tiktoken.get_encoding("r50k_base")

    def test_vocabulary(self, gpt2: Tokenizer, tiktokens: tiktoken.Encoding) -> None:
        assert (tiktokens.n_vocab, tiktokens.eot_token) == (gpt2.vocab_size, gpt2.eot_id)

    def test_any_text(self, gpt2: Tokenizer, tiktokens: tiktoken.Encoding) -> None:
        @given(text_strategy)
        @settings(deadline=None, max_examples=500)
        def check(text: str) -> None:
            ids = tiktokens.encode_ordinary(text)
            assert gpt2.encode(text) == ids
            assert gpt2.encode_to_array(text).tolist() == ids

        check()

    def test_every_character_beside_all_others(
        self, gpt2: Tokenizer, tiktokens: tiktoken.Encoding
    ) -> None:
        characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
        known = [c for c in characters if unicodedata.category(c) not in ("Cn", "Co")]
        neighbours = "".join(f"{c}a{c} {c}1{c}'s'{c}\n" for c in known)
        for text in ("".join(characters), " ".join(known), neighbours):
            assert np.array_equal(
                gpt2.encode_to_array(text), tiktokens.encode_to_numpy(text, disallowed_special=())
            )

    @pytest.mark.parametrize("text", ["a" + " " * 1_100_000, "a" + " " * 500_000 + "b"])
    def test_long_white_space(
        self, gpt2: Tokenizer, tiktokens: tiktoken.Encoding, text: str
    ) -> None:
        assert gpt2.encode(text) == tiktokens.encode_ordinary(text)

    def test_it_gives_up_where_tiktoken_does(
        self, gpt2: Tokenizer, tiktokens: tiktoken.Encoding
    ) -> None:
        for encode in (gpt2.encode_to_array, tiktokens.encode_to_numpy):
            with pytest.raises(ValueError, match="Max stack size"):
                encode(" " * 1_100_000 + "x")


class TestGpt2WithoutNetwork:
    """The message says which file goes where; and it comes soon."""

    def test_refused_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> tiktoken.Encoding:
            raise requests.ConnectionError("no route to host")

        monkeypatch.setattr(gpt2_tokenizer, "_r50k", refuse)
        monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
        with pytest.raises(QuinticError) as caught:
            Gpt2Tokenizer()
        message = str(caught.value)
        for words in ["r50k_base.tiktoken", "TIKTOKEN_CACHE_DIR", "ConnectionError", "not set"]:
            assert words in message
        assert "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4" in message
        assert "\n" not in message

    def test_no_answer(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        released = threading.Event()

        def hang() -> tiktoken.Encoding:
            released.wait(LAST_BOUND_S)
            raise requests.ConnectionError

        monkeypatch.setattr(gpt2_tokenizer, "_r50k", hang)
        monkeypatch.setattr(gpt2_tokenizer, "_DOWNLOAD_SECONDS", 0.1)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        with pytest.raises(QuinticError, match="no answer") as caught:
            Gpt2Tokenizer()  # while it hangs
        released.set()
        assert str(tmp_path) in str(caught.value)

    @pytest.fixture
    def cached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """Where the cache keeps the vocabulary, b"IQ== 0" in these tests."""
        digest = hashlib.sha256(b"IQ== 0\n").hexdigest()
        monkeypatch.setattr(gpt2_tokenizer, "_GPT2_SHA256", digest)
        monkeypatch.setattr(gpt2_tokenizer, "read_file", lambda address: b"IQ== 0\n")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
        return tmp_path / "cache" / "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"

    @pytest.mark.parametrize("there", [None, b"", b"IQ="])
    def test_a_cut_file_is_fetched_again(self, cached: Path, there: bytes | None) -> None:
        if there is not None:
            cached.parent.mkdir()
            cached.write_bytes(there)
        assert gpt2_tokenizer._r50k_file() == b"IQ== 0\n" == cached.read_bytes()
        assert list(cached.parent.iterdir()) == [cached]

    def test_what_is_cached_is_not_fetched(
        self, cached: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpt2_tokenizer._r50k_file()
        monkeypatch.delattr(gpt2_tokenizer, "read_file")
        assert gpt2_tokenizer._r50k_file() == b"IQ== 0\n"

    def test_a_cache_that_cannot_be_written_does_without(self, cached: Path) -> None:
        cached.parent.touch()  # a file where the folder should be
        assert gpt2_tokenizer._r50k_file() == b"IQ== 0\n"

    @pytest.mark.parametrize("damage", ["no network", "another file"])
    def test_a_damaged_file_without_network_is_named(
        self, cached: Path, damage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(address: str) -> bytes:
            if damage == "another file":
                return b"<html>"
            raise requests.ConnectionError("no route to host")

        cached.parent.mkdir()
        cached.write_bytes(b"IQ=")
        monkeypatch.setattr(gpt2_tokenizer, "read_file", read)
        gpt2_tokenizer._r50k.cache_clear()
        reason = "ValueError" if damage == "another file" else "ConnectionError"
        with pytest.raises(QuinticError) as caught:
            Gpt2Tokenizer()
        assert str(caught.value).startswith(
            f"GPT-2's vocabulary cannot be downloaded ({reason}), and the one in {cached} is "
            "damaged: on a machine with network fetch tiktoken's file r50k_base.tiktoken"
        )
        assert cached.read_bytes() == b"IQ="

    def test_numbers_need_no_vocabulary(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(gpt2_tokenizer, "_r50k")
        assert tokenizer_info("gpt2") == ("gpt2", 50257, 50256, "gpt2", (50256,), "gpt2")


def test_a_definition_in_the_format_with_text_merges_has_the_same_fingerprint() -> None:
    # tokenizers before 0.20 wrote a merge as one string; the vocabulary is the same.
    content = json.loads(BPE.definition)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    older = BpeTokenizer(json.dumps(content), source="older")
    assert older.fingerprint == BPE.fingerprint
    assert older.encode(TEXTS[3]) == BPE.encode(TEXTS[3])
