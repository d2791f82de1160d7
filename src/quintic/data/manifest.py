"""The manifest: what a dataset that quintic built says of its shards."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from quintic.errors import QuinticError
from quintic.files import replacing

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1

# In the folder of a dataset as long as `quintic data build` has not finished it.
UNFINISHED = ".build"


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of one shard.

    Attributes:
        file: name of the shard in the dataset's folder.
        split: "train" or "val".
        documents: number of end-of-text tokens, that is of documents that begin here.
        tokens: number of tokens.
        text_bytes: UTF-8 bytes of the text behind the tokens.
        max_id: the largest token id.
        sha256: of the whole file.
    """

    file: str
    split: Split
    documents: int
    tokens: int
    text_bytes: int
    max_id: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in a dataset that quintic built.

    Attributes:
        tokenizer: "gpt2", or the name of the `tokenizer.json` in the dataset's folder.
        tokenizer_fingerprint: the tokenizer's fingerprint.
        vocab_size: number of ids of the tokenizer.
        eot_id: the token that precedes every document.
        shards: one record per shard.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int
    shards: tuple[ShardRecord, ...]

    def write(self, folder: Path) -> Path:
        """Write `manifest.json` into a folder, whole or not at all, and return its path."""
        path = folder / MANIFEST_FILE
        content = {"format_version": MANIFEST_VERSION, **asdict(self)}
        with replacing(path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
        return path

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the `manifest.json` of a folder.

        Raises:
            QuinticError: unreadable, broken JSON, another format version, or a field that is
                missing or of the wrong type.
        """
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise QuinticError(
                f"manifest {path} cannot be read ({error}): build the dataset again, or delete the "
                f"manifest and name the tokenizer with --data.tokenizer when training, with "
                f"--tokenizer in other commands"
            ) from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != MANIFEST_VERSION:
            raise QuinticError(
                f"manifest {path} has format_version {version}, this quintic reads "
                f"{MANIFEST_VERSION}: build the dataset again, or use the quintic that made it"
            )
        values = _typed(content, cls, path)
        records = tuple(ShardRecord(**_typed(item, ShardRecord, path)) for item in values["shards"])
        for record in records:
            if record.split not in SPLITS:
                raise QuinticError(
                    f"manifest {path} puts {record.file} into the split '{record.split}', there "
                    f"are only train and val: build the dataset again"
                )
        return cls(**{**values, "shards": records})


def _typed(content: Any, kind: type[Manifest | ShardRecord], path: Path) -> dict[str, Any]:
    """The fields of a manifest's object, checked to be there and of their type."""
    json_types: dict[Any, type] = {int: int, str: str, Split: str}
    values = {}
    for field in fields(kind):
        expected = json_types.get(field.type, list)
        value = content.get(field.name) if isinstance(content, dict) else None
        if type(value) is not expected:
            raise QuinticError(
                f"manifest {path}: field '{field.name}' is {value!r}, expected a "
                f"{expected.__name__}; build the dataset again, or delete the manifest and name "
                f"the tokenizer with --data.tokenizer when training, with --tokenizer in other "
                f"commands"
            )
        values[field.name] = value
    return values
