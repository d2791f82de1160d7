"""Kinds of files besides text, JSON and parquet: packed, delimited, Arrow, WARC, standard input."""

import base64
import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pytest
import zstandard
from pyarrow import feather, ipc, parquet

from quintic.data.build import chunks
from quintic.data.build.documents import BadDocument, documents
from quintic.data.build.inputs import find_text_files
from quintic.data.build.sources import packing
from quintic.data.build.text_files import KINDS, PACKED_SUFFIXES, READABLE, FileKind
from quintic.data.tokens.find import find_tokens
from quintic.errors import QuinticError
from tests.data.reading import read, texts

TEXTS = [f'Document "{n}",\n\tâ, 漢 and 🙂.\r\n' * (1 + n % 5) for n in range(60)]
TABLE = pyarrow.table({"id": list(range(60)), "text": TEXTS, "m": [{"c": text} for text in TEXTS]})
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def in_frames(pack: Callable[[bytes], bytes]) -> bytes:
    """The lines as parallel packers write them."""
    return b"".join(pack(LINES[start : start + 999]) for start in range(0, len(LINES), 999))


def write_stream(path: Path) -> None:
    with ipc.new_stream(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=17)


def write_file(path: Path) -> None:
    with ipc.new_file(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=17)


def write_csv(path: Path, delimiter: str = ",", pack: Callable[[bytes], bytes] = bytes) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "text", "rest"])
    writer.writerows((n, value, "") for n, value in enumerate(TEXTS))
    path.write_bytes(pack(text.getvalue().encode()))


def warc_record(kind: str, content: bytes, **headers: str) -> bytes:
    lines = {"WARC-Type": kind, "Content-Length": str(len(content)), **headers}
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + content + b"\r\n\r\n"


WARC = [
    warc_record("warcinfo", b"Software-Info: x\r\n"),
    *(warc_record("conversion", text.encode(), WARC_Target_URI="http://a") for text in TEXTS),
]

WRITERS: dict[str, Callable[[Path], object]] = {
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "a.jsonlines": lambda path: path.write_bytes(LINES),
    "a.jl": lambda path: path.write_bytes(LINES),
    "a.jsonl.zstd": lambda path: path.write_bytes(in_frames(zstandard.compress)),
    "a.jsonl.xz": lambda path: path.write_bytes(in_frames(lzma.compress) + bytes(8)),
    "a.jsonl.bz2": lambda path: path.write_bytes(in_frames(bz2.compress)),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.csv.gz": lambda path: write_csv(path, pack=gzip.compress),
    "stream.arrow": write_stream,
    "file.arrow": write_file,
    "a.feather": lambda path: feather.write_feather(TABLE, path, chunksize=17),
    "a.wet": lambda path: path.write_bytes(b"".join(WARC)),
    "a.warc.wet.gz": lambda path: path.write_bytes(b"".join(map(gzip.compress, WARC))),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("chunk_bytes", [1, 700, 1 << 20])
def test_every_kind_gives_the_documents_whatever_the_size_of_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int
) -> None:
    WRITERS[name](tmp_path / name)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", 100)
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 1000)
    assert texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_reading_goes_on_from_every_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    WRITERS[name](tmp_path / name)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", 100)
    cut = list(read(tmp_path / name))
    assert len(cut) > 3
    for index, (position, _) in enumerate(cut):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 100 + 50 * index)
        rest = [document for _, found in read(tmp_path / name, position) for document in found]
        assert rest == [document for _, found in cut[index:] for document in found]


