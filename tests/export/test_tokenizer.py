"""Vocabularies in Hugging Face's files give the ids of quintic's tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from quintic.data.bpe_tokenizer import BpeTokenizer
from quintic.data.gpt2_tokenizer import Gpt2Tokenizer
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.tokenizer import END_OF_TEXT
from quintic.export.tokenizer import tokenizer_json, write_tokenizer
from quintic.export.verify import MARKED_TEXT, TEXTS


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_gpt2s_vocabulary_is_built_out_of_ranks(tmp_path: Path) -> None:
    ours = Gpt2Tokenizer()
    write_tokenizer(ours, tmp_path, 1024)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == 50257
    assert theirs.token_to_id(END_OF_TEXT) == 50256
    assert len(json.loads(theirs.to_str())["model"]["merges"]) == 50_000
    for text in (*TEXTS, Path(__file__).read_text()):
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert 50256 not in ours.encode(MARKED_TEXT)
    # The file that was written is a vocabulary of quintic's too, with the same ids.
    assert load_tokenizer(str(tmp_path)).encode(MARKED_TEXT) == ours.encode(MARKED_TEXT)


def test_tokens_that_a_file_adds_to_every_text_are_left_out(text_run: Path) -> None:
    content = json.loads((text_run / "tokenizer.json").read_text())
    end = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [end, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    definition = json.dumps(content)
    assert tokenizers.Tokenizer.from_str(definition).encode("def").ids[0] == 0
    ours = BpeTokenizer(definition, source="a test")
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(ours))
    assert theirs.encode("def").ids == ours.encode("def")
