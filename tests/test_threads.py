"""A run takes fewer threads where others use the cores, once, unless the user has said how many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quintic.cli.main import main
from quintic.errors import QuinticError
from quintic.run_dir import ENVIRONMENT, read_environments
from quintic.threads import choose_threads


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """PyTorch's number of threads, 8 to begin with, of as many cores."""
    now = [8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("quintic.threads.available_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    return now


@pytest.mark.parametrize(
    ("at_first", "free", "chosen"),
    [(8, 7.9, 8), (8, 7.4, 7), (8, 5.6, 6), (8, 0.1, 4), (4, 7.0, 4), (3, 0.0, 1), (2, 0.9, 1)],
)
def test_threads_are_the_free_cores_and_at_least_half(
    at_first: int,
    free: float,
    chosen: int,
    threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads[0] = at_first
    monkeypatch.setattr("quintic.threads.free_cores", lambda: free)
    said = choose_threads(None)
    assert threads == [chosen]
    if chosen == at_first:
        assert said is None
    else:
        assert said == (
            f"threads {chosen}, not {at_first}, since other programs leave {free} of 8 cores free; "
            "OMP_NUM_THREADS sets another number"
        )


def no_look() -> float:
    raise AssertionError("nobody needs to know which cores are free")


@pytest.mark.parametrize(("at_first", "told"), [(8, "8"), (1, None)])
def test_nothing_is_looked_at_where_there_is_nothing_to_choose(
    at_first: int, told: str | None, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads[0] = at_first
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr("quintic.threads.free_cores", no_look)
    assert choose_threads(None) is None
    assert threads == [at_first]


@pytest.mark.parametrize(
    ("starts", "chosen"),
    [
        ([{"threads": 8, "processes": 1}, {"threads": 2, "processes": 1}], 2),
        ([{"threads": 8, "processes": 1}], 8),
        ([{"threads": 16, "processes": 1}], 8),  # begun on a larger machine
        ([{"threads": 4, "processes": 2}], 5),  # it is rounded otherwise anyhow
        ([{"processes": 1}], 5),
        ([], 5),
    ],
)
def test_a_run_that_goes_on_keeps_its_number(
    starts: list[dict[str, int]],
    chosen: int,
    threads: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ENVIRONMENT).write_text(json.dumps(starts))
    monkeypatch.setattr("quintic.threads.free_cores", lambda: 5.0 if chosen == 5 else no_look())
    said = choose_threads(tmp_path)
    assert threads == [chosen]
    assert (said is None) == (chosen == 8)
    if chosen == 2:
        assert said is not None
        assert "threads 2, not 8, as the run had so far, since rounding depends on it" in said


def test_several_processes_do_not_look_for_cores_that_the_others_take(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torchrun and --procs start them, who say how many threads each takes."""

    def connected(kind: str) -> None:
        raise QuinticError(f"on the {kind}")

    def look(folder: Path | None) -> None:
        raise AssertionError("the others begin to compute too")

    monkeypatch.setattr("quintic.cli.train.launched_size", lambda: 2)
    monkeypatch.setattr("quintic.cli.train.stop_with_launcher", lambda: None)
    monkeypatch.setattr("quintic.cli.train.connect", connected)
    monkeypatch.setattr("quintic.cli.train.choose_threads", look)
    with pytest.raises(SystemExit):
        main(tiny)
    assert capsys.readouterr().err == "quintic: on the cpu\n"


def test_the_command_says_it_records_it_and_resumes_with_it(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, folder = torch.get_num_threads(), tmp_path / "run"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("quintic.device.available_cores", lambda: 2)
    monkeypatch.setattr("quintic.threads.available_cores", lambda: 2)
    monkeypatch.setattr("quintic.threads.free_cores", lambda: 0.9)
    try:
        torch.set_num_threads(2)
        main([*tiny, "--out", str(folder)])
        said = capsys.readouterr().out
        assert said.startswith("threads 1, not 2, since other programs leave 0.9 of 2 cores free;")
        assert ", 1 thread)" in said, "the device's line"
        assert [start["threads"] for start in read_environments(folder)] == [1]

        torch.set_num_threads(2)
        monkeypatch.setattr("quintic.threads.free_cores", no_look)
        main(["train", "--resume", str(folder)])
        assert capsys.readouterr().out.startswith("threads 1, not 2, as the run had so far")
    finally:
        torch.set_num_threads(before)
