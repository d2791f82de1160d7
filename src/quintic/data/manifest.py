"""The manifest: what a dataset that quintic built says of its shards."""

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from quintic.errors import QuinticError, reason, way_out
from quintic.files import parse_json, write_json

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1

# In the folder of a dataset as long as `quintic data build` has not finished it.
UNFINISHED = ".build"

_WAY_OUT = (
    "build the dataset again, or delete the manifest and name the tokenizer with --data.tokenizer "
    "when training, with --tokenizer in other commands"
)


@dataclass(frozen=True)
class ShardRecord:
    """The manifest's record of one shard.

    `documents` is the number of end-of-text tokens, that is of documents that begin here;
    `text_bytes` counts the UTF-8 text behind the tokens; `sha256` is of the whole file.
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
    """The contents of a dataset that quintic built.

    `tokenizer` is "gpt2" or the name of the `tokenizer.json` in the dataset's folder; `encoder` is
    the packages, with their versions, that made the ids, and empty where that is not known.
    """

    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int
    shards: tuple[ShardRecord, ...]
    encoder: str = ""

    def write(self, folder: Path) -> Path:
        """Write `manifest.json` into a folder, whole or not at all, and return its path."""
        path = folder / MANIFEST_FILE
        write_json(path, {"format_version": MANIFEST_VERSION, **asdict(self)})
        return path

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the `manifest.json` of a folder; raises `QuinticError` where it is unreadable or as
        `parse` does."""
        path = folder / MANIFEST_FILE
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise QuinticError(
                f"manifest {path} cannot be read ({reason(error)}): {way_out(error)}"
            ) from error

    @classmethod
    def parse(cls, text: bytes, path: str) -> Self:
        """Read the text of a manifest that comes from `path`.

        Raises `QuinticError` for broken JSON, another format version, and a field that is missing
        or of the wrong type.
        """
        try:
            content = parse_json(text)
        except QuinticError as error:
            raise QuinticError(f"manifest {path}: {error}") from error
        except ValueError as error:
            raise QuinticError(f"manifest {path} cannot be read ({error}): {_WAY_OUT}") from error
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


def _typed(content: Any, kind: type[Manifest | ShardRecord], path: str) -> dict[str, Any]:
    """Return the fields of a manifest's object, which are there, or have a default, and of their
    type."""
    json_types: dict[Any, type] = {int: int, str: str, Split: str}
    called = {int: "an integer", str: "a text", list: "a list"}
    values = {}
    for field in fields(kind):
        expected = json_types.get(field.type, list)
        value = content.get(field.name) if isinstance(content, dict) else None
        if value is None and field.default is not MISSING:
            continue
        if type(value) is not expected:
            raise QuinticError(
                f"manifest {path}: field '{field.name}' is {value!r}, expected "
                f"{called[expected]}; {_WAY_OUT}"
            )
        values[field.name] = value
    return values
