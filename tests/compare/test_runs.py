"""Run folders as records, whole and damaged."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from quintic.compare.comparison import compare
from quintic.compare.groups import same_data
from quintic.compare.runs import read_run, read_runs
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, read_records

RESULT = Path(__file__).parents[2] / "docs" / "results" / "laptop-plain"


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, which a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def append(folder: Path, *records: dict[str, Any]) -> None:
    with (folder / METRICS).open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_a_run_folder_gives_its_validations_with_tokens_and_seconds(tiny_run: Path) -> None:
    run = read_run(tiny_run)
    records = read_records(tiny_run / METRICS)
    elapsed = {r["step"]: r["elapsed_s"] for r in records if "elapsed_s" in r}
    losses = {r["step"]: r["val_loss"] for r in records if "val_loss" in r}
    assert [point.steps for point in run.validations] == [0, 5, 10, 12]
    for point in run.validations:
        assert point.loss == losses[point.steps]
        assert point.tokens == 256 * point.steps
        assert point.flops is not None
        # The time of a validation is that at the end of the step before.
        assert point.seconds == (elapsed[point.steps - 1] if point.steps else 0)
    assert run.final_loss == losses[12]
    assert run.seed == 1337
    assert run.settings["optim.muon.lr"] == 0.02
    speeds = sorted(r["tokens_per_s"] for r in records if "tokens_per_s" in r)
    assert run.tokens_per_s == pytest.approx((speeds[5] + speeds[6]) / 2)
    assert run.memory_gib is not None
    assert 0.05 < run.memory_gib < 64  # PyTorch alone has more than 50 MiB
    assert run.device is not None
    assert run.optimizer_share is not None
    assert 0 < run.optimizer_share < 1


def test_flops_are_those_that_the_run_recorded_or_else_counted_from_its_config(
    folder: Path,
) -> None:
    starts = json.loads((folder / "environment.json").read_text())
    recorded = starts[-1]["flops_per_token"]
    for start in starts:
        start["flops_per_token"] = 1000.0
    (folder / "environment.json").write_text(json.dumps(starts))
    last = read_run(folder).validations[-1]
    assert (last.tokens, last.flops) == (12 * 256, 12 * 256 * 1000.0)
    for start in starts:  # as before runs recorded it, and as a hand may have left it
        start["flops_per_token"] = "many" if start is starts[0] else None
    (folder / "environment.json").write_text(json.dumps(starts))
    assert read_run(folder).validations[-1].flops == 12 * 256 * recorded
    assert read_run(folder).flops_per_step == 256 * recorded


def test_the_data_is_known_by_the_fingerprint_in_the_environment(folder: Path) -> None:
    states = sorted(folder.glob("checkpoints/*/state.json"))
    fingerprint = json.loads(states[-1].read_text())["fingerprint"]
    assert read_run(folder).data.fingerprint == fingerprint
    (folder / "environment.json").write_text("{")
    bare = read_run(folder).data
    assert bare.fingerprint is None
    assert bare.described is not None
    assert "vocabulary 128" in bare.described


def test_an_edited_config_is_refused_by_field_and_one_that_a_resume_may_have_is_not(
    folder: Path,
) -> None:
    """Fails where the config of a folder is believed though its checkpoints know better."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    newest = folder / "checkpoints" / "step-00000012"
    config["optim"]["muon"]["lr"] = 0.5
    path.write_text(json.dumps(config))
    message = f"{newest} was trained with optim.muon.lr 0.02, not 0.5 as the config.json of its run"
    with pytest.raises(QuinticError, match=re.escape(message)):
        read_run(folder)
    (newest / "state.json").write_text("{")
    believed = read_run(folder)
    assert believed.settings["optim.muon.lr"] == 0.5, "nothing is known against it"
    assert not believed.confirmed
    config["optim"]["muon"]["lr"] = 0.02
    config["train"]["keep_checkpoints"] = 7
    path.write_text(json.dumps(config))
    shutil.copy(folder / "checkpoints/step-00000008/state.json", newest)
    confirmed = read_run(folder)
    assert confirmed.settings["train.keep_checkpoints"] == 7
    assert confirmed.confirmed


def test_one_thread_is_no_other_device_where_0_1_called_it_threads(folder: Path) -> None:
    path = folder / "environment.json"
    (start,) = json.loads(path.read_text())
    found = set()
    for device in ("cpu (some processor, 1 threads)", "cpu (some processor, 1 thread)"):
        path.write_text(json.dumps([{**start, "device": device}]))
        found.add(read_run(folder).device)
    assert found == {"cpu (some processor, 1 thread)"}


@pytest.mark.parametrize(
    "content", ["{", "null", "[]", '[{"data": {"x": 1}}]', '[{"device": 3, "python": 4}]']
)
def test_a_damaged_environment_is_noted(folder: Path, content: str) -> None:
    (folder / "environment.json").write_text(content)
    run = read_run(folder)
    assert (run.data.fingerprint, run.device) == (None, None)
    note = f"the environment.json of {folder} is damaged: what it said of data, device and commit"
    assert [found.startswith(note) for found in compare([run]).notes] == [True]


