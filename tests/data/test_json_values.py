"""JSON that does not keep to lines: arrays, and objects over many lines."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintic.data.build import chunks
from quintic.data.build.chunks import DocumentFormat, read_chunks
from quintic.data.build.documents import BadDocument
from quintic.data.build.inputs import find_text_files
from quintic.data.build.sources.json_values import json_layout
from quintic.errors import QuinticError
from tests.data.reading import read, texts

TEXTS = [*(f'{n}: "]}}[{{,\\" ä 漢 \n\\' * (1 + n % 3) for n in range(40)), "last"]
RECORDS: list[Any] = [
    {"id": [n, {"a": []}], "text": text, "rest": {"b": "]"}} for n, text in enumerate(TEXTS)
]

FORMS: dict[str, str] = {
    "array on a line": json.dumps(RECORDS, ensure_ascii=False),
    "array with a line end": json.dumps(RECORDS) + "\n",
    "indented array": json.dumps(RECORDS, indent=2),
    "array with a mark": "\ufeff \n" + ",\n".join(json.dumps(RECORDS).split(", ")),
    "array of lines": "[\r\n" + ",\r\n".join(map(json.dumps, RECORDS)) + "\r\n]\r\n\n",
    "indented objects": "\ufeff" + "\n".join(json.dumps(record, indent=1) for record in RECORDS),
    "objects without indent": "".join(json.dumps(record, indent=0) for record in RECORDS) + "\n\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_bytes", [1, 700, 1 << 20])
def test_values_are_documents_whatever_the_size_of_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(chunks, "_UNPACK_BYTES", 50)
    monkeypatch.setattr(chunks, "_HEAD_BYTES", 100)
    (tmp_path / "a.json").write_text(FORMS[form], encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(FORMS[form].encode()))
    assert texts(tmp_path / "a.json") == texts(tmp_path / "a.jsonl.gz") == TEXTS


@pytest.mark.parametrize("form", FORMS)
def test_reading_goes_on_from_every_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 300)
    (tmp_path / "a.json").write_text(FORMS[form], encoding="utf-8")
    cut = list(read(tmp_path / "a.json"))
    assert len(cut) > 5
    for index, (position, _) in enumerate(cut):
        rest = [document for _, found in read(tmp_path / "a.json", position) for document in found]
        assert rest == [document for _, found in cut[index:] for document in found]
        assert rest[0] == (len([d for _, found in cut[:index] for d in found]) + 1, rest[0][1])


def test_bad_values_are_counted_by_their_number(tmp_path: Path) -> None:
    values = ['{"text": "one"}', '{"text": }', "5", '["a"]', '{"text": "\xff"}', '{"body": 1}']
    (tmp_path / "a.json").write_bytes(f"[{','.join(values)},\n]".encode("latin-1"))
    found = texts(tmp_path / "a.json")
    assert found[0] == "one"
    reasons = {bad.line: bad.reason for bad in found if isinstance(bad, BadDocument)}
    assert list(reasons) == [2, 3, 4, 5, 6]
    assert "broken JSON" in reasons[2]
    assert reasons[3] == reasons[4] == "no JSON object"
    assert "invalid UTF-8 at byte 10" in reasons[5]
    assert reasons[6] == "no field 'text' (--field), there are body"


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "[\n\n]"])
def test_empty_array_has_no_documents(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert texts(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "one"}, {"text": "two"', "is truncated: .* its last of 1 value; copy"),
        ('[{"text": "one"}, {"text": "two"},', "is truncated: .* its last of 2 values; copy"),
        ('[{"text": "one"}, {"text": "two}]', "is truncated: .* its last of 1 value; copy"),
        (
            '[{"text": "one"},\n{"text": "two"}]\n{"text": "x"}',
            "has more behind the end of its JSON",
        ),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_array_that_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(QuinticError, match=rf"a\.json {message}"):
        texts(tmp_path / "a.json")


def test_object_that_does_not_end_is_a_bad_document(tmp_path: Path) -> None:
    whole = json.dumps(RECORDS[0], indent=2)
    (tmp_path / "a.json").write_text(whole + whole[:-5])
    first, bad = texts(tmp_path / "a.json")
    assert (first, isinstance(bad, BadDocument) and bad.line) == (TEXTS[0], 2)


@pytest.mark.parametrize("chunk_bytes", [1, 300, 1 << 20])
@pytest.mark.parametrize(
    ("found", "broken"),
    [
        ("\n}", ""),  # no bracket behind it
        ('"a"\n', '"a\n'),  # no quote behind a string
        ('"id": [', '"id": [{'),
        ("{", ""),
    ],
)
def test_an_object_that_is_broken_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, found: str, broken: str
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    values = [json.dumps({"id": ["a"], "text": text}, indent=1) for text in TEXTS]
    values[20] = json.dumps({"id": ["a"], "text": TEXTS[20], "last": ["b"]}, indent=1)
    assert found in values[20]
    values[20] = values[20].replace(found, broken, 1)
    (tmp_path / "a.json").write_text("\n".join(values))
    documents = texts(tmp_path / "a.json")
    bad = [document for document in documents if isinstance(document, BadDocument)]
    assert [text for text in documents if text not in bad] == TEXTS[:20] + TEXTS[21:]
    assert [document.line for document in bad] == [21]


@pytest.mark.parametrize(
    "first",
    [
        '{"text": "cut',
        '{"text": "cut,',
        '{"text": "a"}',
        '["id"]',
        "",
        "{}",
        "5",
        '{"a": 1}}',
        '{"a"',
    ],
)
def test_lines_stay_lines(first: str) -> None:
    assert json_layout(f'{first}\n{{"text": "b"}}\n'.encode()) == "lines"


def test_value_too_long_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_DOCUMENT_BYTES", 1 << 20)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 10)
    (tmp_path / "a.json").write_text(json.dumps({"data": ["some text"] * 200_000}, indent=1))
    with pytest.raises(QuinticError, match=r"a\.json holds a JSON value of more than 1 MiB.*array"):
        texts(tmp_path / "a.json")


@pytest.mark.parametrize("write", [json.dumps, lambda records: json.dumps(records, indent=1)])
def test_reading_does_not_hold_the_array(tmp_path: Path, write: Callable[[Any], str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(write([{"text": "word " * 500}] * 12_000))
    files, _ = find_text_files([str(path)], leave_out=Path("nowhere"))
    tracemalloc.start()
    size = sum(chunk.size for chunk in read_chunks(files, DocumentFormat("text", None)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 30_000_000
    assert peak < 10_000_000
