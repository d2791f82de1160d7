"""A vocabulary as Hugging Face's `tokenizers` and transformers read it: `tokenizer.json` and
`tokenizer_config.json`.

A vocabulary of quintic's own is in that format already. GPT-2's is built from tiktoken's ranks: its
merges are, for each token of two bytes or more, the two parts that merging by rank leaves before
the token itself.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from quintic.data.bpe_tokenizer import BYTE_ALPHABET, TOKENIZER_FILE, BpeTokenizer
from quintic.data.tokenizer import END_OF_TEXT, Tokenizer
from quintic.files import write_json

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write both files into an existing folder."""
    (folder / TOKENIZER_FILE).write_text(tokenizer_json(tokenizer), encoding="utf-8")
    write_json(folder / TOKENIZER_CONFIG_FILE, tokenizer_config(context))


def tokenizer_config(context: int) -> dict[str, Any]:
    """Return `tokenizer_config.json`.

    Without its class, AutoTokenizer cuts the text of a model of type gpt2 as GPT-2 does, whatever
    `tokenizer.json` says. ctranslate2 asks for an unknown token, although every text has ids, and
    batches for a padding one: where that is the stop token too, `generate` hides nothing.
    """
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(names, END_OF_TEXT),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the text of `tokenizer.json`; with a vocabulary of one's own that is the file as it
    is, but for tokens that it would add to every text."""
    if not isinstance(tokenizer, BpeTokenizer):
        return _gpt2_json(tokenizer)
    content = json.loads(tokenizer.definition)
    if not content.get("post_processor"):
        return tokenizer.definition
    return json.dumps({**content, "post_processor": None}, ensure_ascii=False)


def _gpt2_json(tokenizer: Tokenizer) -> str:
    content = [tokenizer.decode_bytes([index]) for index in range(tokenizer.vocab_size)]
    ranks = {text: index for index, text in enumerate(content) if text}
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab={_written(text): rank for text, rank in ranks.items()},
            merges=[
                (_written(first), _written(second))
                for text, rank in ranks.items()
                if len(text) > 1
                for first, second in [_parts_before(text, rank, ranks)]
            ],
        )
    )
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    definition: str = built.to_str(pretty=True)
    return definition


def _written(text: bytes) -> str:
    """Return bytes in the characters that stand for them in a `tokenizer.json`."""
    return "".join(BYTE_ALPHABET[byte] for byte in text)


def _parts_before(text: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the parts of a token that merges of lower rank leave, the lowest first: two."""
    parts = [bytes([byte]) for byte in text]
    while len(parts) > 2:
        joined = [ranks.get(first + second, rank) for first, second in pairwise(parts)]
        lowest = joined.index(min(joined))
        parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
    return parts