def test_a_file_beside_a_run_as_in_a_sweep_is_named_with_it(folder: Path) -> None:
    for suffix in (".json", ".log"):
        beside = folder.with_name(folder.name + suffix)
        beside.write_text("{}")
        with pytest.raises(QuinticError, match=f"is a file of the run in {folder}: name that"):
            read_runs(beside)
    beside.write_text("s:0 tel:11.0\n")  # another trainer's
    assert [run.source for run in read_runs(beside)] == ["llm.c"]


def test_a_run_of_several_datasets_in_one_folder_is_noted(folder: Path) -> None:
    path = folder / "environment.json"
    (first,) = json.loads(path.read_text())
    assert not any("datasets" in note for note in compare([read_run(folder)]).notes)
    path.write_text(json.dumps([{**first, "data": "another"}, first]))
    (note,) = (note for note in compare([read_run(folder)]).notes if "datasets" in note)
    assert note == (
        f"{folder} was trained on 2 datasets one after the other: its curve joins losses on "
        "different text"
    )


def test_the_stored_result_of_laptop_is_readable_without_checkpoints() -> None:
    run = read_run(RESULT)
    assert run.finished
    assert run.final_loss == pytest.approx(3.4761, abs=1e-4)
    assert run.data.described == ("embedded", "Python 3.11.7", "vocabulary 2048")


def test_the_embedded_text_of_another_python_is_other_data(tmp_path: Path) -> None:
    for name, python in (("same", "3.11.7"), ("other", "3.12.1")):
        copy = Path(shutil.copytree(RESULT, tmp_path / name))
        environment = json.loads((copy / "environment.json").read_text())
        environment[-1]["python"] = python
        (copy / "environment.json").write_text(json.dumps(environment))
    original = read_run(RESULT).data
    assert same_data(original, read_run(tmp_path / "same").data)
    assert not same_data(original, read_run(tmp_path / "other").data)


def test_the_share_of_the_optimizer_is_shown_where_it_was_recorded(folder: Path) -> None:
    records = read_records(folder / METRICS)
    steps = [r for r in records if "step_ms" in r]
    for record in steps:
        record["optimizer_ms"] = record["step_ms"] / 50
    (folder / METRICS).write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read_run(folder).optimizer_share == pytest.approx(0.02)


def test_a_run_whose_loss_is_not_finite_has_diverged(folder: Path) -> None:
    append(folder, {"step": 13, "tokens": 3328, "train_loss": math.nan})
    run = read_run(folder)
    assert run.diverged_at == 13
    assert run.final_loss is None
    assert [point.steps for point in run.validations] == [0, 5, 10, 12]


def test_a_loss_that_came_back_is_no_divergence(folder: Path) -> None:
    lines = (folder / METRICS).read_text().splitlines(keepends=True)
    lines.insert(4, '{"step": 3, "tokens": 768, "train_loss": Infinity}\n')
    (folder / METRICS).write_text("".join(lines))
    run = read_run(folder)
    assert run.diverged_at is None
    assert run.final_loss is not None


def test_a_run_that_has_not_come_to_its_end_has_no_final_loss(folder: Path) -> None:
    lines = (folder / METRICS).read_text().splitlines(keepends=True)
    (folder / METRICS).write_text("".join(lines[:-1]))
    run = read_run(folder)
    assert not run.finished
    assert run.steps_done == 10
    assert run.final_loss is None


def test_a_last_line_cut_short_is_left_out(folder: Path) -> None:
    before = read_run(folder)
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 13, "val_lo')
    assert read_run(folder).validations == before.validations


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{damaged", "line 1 is not a record of a run: '{damaged'"),
        ("[1, 2]", "line 1 is not a record of a run"),
        ('{"step": 1, "val_loss": "low"}', "val_loss of step 1 is 'low' and not a number"),
        ('{"step": 1, "tokens": [1], "val_loss": 3}', r"tokens of step 1 is '\[1\]' and not a num"),
        ('{"step": 1, "elapsed_s": true}', "elapsed_s of step 1 is 'True' and not a number"),
        ('{"step": 1, "memory_gib": "1"}', "memory_gib of step 1 is '1' and not a number"),
    ],
)
def test_a_damaged_line_is_named(folder: Path, line: str, message: str) -> None:
    path = folder / METRICS
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(QuinticError, match=message):
        read_run(folder)


def test_a_line_that_is_no_text_is_named(folder: Path) -> None:
    path = folder / METRICS
    path.write_bytes(b"\xff\xfe\x00\n" + path.read_bytes())
    with pytest.raises(QuinticError, match="line 1 is not a record of a run"):
        read_run(folder)


@pytest.mark.parametrize("content", [None, "", '{"step": 0, "train_loss": 4.8}\n'])
def test_a_run_without_a_validation_is_refused(folder: Path, content: str | None) -> None:
    (folder / METRICS).unlink()
    if content is not None:
        (folder / METRICS).write_text(content)
    with pytest.raises(QuinticError, match=r"is complete and its losses are lost \(.*leave"):
        read_run(folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    with pytest.raises(QuinticError, match=r"has no validation loss yet .*: train it further"):
        read_run(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(QuinticError, match="does not exist"):
        read_run(tmp_path / "absent")


@pytest.mark.parametrize("content", ["{", "[]", "\ud800", '[{"python": 3}]'])
def test_a_damaged_record_of_the_environment_costs_only_what_it_said(
    folder: Path, content: str
) -> None:
    (folder / "environment.json").write_text(content, errors="surrogatepass")
    run = read_run(folder)
    assert run.final_loss is not None
    assert run.device is None
