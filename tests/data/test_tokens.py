"""Token files of other tools; the bytes are written here by their descriptions."""

import bz2
import gzip
import hashlib
import json
import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import ipc, parquet

from quintic.cli.main import main
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.build import shard_set
from quintic.data.dataset import open_dataset
from quintic.data.shards import TokenStream, write_shard
from quintic.data.tokens import hf_datasets, json_lists, token_file
from quintic.data.tokens.export_tokens import export_tokens
from quintic.data.tokens.find import find_tokens
from quintic.data.tokens.import_tokens import ImportSettings, import_tokens
from quintic.data.verify import check_dataset
from quintic.errors import QuinticError
from tests.conftest import refusal

EOT = 0  # of the vocabulary below
DRAW = np.random.default_rng(5)
DOCUMENTS = [DRAW.integers(1, 300, DRAW.integers(1, 60)).tolist() for _ in range(50)]
STREAM_BEFORE = [token for document in DOCUMENTS for token in (EOT, *document)]
STREAM_BEHIND = [token for document in DOCUMENTS for token in (*document, EOT)]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with 300 tokens."""
    texts = ["some words of a text and more of them, again and again" * 9]
    tokenizer = train_bpe([*texts, "".join(map(chr, range(33, 400))) * 20], 300)
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (EOT, 300)
    return tokenizer.save(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "BLOCK_TOKENS", 97)
    monkeypatch.setattr(shard_set, "_BLOCK_TOKENS", 50)
    monkeypatch.setattr(json_lists, "_BATCH_BYTES", 300)


def write_nanogpt(folder: Path, dtype: str = "<u2") -> None:
    np.array(STREAM_BEHIND, dtype).tofile(folder / "train.bin")
    np.array(STREAM_BEHIND[-len(DOCUMENTS[-1]) - 1 :], dtype).tofile(folder / "val.bin")


def write_megatron(
    folder: Path, code: int = 8, dtype: str = "<u2", sequences: int = 1, name: str = "a_text"
) -> None:
    """Each document as that many sequences."""
    parts = [
        part.tolist() for document in DOCUMENTS for part in np.array_split(document, sequences)
    ]
    lengths = np.array([len(part) for part in parts], "<i4")
    ids = np.array([token for part in parts for token in part], dtype)
    ids.tofile(folder / f"{name}.bin")
    places = (np.cumsum(lengths) - lengths).astype("<i8") * ids.itemsize
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(parts), len(DOCUMENTS) + 1)
    starts = np.arange(len(DOCUMENTS) + 1, dtype="<i8") * sequences
    (folder / f"{name}.idx").write_bytes(
        index + lengths.tobytes() + places.tobytes() + starts.tobytes()
    )


def write_llmc(folder: Path) -> None:
    write_shard(folder / "tiny_shakespeare_train.bin", STREAM_BEFORE)
    write_shard(folder / "tiny_shakespeare_val.bin", STREAM_BEFORE[:20])


def write_npy(folder: Path) -> None:
    """Shards that end in the middle of a document."""
    ids = np.array(STREAM_BEFORE, np.uint16)
    np.save(folder / "edufineweb_train_000001.npy", ids[:500])
    np.save(folder / "edufineweb_train_000002.npy", ids[500:])
    np.save(folder / "edufineweb_val_000000.npy", ids[:20])


def chunk(items: list[bytes], between: bytes = b"") -> bytes:
    begin = 4 * (len(items) + 2) + len(between)
    places = np.cumsum([begin, *map(len, items)]).astype("<u4")
    return struct.pack("<I", len(items)) + places.tobytes() + between + b"".join(items)


def write_litdata(
    folder: Path,
    dtype: str = "<u2",
    format: str = "no_header_numpy:5",
    loader: str = "TokensLoader",
    compression: str | None = None,
    **config: str | None,
) -> None:
    items = [np.array(document, dtype).tobytes() for document in DOCUMENTS]
    if loader != "TokensLoader":
        items = [struct.pack("<I", len(item)) + item for item in items]
    name = "chunk-0-{}.zstd.bin" if compression else "chunk-0-{}.bin"
    for number, part in enumerate((items[:30], items[30:])):
        content = chunk(part)
        content = zstandard.compress(content) if compression else content
        (folder / name.format(number)).write_bytes(content)
    chunks = [{"filename": name.format(n)} for n in range(2)]
    config |= {"compression": compression, "data_format": [format], "item_loader": loader}  # type: ignore[dict-item]
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))


def write_mds(
    folder: Path, encoding: str = "ndarray:uint16", compression: str | None = None
) -> None:
    """Bytes are of int64."""
    samples = []
    for document in DOCUMENTS:
        dtype, type_byte = ("<u2", b"") if ":" in encoding else ("<i8", b"\x41")
        shape = type_byte + bytes([1 << 2, len(document)])
        shape = b"" if encoding == "bytes" else shape
        value, url = shape + np.array(document, dtype).tobytes(), b"http://a"
        # Columns lie by name: one of fixed size, tokens, url.
        sizes = struct.pack("<II", len(value), len(url))
        samples.append(sizes + bytes(8) + value + url)
    columns = {
        "column_names": ["id", "tokens", "url"],
        "column_encodings": ["int", encoding, "str"],
        "column_sizes": [8, None, None],
    }
    shards = []
    for number, part in enumerate((samples[:30], samples[30:])):
        name = f"shard.0000{number}.mds"
        content, packed = chunk(part, json.dumps(columns).encode()), None
        raw = {"basename": name, "bytes": len(content), "hashes": {}}
        if compression:
            suffix = compression.partition(":")[0]
            pack: dict[str, Callable[[bytes], bytes]] = {
                "zstd": zstandard.compress,
                "gz": gzip.compress,
                "bz2": bz2.compress,
            }
            content, name = pack.get(suffix, bytes)(content), f"{name}.{suffix}"
            packed = {"basename": name, "bytes": len(content), "hashes": {}}
        (folder / name).write_bytes(content)
        shard = {"format": "mds", "raw_data": raw, "zip_data": packed, "compression": compression}
        shards.append({**shard, **columns})
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))


def write_datatrove(folder: Path, width: int = 2) -> None:
    path = folder / "000_unshuffled.ds"
    np.array([t for document in DOCUMENTS for t in document], f"<u{width}").tofile(path)
    ends = np.cumsum([len(document) for document in DOCUMENTS]).astype("<u8")
    Path(f"{path}.index").write_bytes(ends.tobytes())
    Path(f"{path}.metadata").write_text(f"some|tokenizer|{width}\n{ends[-1]}\n1.5 kT")


IDS = pyarrow.schema([("a", pyarrow.list_(pyarrow.int32()))])


def id_lists(kind: Any = None, mask: bool = False) -> pyarrow.Table:
    """The documents as rows; with a mask those of padding too, and without one a null row."""
    kind = kind or pyarrow.list_(pyarrow.int32())
    longest = max(map(len, DOCUMENTS))
    rows: list[Any] = [[*ids, *[299] * (longest - len(ids))] for ids in DOCUMENTS]
    if not mask:
        rows = [*DOCUMENTS[:3], None, *DOCUMENTS[3:]]
    columns = {"input_ids": pyarrow.array(rows, kind), "text": ["no id"] * len(rows)}
    if mask:
        masks = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in DOCUMENTS]
        columns["attention_mask"] = pyarrow.array(masks, pyarrow.list_(pyarrow.int8()))
    return pyarrow.table(columns)


def write_parquet(folder: Path, kind: Any = None, mask: bool = False) -> None:
    parquet.write_table(id_lists(kind, mask), folder / "0.parquet", row_group_size=20)


def write_arrow(folder: Path, kind: Any = None) -> None:
    """A stream, as datasets' `save_to_disk` has it, beside what its `map` left, and a file."""
    table = id_lists(kind)
    for name, part, new in (
        ("data-0.arrow", table.slice(0, 30), ipc.new_stream),
        ("data-1.arrow", table.slice(30), ipc.new_file),
        ("cache-12ab.arrow", table, ipc.new_stream),
    ):
        with new(folder / name, table.schema) as writer:
            writer.write_table(part, max_chunksize=17)


