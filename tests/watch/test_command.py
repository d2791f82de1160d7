"""`quintic watch`: what a user can get wrong is one line, and what it prints is an address."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import main
from tests.waiting import outputs_after_ctrl_c
from tests.watch.runs import write_run


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--no-browser", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("quintic: ")
    assert said.count("\n") == 1
    return said


def test_folders_without_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "runs does not exist: name a folder with runs in it" in refused([], capsys)
    Path("runs").mkdir()
    assert "no run under runs: start one with quintic train" in refused([], capsys)
    Path("file").touch()
    assert "file is a file: name a folder" in refused(["file"], capsys)
    write_run(Path("runs/one"), 1)
    assert "gone does not exist" in refused(["runs", "gone"], capsys)


def test_a_port_that_cannot_be_had_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused([str(tmp_path), "--port", str(port)], capsys)
    assert f"port {port} is in use by another program; choose another --port" in said
    assert "--port is 70000: it must be" in refused([str(tmp_path), "--port", "70000"], capsys)
    assert "--port is -1: it must be" in refused([str(tmp_path), "--port=-1"], capsys)


def test_the_command_serves_without_pytorch_until_it_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path / "one", 1)
    program = (
        "import sys; from quintic.cli.main import main\n"
        "main(sys.argv[1:])\n"
        "slow = {'torch', 'matplotlib', 'rich', 'tokenizers', 'typeguard'}\n"
        "print(sorted(slow & sys.modules.keys()))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "watch", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("1 run: http://127.0.0.1:")
    assert line.endswith("/ (Ctrl-C ends it)\n")
    if sys.platform == "linux":
        assert process.stdout.readline().startswith("there is no browser here: from another machi")
    with urllib.request.urlopen(line.split()[2], timeout=60) as page:
        assert b"<title>quintic watch</title>" in page.read()
    out, err = outputs_after_ctrl_c(process)
    assert (out.split("\n")[-2], err, process.returncode) == ("[]", "", 0)