@pytest.mark.parametrize("name", list(WRITERS)[3:])
def test_damaged_files_are_refused_or_counted_and_never_a_traceback(
    tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    draw = random.Random(3)
    refused = 0
    for _ in range(12):
        broken = bytearray(content[: draw.randint(1, len(content) - 1)])
        for _ in range(draw.randint(0, 5)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        (tmp_path / name).write_bytes(broken)
        try:
            found = texts(tmp_path / name)
            assert len([text for text in found if isinstance(text, str)]) <= len(TEXTS)
        except QuinticError as error:
            refused += 1
            assert name in str(error)
            assert "\n" not in str(error)
    assert refused >= (0 if ".csv" in name or ".tsv" in name else 6)


# Packed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "really"),
    [(".jsonl", "a.jsonl.xz"), (".txt.gz", "a.jsonl.bz2"), (".jsonl.gz", "a.jsonl.zstd")],
)
def test_packing_is_known_by_the_first_bytes_and_said(
    tmp_path: Path, named: str, really: str
) -> None:
    WRITERS[really](tmp_path / f"b{named}")
    _, notes = find_text_files([str(tmp_path)], leave_out=Path("nowhere"))
    assert len(notes) == 1
    assert notes[0].startswith(f"{tmp_path}/b{named} is packed by ")
    assert texts(tmp_path) == (TEXTS if "jsonl" in named else [LINES.decode()])


@pytest.mark.parametrize("named", ["b.jsonl", "b.txt.gz", "b.arrow"])
def test_parquet_is_known_by_its_bytes_and_said(tmp_path: Path, named: str) -> None:
    parquet.write_table(TABLE, tmp_path / named)
    _, notes = find_text_files([str(tmp_path / named)], leave_out=Path("nowhere"))
    assert notes == [f"{tmp_path / named} is parquet and read as that"]
    assert texts(tmp_path / named) == TEXTS
    (tmp_path / named).write_bytes(gzip.compress(LINES))
    if named == "b.arrow":
        with pytest.raises(QuinticError, match=r"b\.arrow is packed by gzip, .*: unpack it first"):
            texts(tmp_path / named)


def test_text_that_begins_like_a_table_or_packed_is_text(tmp_path: Path) -> None:
    begun = ["PAR1 is a gene", "BZh9 and more", "ARROW1", "BZ", "PK", "x" * 257 + "ustar"]
    for index, text in enumerate(begun):
        (tmp_path / f"{index}.txt").write_text(text)
    assert texts(tmp_path) == begun


@pytest.mark.parametrize(
    ("name", "way"), [("a.jsonl.gz", "gzip"), ("a.txt.zst", "zstd"), ("a.txt.xz", "xz")]
)
def test_packed_by_name_only_is_said(tmp_path: Path, name: str, way: str) -> None:
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(QuinticError) as caught:
        texts(tmp_path / name)
    assert str(caught.value) == (
        f"input {tmp_path / name} cannot be read as {way}: it begins with "
        f'b\'{{"text": "Docume\': rename it if it is not packed'
    )


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lzma.compress])
def test_blank_lines_that_pack_well_are_read_in_small_blocks(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(pack(b"\n" * (24 << 20) + LINES))
    found, _ = find_text_files([str(tmp_path)], leave_out=Path("nowhere"))
    tracemalloc.start()
    read_bytes = 0
    for chunk in chunks.read_chunks(found, chunks.DocumentFormat("text", None)):
        read_bytes += chunk.size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read_bytes == (24 << 20) + len(LINES)
    assert peak < 16 << 20


def test_every_form_of_zstd_and_each_way_to_be_cut_short(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(300_000) + b"\n" * 700_000
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    skipped = b"\x5a\x2a\x4d\x18\3\0\0\0abc"
    summed = b"".join([stream.compress(content), stream.flush()])
    frames = [skipped, summed, b"", zstandard.compress(b"few"), unsized.compress(content), skipped]
    path, expected = tmp_path / "a", content + b"few" + content
    for read_bytes, between in ((1 << 15, b""), (7, bytes(9))):
        path.write_bytes(between.join(frames))
        with path.open("rb") as file:
            found = list(packing.unpacked(file, ".zst", "a", 9, read_bytes))
        assert b"".join(found) == expected
        assert max(map(len, found)) == 1 << 17
    for end in (3, 5, 10, len(skipped) + 3, len(skipped) + 5, len(skipped) + len(summed) - 1):
        path.write_bytes(b"".join(frames)[:end])
        with path.open("rb") as file, pytest.raises(QuinticError, match=r"is truncated|be read as"):
            list(packing.unpacked(file, ".zst", "a", 9, 1 << 15))
    path.write_bytes(bytes(500))
    with path.open("rb") as file, pytest.raises(QuinticError, match="cannot be read as zstd"):
        list(packing.unpacked(file, ".zst", "a", 9, 1 << 15))


def test_zstd_dictionary_is_named(tmp_path: Path) -> None:
    samples: list[Any] = [json.dumps({"text": f"{n} some words"}).encode() for n in range(3000)]
    dictionary = zstandard.train_dictionary(2000, samples)
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(LINES))
    with pytest.raises(QuinticError, match=r"packed with a dictionary .*: unpack it with zstd"):
        texts(tmp_path / "a.jsonl.zst")


def zipped(name: str) -> bytes:
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr(name, LINES)
    return packed.getvalue()


def tarred(mode: Literal["w", "w:gz"], name: str = "a.jsonl") -> bytes:
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode=mode) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", zipped("a.jsonl"), "zip"),
        ("a.jsonl", zipped("a.jsonl"), "zip"),
        ("a.csv", tarred("w"), "tar"),
        ("a.txt", tarred("w", "n" * 100), "tar"),
        ("a.jsonl.gz", tarred("w:gz"), "tar"),
        ("a.jsonl", tarred("w:gz"), "tar"),
        ("a.txt", b"7z\xbc\xaf\x27\x1c\0\4", "7z"),
    ],
)
def test_archive_is_one_bad_document(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    why = f"a {kind} archive: unpack it and name what is in it"
    assert texts(tmp_path / name) == [BadDocument(0, 1, why)]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_archive_in_the_place_of_a_table_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(zipped(name))
    with pytest.raises(QuinticError, match=rf"{name} is a zip archive: unpack it and name what"):
        texts(tmp_path)


# Tables ------------------------------------------------------------------------------------------


def test_encrypted_parquet_is_named(tmp_path: Path) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[name-defined]
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return base64.b64encode(key_bytes)

    properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration("footer", column_keys={"column": ["text"]}),
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(TABLE, path, encryption_properties=properties)
    for reader in (texts, find_tokens):
        with pytest.raises(QuinticError, match=r"a\.parquet is encrypted parquet: write it anew"):
            reader(path)


def test_parquet_with_a_signature_behind_its_metadata_is_encrypted(tmp_path: Path) -> None:
    """A file that is not, with room for a signature: only our own guard is asked."""
    path = tmp_path / "a.parquet"
    parquet.write_table(TABLE, path)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:-8] + bytes(28) + (length + 28).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(QuinticError, match=r"a\.parquet is encrypted parquet: write it anew"):
        texts(path)


