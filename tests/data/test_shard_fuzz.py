"""Whatever a file holds, the reader of shards reads it right or refuses it with one line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quintic.data.shards import open_shard, write_shard
from quintic.errors import QuinticError

FUZZ = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

MAGICS = {20240520: (1, 2), 20240801: (7, 4)}  # magic: version, bytes of a token


def open_or_refuse(path: Path, content: bytes) -> list[int] | None:
    """The tokens of a file, or None if it is refused as it should be."""
    path.write_bytes(content)
    try:
        shard = open_shard(path)
    except QuinticError as error:
        assert str(path) in str(error)
        return None
    tokens: list[int] = shard.tokens.tolist()
    return tokens


@FUZZ
@given(
    magic=st.sampled_from([*MAGICS, 0, 20240521]) | st.integers(-(2**31), 2**31 - 1),
    version=st.sampled_from([1, 7]) | st.integers(-(2**31), 2**31 - 1),
    count=st.integers(-3, 12) | st.integers(-(2**31), 2**31 - 1),
    body=st.binary(max_size=24),
)
@example(magic=20240520, version=1, count=2, body=b"abcd")
@example(magic=20240801, version=7, count=1, body=b"abcd")
@example(magic=20240520, version=1, count=2**31 - 1, body=b"")
def test_header_is_believed_only_if_it_fits_the_file(
    tmp_path: Path, magic: int, version: int, count: int, body: bytes
) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    tokens = open_or_refuse(tmp_path / "x_train_1.bin", header.tobytes() + body)
    known_version, itemsize = MAGICS.get(magic, (None, 0))
    if version == known_version and count >= 1 and len(body) == count * itemsize:
        assert tokens == np.frombuffer(body, f"<u{itemsize}").tolist()
    else:
        assert tokens is None


@pytest.fixture(scope="module", params=[50_000, 70_000], ids=["16 bits", "32 bits"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x_train_1.bin"
    write_shard(path, [request.param, *range(30)])
    return path.read_bytes()


@FUZZ
@given(data=st.data())
def test_every_truncation_and_every_trailing_byte_is_refused(
    tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "x_train_1.bin"
    assert open_or_refuse(path, whole) is not None
    length = data.draw(st.integers(0, len(whole) - 1))
    assert open_or_refuse(path, whole[:length]) is None
    assert open_or_refuse(path, whole + data.draw(st.binary(min_size=1, max_size=5000))) is None


@FUZZ
@given(content=st.binary(max_size=3000) | st.text(min_size=1000).map(str.encode))
@example(content=b"PAR1" + bytes(2000))
@example(content=b"\x28\xb5\x2f\xfd" + bytes(2000))
@example(content=b'{"text": "some document"}\n' * 100)
def test_content_of_other_files_is_refused(tmp_path: Path, content: bytes) -> None:
    assert open_or_refuse(tmp_path / "x_train_1.bin", content) is None
