"""`metrics.jsonl`, TensorBoard events and the figure: what is written, and what a crash cuts."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import quintic.train
from quintic.cli.main import main
from quintic.console import Console, RunProgress
from quintic.errors import QuinticError
from quintic.figure import draw_loss, running_mean
from quintic.metrics import Metrics, NonFiniteLossError, peak_memory_bytes
from quintic.metrics_file import (
    METRICS,
    MetricsFile,
    MetricsRecord,
    read_metrics,
    read_records,
    truncate_metrics,
)
from quintic.run import Run
from quintic.run_dir import CONFIG, SAMPLES
from quintic.tasks.curves import score_fields
from quintic.tasks.score import TaskScores
from tests.conftest import tiny_arguments

PNG = b"\x89PNG\r\n\x1a\n"


def opened(folder: Path, seen: list[MetricsRecord], **changes: Any) -> Metrics:
    options: dict[str, Any] = {
        "step": 0,
        "elapsed_s": 0.0,
        "tokens_before": lambda step: 256 * step,
        "flops_per_token": 1e6,
        "peak_flops": None,
        "device": torch.device("cpu"),
        "on_record": seen.append,
    }
    return Metrics(folder, **{**options, **changes})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_the_peak_memory_on_a_cpu_is_what_linux_counts() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = peak_memory_bytes(torch.device("cpu"))
    # The kernel counts a few pages late on either side.
    assert peak == pytest.approx(int(status["VmHWM"].split()[0]) * 1024, rel=0.05)
    assert peak_memory_bytes(torch.device("meta")) is None


def test_each_line_is_one_object_with_the_documented_fields(tiny_run: Path) -> None:
    lines = (tiny_run / METRICS).read_text().splitlines()
    records: list[MetricsRecord] = [json.loads(line) for line in lines]
    train = [record for record in records if "train_loss" in record]
    validation = [record for record in records if "val_loss" in record]
    assert len(train) + len(validation) == len(records) == 16
    assert [record["step"] for record in train] == list(range(12))
    assert [record["step"] for record in validation] == [0, 5, 10, 12]
    for record in records:
        assert record["tokens"] == 256 * record["step"]
    for record in train:
        assert {"step_ms", "tokens_per_s", "elapsed_s", "lr"} <= record.keys()
        assert record["tokens_per_s"] == pytest.approx(256_000 / record["step_ms"], rel=1e-2)
    elapsed = [record["elapsed_s"] for record in train]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] == pytest.approx(sum(r["step_ms"] for r in train) / 1000, abs=0.01)


DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def every_field(tiny_run: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the records of runs that write all fields there are."""
    folder = tmp_path_factory.mktemp("fields")
    options = ["--optim.clip-norm", "1", "--train.target-loss", "4.84"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quintic.train.peak_flops", lambda device, dtype: 1e12)
        main([*tiny_arguments(tiny_data), *options, "--out", str(folder / "run")])
    (folder / "all").mkdir()
    metrics = opened(folder / "all", [], step=6)
    items = {"acc": np.array([1.0, 1.0, 0.0, 0.0]), "acc_norm": np.array([1.0, 0.0, 0.0, 0.0])}
    piqa = TaskScores("piqa", "", "", ["piqa"] * 4, {"piqa": "piqa"}, items, chance=0.5)
    metrics.scores(6, {"piqa": score_fields(piqa)}, 3.0)
    with pytest.raises(NonFiniteLossError):
        metrics.validation(7, math.nan, 0.1)
    metrics.close()
    path = folder / "all" / METRICS
    parts = (tiny_run / METRICS, folder / "run" / METRICS, path)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def field_of_task(found: re.Match[str]) -> str:
    return f"TASK/{found[2] or 'METRIC' + (found[1] or '')}"


def test_every_field_that_is_written_is_documented_and_every_documented_one_is_written(
    every_field: Path,
) -> None:
    documented: dict[str, set[str]] = {}
    for part in (
        DOCUMENT.read_text().split("\n## Fields\n")[1].split("\n## ")[0].split(":\n\n|")[1:]
    ):
        names = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", part, re.MULTILINE)
        kind = ("every", "train_loss", "val_loss", "tasks_s")[len(documented)]
        documented[kind] = {name for name, _ in names}
        always = {name for name, when in names if when == "always"}
        for line in every_field.read_text().splitlines():
            assert kind not in (record := json.loads(line)) or always <= record.keys()
    written: dict[str, set[str]] = {kind: set() for kind in documented}
    for line in every_field.read_text().splitlines():
        record = json.loads(line)
        kind = next(kind for kind in documented if kind in record)
        written["every"] |= record.keys() & documented["every"]
        written[kind] |= {
            re.sub(r".+/(?:acc(?:_norm)?(_stderr)?|(chance))$", field_of_task, name)
            for name in record.keys() - documented["every"]
        }
    assert written == documented


def test_the_metrics_of_a_run_are_read_as_columns(tiny_run: Path, every_field: Path) -> None:
    found, records = read_metrics(tiny_run), read_records(tiny_run / METRICS)
    for table, kind in ((found.train, "train_loss"), (found.validation, "val_loss")):
        rows = [record for record in records if kind in record]
        assert set(table) == set(rows[0])
        for name, column in table.items():
            assert column.tolist() == [row[name] for row in rows]
        assert table["tokens"].dtype == np.int64
    assert found.tasks == {}
    assert read_metrics(str(tiny_run / METRICS)).train.keys() == found.train.keys()
    every = read_metrics(every_field)
    assert every.tasks["piqa/acc_norm"].tolist() == [0.25]
    assert np.isnan(every.train["grad_norm"]).tolist() == [True] * 12 + [False] * 5
    assert every.validation["stopped_early"].tolist()[:4] == [None] * 4
    assert "train.target_loss" in every.validation["stopped_early"][5]
    assert np.isnan(every.validation["val_loss"][-1])
    with pytest.raises(QuinticError, match=r"there is no .*absent"):
        read_metrics(tiny_run / "absent")


def test_another_file_than_metrics_is_named_as_that_and_a_damaged_line_as_itself(
    tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / SAMPLES).write_text('{"step": 4, "text": "a"}\n')
    (tmp_path / "notes.txt").write_bytes(b"\xff\x00 no record\nat all\n")
    for other in (tiny_run / CONFIG, tmp_path / SAMPLES, tmp_path / "notes.txt"):
        with pytest.raises(QuinticError) as caught:
            read_metrics(other)
        assert str(caught.value) == (
            f"{other} is no metrics.jsonl of a run: name that, or the folder that quintic train "
            "wrote"
        )
    damaged = tmp_path / METRICS
    damaged.write_text("half a li\n" + (tiny_run / METRICS).read_text())
    with pytest.raises(QuinticError, match="line 1 is not a record of a run: 'half a li'; repair"):
        read_metrics(damaged)
    damaged.write_text("")  # of a run that has just begun
    assert read_metrics(damaged).train == {}


def test_reading_metrics_loads_no_pytorch(tiny_run: Path) -> None:
    read = f"import quintic, sys; quintic.read_metrics({str(tiny_run)!r})"
    program = f"{read}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_record_is_appended_by_one_write_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody sees two halves of a line with something else between them."""
    path, sizes = tmp_path / METRICS, [0]
    record: MetricsRecord = {"step": 1, "stopped_early": "because " * 4000}
    file = MetricsFile(path)
    write = file._file.write

    class Watched:
        def write(self, data: Any) -> int:
            written = write(data)
            sizes.append(path.stat().st_size)
            return written

    monkeypatch.setattr(file, "_file", Watched())
    file.append(record)
    file.append({"step": 2})
    assert sizes[1:] == [len(json.dumps(record)) + 1, len(json.dumps(record)) + 13]
    assert [found["step"] for found in read_records(path)] == [1, 2]


def test_no_beginning_of_a_line_is_taken_for_a_record(every_field: Path, tmp_path: Path) -> None:
    """A reader that comes while a line is written sees a beginning of it."""
    path = tmp_path / METRICS
    for line in {tuple(json.loads(line)): line for line in every_field.open("rb")}.values():
        for end in range(len(line) - 1):
            path.write_bytes(b'{"step": 1}\n' + line[:end])
            assert read_records(path) == [{"step": 1}]


def test_a_validation_stands_before_the_training_loss_of_its_step(tiny_run: Path) -> None:
    """Both are losses of the same weights, after `step` updates."""
    order = [(r["step"], "val_loss" in r) for r in read_records(tiny_run / METRICS)]
    assert order == sorted(order, key=lambda entry: (entry[0], not entry[1]))


def test_a_loss_is_read_one_step_late_where_the_device_runs_ahead(tmp_path: Path) -> None:
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen, device=torch.device("meta"))
    metrics.train(0, torch.tensor(5.0), lr=0.1)
    assert seen == []
    metrics.train(1, torch.tensor(4.0), lr=0.1)
    assert [(record["step"], record["train_loss"]) for record in seen] == [(0, 5.0)]
    metrics.flush()
    assert [record["step"] for record in seen] == [0, 1]
    metrics.close()
    assert read_records(tmp_path / METRICS) == seen