def test_arrow_columns_are_those_of_parquet(tmp_path: Path) -> None:
    write_stream(tmp_path / "a.arrow")
    assert texts(tmp_path / "a.arrow", field="m.c") == TEXTS
    with pytest.raises(QuinticError, match=r"a\.arrow has no column 'body', it has id, text, m"):
        texts(tmp_path / "a.arrow", field="body")
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(QuinticError, match=r"a\.feather is Feather version 1: write it again with"):
        texts(tmp_path / "a.feather")


def test_folders_of_datasets(tmp_path: Path) -> None:
    """As save_to_disk and the cache of datasets lay them out."""
    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        for name in ("dataset_info.json", "state.json"):
            (tmp_path / "saved" / split / name).write_text("{}")
        write_stream(tmp_path / "saved" / split / "data-00000-of-00001.arrow")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write_stream(tmp_path / "saved" / "train" / "cache-0123abc.arrow")
    assert texts(tmp_path / "saved") == TEXTS
    _, notes = find_text_files([str(tmp_path / "saved")], leave_out=Path("nowhere"))
    assert notes == [
        f"{tmp_path}/saved is a DatasetDict: only its split train is read, not test",
        f"{tmp_path}/saved: 4 files of other kinds left out: 3 .json (dataset_dict.json), "
        f"1 .arrow (cache-0123abc.arrow)",
    ]
    assert texts(tmp_path / "saved" / "test") == TEXTS