def write_jsonl(folder: Path, mask: bool = False, pack: Callable[[bytes], bytes] = bytes) -> None:
    """As datasets' `to_json` has it, in two files, with blank lines and fields of other kinds."""
    rows = id_lists(mask=mask).to_pylist()
    lines = [json.dumps(row) for row in rows if row["input_ids"] is not None]
    lines[3:3] = ["", " "]
    for name, part in (("0", lines[:20]), ("1", lines[20:])):
        content = "\ufeff" * (name == "0") + "\n".join(part) + "\n" * (name == "0")
        suffix = "" if pack is bytes else ".zst"
        (folder / f"{name}.jsonl{suffix}").write_bytes(pack(content.encode()))


WITH_SPLITS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nanoGPT": ("nanoGPT", write_nanogpt),
    "nanoGPT, 32 bits": ("nanoGPT", lambda folder: write_nanogpt(folder, "<u4")),
    "llm.c": ("llm.c", write_llmc),
    "build-nanogpt": ("build-nanogpt", write_npy),
}
ROWS = "Hugging Face datasets"
OF_DOCUMENTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "Megatron": ("Megatron", write_megatron),
    "Megatron, int32": ("Megatron", lambda folder: write_megatron(folder, 4, "<i4")),
    "Megatron, sequences": ("Megatron", lambda folder: write_megatron(folder, sequences=3)),
    "litdata": ("litdata", write_litdata),
    "litdata, int64": ("litdata", lambda f: write_litdata(f, "<i8", "no_header_tensor:18")),
    "litdata, zstd": ("litdata", lambda f: write_litdata(f, compression="zstd:4")),
    "litdata, sizes first": ("litdata", lambda f: write_litdata(f, loader="PyTreeLoader")),
    "litdata, int64, sizes first": (
        "litdata",
        lambda f: write_litdata(f, "<i8", "no_header_numpy:3", loader="PyTreeLoader"),
    ),
    "MDS": ("MDS", write_mds),
    "MDS, zstd": ("MDS", lambda folder: write_mds(folder, compression="zstd")),
    "MDS, gz": ("MDS", lambda folder: write_mds(folder, compression="gz:9")),
    "MDS, bz2": ("MDS", lambda folder: write_mds(folder, compression="bz2")),
    "MDS, any array": ("MDS", lambda folder: write_mds(folder, "ndarray")),
    "datatrove": ("datatrove", write_datatrove),
    "datatrove, 32 bits": ("datatrove", lambda folder: write_datatrove(folder, 4)),
    "parquet": (ROWS, write_parquet),
    "parquet, padded": (ROWS, lambda folder: write_parquet(folder, mask=True)),
    "parquet, uint16": (ROWS, lambda f: write_parquet(f, pyarrow.large_list(pyarrow.uint16()))),
    "JSON lines": (ROWS, write_jsonl),
    "JSON lines, padded": (ROWS, lambda folder: write_jsonl(folder, mask=True)),
    "JSON lines, zstd": (ROWS, lambda folder: write_jsonl(folder, pack=zstandard.compress)),
    "Arrow": (ROWS, write_arrow),
    "Arrow, views": (ROWS, lambda f: write_arrow(f, pyarrow.list_view(pyarrow.int64()))),
}


