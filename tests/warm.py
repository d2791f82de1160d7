"""Processes that need not import PyTorch, which takes each one seconds: they are forked from a
server that has imported it once.

In all else they are as `subprocess.Popen` makes them: of their own pid, session, environment,
signals, standard streams and exit code, and what quintic starts in them (the ranks of `--procs` and
of torchrun, the runs of a sweep) is forked from them in turn. `test_cli.py` and `test_launch.py`
also start the plain command.
"""

from __future__ import annotations

import atexit
import inspect
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NoReturn

REGISTER = "QUINTIC_TEST_PROCESSES"
"""In the environment, a folder in which each of these processes puts a file with its pid as the
name and its rank as the content: `/proc` shows the environment of the server it was forked from."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("quintic.train", "quintic.distributed.launch", "quintic.run_lines", "tests.conftest"),
        # Imported by optimizers when they are first used.
        "torch._dynamo",
        "tests.quick_figures",
    ]
)


class _Descriptor:
    """An open file on its way to a process of the server."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


class _Call:
    """What `subprocess.Popen` was asked for, by the names of its own arguments."""

    def __init__(self, process: subprocess.Popen[Any], arguments: Sequence[Any]) -> None:
        asked = _ASKED.bind(process, *arguments).arguments
        command = asked["args"]
        self.command = [command] if isinstance(command, str) else [os.fspath(a) for a in command]
        python, *program = [argument for argument in self.command if argument not in OPTIONS]
        self.forks = python == sys.executable and (
            program[0] == "-c" or program[:2] in (["-m", "quintic"], ["-m", TORCHRUN])
        )
        self.environment = dict(os.environ if asked["env"] is None else asked["env"])
        self.folder = os.fspath(asked["cwd"] or Path.cwd())
        self.new_session = bool(asked["start_new_session"])
        given = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
        self.streams = [own if own >= 0 else number for number, own in enumerate(given)]
        self.pipes = [asked[name] for name in _PIPES]


_ASKED = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
TORCHRUN = "torch.distributed.run"
OPTIONS = ("-u", "-P")
"""Those of Python's options that these processes heed."""
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` whose process, where it runs quintic, is forked from the server."""

    _process: Any = None

    def _execute_child(self, *arguments: Any) -> None:
        call = _Call(self, arguments)
        if not call.forks:
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        streams = [_Descriptor(number) for number in call.streams]
        begun, begins = os.pipe()
        self._process = CONTEXT.Process(
            target=_begin,
            args=(
                call.command[1:],
                call.environment,
                call.folder,
                call.new_session,
                streams,
                _Descriptor(begins),
            ),
        )
        self._process.start()
        self.pid = self._process.pid
        _wait_until_begun(begun, begins)
        self._child_created = True
        self._close_pipe_fds(*call.pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, *arguments: Any, **named: Any) -> int | None:
        if self._process is None:
            return super()._internal_poll(*arguments, **named)  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._process is None:
            return super()._wait(timeout)  # type: ignore[misc,no-any-return]
        self._process.join(timeout)
        if self._internal_poll() is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def output_of(command: Sequence[str], *, plain: bool = False, **options: Any) -> str:
    """Return what a command prints; it must end well. `plain` starts it anew, without the server,
    and further options are those of `subprocess.Popen`."""
    start = subprocess.Popen if plain else Popen
    pipe = subprocess.PIPE
    with start(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return str(out)


class _ForkedHere(subprocess.Popen[Any]):
    """`subprocess.Popen` in a process of the server, from which what runs quintic is forked."""

    def _execute_child(self, *arguments: Any) -> None:
        call = _Call(self, arguments)
        if not call.forks:
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        sys.stdout.flush()
        sys.stderr.flush()
        begun, begins = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _be_forked(call)
        _wait_until_begun(begun, begins)
        self._child_created = True
        self._close_pipe_fds(*call.pipes)  # type: ignore[attr-defined]


def _wait_until_begun(begun: int, begins: int) -> None:
    """Return once the other end of a pipe is closed: the process has its session, or has died."""
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)


def _be_forked(call: _Call) -> NoReturn:
    code = 1
    try:
        if call.new_session:
            os.setsid()
        streams = [os.dup(number) for number in call.streams]
        _adopt(streams)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # such as the launcher's store
        code = _run(call.command[1:], call.environment, call.folder)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _begin(
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    new_session: bool,
    streams: list[int],
    begins: int,
) -> NoReturn:
    if new_session:
        os.setsid()
    os.close(begins)
    _adopt(streams)
    code = _run(arguments, environment, folder)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _adopt(streams: list[int]) -> None:
    """Make these open files, each above 2, the standard streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def _run(arguments: list[str], environment: Mapping[str, str], folder: str) -> int:
    """Do what `python` does with these arguments; returns the exit code."""
    import torch
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    unbuffered = "PYTHONUNBUFFERED" in environment or "-u" in arguments[:2]
    if "-P" in arguments[:2]:
        sys.path[:] = [entry for entry in sys.path if entry]  # not the current folder
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            os.fdopen(number, "wb", 0 if unbuffered else -1, closefd=False),
            write_through=unbuffered,
            line_buffering=number == 2,
        )
        for number in (1, 2)
    )
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    vars(subprocess)["Popen"] = vars(subprocess_handler)["Popen"] = _ForkedHere
    if register := environment.get(REGISTER):
        (Path(register) / str(os.getpid())).write_text(environment.get("RANK", ""))
    try:
        for entry in environment.get("PYTHONPATH", "").split(os.pathsep):
            if entry and entry not in sys.path:
                sys.path.insert(0, entry)
            if (own := Path(entry) / "sitecustomize.py").is_file():
                runpy.run_path(str(own))
        _execute([argument for argument in arguments if argument not in OPTIONS])
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _execute(arguments: list[str]) -> None:
    kind, program, *rest = arguments
    assert kind in ("-c", "-m"), arguments
    sys.argv = ["-c" if kind == "-c" else program, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
