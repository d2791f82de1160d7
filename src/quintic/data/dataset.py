"""A dataset is a folder of token shards, as docs/data.md lists its files.

Folders made by llm.c or modded-nanogpt are foreign: they have neither manifest nor tokenizer; nor
have those of nanoGPT and build-nanogpt, whose files are read where they lie.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.gpt2_tokenizer import GPT2
from quintic.data.load_tokenizer import load_tokenizer, tokenizer_info
from quintic.data.manifest import MANIFEST_FILE, SPLITS, UNFINISHED, Manifest, Split
from quintic.data.shards import Shard, TokenStream, open_shard
from quintic.data.tokenizer import Tokenizer
from quintic.data.tokens.in_place import shards_in_place
from quintic.data.tokens.nanogpt import refuse_characters
from quintic.errors import QuinticError


@dataclass(frozen=True)
class Dataset:
    """A folder of shards that was found to be in order; `open_dataset` makes it.

    `streams` has the tokens of each split that the folder has. A foreign folder has no `manifest`,
    and without a tokenizer named, none of `tokenizer_spec`, as `load_tokenizer` takes it,
    `vocab_size`, `eot_id` and `special_ids`.
    """

    path: Path
    streams: dict[Split, TokenStream]
    manifest: Manifest | None
    tokenizer_spec: str | None
    vocab_size: int | None
    eot_id: int | None
    special_ids: tuple[int, ...]

    @property
    def train(self) -> TokenStream:
        """The training tokens."""
        return self.streams["train"]

    @property
    def val(self) -> TokenStream:
        """The validation tokens."""
        return self.streams["val"]

    def for_model(self, vocab_size: int) -> Self:
        """Return the dataset for a model with `vocab_size` ids, which refuses others as it is read.

        `check_tokens` trusts the manifest, and looks at a moment: shards can be damaged later.
        """
        size = min(vocab_size, self.vocab_size or vocab_size)
        streams = {
            split: TokenStream(stream.shards, size) for split, stream in self.streams.items()
        }
        return replace(self, streams=streams)

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the tokens were made with.

        Raises `QuinticError` for a foreign folder without a tokenizer named, and where GPT-2's
        vocabulary is not to be had.
        """
        if self.tokenizer_spec is None:
            raise QuinticError(
                f"dataset {self.path} does not say which tokenizer made it: name it, gpt2 or the "
                f"path of its {TOKENIZER_FILE}, with --data.tokenizer when training, with "
                f"--tokenizer in other commands"
            )
        return load_tokenizer(self.tokenizer_spec)

    @cached_property
    def fingerprint(self) -> str:
        """A hash that tells this data from other data, in hexadecimal; a resumed run compares it.

        It covers the splits, their shards' token counts and samples of the tokens, and neither
        names nor the manifest: a copied, moved or renamed dataset keeps its fingerprint as long as
        the order of its tokens is the same.
        """
        digest = hashlib.sha256()
        for split, stream in self.streams.items():
            for shard in stream.shards:
                digest.update(f"{split} {shard.count} {shard.dtype.str}\n".encode())
                for sample in _samples(shard):
                    digest.update(sample)
        return digest.hexdigest()