def test_on_a_cpu_each_step_is_timed_and_written_at_once(tmp_path: Path) -> None:
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen)
    metrics.train(0, torch.tensor(5.0), grad_norm=torch.tensor(0.5))
    assert [record["step"] for record in read_records(tmp_path / METRICS)] == [0]
    assert seen[0]["grad_norm"] == 0.5
    metrics.close()


def test_mfu_is_the_share_of_the_known_peak(tmp_path: Path) -> None:
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen, peak_flops=1e9)
    metrics.train(0, torch.tensor(5.0))
    metrics.close()
    expected = seen[0]["tokens_per_s"] * 1e6 / 1e9
    assert seen[0]["mfu"] == pytest.approx(expected, rel=1e-3)


def test_validation_and_checkpoints_are_not_counted_as_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("quintic.device.time.perf_counter", lambda: clock[0])
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen)
    clock[0] += 2
    metrics.train(0, torch.tensor(5.0))
    clock[0] += 50
    metrics.validation(1, 4.0, 50.0)
    clock[0] += 3
    metrics.train(1, torch.tensor(4.0))
    clock[0] += 70  # a checkpoint is copied
    metrics.restart_clock()
    clock[0] += 4
    metrics.train(2, torch.tensor(4.0))
    metrics.close()
    assert [record["step_ms"] for record in seen if "step_ms" in record] == [2000, 3000, 4000]
    assert metrics.elapsed_s == 9


