"""What is to be imported, recognised by its content."""

from __future__ import annotations

from pathlib import Path

from quintic.config.schema import require
from quintic.errors import QuinticError
from quintic.export.hf_folder import CONFIG_FILE, WEIGHTS_FILE
from quintic.imports.foreign import ForeignModel
from quintic.imports.hf_folder import is_hf_folder, read_hf_folder
from quintic.imports.llmc import is_llmc, read_llmc
from quintic.imports.modded_nanogpt import is_modded_nanogpt, read_modded_nanogpt
from quintic.imports.nanogpt import is_nanogpt, read_nanogpt
from quintic.imports.torch_file import is_torch_file, load_torch_file
from quintic.run_dir import holds_run

CKPT_FILE = "ckpt.pt"
"""nanoGPT's name for its checkpoint."""

READABLE = (
    "a folder of transformers (config.json and model.safetensors), nanoGPT's ckpt.pt, llm.c's .bin "
    "and modded-nanogpt's .pt are read"
)


def read_model(
    path: Path, kind: str = "auto", *, heads: int | None = None, context: int | None = None
) -> ForeignModel:
    """Read a model from a folder or a file; `heads` and `context` are for modded-nanogpt's.

    Raises `QuinticError` naming the path where it is of no format that is read, or of several, and
    as the reader of its format does.
    """
    try:
        return _read(path, kind, heads, context)
    except QuinticError as error:
        raise QuinticError(f"{path}: {error}") from error


def _read(path: Path, kind: str, heads: int | None, context: int | None) -> ForeignModel:
    found = kinds_of(path) if kind == "auto" else [kind]
    require(
        len(found) == 1,
        f"it holds models of {' and '.join(found)}: say which with --format"
        if found
        else _what_is_missing(path),
    )
    [kind] = found
    require(
        kind == "modded-nanogpt" or (heads, context) == (None, None),
        f"--heads and --context are for modded-nanogpt's checkpoints, and this is one of {kind}, "
        "which says both: leave them out",
    )
    if kind == "hf":
        require(is_hf_folder(path), _what_is_missing(path))
        return read_hf_folder(path)
    file = path / CKPT_FILE if path.is_dir() and kind == "nanogpt" else path
    require(file.is_file(), f"there is no file {file}, and a checkpoint of {kind} is one: name it")
    if kind == "llm.c":
        require(is_llmc(file), "it does not begin as llm.c's checkpoints do: name a .bin of it")
        return read_llmc(file)
    saved = load_torch_file(file)
    if kind == "nanogpt":
        return read_nanogpt(file, saved)
    return read_modded_nanogpt(file, saved, heads=heads, context=context)


def kinds_of(path: Path) -> list[str]:
    """Return the formats that a folder or a file is recognised as, by the values of --format."""
    if path.is_dir():
        found = {"hf": is_hf_folder(path), "nanogpt": (path / CKPT_FILE).is_file()}
        return [kind for kind, is_it in found.items() if is_it]
    if not path.is_file():
        return []
    if is_llmc(path):
        return ["llm.c"]
    if not is_torch_file(path):
        return []
    saved = load_torch_file(path)
    found = {"nanogpt": is_nanogpt(saved), "modded-nanogpt": is_modded_nanogpt(saved)}
    return [kind for kind, is_it in found.items() if is_it]


def _what_is_missing(path: Path) -> str:
    if not path.exists():
        return "there is no such file or folder: name one, or hub:OWNER/NAME"
    if path.is_dir() and holds_run(path) and (path / "checkpoints").is_dir():
        return "it is the folder of a run of quintic already: use it as it is"
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return (
            f"it has {CONFIG_FILE} and no {WEIGHTS_FILE}: save the weights as safetensors, which "
            "save_pretrained does, since no pickle is executed"
        )
    if path.name.endswith(".safetensors"):
        return f"a file of weights does not say of which model: name its folder, with {CONFIG_FILE}"
    what = "has no model in it" if path.is_dir() else "is no model"
    return f"it {what} that quintic knows: {READABLE}"
