"""`--procs` and torchrun start the processes of a run; one of them speaks, and errors come once."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from quintic.cli.main import main
from tests import warm
from tests.conftest import tiny_arguments
from tests.multiprocess.commands import assert_tidy, losses, running


def lines_of(output: str) -> list[str]:
    """What a run said, without its speed and its folder."""
    lines = [re.sub(r"[\d,]+ tokens/s", "", line) for line in output.splitlines()]
    return [line for line in lines if not re.match("figure|more|run ", line)]


@pytest.fixture(scope="module")
def single(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    main([*tiny_arguments(tiny_data), "--train.precision", "float64", "--out", str(folder)])
    return folder


@pytest.mark.parametrize("launcher", ["--procs", "torchrun"])
def test_two_processes_end_well_one_speaks_and_the_losses_are_those_of_one(
    tiny: list[str], tmp_path: Path, single: Path, launcher: str
) -> None:
    folder = tmp_path / "run"
    arguments = [*tiny, "--train.precision", "float64", "--out", str(folder)]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    if launcher == "--procs":
        started = running([*arguments, "--procs", "2"], tmp_path, plain=True)
    else:
        command = (*torchrun, "--nproc-per-node", "2", "-m", "quintic")
        started = running(arguments, tmp_path, command=command)
    with started as run:
        assert run.wait() == 0
        assert run.alive() == {}
    assert run.errors == ""
    said = run.output.splitlines()
    assert sum(line.startswith("procs ") for line in said) == 1
    assert [line for line in said if line.startswith("step 12/12")] == said[-4:-3]
    assert len(said) == len(set(said)), "a line came twice"
    found, expected = losses(folder), losses(single)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([e[2] for e in expected], abs=1e-9)
    assert_tidy(folder)


def test_auto_without_a_gpu_is_one_process_that_says_what_a_plain_run_says(
    tiny: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    monkeypatch.setattr(subprocess_handler, "Popen", warm.Popen)
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(SystemExit) as ended:
        main([*tiny, "--out", str(tmp_path / "run"), "--procs", "auto"])
    assert ended.value.code == 0
    assert [*temporary.iterdir()] == []
    launched = capfd.readouterr()
    main([*tiny, "--out", str(tmp_path / "plain")])
    plain = capfd.readouterr()
    assert (launched.err, plain.err) == ("", "")
    assert lines_of(launched.out)[1:] == lines_of(plain.out)[1:]  # the first names the threads


@pytest.mark.parametrize("procs", ["0", "-1", "two", "1.5", ""])
def test_another_number_of_processes_is_refused_in_one_line(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], procs: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*tiny, "--out", str(tmp_path / "run"), f"--procs={procs}"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message == (
        f"quintic: --procs is {procs!r}: it must be a number of processes, or auto for one on "
        "each GPU\n"
    )
    assert not (tmp_path / "run").exists()


def test_more_processes_than_sequences_are_refused_once_and_not_tried_again(
    tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ["--train.batch-tokens", "64", "--procs", "3", "--max-restarts", "3"]
    with running([*tiny, *arguments, "--out", str(folder)], tmp_path) as run:
        assert run.wait() == 2
        assert run.alive() == {}
    assert re.fullmatch(
        r"quintic: a batch of 2 sequences cannot be divided among 3 processes: start at "
        r"most 2, or use --train\.batch-tokens 96\n",
        run.errors,
    )
    assert run.output == ""
    assert not folder.exists()


MARK = """
import quintic.train
from quintic.errors import QuinticError
own = quintic.train.apply_schedule
def failing(run, step):
    if step == 5:
        FAILURE
    return own(run, step)
quintic.train.apply_schedule = failing
"""
FAILURES = {
    "a user's error on one rank": (
        (1,),
        "raise QuinticError('the disk of this machine is not there')",
        r"quintic: rank 1: the disk of this machine is not there\n",
        2,
    ),
    "a crash of rank 0": (
        (0,),
        "raise KeyError('a bug')",
        r"\[rank0\]: Traceback \(most recent call last\):\n"
        r"(\[rank0\]:   .*\n)+\[rank0\]: KeyError: 'a bug'\n",
        1,
    ),
    "a loss that all see diverge": (
        (0, 1),
        "[p.data.fill_(float('nan')) for p in run.state.model.parameters()]",
        r"quintic: rank \d: the loss is nan at step \d: training has diverged, .*\n",
        2,
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_message_of_the_rank_that_fails_comes_alone_and_at_once(
    tiny: list[str], tmp_path: Path, case: str
) -> None:
    ranks, failure, message, code = FAILURES[case]
    restarts = "3" if code == 2 else "0"  # what a user got wrong is not tried again
    folder = tmp_path / "run"
    arguments = [*tiny, "--out", str(folder), "--procs", "2", "--max-restarts", restarts]
    fault = MARK.replace("FAILURE", failure)
    with running(arguments, tmp_path, fault=fault, ranks=ranks) as run:
        assert run.wait() == code  # long before a collective or the watchdog gives up
        assert run.alive() == {}
    assert re.fullmatch(message, run.errors), run.errors
    assert_tidy(folder)
