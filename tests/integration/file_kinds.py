"""Files as their real writers write them, and what quintic makes of each.

The table in docs/data.md is printed by `python -m tests.integration.file_kinds`, where these are
installed: pyarrow pandas polars duckdb fastparquet datasets zstandard warcio datatrove litdata
megatron-core mosaicml-streaming.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib
import importlib.metadata
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.build.documents import BadDocument
from quintic.data.dataset import open_dataset
from quintic.data.tokens.import_tokens import ImportSettings, import_tokens
from quintic.errors import QuinticError
from tests.data.reading import texts

TEXTS = [
    f'Text {n}: "Zwölf", Äpfel\n\tand 漢字 🙂, <|endoftext|>\r\nend' * (1 + n % 3)
    for n in range(200)
]
REPLY = "a reply"
EOT = 0
DRAW = np.random.default_rng(5)
IDS = [DRAW.integers(1, 300, DRAW.integers(2, 60)).tolist() for _ in range(200)]


class Case(NamedTuple):
    """A file or folder that a package writes under a name, in words; and either how it is read,
    with the options of `quintic data build`, or None for `quintic data import`, or a part of the
    line that refuses it."""

    package: str
    name: str
    words: str
    write: Callable[[Path], object]
    options: dict[str, str] | None = {}  # noqa: RUF012
    refused: str = ""


def _table(**columns: Any) -> Any:
    import pyarrow

    return pyarrow.table(columns or {"id": list(range(len(TEXTS))), "text": TEXTS})


def _cast(kind: str) -> Any:
    import pyarrow

    made = {
        "string_view": pyarrow.string_view,
        "binary_view": pyarrow.binary_view,
        "large_string": pyarrow.large_string,
        "category": lambda: pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "JSON": lambda: pyarrow.json_(pyarrow.string()),
    }
    values = list(map(json.dumps, TEXTS)) if kind == "JSON" else TEXTS
    return _table(text=pyarrow.array(values).cast(made[kind]()))


def _parquet(table: Callable[[], Any], **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        from pyarrow import parquet

        parquet.write_table(table(), path, **options)

    return write


def _ipc(form: str, compression: str | None = None) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        from pyarrow import ipc

        options = ipc.IpcWriteOptions(compression=compression)
        with getattr(ipc, f"new_{form}")(path, _table().schema, options=options) as writer:
            writer.write_table(_table(), max_chunksize=70)

    return write


def _two_columns_of_one_name() -> Any:
    import pyarrow

    return pyarrow.Table.from_arrays([pyarrow.array(TEXTS)] * 2, names=["text", "text"])


CHAT = (
    f"[{{'role': 'user', 'content': text}}, {{'role': 'assistant', 'content': '{REPLY}'}}]"
    f" as messages"
)


def _chats() -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": text}, {"role": "assistant", "content": REPLY}]
        for text in TEXTS
    ]


MESSAGES = {"field": "messages", "messages": "{content}|"}
NESTED = {"field": "message.content"}


def _frame(package: str, **columns: Any) -> Any:
    frames = {"pandas": "DataFrame", "polars": "DataFrame"}
    made = columns or {"id": list(range(len(TEXTS))), "text": TEXTS}
    return getattr(importlib.import_module(package), frames[package])(made)


def _by(package: str, method: str, *arguments: Any, **options: Any) -> Callable[[Path], object]:
    """The method of a frame of the texts that writes a file."""
    return lambda path: getattr(_frame(package), method)(str(path), *arguments, **options)


def _polars_categories(path: Path) -> None:
    import polars

    _frame("polars").cast({"text": polars.Categorical}).write_parquet(path, compression="lz4")


def _polars_views(path: Path) -> None:
    import polars

    _frame("polars").write_ipc(path, compat_level=polars.CompatLevel.newest())


def _duckdb(options: str = "", select: str = "id, text") -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import duckdb

        connection = duckdb.connect()
        connection.execute("create table t (id integer, text varchar)")
        connection.executemany("insert into t values (?, ?)", [*enumerate(TEXTS)])
        connection.execute(f"copy (select {select} from t order by id) to '{path}' {options}")

    return write


def _fastparquet(**options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import fastparquet

        frame = _frame("pandas").astype({"text": object})
        if options.get("object_encoding") == {"text": "bytes"}:
            frame["text"] = [text.encode() for text in TEXTS]
        fastparquet.write(str(path), frame, **options)

    return write


def _datasets(method: str, *arguments: Any, **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        getattr(_dataset(), method)(str(path), *arguments, **options)

    return write


def _dataset(**columns: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns or {"id": list(range(len(TEXTS))), "text": TEXTS})


def _dataset_dict(path: Path) -> None:
    import datasets

    splits = {"train": _dataset(), "test": _dataset(text=["a text of the test"])}
    datasets.DatasetDict(splits).save_to_disk(str(path))


def _dataset_views(path: Path) -> None:
    import datasets

    _dataset().cast_column("text", datasets.Value("string_view")).save_to_disk(str(path))


def _lines(texts: list[str] = TEXTS) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def _packed(pack: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(pack(_lines()))


def _zstd(**options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import zstandard

        made = zstandard.ZstdCompressionParameters.from_level(3, **options)
        compressor = zstandard.ZstdCompressor(compression_params=made)
        with path.open("wb") as file, compressor.stream_writer(file) as writer:
            writer.write(_lines())

    return write


def _zstd_dictionary(path: Path) -> None:
    import zstandard

    samples: list[Any] = [text.encode() for text in TEXTS] * 20
    made = zstandard.train_dictionary(4000, samples)
    path.write_bytes(zstandard.ZstdCompressor(dict_data=made).compress(_lines()))


def _frames(path: Path) -> None:
    import zstandard

    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    parts = (zstandard.compress(_lines(TEXTS[start : start + 50])) for start in range(0, 200, 50))
    path.write_bytes(skipped + b"".join(parts))


def _csv(path: Path, **options: Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, **options).writerows([["id", "text"], *enumerate(TEXTS)])


def _warc(kind: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        from warcio.warcwriter import WARCWriter

        with path.open("wb") as file:
            writer = WARCWriter(file, gzip=path.suffix == ".gz")
            writer.write_record(writer.create_warcinfo_record("a", {"software": "x"}))
            for text in TEXTS:
                content = io.BytesIO(text.encode())
                if kind == "response":
                    content = io.BytesIO(b"HTTP/1.1 200 OK\r\n\r\n" + content.read())
                writer.write_record(
                    writer.create_warc_record("http://a.org/", kind, payload=content)
                )

    return write


def _litdata(kind: str, **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import torch
        from litdata import TokensLoader
        from litdata.streaming.writer import BinaryWriter

        loader = {} if kind == "items" else {"item_loader": TokensLoader()}
        writer = BinaryWriter(str(path), chunk_bytes=1 << 12, **loader, **options)
        for index, ids in enumerate(IDS):
            writer[index] = (
                torch.tensor(ids) if kind == "tensor" else np.array(ids, np.dtype("uint16"))
            )
        writer.done()
        writer.merge()

    return write


def _mds(encoding: str = "ndarray:uint16", compression: str | None = None) -> Any:
    def write(path: Path) -> None:
        from streaming import MDSWriter

        columns = {"tokens": encoding, "id": "int"}
        with MDSWriter(
            out=str(path), columns=columns, compression=compression, size_limit=1 << 12
        ) as writer:
            for index, ids in enumerate(IDS):
                array = np.array(ids, np.uint16)
                value = array.tobytes() if encoding == "bytes" else array
                writer.write({"tokens": value, "id": index})

    return write


def _datatrove(width: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        from datatrove.pipeline.tokens.tokenizer import TokenizedFile

        file = TokenizedFile(
            *(str(path), "000_unshuffled.ds"),
            save_index=True,
            token_size=width,
            tokenizer_name_or_path="some",
        )
        for ids in IDS:
            file.write(ids, None)
        file.write_final_metadata()
        file.close()

    return write


def _megatron(dtype: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        path.mkdir()
        prefix = path / "some_text_document"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type)
        for ids in IDS:
            builder.add_item(torch.tensor(ids))
            builder.end_document()
        builder.finalize(f"{prefix}.idx")

    return write


def _nanogpt(path: Path) -> None:
    path.mkdir()
    _stream().tofile(path / "train.bin")


def _stream() -> Any:
    return np.array([token for ids in IDS for token in (EOT, *ids)], np.uint16)


CASES = [
    Case("pyarrow", "a.parquet", "parquet", _parquet(_table)),
    *(
        Case("pyarrow", f"{kind}.parquet", f"parquet of {kind}", _parquet(partial(_cast, kind)))
        for kind in ("string_view", "binary_view", "large_string", "category", "JSON")
    ),
    *(
        Case("pyarrow", f"{how}.parquet", f"parquet {how}", _parquet(_table, compression=how))
        for how in ("GZIP", "BROTLI", "LZ4", "ZSTD", "NONE")
    ),
    Case(
        "pyarrow",
        "v2.parquet",
        "parquet, pages of version 2",
        _parquet(_table, data_page_version="2.0"),
    ),
    Case(
        *("pyarrow", "delta.parquet", "parquet, delta byte arrays"),
        _parquet(
            _table,
            use_dictionary=False,
            column_encoding={"text": "DELTA_BYTE_ARRAY", "id": "PLAIN"},
        ),
    ),
    Case(
        *("pyarrow", "struct.parquet", "parquet, a field of a struct"),
        _parquet(lambda: _table(message=[{"content": text, "n": 1} for text in TEXTS])),
        NESTED,
    ),
    Case(
        *("pyarrow", "dot.parquet", "parquet, a dot in the name"),
        _parquet(lambda: _table(**{"message.content": TEXTS})),
        NESTED,
    ),
    Case(
        "pyarrow",
        "chat.parquet",
        "parquet of messages",
        _parquet(lambda: _table(messages=_chats())),
        MESSAGES,
    ),
    Case(
        "pyarrow",
        "two.parquet",
        "parquet, two columns of a name",
        _parquet(_two_columns_of_one_name),
        {},
        "has 2 columns named 'text': rename",
    ),
    Case("pyarrow", "stream.arrow", "Arrow stream", _ipc("stream")),
    Case("pyarrow", "file.arrow", "Arrow file", _ipc("file")),
    Case("pyarrow", "lz4.feather", "Feather, LZ4", _ipc("file", "lz4")),
    Case("pyarrow", "zstd.arrow", "Arrow stream, ZSTD", _ipc("stream", "zstd")),
    Case("pandas", "a.parquet", "parquet", _by("pandas", "to_parquet")),
    Case("pandas", "a.feather", "Feather", _by("pandas", "to_feather")),
    *(
        Case("pandas", f"a.csv{packing}", f".csv{packing}", _by("pandas", "to_csv", index=False))
        for packing in ("", ".gz", ".zst", ".xz", ".bz2")
    ),
    Case("pandas", "a.tsv", ".tsv", _by("pandas", "to_csv", index=False, sep="\t")),
    Case(
        "pandas",
        "semicolons.csv",
        ".csv with semicolons",
        _by("pandas", "to_csv", index=False, sep=";"),
        {},
        "it seems to have ';' between columns",
    ),
    *(
        Case(
            "pandas",
            f"a.jsonl{p}",
            f".jsonl{p}",
            _by("pandas", "to_json", orient="records", lines=True),
        )
        for p in ("", ".gz", ".zst", ".xz", ".bz2")
    ),
    Case("pandas", "records.json", "JSON array", _by("pandas", "to_json", orient="records")),
    Case(
        "pandas",
        "indented.json",
        "JSON array, indented",
        _by("pandas", "to_json", orient="records", indent=2),
    ),
    Case(
        "pandas",
        "columns.json",
        "JSON by column",
        _by("pandas", "to_json"),
        {},
        "field 'text' is no text but",
    ),
    Case(
        "pandas",
        "split.json",
        "JSON of orient split",
        _by("pandas", "to_json", orient="split"),
        {},
        "no field 'text' (--field), there are columns, index, data",
    ),
    Case(
        "pandas",
        "a.pkl",
        "pickle",
        _by("pandas", "to_pickle"),
        {},
        "is of no kind that can be read",
    ),
    Case("polars", "a.parquet", "parquet", _by("polars", "write_parquet")),
    Case(
        "polars",
        "category.parquet",
        "parquet of Categorical",
        _polars_categories,
    ),
    Case(
        "polars",
        "struct.parquet",
        "parquet, a field of a struct",
        lambda path: _frame("polars", message=[{"content": t} for t in TEXTS]).write_parquet(path),
        NESTED,
    ),
    Case("polars", "a.ndjson", ".ndjson", _by("polars", "write_ndjson")),
    Case("polars", "a.json", "JSON array", _by("polars", "write_json")),
    Case("polars", "a.csv", ".csv", _by("polars", "write_csv")),
    Case("polars", "a.tsv", ".tsv", _by("polars", "write_csv", separator="\t")),
    Case("polars", "a.arrow", "Arrow file", _by("polars", "write_ipc")),
    Case("polars", "views.arrow", "Arrow file of views", _polars_views),
    Case(
        "polars", "zstd.arrow", "Arrow file, ZSTD", _by("polars", "write_ipc", compression="zstd")
    ),
    Case("polars", "stream.arrow", "Arrow stream", _by("polars", "write_ipc_stream")),
    Case(
        "polars",
        "a.avro",
        "Avro",
        _by("polars", "write_avro"),
        {},
        "is of no kind that can be read",
    ),
    Case(
        "polars",
        "ids.parquet",
        "parquet, lists of ids",
        lambda path: _frame("polars", input_ids=IDS).write_parquet(path),
        None,
    ),
    Case("duckdb", "a.parquet", "parquet", _duckdb()),
    Case(
        "duckdb",
        "v2.parquet",
        "parquet of version 2, ZSTD",
        _duckdb("(parquet_version v2, compression zstd)"),
    ),
    Case("duckdb", "blob.parquet", "parquet of BLOB", _duckdb(select="encode(text) as text")),
    Case("duckdb", "json.parquet", "parquet of JSON", _duckdb(select="to_json(text) as text")),
    Case(
        "duckdb",
        "struct.parquet",
        "parquet, a field of a struct",
        _duckdb(select="{'content': text} as message"),
        NESTED,
    ),
    Case(
        "duckdb",
        "chat.parquet",
        "parquet of messages",
        _duckdb(select=CHAT),
        MESSAGES,
    ),
    Case("duckdb", "a.json", "JSON lines", _duckdb()),
    Case("duckdb", "array.json", "JSON array", _duckdb("(array true)")),
    Case("duckdb", "a.csv", ".csv", _duckdb("(header)")),
    Case("duckdb", "a.csv.gz", ".csv.gz", _duckdb("(header, compression gzip)")),
    Case("duckdb", "a.csv.zst", ".csv.zst", _duckdb("(header, compression zstd)")),
    Case("duckdb", "a.tsv", ".tsv", _duckdb("(header, delimiter '\t')")),
    Case(
        "duckdb",
        "bare.csv",
        ".csv without a header",
        _duckdb("(header false)"),
        {},
        "has no column 'text' in its first row, which names them (0, 'Text 0",
    ),
    Case("fastparquet", "a.parquet", "parquet", _fastparquet()),
    Case("fastparquet", "gzip.parquet", "parquet GZIP", _fastparquet(compression="GZIP")),
    Case(
        "fastparquet",
        "json.parquet",
        "parquet of JSON",
        _fastparquet(object_encoding={"text": "json"}),
    ),
    Case(
        "fastparquet",
        "bytes.parquet",
        "parquet of bytes",
        _fastparquet(object_encoding={"text": "bytes"}),
    ),
    Case(
        "fastparquet",
        "hive",
        "folder of parquet",
        _fastparquet(file_scheme="hive", row_group_offsets=70),
    ),
    Case("datasets", "a.parquet", "parquet", _datasets("to_parquet")),
    Case("datasets", "a.jsonl", ".jsonl", _datasets("to_json")),
    Case("datasets", "a.jsonl.gz", ".jsonl.gz", _datasets("to_json", compression="gzip")),
    Case("datasets", "array.json", "JSON array", _datasets("to_json", lines=False)),
    Case("datasets", "a.csv", ".csv", _datasets("to_csv")),
    Case("datasets", "disk", "save_to_disk", _datasets("save_to_disk")),
    Case("datasets", "shards", "save_to_disk in shards", _datasets("save_to_disk", num_shards=3)),
    Case("datasets", "dict", "save_to_disk of a DatasetDict (its train)", _dataset_dict),
    Case("datasets", "views", "save_to_disk of string_view", _dataset_views),
    Case(
        "datasets",
        "chat",
        "save_to_disk of messages",
        lambda path: _dataset(messages=_chats()).save_to_disk(str(path)),
        MESSAGES,
    ),
    Case(
        "datasets",
        "chat.jsonl",
        ".jsonl of messages",
        lambda path: _dataset(messages=_chats()).to_json(str(path)),
        MESSAGES,
    ),
    Case(
        "datasets",
        "ids",
        "save_to_disk of lists of ids",
        lambda path: _dataset(input_ids=IDS).save_to_disk(str(path)),
        None,
    ),
    Case(
        "datasets",
        "ids.parquet",
        "parquet, lists of ids",
        lambda path: _dataset(input_ids=IDS).to_parquet(str(path)),
        None,
    ),
    Case(
        "datasets",
        "ids as text",
        "lists of ids, for build",
        lambda path: _dataset(input_ids=IDS).save_to_disk(str(path)),
        {"field": "input_ids"},
        "lists of token ids are read by quintic data import",
    ),
    Case("zstandard", "a.jsonl.zst", ".jsonl.zst", _zstd()),
    Case("zstandard", "long.jsonl.zst", ".jsonl.zst, window of 256 MiB", _zstd(window_log=28)),
    Case(
        "zstandard",
        "threads.jsonl.zst",
        ".jsonl.zst, 4 threads",
        _zstd(threads=4, write_checksum=1),
    ),
    Case("zstandard", "frames.jsonl.zst", ".jsonl.zst, frames and one to skip", _frames),
    Case(
        "zstandard",
        "dictionary.jsonl.zst",
        ".jsonl.zst with a dictionary",
        _zstd_dictionary,
        {},
        "unpack it with zstd -d -D",
    ),
    Case("warcio", "a.wet", ".wet", _warc("conversion")),
    Case("warcio", "a.warc.wet.gz", ".warc.wet.gz", _warc("conversion")),
    Case(
        "warcio",
        "a.warc.gz",
        ".warc.gz of pages",
        _warc("response"),
        {},
        "no text, which is of the type conversion (.wet), but 1 warcinfo, 200 response",
    ),
    Case("python", "a.jsonl.gz", ".jsonl.gz", _packed(gzip.compress)),
    Case("python", "a.jsonl.bz2", ".jsonl.bz2", _packed(bz2.compress)),
    Case("python", "a.jsonl.xz", ".jsonl.xz", _packed(lzma.compress)),
    Case("python", "bare.jsonl", "gzip named .jsonl", _packed(gzip.compress)),
    Case("python", "a.csv", ".csv", _csv),
    Case("python", "a.tsv", ".tsv", lambda path: _csv(path, delimiter="\t")),
    Case(
        "python",
        "mark.jsonl",
        ".jsonl with a byte order mark",
        lambda path: path.write_text(_lines().decode(), "utf-8-sig"),
    ),
    Case(
        "python",
        "utf16.jsonl",
        "UTF-16",
        lambda path: path.write_text(_lines().decode(), "utf-16"),
    ),
    Case(
        "python",
        "no mark.txt",
        "UTF-16 without a mark",
        lambda path: path.write_text("some words", "utf-16-le"),
        {},
        "UTF-16",
    ),
    Case("python", "zeros.txt", "zeros", lambda path: path.write_bytes(bytes(5000)), {}, "zeros"),
    Case("numpy", "edu_train_1.npy", ".npy of ids", lambda path: np.save(path, _stream()), None),
    Case(
        "numpy",
        "nanogpt",
        "nanoGPT's train.bin",
        _nanogpt,
        None,
    ),
    Case("datatrove", "dt", ".ds of 16 bits", _datatrove(2), None),
    Case("datatrove", "wide", ".ds of 32 bits", _datatrove(4), None),
    Case("megatron-core", "m", ".bin and .idx of int32", _megatron("int32"), None),
    Case("megatron-core", "narrow", ".bin and .idx of uint16", _megatron("uint16"), None),
    Case("litdata", "tokens", "arrays by TokensLoader", _litdata("array"), None),
    Case("litdata", "tensors", "tensors by TokensLoader", _litdata("tensor"), None),
    Case(
        "litdata",
        "zstd",
        "by TokensLoader, zstd of chunks",
        _litdata("array", compression="zstd", compression_level="chunk"),
        None,
    ),
    Case("litdata", "items", "arrays by PyTreeLoader", _litdata("items"), None),
    Case(
        "litdata",
        "batches",
        "by PyTreeLoader, zstd within chunks",
        _litdata("items", compression="zstd"),
        None,
        "make them again with compression_level='chunk'",
    ),
    Case("mosaicml-streaming", "mds", "MDS, ndarray:uint16", _mds(), None),
    Case("mosaicml-streaming", "any", "MDS, ndarray", _mds("ndarray"), None),
    *(
        Case("mosaicml-streaming", how, f"MDS, {how}", _mds(compression=how), None)
        for how in ("zstd", "zstd:7", "gz", "bz2")
    ),
    Case("mosaicml-streaming", "br", "MDS, br", _mds(compression="br"), None, "unpack the shards"),
    Case(
        "mosaicml-streaming",
        "bytes",
        "MDS of bytes",
        _mds("bytes"),
        None,
        "do not say the type of the ids: name it with --dtype",
    ),
]

_MODULES = {"mosaicml-streaming": "streaming", "megatron-core": "megatron.core"}


def version(package: str) -> str | None:
    """Return the version of a package, None where it cannot be imported."""
    if package == "python":
        import platform

        return platform.python_version()
    try:
        importlib.import_module(_MODULES.get(package, package))
    except ImportError:
        return None
    return importlib.metadata.version(package)


def problem(case: Case, folder: Path) -> str | None:
    """Write the file of a case into a folder; return what is not as the case says, None if all
    is."""
    path = folder / case.name
    case.write(path)
    expected: list[Any] = TEXTS
    if case.options is None:
        expected = [token for ids in IDS for token in (EOT, *ids)]
    elif "messages" in case.options:
        expected = [f"{text}|{REPLY}|" for text in TEXTS]
    try:
        found = _import(path, folder) if case.options is None else texts(path, **case.options)
    except QuinticError as error:
        line = str(error)
        found = []
    else:
        bad = [str(document.reason) for document in found if isinstance(document, BadDocument)]
        line = bad[0] if bad else ""
    if case.refused:
        right = case.refused in line and "\n" not in line
        return None if right else f"expected {case.refused!r}, got {line or found[:1]!r}"
    return None if found == expected else f"{len(found)} documents, {line or found[:1]!r}"


def _import(path: Path, folder: Path) -> list[int]:
    vocabulary = train_bpe(
        ["some words of a text " * 9, "".join(map(chr, range(33, 400))) * 20], 300
    )
    settings = ImportSettings(str(vocabulary.save(folder)), "a", val_share=0.0)
    import_tokens(path, folder / "out", settings, lambda stage, done: None)
    stream = open_dataset(folder / "out", splits=()).train
    ids: list[int] = stream.read(0, len(stream)).tolist()
    return ids


def row(package: str, version: str) -> str:
    """Return the row of a package in the table of the docs."""
    cases = [case for case in CASES if case.package == package]
    read = "; ".join(case.words for case in cases if not case.refused)
    refused = "; ".join(case.words for case in cases if case.refused) or "-"
    return f"| {package} {version} | {read} | {refused} |"


def main() -> None:
    """Try every case whose package is there, and print the table."""
    print("| written by | read right | refused in one line |\n|---|---|---|")
    for package in dict.fromkeys(case.package for case in CASES):
        found = version(package)
        if found is None:
            raise SystemExit(f"{package} is not installed")
        for case in CASES:
            if case.package == package:
                with tempfile.TemporaryDirectory() as folder:
                    if wrong := problem(case, Path(folder)):
                        raise SystemExit(f"{package}: {case.words}: {wrong}")
        print(row(package, found))


if __name__ == "__main__":
    main()
