import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from quintic.data.build import chunks
from quintic.data.build.chunks import DocumentFormat, read_chunks
from quintic.data.build.documents import BadDocument
from quintic.data.build.inputs import find_text_files
from quintic.errors import QuinticError
from tests.data.reading import read, texts

TEXTS = [f"Document {index}:\n\tâ, 漢 and 🙂.\r\n" * (1 + index % 5) for index in range(60)]
SEPARATOR = "<|endoftext|>"


def write_text(path: Path) -> None:
    path.write_bytes(SEPARATOR.join(TEXTS).encode())


def write_lines(path: Path) -> None:
    path.write_bytes(packed(path, "".join(f"{line}\n" for line in json_lines()).encode()))


def json_lines() -> list[str]:
    # With and without escapes: both are UTF-8.
    return [
        json.dumps({"id": index, "text": text}, ensure_ascii=index % 2 == 0)
        for index, text in enumerate(TEXTS)
    ]


def packed(path: Path, content: bytes) -> bytes:
    """In several frames, as parallel packers write them."""
    pack: Callable[[bytes], bytes] = {
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }.get(path.suffix, bytes)
    return pack(content[:1000]) + pack(content[1000:1001]) + pack(content[1001:])


def write_rows(path: Path) -> None:
    write_column(path, pyarrow.array(TEXTS))


def write_column(path: Path, column: Any) -> None:
    table = pyarrow.table({"id": list(range(len(column))), "text": column})
    parquet.write_table(table, path, row_group_size=17)


FORMATS: dict[str, Callable[[Path], None]] = {
    "a.txt": write_text,
    "a.MD": write_text,
    "a.jsonl": write_lines,
    "a.json.gz": write_lines,
    "a.jsonl.gz": write_lines,
    "a.jsonl.zst": write_lines,
    "a.parquet": write_rows,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("chunk_bytes", [1, 700, 1 << 20])
def test_every_format_gives_the_documents_whatever_the_size_of_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int
) -> None:
    FORMATS[name](tmp_path / name)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", 100)
    monkeypatch.setattr(chunks, "_COLUMN_READ_BYTES", 333)
    assert texts(tmp_path / name, separator=SEPARATOR) == TEXTS


@pytest.mark.parametrize("name", FORMATS)
def test_reading_goes_on_from_every_chunk_with_the_same_line_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    FORMATS[name](tmp_path / name)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)
    monkeypatch.setattr(chunks, "_COLUMN_READ_BYTES", 333)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", 100)
    cut = list(read(tmp_path / name, separator=SEPARATOR))
    assert len(cut) > 1
    for index, (position, _) in enumerate(cut):
        # Other chunks, the same documents.
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 100 + 50 * index)
        rest = [
            d for _, found in read(tmp_path / name, position, separator=SEPARATOR) for d in found
        ]
        assert rest == [document for _, found in cut[index:] for document in found]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_parquet_columns_of_every_kind_of_text(tmp_path: Path, kind: Any) -> None:
    if pyarrow.types.is_dictionary(kind):
        column = pyarrow.array(TEXTS).dictionary_encode()
    else:
        column = pyarrow.array(TEXTS).cast(kind)
    write_column(tmp_path / "a.parquet", column)
    assert texts(tmp_path / "a.parquet") == TEXTS


def test_text_file_without_separator_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n\ntwo  ")
    assert texts(path) == ["one\r\n\n\ntwo  "]


@given(
    text=st.text(alphabet="ab\n", max_size=60),
    separator=st.sampled_from(["\n", "\n\n", "a\na", "aa"]),
    chunk_bytes=st.integers(1, 20),
)
@example(text="a\n\n\nb", separator="\n\n", chunk_bytes=4)
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_separators_that_overlap_cut_the_same_whatever_the_size_of_chunks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    separator: str,
    chunk_bytes: int,
) -> None:
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    found = [d for _, part in read(tmp_path / "a.txt", separator=separator) for d in part]
    expected, line = [], 1
    for document in text.split(separator):
        if document.strip():
            expected.append((line, document))
        line += (document + separator).count("\n")
    assert found == expected


