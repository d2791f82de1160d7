"""Columns of parquet files and fields of objects: nested, of every type, and lists of messages."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from quintic.data.build import chunks
from quintic.data.build.documents import BadDocument
from quintic.data.build.messages import TEMPLATES
from quintic.data.build.settings import BuildSettings
from quintic.errors import QuinticError
from tests.conftest import refusal
from tests.data.reading import texts

TEXTS = ["one", "zwei ä", "漢字 🙂", "four\n"]


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize("kind", [pyarrow.string_view(), pyarrow.binary_view()], ids=str)
def test_views_of_text_are_text(tmp_path: Path, kind: Any) -> None:
    path = write(tmp_path / "a.parquet", text=pyarrow.array(TEXTS).cast(kind))
    assert parquet.read_schema(path).field("text").type == kind
    assert texts(path) == TEXTS


def test_json_column_is_its_text(tmp_path: Path) -> None:
    values = [json.dumps(TEXTS[0]), json.dumps(TEXTS[1]), json.dumps({"a": 1}), '"open', None]
    path = write(tmp_path / "a.parquet", text=pyarrow.array(values, pyarrow.json_(pyarrow.utf8())))
    null = BadDocument(0, 5, "column 'text' is null")
    assert texts(path) == [TEXTS[0], TEXTS[1], '{"a": 1}', '"open', null]


def test_columns_of_one_name_are_refused_where_they_are_meant(tmp_path: Path) -> None:
    columns = [pyarrow.array([word]) for word in ("a", "b", "c")]
    table = pyarrow.table(columns, names=["text", "text", "body"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        QuinticError, match=r"a\.parquet has 2 columns named 'text': rename the one"
    ):
        texts(tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", field="body") == ["c"]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("outer", "inner", "named"),
    [
        (["meta", "meta"], ["text", "id"], "meta"),
        (["meta", "id"], ["text", "text"], "text"),
        (["meta", "meta"], ["a", "b"], "meta"),
    ],
)
def test_names_of_a_path_that_are_there_twice_are_refused(
    tmp_path: Path, suffix: str, outer: list[str], inner: list[str], named: str
) -> None:
    struct = pyarrow.StructArray.from_arrays([pyarrow.array(["a"])] * 2, names=inner)
    table = pyarrow.table([struct, struct], names=outer)
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(QuinticError, match=rf"has 2 columns named '{named}': rename the one"):
        texts(path, field="meta.text")


RECORDS: list[dict[str, Any]] = [
    {"message": {"content": "deep", "a.b": {"c": "deeper"}}, "message.id": "flat", "text": "x"},
    {"message": {"content": "deep 2", "a.b": {"c": "deeper 2"}}, "message.id": "flat 2"},
]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_path_leads_to_a_nested_field_and_names_may_have_dots(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert texts(path, field="message.content") == ["deep", "deep 2"]
    assert texts(path, field="message.a.b.c") == ["deeper", "deeper 2"]
    assert texts(path, field="message.id") == ["flat", "flat 2"]


def test_a_name_with_a_dot_goes_before_a_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", **{"m": [{"c": "deep"}], "m.c": ["flat"]})
    assert texts(path, field="m.c") == ["flat"]


def test_null_of_a_struct_is_a_null_within(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", m=[{"c": "deep"}, None, {"c": None}])
    assert texts(path, field="m.c") == [
        "deep",
        BadDocument(0, 2, "column 'm.c' is null"),
        BadDocument(0, 3, "column 'm.c' is null"),
    ]


def test_path_that_leads_nowhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", m=[{"c": "deep", "n": 1}])
    for field in ("m.d", "m.c.e", "text"):
        with pytest.raises(QuinticError, match=f"no column '{field}', it has m: .*--field"):
            texts(path, field=field)
    with pytest.raises(QuinticError, match=r"struct<.*> in its column 'm', .*field m\.c$"):
        texts(path, field="m")
    (tmp_path / "a.jsonl").write_text('{"m": {"c": "deep"}}\n{"m": "c"}\n')
    assert texts(tmp_path / "a.jsonl", field="m.c") == [
        "deep",
        BadDocument(0, 2, "no field 'm.c' (--field), there are m"),
    ]


CHATS = [
    [{"role": "user", "content": "Hi {role}"}, {"role": "assistant", "content": "Hello.\n"}],
    [{"role": "system", "content": ""}],
]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_messages_become_text_by_a_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    records = [{"messages": chat, "parts": ["a", "b"]} for chat in CHATS]
    if name == "a.parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    found = texts(tmp_path / name, field="messages", messages="{role}: {content};")
    assert found == ["user: Hi {role};assistant: Hello.\n;", "system: ;"]
    assert texts(tmp_path / name, field="messages", messages=TEMPLATES["chatml"])[1] == (
        "<|im_start|>system\n<|im_end|>\n"
    )
    assert texts(tmp_path / name, field="parts", messages="{content}\n") == ["a\nb\n"] * 2


def test_sharegpt_messages(tmp_path: Path) -> None:
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": chat}))
    found = texts(tmp_path / "a.jsonl", field="conversations", messages="{role}: {content}\n")
    assert found == ["human: Hi\ngpt: Hello\n"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "is no list of messages"),
        ([{"role": "user", "content": "a"}, {"role": "tool"}], "has no text as content of its "),
        ([{"role": "user", "content": None}], "has no text as content of its message 1"),
        (["a"], "has no text as role of its message 1"),
        ([5], "has no message as its element 1"),
    ],
)
def test_messages_that_lack_something_are_bad(tmp_path: Path, messages: Any, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    (bad,) = texts(tmp_path / "a.jsonl", field="messages", messages="{role}: {content}")
    assert isinstance(bad, BadDocument)
    assert bad.reason.startswith(f"field 'messages' {reason}")


def test_lists_and_texts_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", text=["a"], parts=[["a"]], ids=[[1]], empty=[None])
    with pytest.raises(QuinticError, match="in its column 'parts', not text: --messages says how"):
        texts(path, field="parts")
    for field in ("text", "ids", "empty"):
        with pytest.raises(QuinticError, match=f"'{field}', not lists of messages: leave --mess"):
            texts(path, field=field, messages="{content}")
    with pytest.raises(QuinticError, match="has null in its column 'empty', not text: name the"):
        texts(path, field="empty")


def test_template_without_content_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(["data", "build", "a", "--out", "b", "--messages", "{role}"], capsys)
    assert "--messages is '{role}': it must be chatml, or a template with {content}" in message
    message = refusal(
        ["data", "build", "a", "--out", "b", "--messages", "{rolle}: {content}"], capsys
    )
    assert "{rolle} stands for nothing, only {role} and {content} do" in message
    assert BuildSettings(("a",), "b", messages="chatml").format.messages == TEMPLATES["chatml"]
