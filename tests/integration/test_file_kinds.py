"""Files of real writers, as `tests/integration/file_kinds.py` lists them: each is read right, or
refused in one line. What a writer that is not installed makes is skipped.

All: pip install pandas polars duckdb fastparquet datasets warcio datatrove litdata megatron-core
mosaicml-streaming
"""

import re
from pathlib import Path

import pytest

from quintic.cli.main import main
from quintic.data.dataset import open_dataset
from tests.integration.file_kinds import CASES, IDS, Case, problem, row, version

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.package}, {case.words}")
def test_a_file_is_read_right_or_refused_in_a_line(case: Case, tmp_path: Path) -> None:
    if version(case.package) is None:
        pytest.skip(f"{case.package} is not installed")
    assert problem(case, tmp_path) is None


def test_the_table_in_the_docs_has_every_case() -> None:
    rows = [re.sub(r"^\| (\S+) \S+ \|", r"| \1 X |", line) for line in DOCS.read_text().split("\n")]
    for package in dict.fromkeys(case.package for case in CASES):
        assert row(package, "X") in rows, "python -m tests.integration.file_kinds prints the table"


def test_datasets_loads_what_was_exported(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    case = next(case for case in CASES if case.words == "nanoGPT's train.bin")
    assert problem(case, tmp_path) is None
    main(
        [
            "data",
            "export",
            str(tmp_path / "out"),
            "--to",
            "hf-datasets",
            "--out",
            str(tmp_path / "hf"),
        ]
    )
    splits = datasets.load_from_disk(str(tmp_path / "hf"))
    eot_id = open_dataset(tmp_path / "out", splits=()).eot_id
    assert splits["train"]["input_ids"][:] == [[*ids, eot_id] for ids in IDS]
    assert splits["train"].with_format("numpy")[3]["input_ids"].tolist() == [*IDS[3], eot_id]
    assert "tokenizer.json, whose vocabulary has 300 ids" in splits["train"].info.description
    # Rows that a map made go back in.
    made = splits.map(lambda row: {"input_ids": row["input_ids"][:-1], "n": len(row["input_ids"])})
    made.save_to_disk(str(tmp_path / "made"))
    arguments = ["--out", tmp_path / "again", "--tokenizer", tmp_path / "out" / "tokenizer.json"]
    main(["data", "import", str(tmp_path / "made"), *map(str, arguments), "--name", "a"])
    first, again = (tmp_path / name / "a_train_000001.bin" for name in ("out", "again"))
    assert again.read_bytes() == first.read_bytes()