def test_on_a_gpu_a_step_is_timed_from_end_to_end_however_far_the_host_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host reads a step's loss when it has dispatched the next, up to a whole step later."""
    host, device = [0.0], [0.0]  # the time now, and when what was dispatched will be done

    class FakeMoment:
        def __init__(self, _: torch.device) -> None:
            self.s = max(host[0], device[0])

        def seconds_since(self, earlier: "FakeMoment") -> float:
            host[0] = max(host[0], self.s)  # waits for the work
            return self.s - earlier.s

    def step(number: int) -> None:
        device[0] = max(host[0], device[0]) + 0.95
        host[0] = max(host[0], device[0] - 0.75)  # the launch queue holds 750 ms of work
        metrics.train(number, torch.tensor(5.0))

    monkeypatch.setattr("quintic.metrics.Moment", FakeMoment)
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen, device=torch.device("cuda"))
    for number in range(4):
        step(number)
    metrics.flush()
    assert host[0] == pytest.approx(3.8)
    host[0] += 9
    metrics.validation(4, 4.0, 9.0)
    for number in range(4, 7):
        step(number)
    metrics.flush()
    host[0] += 20  # a checkpoint is written
    metrics.restart_clock()
    step(7)
    metrics.flush()
    metrics.close()
    assert [r["step_ms"] for r in seen if "step_ms" in r] == pytest.approx([950] * 8)
    assert metrics.elapsed_s == pytest.approx(8 * 0.95)


