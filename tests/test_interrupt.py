"""Ctrl-C while PyTorch is imported, which takes seconds."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import NoReturn

import pytest

from quintic.cli import main as command
from quintic.cli.interrupt import keeping_interrupts
from tests.waiting import outputs

IMPORTING = """
import sys, time
class Endless:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            while True:
                time.sleep(60)
sys.meta_path.insert(0, Endless())
from quintic.cli.main import main
main(["train", "laptop"])
"""


def test_ctrl_c_while_pytorch_is_imported_ends_the_command_in_one_word() -> None:
    program = [sys.executable, "-c", IMPORTING]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = outputs(process)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("became", "rank", "said"),
    [
        (None, None, "interrupted\n"),
        (SystemError("initialization of _C raised"), None, "interrupted\n"),
        (None, "0", "interrupted\n"),
        (None, "1", ""),
    ],
)
def test_a_ctrl_c_that_an_import_loses_is_remembered(
    became: Exception | None,
    rank: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fails where the command goes on to train, or ends in the other exception's traceback, or
    where several processes say it."""
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    def runs(*_: object) -> NoReturn:
        raise AssertionError("the command went on")

    def import_module(name: str) -> SimpleNamespace:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            if became is not None:
                raise became from None
        return SimpleNamespace(run=runs)

    monkeypatch.setattr(command, "import_module", import_module)
    with pytest.raises(SystemExit) as caught:
        command.main(["recipes"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_ignores_or_handles_ctrl_c_still_does() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with keeping_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