@given(text=st.text(alphabet="a\r\n", max_size=60), chunk_bytes=st.integers(1, 20))
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_line_ends_of_a_separator_match_crlf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    (tmp_path / "a.txt").write_bytes(text.encode())
    for separator, pattern in (("\n", "\r?\n"), ("\n\n", "\r?\n\r?\n"), ("a\n", "a\r?\n")):
        found = [d for _, part in read(tmp_path / "a.txt", separator=separator) for d in part]
        expected, line = [], 1
        for document in re.split(pattern, text):
            if document.strip():
                expected.append((line, document))
            line += (document + separator).count("\n")
        assert found == expected


def test_crlf_files_have_the_documents_of_lf_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo\r\nlines\r\n\r\n\r\n\r\nthree")
    assert texts(tmp_path / "a.txt", separator="\n\n") == ["one", "two\r\nlines", "three"]
    assert texts(tmp_path / "a.txt", separator="\n") == ["one", "two", "lines", "three"]
    assert len(texts(tmp_path / "a.txt", separator="\r\n\r\n")) == 3


# What is no document -----------------------------------------------------------------------------


def test_bad_lines_are_named_with_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n'
        b"\n"
        b'{"text": "cut\n'
        b'{"body": "other", "id": 1}\n'
        b'{"text": ""}\n'
        b'{"text": " \\n\\t"}\n'
        b'{"text": null}\n'
        b'{"text": ["a"]}\n'
        b'{"text": [5, 6]}\n'
        b'{"input_ids": [5, 6]}\n'
        b'"text"\n'
        b'{"text": "\xff"}\n' + b"[" * 100_000 + b"\n"
        b'{"text": "last, without a line end"}'
    )
    found = texts(path)
    assert [text for text in found if isinstance(text, str)] == ["good", "last, without a line end"]
    reasons = {bad.line: bad.reason for bad in found if isinstance(bad, BadDocument)}
    assert list(reasons) == [*range(3, 14)]
    assert "broken JSON (Unterminated string" in reasons[3]
    assert reasons[4] == "no field 'text' (--field), there are body, id"
    assert reasons[5] == reasons[6] == "empty document"
    assert reasons[7] == "field 'text' is no text but null"
    assert reasons[8] == "field 'text' is no text but [\"a\"]"
    ids = "lists of token ids are read by quintic data import"
    assert reasons[9] == f"field 'text' is no text but [5, 6]; {ids}"
    assert reasons[10] == f"no field 'text' (--field), there are input_ids; {ids}"
    assert reasons[11] == "no JSON object"
    assert reasons[12] == "invalid UTF-8 at byte 10 of the document"
    assert "broken JSON" in reasons[13]


@pytest.mark.parametrize("between", ["\n", ",\n"])
def test_numbers_of_any_size_are_numbers(tmp_path: Path, between: str) -> None:
    """Python reads integers of 4,300 digits and no more; of a text none is needed."""
    number = "1" * 6000
    values = [
        f'{{"text": "one", "n": {number}}}',
        f'{{"text": "two", "n": -{number}, "x": NaN}}',
        f'{{"text": {number}}}',
        f'{{"n": {number},\n"text":\n"three"}}',
    ]
    # The last goes over several lines, which an array may.
    content = between.join(values if "," in between else values[:3])
    (tmp_path / "a.json").write_text(f"[{content}]" if "," in between else content)
    bad = BadDocument(0, 3, "field 'text' is no text but Infinity")
    expected = ["one", "two", bad, "three"]
    assert texts(tmp_path / "a.json") == (expected if "," in between else expected[:3])


def test_bad_rows_are_named_with_row_and_reason(tmp_path: Path) -> None:
    values = [b"good", None, b"", b"caf\xe9", *[b"x"] * 20]
    write_column(tmp_path / "a.parquet", pyarrow.array(values, pyarrow.binary()))
    assert [found for found in texts(tmp_path / "a.parquet") if isinstance(found, BadDocument)] == [
        BadDocument(0, 2, "column 'text' is null"),
        BadDocument(0, 3, "empty document"),
        BadDocument(0, 4, "invalid UTF-8 at byte 3 of the document"),
    ]


