"""A seeded shuffle of documents that does not need them in memory.

Every document gets a random key and goes to one of many bucket files, by the key's leading bits;
then one bucket after another is read and sorted by key. The order is that of the keys, however many
buckets there are.
"""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quintic.data.manifest import Split
from quintic.data.shards import TokenDtype
from quintic.errors import QuinticError

MAX_BUCKETS = 1 << 12
_BUCKET_INPUT_BYTES = 1 << 25  # about 15 to 70 MB of tokens
_BUFFER_BYTES = 1 << 26


# A document in a bucket file: this header, then its tokens.
_HEADER: np.dtype[np.void] = np.dtype([("key", "<u8"), ("tokens", "<u8")])


def bucket_count(input_bytes: int) -> int:
    """How many buckets an input of this size needs for each to fit into memory."""
    return min(MAX_BUCKETS, 1 + input_bytes // _BUCKET_INPUT_BYTES)


class DocumentShuffle:
    """The bucket files of a shuffle.

    Args:
        folder: where they lie.
        seed: chooses the order.
        buckets: number of files per split, 1 to MAX_BUCKETS.
        dtype: of the tokens.

    Attributes:
        full: whether `flush` is due, to keep memory bounded.
    """

    def __init__(self, folder: Path, seed: int, buckets: int, dtype: TokenDtype) -> None:
        self._folder, self._seed, self.buckets, self._dtype = folder, seed, buckets, dtype
        self._documents: dict[str, int] = defaultdict(int)
        self._sizes: dict[str, int] = {}
        self._waiting: dict[str, list[bytes]] = defaultdict(list)
        self._waiting_bytes = 0
        folder.mkdir(exist_ok=True)

    @property
    def full(self) -> bool:
        return self._waiting_bytes >= _BUFFER_BYTES

    def append(
        self,
        split: Split,
        tokens: npt.NDArray[np.unsignedinteger],
        lengths: npt.NDArray[np.int64],
    ) -> None:
        """Take documents, one after another in `tokens`; the order in which they come counts."""
        content, itemsize = tokens.astype(self._dtype, copy=False).tobytes(), self._dtype.itemsize
        end = 0
        for length in lengths.tolist():
            key = self._key(split, self._documents[split])
            self._documents[split] += 1
            begin, end = end, end + length * itemsize
            header = np.array((key, length), dtype=_HEADER).tobytes()
            name = f"{split}-{key * self.buckets >> 64:04d}"
            self._waiting[name] += [header, content[begin:end]]
        self._waiting_bytes += len(content)

    def flush(self) -> dict[str, Any]:
        """Write out what came, and return what `restore` needs to come back to here."""
        for name, parts in self._waiting.items():
            content = b"".join(parts)
            with (self._folder / name).open("ab") as file:
                file.write(content)
            self._sizes[name] = self._sizes.get(name, 0) + len(content)
        self._waiting.clear()
        self._waiting_bytes = 0
        return {
            "buckets": self.buckets,
            "documents": dict(self._documents),
            "sizes": dict(self._sizes),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Come back to where `flush` returned this state, or to the beginning if None; what was
        written since is dropped."""
        state = state or {"buckets": self.buckets, "documents": {}, "sizes": {}}
        self.buckets = state["buckets"]
        self._documents = defaultdict(int, state["documents"])
        self._sizes = dict(state["sizes"])
        for path in self._folder.iterdir():
            if path.name not in self._sizes:
                path.unlink()
        for name, size in self._sizes.items():
            path = self._folder / name
            if not path.exists() or path.stat().st_size < size:
                raise QuinticError(
                    f"{path} does not hold what was written to it: delete "
                    f"{self._folder.parent.parent} and build it again"
                )
            with path.open("r+b") as file:
                file.truncate(size)

    def read(self, split: Split, bucket: int) -> npt.NDArray[np.unsignedinteger]:
        """The tokens of a bucket's documents in their order, [tokens]."""
        path = self._folder / f"{split}-{bucket:04d}"
        if not path.exists():
            return np.empty(0, dtype=self._dtype)
        content = path.read_bytes()
        found: list[tuple[int, npt.NDArray[np.unsignedinteger]]] = []
        offset = 0
        while offset < len(content):
            key, count = np.frombuffer(content, _HEADER, 1, offset)[0].tolist()
            offset += _HEADER.itemsize
            found.append((key, np.frombuffer(content, self._dtype, count, offset)))
            offset += count * self._dtype.itemsize
        found.sort(key=lambda document: document[0])
        return np.concatenate([tokens for _, tokens in found])

    def _key(self, split: Split, document: int) -> int:
        """64 random bits of a document; by its number, so that equal texts are not neighbours."""
        name = f"{self._seed} {split} {document}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())