def test_bad_rows_of_a_table_of_text(tmp_path: Path) -> None:
    rows = ["text,id", "one,1", "", "two", "three,3,4", '"fo"ur,4', "\xff,5", '" ",6', '"open,7']
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode("latin-1"))
    assert texts(tmp_path / "a.csv") == [
        "one",
        BadDocument(0, 3, "has 1 columns, the first row names 2"),
        BadDocument(0, 4, "has 3 columns, the first row names 2"),
        BadDocument(0, 5, "broken row (',' expected after '\"')"),
        BadDocument(0, 6, "invalid UTF-8 at byte 0 of the document"),
        BadDocument(0, 7, "empty document"),
        BadDocument(0, 8, "broken row (unexpected end of data)"),
    ]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("id,body", r"has no column 'text' in its first row, which names them \(id, body\): name"),
        ("text,text", "has 2 columns 'text' in its first row"),
        ('"te"xt,id', "a.csv:1 names no columns: broken row"),
    ],
)
def test_columns_that_are_not_named(tmp_path: Path, first: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"{first}\n1,2\n")
    with pytest.raises(QuinticError, match=message):
        texts(tmp_path / "a.csv")


def test_row_of_text_too_long_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "a.csv").write_text('text\n"' + "xxxx\n" * 500 + '"\ngood\n')
    with pytest.raises(QuinticError, match=r"a\.csv holds a column of more than 0 MiB"):
        texts(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text\n" + "x" * 5000 + "\ngood\n")
    with pytest.raises(QuinticError, match=r"a\.csv holds a line of more than 0 MiB"):
        texts(tmp_path / "a.csv")
    long = [warc_record("conversion", b"x" * 5000), warc_record("conversion", b"good")]
    (tmp_path / "a.wet").write_bytes(b"".join(long))
    assert texts(tmp_path / "a.wet") == [BadDocument(0, 1, "a text of more than 0 MiB"), "good"]
    csv.field_size_limit(1 << 28)


def test_tables_of_text_and_bare_json_are_read_if_they_are_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.json").write_text('[{"text": "two"}]')
    assert texts(tmp_path) == texts(tmp_path / "*") == ["one"]
    assert texts(tmp_path / "*.csv") == texts(tmp_path / "a.csv") == TEXTS
    assert texts(tmp_path / "*.json") == ["two"]


# WARC --------------------------------------------------------------------------------------------


def test_warc_without_text_says_what_it_has(tmp_path: Path) -> None:
    records = [warc_record("response", b"<html>"), warc_record("metadata", b"a: b")]
    (tmp_path / "a.warc").write_bytes(b"".join([*records, records[0]]))
    assert texts(tmp_path / "a.warc") == [
        BadDocument(
            *(0, 1, "no text, which is of the type conversion (.wet), but 2 response, 1 metadata")
        )
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WARC[1][:-30], r"is truncated: it ends \d+ bytes before its record that begins at byte 0"),
        (WARC[1] + b"HTTP/1.1 200\r\n\r\n", r"no record of a WARC file begins at its byte \d+"),
        (b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\n", "no record of a WARC file begins at its "),
    ],
)
def test_damaged_warc(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.wet").write_bytes(content)
    with pytest.raises(QuinticError, match=message):
        texts(tmp_path / "a.wet")


# Names that do not say it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("part-0001.zst", lambda path: path.write_bytes(zstandard.compress(LINES)), "JSON"),
        ("data.gz", lambda path: path.write_bytes(gzip.compress(LINES)), "JSON"),
        ("part-00000", lambda path: path.write_bytes(LINES), "JSON"),
        ("wide", lambda path: path.write_bytes(LINES.decode().encode("utf-16")), "JSON of UTF-16"),
        ("pages.bz2", lambda path: path.write_bytes(bz2.compress(b"".join(WARC))), "WARC"),
        ("rows", lambda path: parquet.write_table(TABLE, path), "parquet"),
        ("batches", write_file, "Arrow"),
    ],
)
def test_content_says_what_a_name_does_not(
    tmp_path: Path, name: str, write: Callable[[Path], object], words: str
) -> None:
    write(tmp_path / name)
    (tmp_path / "LICENSE").write_text("some words")
    (tmp_path / "settings").write_text('{\n  "text": "no document"\n}\n')
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"some words"))
    parquet.write_table(TABLE, tmp_path / "_metadata")
    note = f"{tmp_path / name} is read as {words}, which its name does not say"
    _, notes = find_text_files([str(tmp_path / name)], leave_out=Path("nowhere"))
    assert notes == [note]
    _, notes = find_text_files([str(tmp_path)], leave_out=Path("nowhere"))
    assert notes == [
        f"{tmp_path}: 4 files of other kinds left out: 3 without a suffix (LICENSE), 1 .gz "
        f"(notes.gz)",
        note,
    ]
    assert texts(tmp_path / name) == texts(tmp_path) == TEXTS