def test_bad_text_is_named_with_the_line_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n##\ntwo\xff\n##\n##\n\n")
    assert texts(tmp_path / "a.txt", separator="##\n") == [
        "one\n",
        BadDocument(0, 3, "invalid UTF-8 at byte 3 of the document"),
    ]
    (tmp_path / "b.txt").write_bytes(b"")
    assert texts(tmp_path / "b.txt") == [BadDocument(0, 1, "empty document")]


def test_lines_that_are_arrays_stand_for_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["id", "text"]\n{"text": "one"}\n["x"]\n')
    assert texts(tmp_path / "a.jsonl") == [
        BadDocument(0, 1, "no JSON object"),
        "one",
        BadDocument(0, 3, "no JSON object"),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32LE"),
        ("utf-32-be", "UTF-32BE"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
    ],
)
def test_text_in_utf16_without_a_mark_is_named(
    tmp_path: Path, name: str, encoding: str, named: str
) -> None:
    text = "".join(json.dumps({"text": f"Some text, {n}."}) + "\n" for n in range(99))
    (tmp_path / name).write_bytes(text.encode(encoding))
    (bad,) = texts(tmp_path / name, separator="\n")
    assert isinstance(bad, BadDocument)
    assert bad.reason.startswith(f"{named} and not UTF-8: iconv -f {named} -t UTF-8")
    # The file after it is read.
    (tmp_path / "b.txt").write_text("one")
    assert texts(tmp_path)[1:] == ["one"]


UTF16_TEXTS = ["a one", "漢字", "🙂 two\n", "last"]


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk_bytes", [5, 1 << 20])
def test_utf16_with_a_mark_is_read_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, packed: bool, chunk_bytes: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", chunk_bytes)
    table = "".join(f'{n},"{text}"\n' for n, text in enumerate(UTF16_TEXTS))
    for name, content in {
        "a.jsonl": "".join(
            json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in UTF16_TEXTS
        ),
        "a.json": json.dumps([{"text": text} for text in UTF16_TEXTS]),
        "a.txt": "##".join(UTF16_TEXTS),
        "a.csv": f"n,text\n{table}",
    }.items():
        encoded = f"\ufeff{content}".encode(mark)
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(encoded) if packed else encoded)
        cut = list(read(path, separator="##"))
        assert texts(path, separator="##") == UTF16_TEXTS
        for index, (position, _) in enumerate(cut):
            rest = [one for _, found in read(path, position, separator="##") for one in found]
            assert rest == [one for _, found in cut[index:] for one in found]
        _, notes = find_text_files([str(path)], leave_out=Path("nowhere"))
        assert notes == [f"{path} is UTF-16, and read as that"]


def test_what_is_no_utf16_behind_a_mark_is_a_bad_document(tmp_path: Path) -> None:
    content = "\ufeffone\n\ud83dtwo\nthree".encode("utf-16-le", "surrogatepass")
    (tmp_path / "a.txt").write_bytes(content + b"x")
    one, two, three = texts(tmp_path / "a.txt", separator="\n")
    assert one == "one"
    assert two == BadDocument(0, 2, "invalid UTF-8 at byte 0 of the document")
    assert three == BadDocument(0, 3, "invalid UTF-8 at byte 5 of the document")


def test_pointers_of_git_lfs_and_what_is_packed_twice_are_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("a.parquet", "a.jsonl", "a.txt.gz"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(QuinticError, match=rf"{name} is a pointer of Git LFS .*: git lfs pull"):
            texts(tmp_path / name)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(gzip.compress(b'{"text": "a"}')))
    with pytest.raises(QuinticError, match=r"is packed twice, by gzip within: unpack it once"):
        texts(tmp_path / "a.jsonl.gz")