def test_of_sparse_losses_none_that_is_not_finite_is_missed_and_all_time_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("quintic.device.time.perf_counter", lambda: clock[0])
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen, log_every=4)
    for step in range(6):
        clock[0] += 2
        metrics.train(step, torch.tensor(5.0))
    metrics.validation(6, 4.0, 0.0)
    clock[0] += 2
    with pytest.raises(NonFiniteLossError, match="at step 6"):
        metrics.train(6, torch.tensor(math.nan))
    metrics.close()
    written = [(r["step"], r["elapsed_s"]) for r in read_records(tmp_path / METRICS)]
    assert written == [(0, 2), (4, 10), (6, 12), (6, 14)]
    assert [r["step_ms"] for r in seen if "step_ms" in r] == [2000, 2000, 2000]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_written_and_then_raised(tmp_path: Path, loss: float) -> None:
    metrics = opened(tmp_path, [])
    with pytest.raises(NonFiniteLossError, match=f"the loss is {loss} at step 3"):
        metrics.train(3, torch.tensor(loss))
    with pytest.raises(NonFiniteLossError, match="at step 4"):
        metrics.validation(4, loss, 0.1)
    metrics.close()
    assert [record["step"] for record in read_records(tmp_path / METRICS)] == [3, 4]


def no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_not_finite_is_null_in_the_file_and_a_number_again_when_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / METRICS
    seen: list[MetricsRecord] = []
    metrics = opened(tmp_path, seen)
    metrics.train(3, torch.tensor(5.0), gradient_norm=torch.tensor(math.inf))
    with pytest.raises(NonFiniteLossError):
        metrics.train(4, torch.tensor(math.nan), gradient_norm=torch.tensor(-math.inf))
    with pytest.raises(NonFiniteLossError):
        metrics.validation(5, math.nan, 0.1)
    metrics.close()

    def lost() -> list[Any]:
        lines = path.read_text().splitlines()
        return [json.loads(line, parse_constant=no_json).get("diverged") for line in lines]

    expected = [
        {"gradient_norm": "inf"},
        {"train_loss": "nan", "gradient_norm": "-inf"},
        {"val_loss": "nan"},
    ]
    assert lost() == expected
    assert repr(read_records(path)) == repr(seen)  # equal but for NaN, which equals nothing
    truncate_metrics(path, 5)
    assert lost() == expected[:2]


def test_a_bare_nan_of_an_older_run_is_read_and_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"step": 1, "train_loss": NaN, "name": null}\n{"step": 2}\n')
    assert math.isnan(read_records(path)[0]["train_loss"])
    truncate_metrics(path, 2)
    assert json.loads(path.read_text(), parse_constant=no_json) == {
        "step": 1,
        "train_loss": None,
        "name": None,
        "diverged": {"train_loss": "nan"},
    }


# What a crash leaves.


