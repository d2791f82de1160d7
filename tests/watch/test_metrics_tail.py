"""A file of metrics that is read while it is written, cut, replaced and damaged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from quintic.metrics_file import METRICS, truncate_metrics
from quintic.watch import metrics_tail
from quintic.watch.metrics_tail import MetricsTail
from tests.watch.runs import append, text, train_record, validation_record


def steps_of(tail: MetricsTail, field: str = "train_loss") -> list[float]:
    while tail.advance():
        pass
    steps: list[float] = tail.column(field, "step")[0].tolist()
    return steps


def test_what_is_appended_is_read_and_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path / METRICS)
    assert steps_of(tail) == []
    assert tail.whole
    append(tmp_path, [validation_record(0, 5.5), train_record(0), train_record(1)])
    assert steps_of(tail) == [0, 1]
    line = json.dumps(train_record(2))
    with tail.path.open("a") as file:
        file.write(line[:30])
    assert steps_of(tail) == [0, 1]
    assert tail.bad_lines == 0
    with tail.path.open("a") as file:
        file.write(line[30:] + "\n")
    assert steps_of(tail) == [0, 1, 2]
    assert steps_of(tail, "val_loss") == [0]
    assert tail.column("train_loss", "tokens")[0].tolist() == [0, 2048, 4096]
    assert tail.column("train_loss", "elapsed_s")[1].tolist() == pytest.approx([5.0, 4.99, 4.98])
    assert tail.number("val_loss") == 5.5


def test_a_file_that_a_resume_cuts_is_read_anew(tmp_path: Path) -> None:
    append(tmp_path, map(train_record, range(10)))
    tail = MetricsTail(tmp_path / METRICS)
    assert steps_of(tail) == [*range(10)]
    truncate_metrics(tail.path, 4)
    append(tmp_path, [train_record(4, 1.0)])
    assert steps_of(tail) == [0, 1, 2, 3, 4]
    assert tail.column("train_loss", "step")[1][-1] == 1.0
    assert tail.number("step") == 4


def test_a_file_that_is_written_over_in_place_is_read_anew(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path / METRICS)
    append(tmp_path, map(train_record, range(5)))
    assert steps_of(tail) == [*range(5)]
    with tail.path.open("r+") as file:  # the same inode, and longer than before
        file.truncate()
        file.write(text(train_record(step) for step in range(100, 120)))
    assert steps_of(tail) == [*range(100, 120)]


def test_a_file_that_goes_leaves_what_was_known_and_may_come_back(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path / METRICS)
    append(tmp_path, map(train_record, range(3)))
    assert steps_of(tail) == [0, 1, 2]
    tail.path.unlink()
    assert steps_of(tail) == [0, 1, 2]
    append(tmp_path, [train_record(7)])
    assert steps_of(tail) == [7]


@pytest.mark.parametrize(
    "junk",
    [
        "junk\n",
        "\n",
        "[1, 2]\n",
        '{"step": "four"}\n',
        '{"step": 1e999, "train_loss": 2}\n',
        '{"tokens": 4}\n',
        "\0\0\0\0\n",
        "[" * 100_000 + "\n",
        "\udcff\n",
    ],
    ids=lambda line: repr(line[:8]),
)
def test_lines_that_are_no_records_are_counted_and_left_out(tmp_path: Path, junk: str) -> None:
    path = tmp_path / METRICS
    path.write_text(
        text([train_record(0)]) + junk + text([train_record(1)]), errors="surrogateescape"
    )
    tail = MetricsTail(path)
    assert steps_of(tail) == [0, 1]
    assert tail.bad_lines == 1


def test_values_that_are_no_numbers_take_nothing_else_with_them(tmp_path: Path) -> None:
    odd = {**train_record(1), "lr": "high", "tokens_per_s": [], "mfu": 10**400, "elapsed_s": "now"}
    append(tmp_path, [train_record(0), odd, train_record(2)])
    tail = MetricsTail(tmp_path / METRICS)
    assert steps_of(tail) == [0, 1, 2]
    assert steps_of(tail, "tokens_per_s") == [0, 2]
    assert tail.column("train_loss", "elapsed_s")[0].tolist() == [0.5, 1.5]


def test_a_loss_that_is_not_finite_is_a_gap_also_as_older_runs_wrote_it(tmp_path: Path) -> None:
    now = {**train_record(1), "train_loss": None, "diverged": {"train_loss": "nan"}}
    append(tmp_path, [train_record(0), now, {**train_record(2), "train_loss": math.nan}])
    tail = MetricsTail(tmp_path / METRICS)
    assert steps_of(tail) == [0, 1, 2]
    assert np.isnan(tail.column("train_loss", "step")[1]).tolist() == [False, True, True]
    assert tail.number("train_loss") is None


def test_a_step_that_was_written_twice_counts_as_written_last(tmp_path: Path) -> None:
    append(tmp_path, [train_record(0), train_record(1), train_record(1, 2.0), train_record(0, 3.0)])
    tail = MetricsTail(tmp_path / METRICS)
    assert steps_of(tail) == [0, 1]
    assert tail.column("train_loss", "step")[1].tolist() == [3.0, 2.0]


@pytest.mark.parametrize("block_bytes", [1_000, 1_000_000])
def test_a_long_file_shows_its_shape_before_all_of_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(metrics_tail, "OVERVIEW_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(metrics_tail, "OVERVIEW_BYTES", 10_000)
    monkeypatch.setattr(metrics_tail, "OVERVIEW_RECORDS", 20)
    monkeypatch.setattr(metrics_tail, "BLOCK_BYTES", 20_000)
    for step in range(1000):
        append(tmp_path, [validation_record(step, 4.0)] if step % 100 == 0 else [])
        append(tmp_path, [train_record(step)])
    tail = MetricsTail(tmp_path / METRICS)
    assert tail.advance()
    assert not tail.whole
    assert tail.column("val_loss", "step")[0].tolist() == [*range(0, 1000, 100)]
    some = tail.column("train_loss", "step")[0]
    assert 15 <= len(some) <= 22
    assert np.diff(some).max() < 120
    assert some[-1] == 999
    assert tail.advance()  # a block of several
    assert tail.column("train_loss", "step")[0].tolist() == some.tolist()
    assert tail.number("step") == 999
    assert steps_of(tail) == [*range(1000)]
    assert tail.whole