def test_zeros_in_text_are_text(tmp_path: Path) -> None:
    for index, text in enumerate(["a\0", "\0\0\0", "\0a" + "b" * 9, "one\0two"]):
        (tmp_path / f"{index}.txt").write_text(text)
    assert texts(tmp_path) == ["a\0", "\0\0\0", "\0a" + "b" * 9, "one\0two"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_zeros_of_a_crash_are_named(tmp_path: Path, name: str) -> None:
    line = json.dumps({"text": "one"}).encode() + b"\n"
    for content in (bytes(5000), line * 2 + bytes(3000)):
        (tmp_path / name).write_bytes(content)
        bad = texts(tmp_path / name)[-1]
        assert isinstance(bad, BadDocument)
        assert bad.reason.startswith("zeros (NUL) instead of text: ")
    parquet.write_table(pyarrow.table({"text": ["\0" * 99]}), tmp_path / "b.parquet")
    (bad,) = texts(tmp_path / "b.parquet")
    assert isinstance(bad, BadDocument)


# What cannot be read -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten", "other", "empty"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    FORMATS[name](path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-20:]
    elif damage == "overwritten":
        middle = len(content) // 2
        content[middle : middle + 40] = bytes(255 - byte for byte in content[middle : middle + 40])
    elif damage == "other":
        content[:] = b"This is neither packed nor parquet." * 10
    else:
        content.clear()
    path.write_bytes(content)
    if damage == "empty" and name != "a.parquet":
        assert texts(path) == []
        return
    with pytest.raises(QuinticError, match=f"{name} (is damaged|is truncated|cannot be read as)"):
        texts(path)


def test_zeros_behind_a_packed_stream_are_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json.gz"
    write_lines(path)
    path.write_bytes(path.read_bytes() + bytes(500))
    for read_bytes in (1 << 15, 100):
        monkeypatch.setattr(chunks, "_UNPACK_BYTES", read_bytes)
        assert texts(path) == TEXTS


def test_column_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet")
    with pytest.raises(QuinticError, match=r"no column 'body', it has id, text: .*--field"):
        texts(tmp_path / "a.parquet", field="body")
    with pytest.raises(QuinticError, match=r"has int64 in its column 'id', not text: .*--field"):
        texts(tmp_path / "a.parquet", field="id")


def test_document_too_long_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_DOCUMENT_BYTES", 1 << 20)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 10)
    path = tmp_path / "a.txt"
    path.write_bytes(b"some text\n" * 200_000)
    with pytest.raises(QuinticError, match=r"a\.txt holds a document of more than 1 MiB.*--sep"):
        texts(path)
    assert len(texts(path, separator="\n")) == 200_000


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def denied(self: Path, *arguments: object) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(QuinticError, match=r"a\.jsonl cannot be read \(Permission denied\)"):
        texts(path)


def test_reading_does_not_hold_the_input(tmp_path: Path) -> None:
    lines = [json.dumps({"text": os.urandom(2500).hex()}).encode() + b"\n" for _ in range(1000)]
    packer = zstandard.ZstdCompressor()
    with (tmp_path / "a.jsonl.zst").open("wb") as file:
        for _ in range(12):
            file.write(packer.compress(b"".join(lines)))
    found, _ = find_text_files([str(tmp_path)], leave_out=Path("nowhere"))
    tracemalloc.start()
    read_bytes = sum(chunk.size for chunk in read_chunks(found, DocumentFormat("text", None)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read_bytes == 12_000 * len(lines[0]) > 60_000_000
    assert peak < 15_000_000


# Arguments ---------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in [
        "b.txt",
        "a/z.jsonl",
        "a/c.md",
        "B/x.parquet",
        ".git/hidden.txt",
        "a/.hidden.txt",
        "picture.png",
        "a/settings.json",
        "out/d.txt",
        "archive.parquet.gz",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r")
    (tmp_path / "archive.parquet.gz").write_bytes(gzip.compress(b"PAR1\x15\4\0PAR1"))
    return tmp_path


def names(root: Path, *inputs: str) -> list[str]:
    found, _ = find_text_files([str(root / name) for name in inputs], leave_out=root / "out")
    return [os.path.relpath(file.name, root) for file in found]


def test_folders_are_searched_by_name_without_hidden_files_and_the_output(tree: Path) -> None:
    assert names(tree, ".") == ["B/x.parquet", "a/c.md", "a/z.jsonl", "b.txt"]
    _, notes = find_text_files([str(tree)], leave_out=tree / "out")
    assert notes == [
        f"{tree}: 3 files of other kinds left out: 1 .json (settings.json), 1 .gz "
        f"(archive.parquet.gz), 1 .png (picture.png)"
    ]


def test_arguments_keep_their_order_and_a_file_counts_once(tree: Path) -> None:
    assert names(tree, "b.txt", "a", "b.txt", "*") == [
        "b.txt",
        "a/c.md",
        "a/z.jsonl",
        "B/x.parquet",
    ]
    assert names(tree, "a/settings.json") == ["a/settings.json"]


def test_empty_files_of_folders_and_patterns_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    for name in ("b.txt", "c.parquet", "d.jsonl"):
        (tmp_path / name).touch()
    for argument, count in ((tmp_path, "3 empty files"), (tmp_path / "[ab].txt", "1 empty file")):
        found, notes = find_text_files([str(argument)], leave_out=Path("nowhere"))
        assert [file.path.name for file in found] == ["a.txt"]
        assert notes == [f"{argument}: {count} left out"]
    assert texts(tmp_path) == ["one"]


def test_what_is_no_file_is_a_bad_document(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "a.txt").symlink_to("absent.txt")
    (tmp_path / "c.parquet").symlink_to("c.parquet")
    os.mkfifo(tmp_path / "d.jsonl")  # reading it would wait for ever
    reason = "a broken link, or no regular file"
    cut = list(read(tmp_path))
    assert cut == list(read(tmp_path / "?.*"))
    assert [found for _, documents in cut for found in documents] == [
        BadDocument(0, 1, reason),
        (1, "one"),
        BadDocument(2, 1, reason),
        BadDocument(3, 1, reason),
    ]
    for index, (position, _) in enumerate(cut):
        assert list(read(tmp_path, position)) == cut[index:]


def test_patterns(tree: Path) -> None:
    assert names(tree, "**/*.md") == ["a/c.md"]
    assert names(tree, "?/*") == ["B/x.parquet", "a/c.md", "a/z.jsonl"]
    (tree / "odd[1].txt").write_text("x")
    assert names(tree, "odd[1].txt") == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("absent.txt", "absent.txt does not exist: name files"),
        ("*.csv", r"\*\.csv does not exist"),
        ("*.png", r"\*\.png holds nothing that can be read"),
        ("picture.png", "picture.png is of no kind that can be read: there are .txt, .md"),
        ("archive.parquet.gz", "is packed parquet, and a table is read from its end: unpack it"),
    ],
)
def test_arguments_that_name_nothing(tree: Path, argument: str, message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        names(tree, argument)


def test_a_pipe_and_an_empty_argument_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(QuinticError, match=r"a\.jsonl is a pipe or a device.*data build - < "):
        find_text_files([str(tmp_path / "a.jsonl")], leave_out=Path("nowhere"))
    with pytest.raises(QuinticError, match="an input is empty"):
        find_text_files([""], leave_out=Path("nowhere"))


def test_names_of_columns_are_shown_in_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"a\nb", text,' + "x" * 500 + ",c" * 20 + "\n")
    with pytest.raises(QuinticError) as error:
        texts(tmp_path / "a.csv")
    assert rf"names them ('a\nb', ' text', {'x' * 57}..., c, c, c, c, c, c, c, ...)" in str(
        error.value
    )
    (tmp_path / "a.jsonl").write_text('{"a\\nb": "c"}\n')
    bad = texts(tmp_path / "a.jsonl")[0]
    assert isinstance(bad, BadDocument)
    assert bad.reason.endswith(r"there are 'a\nb'")
    (tmp_path / "b.csv").write_text("id;text\n")
    with pytest.raises(QuinticError, match="seems to have ';' between columns, which is to be ','"):
        texts(tmp_path / "b.csv")