@pytest.mark.parametrize("name", ["notes", "notes.gz", "notes.rst"])
@pytest.mark.parametrize("text", ["some words", "[Verse 1]\nwords", "{words}"])
def test_text_of_no_known_name_is_read_where_it_is_named_itself(
    tmp_path: Path, name: str, text: str
) -> None:
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    _, notes = find_text_files([str(tmp_path / name)], leave_out=Path("nowhere"))
    assert notes == [f"{tmp_path / name} is read as text, which its name does not say"]
    assert texts(tmp_path / name) == [text]
    with pytest.raises(QuinticError, match="holds nothing that can be read"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x05\x95\x10\0\0\0\0\0\0\0\x8c", "is of no kind that can be read: there are .txt,"),
        (b"", "is of no kind that can be read"),
        (zipped("a"), "is a zip archive: unpack it and name what is in it"),
        ("some words of a text".encode("utf-16-le"), "is UTF-16LE and not UTF-8"),
        # With a time of its own it would name the test otherwise in each process that collects it.
        (
            gzip.compress(b"PAR1\x15\4\0PAR1", mtime=0),
            "is packed parquet, and a table is read from its end",
        ),
    ],
)
def test_what_is_no_text_is_not_taken_for_it(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(QuinticError, match=message):
        texts(tmp_path / "data")


def test_what_can_be_read_is_listed_whole() -> None:
    assert {*re.findall(r"\.\w+", READABLE)} == {*KINDS, *PACKED_SUFFIXES}


@pytest.mark.parametrize("kind", ["csv", "tsv", "warc", "lines", "text"])
def test_kind_is_named_where_nothing_else_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FileKind
) -> None:
    delimiter = "\t" if kind == "tsv" else ","
    write_csv(tmp_path / "rows.csv", delimiter)
    content, expected = (tmp_path / "rows.csv").read_bytes(), TEXTS
    if kind in ("warc", "lines"):
        content = b"".join(WARC) if kind == "warc" else LINES
    elif kind == "text":
        content, expected = LINES, [LINES.decode()]
    (tmp_path / "part-1.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    for argument in ("-", str(tmp_path / "part-1.gz"), str(tmp_path / "part*"), str(tmp_path)):
        (tmp_path / "rows.csv").unlink(missing_ok=True)
        files, _ = find_text_files([argument], Path("nowhere"), kind)
        format = chunks.DocumentFormat("text", None)
        read_chunks = chunks.read_chunks(files, format)
        found = [document for chunk in read_chunks for document in documents(chunk, format)]
        assert [getattr(document, "text", document) for document in found] == expected
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(
        QuinticError, match="--kind is for standard input and for files whose names"
    ):
        find_text_files([str(tmp_path / "a.jsonl")], Path("nowhere"), kind)


# Standard input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LINES, "JSON"),
        (zstandard.compress(LINES), "JSON"),
        (b"\xef\xbb\xbf\n" + json.dumps([{"text": text} for text in TEXTS]).encode(), "JSON"),
        ("##".join(TEXTS).encode(), "text"),
        ("##".join(TEXTS).encode("utf-16"), "text of UTF-16"),
        (LINES.decode().encode("utf-16"), "JSON of UTF-16"),
        (b"".join(WARC), "WARC"),
        (None, "parquet"),
    ],
)
def test_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, kind: str
) -> None:
    if content is None:
        parquet.write_table(TABLE, tmp_path / "a.parquet")
        content = (tmp_path / "a.parquet").read_bytes()
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert texts("-", separator="##") == TEXTS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    files, notes = find_text_files(["-", "-"], leave_out=Path("nowhere"))
    assert [(file.name, file.size) for file in files] == [("standard input", len(content))]
    assert notes == [f"standard input is read as {kind}"]