def run_import(source: Path, out: Path, vocabulary: Path, *options: str) -> dict[str, list[int]]:
    arguments = [source, "--out", out, "--tokenizer", vocabulary, "--shard-tokens", 400, *options]
    main(["data", "import", *map(str, arguments)])
    assert check_dataset(out).problems == []
    streams = open_dataset(out, splits=()).streams
    return {split: stream.read(0, len(stream)).tolist() for split, stream in streams.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("case", WITH_SPLITS)
def test_files_that_name_their_split(
    source: Path, tmp_path: Path, vocabulary: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write = WITH_SPLITS[case]
    write(source)
    found = run_import(source, tmp_path / "out", vocabulary)
    assert found["train"] == STREAM_BEFORE
    assert found["val"] in ([EOT, *DOCUMENTS[-1]], STREAM_BEFORE[:20])
    assert f"token files of {name}; train on it" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == [
        "manifest.json",
        "out_train_000001.bin",
    ]


@pytest.mark.parametrize("case", OF_DOCUMENTS)
def test_files_of_documents(source: Path, tmp_path: Path, vocabulary: Path, case: str) -> None:
    name, write = OF_DOCUMENTS[case]
    write(source)
    assert find_tokens(source).kind.name == name
    found = run_import(source, tmp_path / "out", vocabulary, "--val-share", "0")
    assert found == {"train": STREAM_BEFORE}
    # The same documents are for validation whatever they lie in.
    found = run_import(source, tmp_path / "split", vocabulary, "--val-share", "0.3")
    held_out = [index for index, ids in enumerate(DOCUMENTS) if _within(ids, found["val"])]
    assert held_out == HELD_OUT
    # A folder that says what it is for stays what it is.
    (source.parent / "validation").mkdir()
    source.rename(source.parent / "parts")
    (source.parent / "parts").rename(source.parent / "validation" / "parts")
    (source.parent / "all").mkdir()
    (source.parent / "validation").rename(source.parent / "all" / "validation")
    assert run_import(source.parent / "all", tmp_path / "val", vocabulary) == {"val": STREAM_BEFORE}


def _within(document: list[int], stream: list[int]) -> bool:
    text = " ".join(map(str, [EOT, *document, EOT]))
    return f" {text} " in f" {' '.join(map(str, [*stream, EOT]))} "


def _hash(document: list[int]) -> int:
    return int.from_bytes(hashlib.sha256(np.array(document, "<u4").tobytes()).digest()[:8])


HELD_OUT = [index for index, ids in enumerate(DOCUMENTS) if _hash(ids) < 0.3 * 2**64]


def test_bytes_of_mds_are_of_the_type_that_is_named(
    source: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mds(source, "bytes")
    options = ["--val-share", "0", "--dtype"]
    found = run_import(source, tmp_path / "out", vocabulary, *options, "int64")
    assert found == {"train": STREAM_BEFORE}
    arguments = ["data", "import", source, "--out", tmp_path / "no", "--tokenizer", vocabulary]
    assert "do not say the type of the ids: name it with --dtype" in refusal(arguments, capsys)
    for dtype in ("int32", "uint16"):
        line = refusal([*arguments, "--dtype", dtype], capsys)
        assert f"next to 0 as every second id, if the type of its bytes is {dtype}: they" in line
    for file in source.iterdir():
        file.unlink()
    write_mds(source)
    line = refusal([*arguments, "--dtype", "int64"], capsys)
    assert "has ndarray:uint16 in its column tokens, and --dtype is for bytes: leave it out" in line
    write_npy(tmp_path / "source")
    arguments[2] = source / "edufineweb_train_000001.npy"
    line = refusal([*arguments, "--dtype", "int64"], capsys)
    assert "has those of build-nanogpt: leave it out" in line


@pytest.mark.parametrize("case", ["nanoGPT", "build-nanogpt", "MDS", "parquet"])
@pytest.mark.parametrize("tokens", [1, 100, 700])
def test_the_last_documents_are_held_out(
    source: Path, tmp_path: Path, vocabulary: Path, case: str, tokens: int
) -> None:
    {**WITH_SPLITS, **OF_DOCUMENTS}[case][1](source)
    for file in source.glob("*val*"):
        file.unlink()
    found = run_import(source, tmp_path / "out", vocabulary, "--val-tokens", str(tokens))
    assert found["train"] + found["val"] == STREAM_BEFORE
    assert found["val"][0] == EOT
    second = found["val"].index(EOT, 1) if EOT in found["val"][1:] else len(found["val"])
    assert len(found["val"]) - second < tokens <= len(found["val"])


def test_what_cannot_be_held_out(
    source: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nanogpt(source)
    arguments = ["data", "import", source, "--out", tmp_path / "no", "--tokenizer", vocabulary]
    line = refusal([*arguments, "--val-tokens", "9"], capsys)
    assert f"{source} has files for validation: leave it out" in line
    (source / "val.bin").unlink()
    for tokens in (len(STREAM_BEFORE) - 1, len(STREAM_BEFORE), 10**9):
        line = refusal([*arguments, "--val-tokens", tokens], capsys)
        assert f"of {len(STREAM_BEFORE)} tokens in all no document but the first begins" in line
    assert "--val-tokens is 0: it must be" in refusal([*arguments, "--val-tokens", 0], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    run_import(source, tmp_path / "out", vocabulary)
    said = capsys.readouterr().out
    assert "training needs both: --val-tokens N holds out the last N of the tokens for" in said


# Read where they lie -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["nanoGPT", "nanoGPT, 32 bits", "build-nanogpt"])
@pytest.mark.parametrize("end", ["as it is written", "within a document"])
def test_files_without_a_header_are_read_in_place_as_they_are_imported(
    source: Path, tmp_path: Path, vocabulary: Path, case: str, end: str
) -> None:
    WITH_SPLITS[case][1](source)
    if end == "within a document":
        for path in source.glob("*train*"):
            if path.suffix == ".npy":
                np.save(path, np.load(path)[1:-1])
            else:
                path.write_bytes(path.read_bytes()[:-8])
    imported = run_import(source, tmp_path / "out", vocabulary)
    dataset = open_dataset(source, str(vocabulary))
    streams = dataset.for_model(300).streams
    found = {split: stream.read(0, len(stream)).tolist() for split, stream in streams.items()}
    assert found == imported
    report = check_dataset(source, str(vocabulary))
    assert (report.problems, report.shards) == ([], len(list(source.iterdir())))
    assert report.notes == ["no manifest: checksums and counts cannot be checked"]


def test_what_cannot_be_read_in_place_names_the_import(
    source: Path, tmp_path: Path, vocabulary: Path
) -> None:
    def message(tokenizer: Path | None = vocabulary) -> str:
        with pytest.raises(QuinticError) as error:
            open_dataset(source, str(tokenizer) if tokenizer else None)
        return str(error.value)

    write_npy(source)
    assert "which do not say which tokenizer made them: name it, gpt2 or the path" in message(None)
    way_out = f"quintic data import {source} --out OUT --tokenizer gpt2"
    np.save(source / "edufineweb_val_000000.npy", np.array([1, 2, 3], np.uint16))
    assert f"has no end of text, {EOT}, so it cannot be read where it lies: {way_out}" in message()
    np.save(source / "edufineweb_val_000000.npy", np.array([EOT, 2, 3], np.int64))
    assert (
        f"holds ids of the type int64, so it cannot be read where it lies: {way_out}" in message()
    )
    (source / "edufineweb_val_000000.npy").unlink()
    assert "has no val shards: expected files named *_val_*.bin; name a folder" in message()
    assert message().endswith(f"{way_out} (or its tokenizer.json) --val-tokens N")
    (source / "edufineweb_val_000000.npy").write_bytes(b"")
    assert "cannot be read as .npy" in message()
    for path in source.iterdir():
        path.unlink()
    write_nanogpt(source)
    (source / "meta.pkl").touch()
    assert "a vocabulary of its own, of characters, in meta.pkl" in message()


def test_end_of_text_is_once_before_each_document(
    source: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [[EOT, 5, 6], [7, EOT], [], [EOT], [EOT, 8, EOT], [9, EOT, 10], [EOT, EOT]]
    ids = [token for document in documents for token in document]
    np.array(ids, "<u2").tofile(source / "a.ds")
    ends = np.cumsum([len(document) for document in documents]).astype("<u8")
    (source / "a.ds.index").write_bytes(ends.tobytes())
    (source / "a.ds.metadata").write_text("gpt2|2\n")
    found = run_import(source, tmp_path / "out", vocabulary, "--val-share", "0")
    assert found["train"] == [EOT, 5, 6, EOT, 7, EOT, 8, EOT, 9, EOT, 10]
    assert "note: 3 empty documents left out" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["nanogpt", "megatron", "hf-datasets"])
def test_round_trip(source: Path, tmp_path: Path, vocabulary: Path, to: str) -> None:
    write_nanogpt(source)
    first = run_import(source, tmp_path / "first", vocabulary)
    main(["data", "export", str(tmp_path / "first"), "--to", to, "--out", str(tmp_path / "theirs")])
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    if to == "nanogpt":
        assert names == {"train.bin", "val.bin", "tokenizer.json"}
        for name in ("train.bin", "val.bin"):
            assert (tmp_path / "theirs" / name).read_bytes() == (source / name).read_bytes()
    elif to == "hf-datasets":
        assert names == {
            *("README.md", "dataset_dict.json", "tokenizer.json", "train", "validation"),
        }
        described = json.loads((tmp_path / "theirs" / "train" / "dataset_info.json").read_bytes())
        assert "tokenizer tokenizer.json, whose vocabulary has 300 ids" in described["description"]
        rows = [row["input_ids"] for row in read_state(tmp_path / "theirs" / "train")]
        assert rows == [[*document, EOT] for document in DOCUMENTS]
        rows = [row["input_ids"] for row in read_state(tmp_path / "theirs" / "validation")]
        assert rows == [[*DOCUMENTS[-1], EOT]]
    else:
        prefixes = {f"{split}_text_document" for split in ("train", "val")}
        endings = {f"{prefix}{end}" for prefix in prefixes for end in (".bin", ".idx")}
        assert names == {*endings, "tokenizer.json"}
        index = (tmp_path / "theirs" / "train_text_document.idx").read_bytes()
        assert struct.unpack_from("<9sQBQQ", index) == (b"MMIDIDX\0\0", 1, 8, 50, 51)
        lengths = np.frombuffer(index, "<i4", 50, 34)
        assert lengths.tolist() == [len(document) + 1 for document in DOCUMENTS]
        ids = np.fromfile(tmp_path / "theirs" / "train_text_document.bin", "<u2")
        assert ids.tolist() == STREAM_BEHIND
    assert run_import(tmp_path / "theirs", tmp_path / "first again", vocabulary, "--name", "first")
    records = [path for path in (tmp_path / "first").iterdir() if path.suffix == ".bin"]
    assert len(records) > 3
    for path in records:
        assert (tmp_path / "first again" / path.name).read_bytes() == path.read_bytes()
    assert first["train"] == STREAM_BEFORE


def read_state(folder: Path) -> list[dict[str, Any]]:
    """The rows of the files that a split of datasets lists."""
    rows: list[dict[str, Any]] = []
    listed = json.loads((folder / "state.json").read_bytes())["_data_files"]
    assert sorted(f["filename"] for f in listed) == sorted(p.name for p in folder.glob("*.arrow"))
    for file in listed:
        with ipc.open_stream((folder / file["filename"]).read_bytes()) as stream:
            rows += stream.read_all().to_pylist()
    return rows


def test_rows_go_on_in_a_new_file_and_documents_across_blocks(
    source: Path, tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nanogpt(source)
    run_import(source, tmp_path / "first", vocabulary)
    blocks = TokenStream.blocks
    monkeypatch.setattr(TokenStream, "blocks", lambda stream: blocks(stream, 13))
    monkeypatch.setattr(hf_datasets, "_FILE_BYTES", 4000)
    export_tokens(
        tmp_path / "first", "hf-datasets", tmp_path / "out", None, lambda stage, done: None
    )
    assert len(list((tmp_path / "out" / "train").glob("data-*-of-*.arrow"))) > 2
    rows = [row["input_ids"] for row in read_state(tmp_path / "out" / "train")]
    assert rows == [[*document, EOT] for document in DOCUMENTS]
    monkeypatch.setattr(hf_datasets, "_MAX_DOCUMENT_TOKENS", 30)
    with pytest.raises(QuinticError, match="a document of the dataset has more than 30 tokens"):
        export_tokens(tmp_path / "first", "hf-datasets", tmp_path / "no", None, lambda *_: None)
    assert not (tmp_path / "no").exists()


def test_rows_of_one_length_are_pieces_of_a_stream(
    source: Path,
    tmp_path: Path,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_file, "BLOCK_TOKENS", 1000)
    pieces = [STREAM_BEHIND[start : start + 64] for start in range(0, len(STREAM_BEHIND), 64)]
    parquet.write_table(pyarrow.table({"input_ids": pieces}), source / "train-0-of-1.parquet")
    assert run_import(source, tmp_path / "a", vocabulary)["train"] == STREAM_BEFORE
    assert "all rows have 64 tokens, so they are taken for pieces" in capsys.readouterr().out
    found = run_import(source, tmp_path / "b", vocabulary, "--rows", "documents")["train"]
    # A border before each row, unless it is there or behind the one before.
    assert found[:64] == [EOT, *pieces[0][:63]]
    assert len(found) > len(STREAM_BEFORE) + len(pieces) // 2
    # Documents that each end with end of text are none, however long.
    parquet.write_table(
        pyarrow.table({"input_ids": [[*range(1, 64), EOT]] * 5}), source / "train-0-of-1.parquet"
    )
    found = run_import(source, tmp_path / "c", vocabulary)["train"]
    assert found == [EOT, *range(1, 64)] * 5
    assert "taken for pieces" not in capsys.readouterr().out
    # And rows that are pieces though their lengths do not say it.
    parquet.write_table(
        pyarrow.table({"input_ids": [[1, 2, 3], [4, EOT, 5]]}), source / "train-0-of-1.parquet"
    )
    found = run_import(source, tmp_path / "d", vocabulary, "--rows", "pieces")["train"]
    assert found == [EOT, 1, 2, 3, 4, EOT, 5]


def test_what_is_plainly_no_token_file_is_left_out_and_listed(
    source: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_megatron(source)
    (source / "README.md").write_text("of a crawl")
    np.save(source / "a_text_train_doc_idx.npy", np.arange(5))
    found = run_import(source, tmp_path / "out", vocabulary, "--val-share", "0")
    assert found == {"train": STREAM_BEFORE}
    assert (
        f"note: {source}: 2 files of other kinds left out: 1 .md (README.md), 1 .npy (a_text_train_"
        "doc_idx.npy)" in capsys.readouterr().out
    )


def test_a_file_that_is_named_is_the_one_that_is_read(
    source: Path, tmp_path: Path, vocabulary: Path
) -> None:
    np.save(source / "train.npy", np.array([EOT, 1, 2], np.uint16))
    np.array([3, 4, EOT], "<u2").tofile(source / "train.bin")
    assert run_import(source / "train.bin", tmp_path / "a", vocabulary) == {"train": [EOT, 3, 4]}
    assert run_import(source / "train.npy", tmp_path / "b", vocabulary) == {"train": [EOT, 1, 2]}


def test_folders_of_llmc_need_no_import(source: Path) -> None:
    write_llmc(source)
    assert len(open_dataset(source).train) == len(STREAM_BEFORE)


# What cannot be imported -------------------------------------------------------------------------


Damage = Callable[[Path], Any]


def cut(name: str, count: int = 1) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-count])

    return damage


def replace(name: str, content: bytes | str) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


# Each with what is wrong of its last line, which may be hidden among good ones.
BAD_LINES = [
    (['{"tokens": [1]}', "", '{"tokens": [2, 3'], "JSON parse error: Missing a comma"),
    (['{"tokens": [1]}'] * 9 + ['{"tokens": [1, 2.5]}'], "Failed to convert JSON to int64"),
    (['{"tokens": [1]}', '{"tokens": ["1"]}'], r"JSON parse error: Column\(/tokens/\[\]\) changed"),
    (['{"tokens": [1]}', '{"text": "some words"}'], "no list in a field tokens"),
    (['{"tokens": [1]}', '{"tokens": null}'], "no list in a field tokens"),
    (['{"tokens": [1]}', '{"tokens": [1, null]}'], "null in its tokens"),
    (['{"tokens": [1]}', '{"tokens": [1]} {"tokens": [2]}'], "not one object on each line"),
    (['{"tokens": [1]}', '{"tokens": [1], "attention_mask": [0]}'], "it has a field attention_ma"),
    (['{"tokens": [1]}', "\0\0"], "JSON parse error: The document is empty"),
    (['{"tokens": [1]}', "tokens"], "JSON parse error: Invalid value"),
]


def write_lines(lines: list[str], folder: Path) -> None:
    (folder / "a.jsonl").write_text("\n".join(lines))


def zeroed(name: str) -> Damage:
    """Without its header, as a crash leaves a file."""
    return lambda folder: (folder / name).write_bytes(
        bytes(1024) + (folder / name).read_bytes()[1024:]
    )


def other_folder(write: Damage) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "sub").mkdir()
        write(folder / "sub")

    return damage


@pytest.mark.parametrize(
    ("write", "damage", "message"),
    [
        (write_nanogpt, cut("train.bin"), r"train\.bin is truncated: its \d+ bytes are no whole"),
        (write_nanogpt, replace("val.bin", b""), r"val\.bin holds no tokens"),
        (write_nanogpt, replace("meta.pkl", b"x"), "a vocabulary of its own, of characters"),
        (write_megatron, cut("a_text.bin"), r"a_text\.bin is truncated: it has \d+ bytes, its ind"),
        (write_megatron, cut("a_text.idx"), r"a_text\.idx has \d+ bytes, its header says"),
        (write_megatron, remove("a_text.bin"), r"a_text\.idx is there without a_text\.bin"),
        (write_megatron, replace("a_text.idx", b"TNTIDX"), "does not begin with MMIDIDX"),
        (lambda folder: write_megatron(folder, 7), lambda f: None, "version 1 and type 7"),
        (write_llmc, cut("tiny_shakespeare_val.bin"), "is truncated: expected"),
        (write_npy, cut("edufineweb_val_000000.npy"), r"000000\.npy cannot be read as \.npy"),
        (write_npy, replace("edufineweb_val_000000.npy", b""), r"cannot be read as \.npy"),
        (
            write_npy,
            lambda folder: np.save(folder / "a_train_1.npy", np.ones((2, 2))),
            r"float64 of shape \(2, 2\): token ids are a list",
        ),
        (write_litdata, cut("chunk-0-1.bin"), r"chunk-0-1\.bin is damaged or truncated"),
        (write_litdata, remove("chunk-0-1.bin"), "is not there, its index.json lists it"),
        (write_litdata, replace("index.json", "{"), r"index\.json is damaged"),
        (write_litdata, replace("index.json", '{"chunks": 3}'), r"index\.json lists no chunks"),
        (
            lambda f: write_litdata(f, format="pickle"),
            lambda f: None,
            "items of pickle: items of one",
        ),
        (
            lambda f: write_litdata(f, compression="zstd", compression_level="batch"),
            lambda f: None,
            "compression zstd within chunks, or encryption: .* compression_level='chunk'",
        ),
        (
            lambda f: write_litdata(f, compression="zstd"),
            cut("chunk-0-1.zstd.bin"),
            r"chunk-0-1\.zstd\.bin is truncated: its \.zst stream does not end",
        ),
        (
            lambda f: write_litdata(f, compression="zstd"),
            remove("chunk-0-1.zstd.bin"),
            r"chunk-0-1\.zstd\.bin is not there, its index.json lists it",
        ),
        (
            lambda f: write_mds(f, compression="zstd"),
            remove("shard.00001.mds.zstd"),
            r"shard\.00001\.mds\.zstd is not there, its index.json lists it",
        ),
        (
            lambda f: write_mds(f, compression="zstd"),
            replace("shard.00001.mds.zstd", b"no zstd"),
            r"shard\.00001\.mds\.zstd cannot be read as zstd: it begins with b'no zstd'",
        ),
        (
            lambda f: write_mds(f, compression="br"),
            lambda f: None,
            r"compressed by br: \.mds is read, also of zstd, gz and bz2; unpack the shards",
        ),
        (write_mds, cut("shard.00001.mds"), r"shard\.00001\.mds is damaged or truncated"),
        (write_mds, replace("shard.00000.mds", b"ab"), r"shard\.00000\.mds is damaged or trunc"),
        (lambda f: write_mds(f, "bytes"), lambda f: None, "has bytes in its column tokens"),
        (write_mds, replace("index.json", '{"shards": [{}]}'), "shards of the format None"),
        (write_datatrove, cut("000_unshuffled.ds", 2), r"which its \.index does not end with"),
        (write_datatrove, remove("000_unshuffled.ds.index"), r"is there without .*\.ds\.index"),
        (write_datatrove, replace("000_unshuffled.ds.metadata", "gpt2"), "not NAME|2 or NAME|4"),
        (write_datatrove, other_folder(write_npy), "token files of datatrove and of build-nanogpt"),
        (write_llmc, zeroed("tiny_shakespeare_train.bin"), r"train\.bin cannot be read as llm\.c"),
        (
            lambda f: write_shard(f / "only_train.bin", STREAM_BEFORE),
            zeroed("only_train.bin"),
            r"only_train\.bin has no header of llm\.c and no \.idx of Megatron beside it",
        ),
        (write_megatron, replace("b_text.bin", b"12"), r"b_text\.bin cannot be read as Megatron"),
        (write_llmc, replace("val.bin", b"12"), r"/val\.bin cannot be read as llm\.c, as"),
        (
            write_npy,
            write_nanogpt,
            r"train\.bin, .*/val\.bin cannot be read as build-nanogpt, as .*train_000001\.npy can",
        ),
        (write_npy, write_parquet, r"0\.parquet cannot be read as build-nanogpt, as"),
        (write_mds, replace("shard.00002.mds", b"12"), r"shard\.00002\.mds cannot be read as MDS"),
        (write_parquet, cut("0.parquet"), r"0\.parquet cannot be read as parquet"),
        (write_arrow, cut("data-0.arrow", 500), r"data-0\.arrow cannot be read as Arrow"),
        (write_arrow, replace("data-1.arrow", ""), r"data-1\.arrow cannot be read as Arrow"),
        (
            write_parquet,
            lambda f: parquet.write_table(pyarrow.table({"text": ["a"]}), f / "1.parquet"),
            r"1\.parquet has no column of lists of token ids, 0\.parquet beside it has",
        ),
        (
            lambda f: parquet.write_table(
                pyarrow.table({"tokens": [[1], [2, None]], "n": [1, 2]}), f / "a.parquet"
            ),
            lambda f: None,
            "has null among the token ids of its rows 0 to 1",
        ),
        (
            lambda f: parquet.write_table(
                pyarrow.table({"tokens": [[1]], "attention_mask": [[1, 1]]}), f / "a.parquet"
            ),
            lambda f: None,
            "whose attention_mask has another length than their tokens",
        ),
        (
            lambda f: parquet.write_table(
                pyarrow.table([[[1]], [[1]]], names=["tokens", "tokens"]), f / "a.parquet"
            ),
            lambda f: None,
            "has several columns named 'tokens'",
        ),
        (
            lambda f: parquet.write_table(pyarrow.table({"text": ["a"]}), f / "a.parquet"),
            lambda f: None,
            r"tables such as a\.parquet, without lists of integers in a column input_ids or tokens",
        ),
        (lambda f: (f / "a.jsonl").touch(), lambda f: None, "quintic data build .* reads that"),
        *[
            (
                partial(write_lines, lines),
                lambda f: None,
                rf"a\.jsonl:{len(lines)} is no row of token ids like the first \({message}",
            )
            for lines, message in BAD_LINES
        ],
        (
            partial(write_lines, ['{"tokens": [1]}', "1" * 99]),
            lambda f: None,
            r"a\.jsonl:2 is a line of 0 MiB or more, which cannot be kept in memory",
        ),
        (
            write_jsonl,
            replace("1.jsonl", '{"text": "a"}'),
            r"1\.jsonl has no column of lists of tok",
        ),
        (
            lambda f: write_jsonl(f, pack=zstandard.compress),
            cut("1.jsonl.zst"),
            r"1\.jsonl\.zst is truncated: its \.zst stream does not end",
        ),
        (
            lambda f: parquet.write_table(pyarrow.table({"a": [[], []]}, IDS), f / "a.parquet"),
            lambda f: None,
            "source has no tokens, only empty documents",
        ),
        (lambda f: (f / "a.pdf").touch(), lambda f: None, "has no token files of Megatron, litd"),
    ],
)
def test_damaged_files_are_refused_in_a_line(
    source: Path,
    tmp_path: Path,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    write: Damage,
    damage: Damage,
    message: str,
) -> None:
    write(source)
    damage(source)
    if "0 MiB" in message:
        monkeypatch.setattr(json_lists, "_MAX_LINE_BYTES", 99)
    arguments = ["data", "import", source, "--out", tmp_path / "out", "--tokenizer", vocabulary]
    line = refusal(arguments, capsys)
    with pytest.raises(QuinticError, match=message):
        raise QuinticError(line)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("case", [*WITH_SPLITS, *OF_DOCUMENTS])
def test_ids_beyond_the_vocabulary_are_named_with_file_and_place(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    {**WITH_SPLITS, **OF_DOCUMENTS}[case][1](source)
    small = train_bpe(["some words"], 257).save(tmp_path)
    line = refusal(
        ["data", "import", source, "--out", tmp_path / "out", "--tokenizer", small], capsys
    )
    ids = STREAM_BEFORE if "llm" in case or "npy" in case or "build" in case else STREAM_BEHIND
    ids = [token for d in DOCUMENTS for token in d] if case in OF_DOCUMENTS else ids
    first = next(index for index, token in enumerate(ids) if token >= 257)
    assert f"holds the token id {ids[first]} as its token {first}, counted from 0" in line
    assert "has only the ids 0 to 256: name the one that made the ids" in line
    assert not (tmp_path / "out").exists()


def test_exports_that_are_refused(
    source: Path, tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llmc(source)
    export = ["data", "export", source, "--out", tmp_path / "out", "--to", "nanogpt"]
    assert "does not say which tokenizer made it" in refusal(export, capsys)
    small = train_bpe(["some words"], 257).save(tmp_path)
    assert "holds the token id" in refusal([*export, "--tokenizer", small], capsys)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    assert "holds other files" in refusal([*export, "--tokenizer", vocabulary], capsys)
    (file := tmp_path / "file").touch()
    for command in (["export", source, "--to", "nanogpt"], ["import", source]):
        into_file = ["data", *command, "--tokenizer", vocabulary, "--out", file]
        assert refusal(into_file, capsys) == f"--out {file} is a file: name a folder"


@pytest.mark.parametrize("case", [*WITH_SPLITS, *OF_DOCUMENTS])
def test_broken_bytes_never_end_in_a_traceback(
    source: Path, tmp_path: Path, vocabulary: Path, case: str
) -> None:
    {**WITH_SPLITS, **OF_DOCUMENTS}[case][1](source)
    whole = {path: path.read_bytes() for path in source.iterdir()}
    draw = random.Random(1)
    settings, refused = ImportSettings(str(vocabulary), "x"), 0
    for number in range(10):
        for path, content in whole.items():
            path.write_bytes(content)
        path = draw.choice(sorted(whole))
        broken = bytearray(whole[path][: draw.choice([None, draw.randrange(len(whole[path]))])])
        for _ in range(draw.randint(0, 4)):
            if broken:
                # Headers and indices lie at the beginning.
                broken[draw.randrange(min(len(broken), draw.choice([60, 10**9])))] = draw.choice(
                    [0, 255, draw.randrange(256)]
                )
        path.write_bytes(broken)
        try:
            import_tokens(source, tmp_path / f"out{number}", settings, lambda stage, done: None)
            assert check_dataset(tmp_path / f"out{number}").problems == []
        except QuinticError as error:
            refused += 1
            assert "\n" not in str(error)
            assert not (tmp_path / f"out{number}").exists()
    assert refused