def _samples(shard: Shard) -> list[bytes]:
    """Return 64 KiB from either end of a shard, and 16 blocks of 4 KiB evenly between."""
    tokens = shard.tokens
    edge, block = (1 << 16) // shard.dtype.itemsize, (1 << 12) // shard.dtype.itemsize
    between = [(shard.count - block) * part // 17 for part in range(1, 17)]
    return [
        tokens[:edge].tobytes(),
        *(tokens[max(0, start) : max(0, start) + block].tobytes() for start in between),
        tokens[-edge:].tobytes(),
    ]


def open_dataset(
    path: Path, tokenizer: str | None = None, splits: Sequence[Split] = SPLITS
) -> Dataset:
    """Open a folder of shards and check everything that can be checked without reading tokens.

    `tokenizer` is "gpt2" or the path of a `tokenizer.json`: a foreign folder needs it to be
    decoded, and for one with a manifest it must be the manifest's. `splits` must be there, and in
    any case one is needed.

    Raises `QuinticError` for no such folder, a build that is not finished, a split without shards,
    a damaged shard, a manifest that is broken or disagrees with the folder, and another tokenizer
    than the manifest's.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise QuinticError(
            f"dataset {path} {what}: name a folder with *_train_*.bin and *_val_*.bin"
        )
    if (path / UNFINISHED).exists():
        raise QuinticError(
            f"dataset {path} is not finished: run the quintic data build that began it again, and "
            f"it continues"
        )
    shards = _open_shards(path)
    manifest = Manifest.read(path) if (path / MANIFEST_FILE).exists() else None
    if manifest is not None:
        _check_against_manifest(path, manifest, shards)
    spec = tokenizer if tokenizer is not None else _own_tokenizer(path, manifest)
    info = tokenizer_info(spec) if spec is not None else None
    if not any(shards.values()) and (others := _token_files(path)):
        if info is None:
            raise QuinticError(
                f"dataset {path} has token files of another tool, such as "
                f"{next(iter(others.values()))[0].name}, which do not say which tokenizer made "
                f"them: name it, gpt2 or the path of its {TOKENIZER_FILE}, with --data.tokenizer "
                f"when training, with --tokenizer in other commands"
            )
        shards |= {split: shards_in_place(files, info.eot_id) for split, files in others.items()}
    _check_splits(path, splits, shards)
    same = info and (info.fingerprint, info.fingerprint_0_1)
    if manifest and info and same and manifest.tokenizer_fingerprint not in same:
        raise QuinticError(
            f"dataset {path} was made with the tokenizer '{manifest.tokenizer}' (fingerprint "
            f"{manifest.tokenizer_fingerprint[:12]}), not with '{spec}' (fingerprint "
            f"{info.fingerprint[:12]}): leave the tokenizer out, or build the dataset again"
        )
    return Dataset(
        path=path,
        streams={split: TokenStream(found) for split, found in shards.items() if found},
        manifest=manifest,
        tokenizer_spec=spec,
        vocab_size=info.vocab_size if info else None,
        eot_id=info.eot_id if info else None,
        special_ids=info.special_ids if info else (),
    )


def tokenizer_or_note(dataset: Dataset, notes: list[str]) -> Tokenizer | None:
    """Return the tokenizer of a dataset, or None and why in `notes`."""
    try:
        return dataset.load_tokenizer()
    except QuinticError as error:
        notes.append(str(error))
        return None


def _open_shards(path: Path) -> dict[Split, list[Shard]]:
    shards: dict[Split, list[Shard]] = {split: [] for split in SPLITS}
    for file in sorted(path.glob("*.bin")):
        if (split := split_of(file.name)) is not None:
            shards[split].append(open_shard(file))
    return shards


def _token_files(path: Path) -> dict[Split, list[Path]]:
    """Return the files of build-nanogpt, or else of nanoGPT, for each split that has some."""
    names = sorted(file.name for file in path.iterdir())
    found: dict[Split, list[Path]] = {}
    for name in names:
        if name.endswith(".npy") and (split := split_of(name)) is not None:
            found.setdefault(split, []).append(path / name)
    if not found and "train.bin" in names:
        refuse_characters(path, names)
        found = {split: [path / f"{split}.bin"] for split in SPLITS if f"{split}.bin" in names}
    return found


def _check_splits(path: Path, splits: Sequence[Split], shards: dict[Split, list[Shard]]) -> None:
    hold_out = " --val-tokens N" * (bool(shards["train"]) and not shards["val"])
    for split, found in shards.items():
        if not found and (split in splits or not any(shards.values())):
            raise QuinticError(
                f"dataset {path} has no {split} shards: expected files named *_{split}_*.bin; "
                f"name a folder with both *_train_*.bin and *_val_*.bin; of the token files of "
                f"other tools, or without those for validation, one is made by quintic data import "
                f"{path} --out OUT --tokenizer gpt2 (or its {TOKENIZER_FILE}){hold_out}"
            )


def split_of(name: str) -> Split | None:
    """Return the split that a shard's name says; the last word counts, as in
    `books_train_set_val_000.bin`."""
    words = f"{name.removesuffix('.bin')}_"  # llm.c ends names so: tiny_shakespeare_train.bin
    places = {split: words.rfind(f"_{split}_") for split in SPLITS}
    split = max(SPLITS, key=lambda split: places[split])
    return split if places[split] >= 0 else None


def _own_tokenizer(path: Path, manifest: Manifest | None) -> str | None:
    """Return the tokenizer that the folder itself names."""
    name = manifest.tokenizer if manifest else TOKENIZER_FILE
    if name == GPT2.name:
        return name
    file = path / name
    return str(file) if manifest or file.exists() else None


def _check_against_manifest(
    path: Path, manifest: Manifest, shards: dict[Split, list[Shard]]
) -> None:
    found = {shard.path.name: (split, shard.count) for split in SPLITS for shard in shards[split]}
    listed = {record.file: (record.split, record.tokens) for record in manifest.shards}
    for file in sorted(found.keys() | listed.keys()):
        if file not in found:
            problem = f"lists {file}, which is not there"
        elif file not in listed:
            problem = f"does not list {file}, which is there"
        elif found[file] != listed[file]:
            problem = (
                f"gives {file} {listed[file][1]} {listed[file][0]} tokens, "
                f"found {found[file][1]} {found[file][0]} tokens"
            )
        else:
            continue
        raise QuinticError(
            f"manifest {path / MANIFEST_FILE} {problem}: copy or build the dataset again"
        )


def check_tokens(
    dataset: Dataset,
    vocab_size: int,
    limit_tokens: int | None = None,
    limit_val_tokens: int | None = None,
) -> None:
    """Check that a model with `vocab_size` ids can read the tokens, before step 0.

    The manifest is trusted; the shards of a foreign folder are read, as far as the limits say: the
    tokens that the run will read from the beginning of a split's stream, None for all, which
    shuffled order needs. Raises `QuinticError`, which names the shard, where an id is vocab_size or
    more, or beyond the tokenizer's.
    """
    limits: dict[Split, int | None] = {"train": limit_tokens, "val": limit_val_tokens}
    if dataset.manifest is not None:
        largest = {record.file: record.max_id for record in dataset.manifest.shards}
    else:
        largest = {
            shard.path.name: max_id
            for split, stream in dataset.streams.items()
            for shard, max_id in stream.shard_max_ids(limits[split]).items()
        }
    for file, max_id in largest.items():
        if max_id >= vocab_size:
            raise QuinticError(
                f"shard {dataset.path / file} holds the token id {max_id}, the model's vocabulary "
                f"has only the ids 0 to {vocab_size - 1}: give the model at least {max_id + 1} "
                f"ids, or use data made with its tokenizer"
            )
        if dataset.vocab_size is not None and max_id >= dataset.vocab_size:
            raise QuinticError(
                f"shard {dataset.path / file} holds the token id {max_id}, the tokenizer "
                f"{dataset.tokenizer_spec} has only the ids 0 to {dataset.vocab_size - 1}: name "
                f"the tokenizer that made it"
            )