def test_a_last_line_cut_short_is_left_out_and_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    for cut in ('{"step": 2, "train_lo', "{", '{"step": 2}'[:-1], "\0\0\0"):
        path.write_text('{"step": 0}\n{"step": 1}\n' + cut)
        assert [record["step"] for record in read_records(path)] == [0, 1]
    truncate_metrics(path, 5)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    "line",
    [
        *('{"step": 1, "tr', "[]", "3", '{"loss": 2}', '{"step": null}'),
        '{"step": 1, "diverged": true}',
        '{"step": 1, "train_loss": null, "diverged": {"train_loss": "lost"}}',
    ],
)
def test_another_line_that_is_no_record_is_an_error_that_names_it(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / METRICS
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(QuinticError, match=rf"{METRICS} line 2 is not a record"):
        read_records(path)


def test_truncation_keeps_what_came_before_the_step_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    records: list[MetricsRecord] = [
        {"step": 0, "val_loss": 5.25},
        {"step": 0, "train_loss": 0.1 + 0.2},
        {"step": 1, "train_loss": 1e-300},
        {"step": 2, "val_loss": 4.0},
        {"step": 2, "train_loss": 4.0},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    truncate_metrics(path, 2)
    assert read_records(path) == records[:3]
    truncate_metrics(tmp_path / "absent.jsonl", 2)
    assert [entry.name for entry in tmp_path.iterdir()] == [METRICS]


# TensorBoard.


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


@pytest.mark.parametrize("checkpoint_every", [4, 100])
def test_tensorboard_shows_each_step_once_after_a_crash_and_a_resume(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: int
) -> None:
    """Also where the run was lost before its first checkpoint and begins again."""
    folder = tmp_path / "run"
    arguments = [*tiny[:-1], "--train.checkpoint-every", str(checkpoint_every)]
    own = quintic.train.forward_backward

    def crash(run: Run, batch: tuple[torch.Tensor, torch.Tensor], *_: Any) -> torch.Tensor:
        if run.state.step == 7:
            raise RuntimeError("the machine went away")
        return own(run, batch)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="went away"):
        patch.setattr(quintic.train, "forward_backward", crash)
        main([*arguments, "--out", str(folder)])
    assert [step for step, _ in events(folder)["train_loss"]] == list(range(7))
    main(["train", "--resume", str(folder)])
    found, records = events(folder), read_records(folder / METRICS)
    for name in ("train_loss", "val_loss", "lr", "tokens_per_s"):
        written = [(record["step"], record[name]) for record in records if name in record]
        assert [step for step, _ in found[name]] == [step for step, _ in written]
        assert [value for _, value in found[name]] == pytest.approx(
            [value for _, value in written], rel=1e-6
        )


def test_tensorboard_can_be_left_out(tiny_run: Path) -> None:
    assert not (tiny_run / "tensorboard").exists()


# The figure.


def test_the_figure_is_a_png_redrawn_at_each_validation(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, bytes]] = []
    own = draw_loss

    def watched(records: list[MetricsRecord], path: Path, title: str) -> None:
        own(records, path, title)
        drawn.append((sum("val_loss" in record for record in records), path.read_bytes()))

    monkeypatch.setattr(quintic.train, "draw_loss", watched)
    main([*tiny, "--out", str(tmp_path / "run")])
    # Drawn in the background, so a later validation may be in the file already.
    assert len(drawn) == 4
    assert all(count >= i for i, (count, _) in enumerate(drawn, start=1))
    for _, content in drawn:
        assert content.startswith(PNG) and content.endswith(b"IEND\xaeB`\x82")
    assert (tmp_path / "run" / "loss.png").read_bytes() == drawn[-1][1]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"tokens": 0, "val_loss": 5.0}],
        [{"tokens": 0, "train_loss": 5.0}],
        [{"tokens": 0, "train_loss": math.nan}, {"tokens": 1, "val_loss": math.inf}],
    ],
    ids=["nothing", "one validation", "one step", "diverged"],
)
def test_a_figure_of_little_or_broken_data_is_still_a_png(
    tmp_path: Path, records: list[MetricsRecord]
) -> None:
    draw_loss(records, tmp_path / "loss.png", "title")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


def test_running_mean_is_over_the_last_share_of_all_values() -> None:
    assert running_mean([4.0, 2.0, 6.0, 0.0], share=0.5) == pytest.approx([4, 3, 4, 3])
    assert running_mean([1.0, 2.0]) == [1.0, 2.0]
    assert running_mean([]) == []


# The console.


def test_plain_lines_name_step_and_loss(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunProgress(Console(), steps=12, first_step=0)
    with progress:
        progress.show({"step": 3, "train_loss": 4.25, "tokens_per_s": 1234.0, "mfu": 0.5})
        progress.show({"step": 4, "train_loss": 4.0, "tokens_per_s": 1234.0})
        progress.show({"step": 5, "val_loss": 3.5})
    assert capsys.readouterr().out.splitlines() == [
        "step 3/12  loss 4.2500  1,234 tokens/s  MFU 50.0%",
        "step 5/12  validation loss 3.5000",
    ]


def test_the_records_of_a_stopped_run_are_on_disk_when_it_ends(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = RunProgress.show

    def show(self: RunProgress, record: MetricsRecord) -> None:
        own(self, record)
        if record["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunProgress, "show", show)
    main([*tiny, "--out", str(tmp_path / "run")])
    assert [r["step"] for r in read_records(tmp_path / "run" / METRICS) if "lr" in r] == [*range(7)]
