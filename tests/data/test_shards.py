import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintic.data import shards as shards_module
from quintic.data.shards import TokenStream, open_shard, write_shard
from quintic.errors import QuinticError


@pytest.mark.parametrize(
    ("largest", "magic", "version", "dtype"),
    [(65535, 20240520, 1, "<u2"), (65536, 20240801, 7, "<u4"), (2**32 - 1, 20240801, 7, "<u4")],
)
def test_round_trip_and_bytes(
    tmp_path: Path, largest: int, magic: int, version: int, dtype: str
) -> None:
    path = tmp_path / "x_train_0.bin"
    written = write_shard(path, [0, 7, largest])
    opened = open_shard(path)
    assert opened == written
    assert (opened.path, opened.count, opened.dtype) == (path, 3, np.dtype(dtype))
    assert opened.tokens.tolist() == [0, 7, largest]
    assert isinstance(opened.tokens, np.memmap)

    content = path.read_bytes()
    assert np.frombuffer(content, "<i4", 256).tolist() == [magic, version, 3] + [0] * 253
    assert np.frombuffer(content, dtype, offset=1024).tolist() == [0, 7, largest]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "tokens",
    [[], [[1, 2]], [1, -1], [2**32], [0.5]],
    ids=["none", "2d", "negative", "big", "float"],
)
def test_what_is_not_a_list_of_ids_is_not_written(tmp_path: Path, tokens: list[int]) -> None:
    with pytest.raises(QuinticError, match="cannot be written"):
        write_shard(tmp_path / "x.bin", tokens)
    assert not list(tmp_path.iterdir())


def _bytes(magic: int = 20240520, version: int = 1, count: int = 4, body: int = 8) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    return header.tobytes() + bytes(body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: expected a header of 1024 bytes, found 0 bytes"),
        (bytes(1000), "truncated: expected a header of 1024 bytes, found 1000 bytes"),
        (_bytes(magic=20240521), "expected magic 20240520 .* found 20240521; make it"),
        (_bytes(version=2), "expected 1 for magic 20240520, found 2; make it"),
        (_bytes(magic=20240801, version=1), "expected 7 for magic 20240801, found 1"),
        (_bytes(count=0, body=0), "is empty.* counts 0 tokens"),
        (_bytes(count=-1), "is empty.* counts -1 tokens"),
        (_bytes(body=6), "truncated: expected 1032 bytes .* found 1030 bytes; copy"),
        (_bytes(body=7), "truncated: expected 1032 bytes .* found 1031 bytes"),
        (_bytes(body=9), "bytes after its last token: expected 1032 bytes .* found 1033 bytes"),
        (_bytes(magic=20240801, version=7), "truncated: expected 1040 bytes .* found 1032"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x_train_0.bin"
    path.write_bytes(content)
    with pytest.raises(QuinticError, match=message) as caught:
        open_shard(path)
    assert str(path) in str(caught.value)


def test_unreadable_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match="No such file"):
        open_shard(tmp_path / "absent.bin")
    with pytest.raises(QuinticError, match="Is a directory"):
        open_shard(tmp_path)


@given(data=st.data(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_stream_reads_like_one_circular_array(
    make_stream: Callable[..., TokenStream], data: st.DataObject, sizes: list[int]
) -> None:
    stream = make_stream(*sizes)
    length = sum(sizes)
    assert len(stream) == length
    start = data.draw(st.integers(0, 3 * length))
    count = data.draw(st.integers(0, 3 * length))
    tokens = stream.read(start, count)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [(start + offset) % length for offset in range(count)]
    assert np.concatenate(list(stream.blocks(4))).tolist() == list(range(length))


def test_stream_mixes_16_and_32_bit_shards(tmp_path: Path) -> None:
    narrow = write_shard(tmp_path / "a.bin", [1, 2])
    wide = write_shard(tmp_path / "b.bin", [70000, 3])
    assert TokenStream([narrow, wide]).read(1, 4).tolist() == [2, 70000, 3, 1]


def test_stream_names_the_shard_and_place_of_an_id_beyond_its_vocabulary(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{n}.bin", ids) for n, ids in (("a", [1, 2]), ("b", [3, 9]))]
    for start, count in ((0, 4), (3, 1), (3, 3), (-1, 1), (103, 2)):
        with pytest.raises(
            QuinticError, match=r"b\.bin holds the token id 9 as its token 1, .* 8:"
        ):
            TokenStream(shards, vocab_size=9).read(start, count)
    assert TokenStream(shards, vocab_size=9).read(4, 3).tolist() == [1, 2, 3]
    assert TokenStream(shards, vocab_size=10).read(0, 4).tolist() == [1, 2, 3, 9]
    assert TokenStream(shards, vocab_size=9).read(0, 0).tolist() == []


def test_stream_keeps_few_shards_open(
    make_stream: Callable[..., TokenStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "_OPEN_MAPS", 2)
    stream = make_stream(*[2] * 10)
    assert stream.read(0, 20).tolist() == list(range(20))
    assert stream._tokens.cache_info().currsize == 2


def test_stream_is_read_by_several_threads(make_stream: Callable[..., TokenStream]) -> None:
    stream = make_stream(*range(1, 80))
    expected = stream.read(0, len(stream)).tolist()
    wrong: list[int] = []

    def read(first: int) -> None:
        wrong.extend(
            start
            for start in range(first, len(stream), 7)
            if stream.read(start, 50).tolist() != (expected + expected)[start : start + 50]
        )

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_largest_id(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.bin", [5, 1, 1, 1, 9, 1, 2])
    second = write_shard(tmp_path / "b.bin", [3, 70000])
    stream = TokenStream([first, second])
    assert max(stream.shard_max_ids().values()) == 70000
    assert [max(stream.shard_max_ids(limit).values()) for limit in (1, 4, 5, 7, 8, 9, 100)] == [
        5, 5, 9, 9, 9, 70000, 70000,
    ]  # fmt: skip
    assert stream.shard_max_ids() == {first: 9, second: 70000}
    assert stream.shard_max_ids(4) == {first: 5}
