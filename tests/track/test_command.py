"""`quintic track`: an attempt from its first run to the record, interrupted, extended, refused."""

import fcntl
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import quintic.train
from quintic.track.attempt import RECORD
from quintic.track.record import read_records
from quintic.track.reference import Reference
from quintic.track.verdict import stand
from tests.conftest import main, refusal
from tests.track.conftest import asked

Capture = pytest.CaptureFixture[str]
Before = list[Callable[[list[str]], None]]
Commands = list[list[str]]
TWO = ("--seeds", "2", "--pairs", "2", "--threads", "2")


def names(commands: Commands) -> list[str]:
    return [Path(command[command.index("--out") + 1]).name for command in commands]


@pytest.mark.usefixtures("track")
def test_an_attempt_runs_pairs_in_turn_and_writes_a_record_that_says_what_its_runs_do(
    tmp_path: Path, capsys: Capture, commands: Commands, tiny_reference: Reference
) -> None:
    folder = tmp_path / "attempt"
    main(asked(folder, *TWO, "--note", "one step is enough"))
    assert names(commands) == ["01-reference", "01-candidate", "02-candidate", "02-reference"]
    # Both with the same threads; the waiting that this process chose for itself is no run's.
    assert {(c[-2], c[-1]) for c in commands} == {("2", "")}
    configs = [json.loads((folder / f"{name}.json").read_text()) for name in names(commands)]
    assert [c["train"]["seed"] for c in configs] == [1, 1, 2, 2]
    assert [c["train"]["steps"] for c in configs] == [2, 1, 1, 2]
    out = capsys.readouterr().out
    assert "trained by this quintic, since no repository here has its own" in out
    assert "verdict not decided: a record has 5 seeds and these are 2: run it with --seeds 5" in out
    shipped = folder / RECORD / "src" / "quintic" / "track" / "records"
    reference, record = read_records(shipped)
    assert (reference.recipe, reference.ratio, reference.seeds) == ("reference", 1.0, 2)
    assert (record.recipe, record.changed, record.seeds) == ("laptop", "one step is enough", 2)
    assert record.reference == {"commit": "0" * 40, "trained_with": None}
    assert record.corpus["val"]["sha256"] == tiny_reference.corpus["val"].sha256
    again = stand(record.runs, record.targets)
    assert (again.ratio, again.bits_per_byte, again.p) == (
        record.ratio,
        record.bits_per_byte,
        record.p,
    )
    kept = folder / RECORD / "docs" / "track" / record.name
    assert (kept / "config.json").is_file()
    for name in names(commands):
        assert {path.name for path in (kept / name).iterdir()} == {
            *("config.json", "environment.json", "metrics.jsonl", "track.json")
        }

    # The same command has nothing left to train, and more pairs are added to those.
    commands.clear()
    main(asked(folder, *TWO))
    assert not commands
    main(asked(folder, *TWO[:2], "--pairs", "3", *TWO[4:]))
    assert names(commands) == ["03-reference", "03-candidate"]
    assert read_records(shipped)[1].extents == [[2, 2], [2, 3]]


@pytest.mark.usefixtures("track")
def test_an_interrupted_run_begins_again_and_finished_ones_are_kept(
    tmp_path: Path, capsys: Capture, commands: Commands, before_run: Before
) -> None:
    folder = tmp_path / "attempt"

    def press_ctrl_c(command: list[str]) -> None:
        if command[-1].endswith("01-candidate"):
            before_run.clear()
            os.kill(os.getpid(), signal.SIGINT)

    before_run.append(press_ctrl_c)
    with pytest.raises(SystemExit) as caught:
        main(asked(folder, *TWO))
    assert caught.value.code == 130
    assert "finished runs are kept, and the same command continues" in capsys.readouterr().out
    assert names(commands) == ["01-reference", "01-candidate"]
    # A run that never came to its end is dropped, however far it was.
    half_done = folder / "02-candidate"
    shutil.copytree(folder / "01-reference", half_done)
    (half_done / "track.json").unlink()
    commands.clear()
    main(asked(folder, *TWO))
    assert names(commands)[-2:] == ["02-candidate", "02-reference"]
    assert "01-reference" not in names(commands)
    assert len(json.loads((half_done / "environment.json").read_text())) == 1


@pytest.mark.usefixtures("track")
def test_what_does_not_belong_to_the_attempt_is_refused_and_nothing_is_lost(
    tmp_path: Path,
    capsys: Capture,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    tiny_reference: Reference,
) -> None:
    folder = tmp_path / "attempt"
    main(asked(folder, *TWO))
    commands.clear()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    choose = f"{folder} holds an attempt %s: its times do not belong to these; choose another --out"
    for options, other in (
        (["--optim.muon.lr", "0.5"], "with another optim.muon.lr"),
        (["--threads", "3"], "with another --threads"),
        (["--threads", "2", "--processes", "2"], "with another --processes"),
    ):
        command = [*asked(folder, *TWO[:4]), *(options if "--threads" in options else TWO[4:])]
        command += [] if "--threads" in options else options
        assert refusal(command, capsys) == choose % other
    monkeypatch.setattr("quintic.track.run.processor_name", lambda: "another")
    assert refusal(asked(folder, *TWO), capsys) == choose % "on another machine"
    monkeypatch.undo()
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not commands