@pytest.mark.parametrize(("stdin", "what"), [(None, "closed"), (io.BytesIO(), "empty")])
def test_standard_input_without_text(
    monkeypatch: pytest.MonkeyPatch, stdin: Any, what: str
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin and io.TextIOWrapper(stdin))
    with pytest.raises(QuinticError, match=f"standard input is {what}: pipe the text in"):
        texts("-")


def test_offsets_of_an_arrow_file_that_go_back_are_not_followed(tmp_path: Path) -> None:
    ends = pyarrow.py_buffer(struct.pack("<4i", 0, 6, 3, 9))
    text = pyarrow.StringArray.from_buffers(3, ends, pyarrow.py_buffer(b"some text"))
    kind = pyarrow.list_(pyarrow.string())
    lists = pyarrow.Array.from_buffers(kind, 3, [None, ends], children=[pyarrow.array(["a"] * 9)])
    table = pyarrow.table({"text": text, "lists": lists})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for options in ({}, {"field": "lists", "messages": "{content}"}):
        with pytest.raises(QuinticError, match=r"a\.arrow cannot be read as Arrow \(ArrowInvalid"):
            texts(tmp_path / "a.arrow", **options)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_text_that_is_no_utf8_is_one_bad_row_and_of_a_message_ends_the_build(
    tmp_path: Path, suffix: str
) -> None:
    wrong = pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string())
    messages = pyarrow.ListArray.from_arrays([0, 3], wrong)
    for name, column in (("text", wrong), ("messages", messages)):
        table = pyarrow.table({name: column})
        if suffix == ".parquet":
            parquet.write_table(table, tmp_path / f"{name}{suffix}")
            continue
        with ipc.new_stream(tmp_path / f"{name}{suffix}", table.schema) as writer:
            writer.write_table(table)
    one, bad, two = texts(tmp_path / f"text{suffix}")
    assert (one, two) == ("one", "two")
    assert isinstance(bad, BadDocument)
    assert bad.reason == "invalid UTF-8 at byte 0 of the document"
    with pytest.raises(QuinticError, match=r"cannot be read as .*Invalid UTF8 sequence"):
        texts(tmp_path / f"messages{suffix}", field="messages", messages="{content}")


def test_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(TABLE, path, row_group_size=20, compression="zstd")
    column = parquet.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin : begin + 300] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(
        QuinticError,
        match=r"a\.parquet cannot be read as parquet in its row group 1, counted from 0, of 3 \(",
    ):
        texts(path)


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.list_view(pyarrow.string()),
        pyarrow.large_list_view(pyarrow.string()),
        pyarrow.list_(pyarrow.string(), 2),
    ],
)
def test_lists_of_every_layout_hold_messages(tmp_path: Path, kind: Any) -> None:
    table = pyarrow.table({"messages": pyarrow.array([["a", "b"], ["c", "d"]], kind)})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    found = texts(tmp_path / "a.arrow", field="messages", messages="{content}|")
    assert found == ["a|b|", "c|d|"]