@pytest.mark.usefixtures("track")
def test_folders_and_processes_of_others_are_left_alone(
    tmp_path: Path, capsys: Capture, commands: Commands
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter").touch()
    assert refusal(asked(tmp_path / "own", *TWO), capsys) == (
        f"{tmp_path / 'own'} exists and is not the folder of an attempt: choose another --out"
    )
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["letter"]
    folder = tmp_path / "attempt"
    folder.mkdir()
    with (folder / "01-reference.log").open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as a run does whose attempt was killed
        (folder / "01-reference.log").rename(tmp_path / "held.log")
        (folder / "attempt.json").touch()
        message = refusal(asked(folder, *TWO), capsys)
        assert message.startswith(f"{folder / 'attempt.json'} is not the record of an attempt")
        (folder / "attempt.json").unlink()
        os.link(tmp_path / "held.log", tmp_path / "01-reference.log")
    assert not commands


@pytest.mark.usefixtures("track")
def test_a_run_that_is_still_trained_by_a_killed_attempt_is_waited_for(
    tmp_path: Path, capsys: Capture, commands: Commands
) -> None:
    folder = tmp_path / "attempt"
    main(asked(folder, *TWO))
    shutil.rmtree(folder / "02-reference")
    commands.clear()
    with (folder / "02-reference.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert refusal(asked(folder, *TWO), capsys).startswith(
            "02-reference is still trained by an earlier start of this attempt, which was killed"
        )
    assert not commands


@pytest.mark.usefixtures("track")
def test_a_seed_that_diverges_is_on_record_and_one_that_fails_is_tried_again(
    tmp_path: Path,
    capsys: Capture,
    commands: Commands,
    before_run: Before,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "attempt"
    blocked = folder / "01-candidate"

    def in_the_way(command: list[str]) -> None:
        if command[-1] == str(blocked):
            blocked.mkdir()
            (blocked / "letter").touch()

    before_run.append(in_the_way)
    message = refusal(asked(folder, *TWO), capsys)
    assert message == (
        f"01-candidate failed ({blocked} exists and is not an empty folder: choose another --out): "
        "the same command tries it again"
    )
    before_run.clear()

    def diverge(command: list[str]) -> None:
        times = math.nan if command[-1].endswith("candidate") else 1.0
        monkeypatch.setattr("quintic.train.forward_backward", lambda *a: times * trained(*a))

    trained = quintic.train.forward_backward
    before_run.append(diverge)
    main(asked(folder, *TWO))
    out = capsys.readouterr().out
    assert "verdict no record: 2 of 2 seeds diverged" in out
    commands.clear()
    main(asked(folder, *TWO))
    assert not commands


@pytest.mark.usefixtures("track")
def test_another_corpus_is_refused_by_its_digest(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tiny_reference: Reference
) -> None:
    other = {"train": tiny_reference.corpus["val"], "val": tiny_reference.corpus["train"]}
    monkeypatch.setattr("quintic.track.run.corpus_of_this_python", lambda: other)
    message = refusal(asked(tmp_path / "attempt", *TWO), capsys)
    one, another = (text.sha256[:12] for text in (other["val"], tiny_reference.corpus["val"]))
    rule = f"another corpus (held-out digest {one}) than the track's (Python 3.11.7, {another})"
    assert rule in message
    assert not (tmp_path / "attempt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], "--seeds is 1: a test of a mean needs at least 2, and a record 5"),
        (["--pairs", "0"], "--pairs is 0: it must be at least 1"),
        (
            ["--data.path", "somewhere"],
            "data.path is somewhere, and the track is of the embedded corpus with a vocabulary of "
            "data.embedded_vocab: leave it out",
        ),
        (
            ["--train.device", "cuda"],
            "train.device is cuda, and the track is of CPUs: leave it out",
        ),
        (
            ["--train.patience", "1"],
            "train.patience is 1, which looks at the held-out files to end the run, and the clock "
            "does not see it: use None",
        ),
        (
            ["--threads", "2", "--processes", "3"],
            "--threads is 2: it counts those of a run over all of its processes, so it must be "
            "from 3 to the 4 cores that are here",
        ),
        (
            ["--reference-checkout", "no-such-thing"],
            "--reference-checkout no-such-thing is neither a folder nor a revision of quintic that "
            "a repository around",
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
@pytest.mark.usefixtures("track")
def test_what_makes_no_attempt_is_refused_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    command = ["track", "run", "laptop", "--out", str(tmp_path / "attempt"), *options]
    assert refusal(command, capsys).startswith(message)
    assert not (tmp_path / "attempt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--markdown"], "--json and --markdown are two forms of the same list"),
        (["--figure", "history.txt"], "--figure history.txt: the figure's name must end in .png"),
        (["--figure", "none/a.png"], "--figure none/a.png: there is no folder none; create it"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_a_list_in_no_known_form_is_refused_before_it_is_printed(
    options: list[str], message: str, capsys: Capture
) -> None:
    assert refusal(["track", *options], capsys).startswith(message)


def test_the_list_says_where_there_is_no_record(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintic.cli.track.read_records", list)
    main(["track"])
    assert capsys.readouterr().out == (
        "no record yet: quintic track run RECIPE makes an attempt at one\n"
    )
    main(["track", "--json"])
    assert json.loads(capsys.readouterr().out) == []
