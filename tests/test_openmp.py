"""Threads that wait for each other sleep soon, unless the user has said how they wait."""

import os
import subprocess
import sys

import pytest

from quintic.openmp import SPIN_COUNT, spin_less


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings GNU OpenMP on Linux")
@pytest.mark.parametrize(
    ("told", "count"), [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, 7)]
)  # fmt: skip
def test_the_command_tells_the_library_before_it_is_loaded(
    told: dict[str, str], count: int
) -> None:
    """By what the library itself says."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "quintic", "evaluate", "no-run"],
        env={**ours, **told, "OMP_DISPLAY_ENV": "VERBOSE"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 2
    (line,) = {line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    assert line.split("GOMP_SPINCOUNT")[1].strip(" =") == f"'{count}'"


@pytest.mark.parametrize(
    ("told", "platform", "loaded", "count"),
    [
        ({}, "linux", False, str(SPIN_COUNT)),
        ({}, "linux", True, None),
        ({}, "darwin", False, None),
        ({"OMP_WAIT_POLICY": "active"}, "linux", False, None),
        ({"GOMP_SPINCOUNT": "5"}, "linux", False, "5"),
    ],
)
def test_nothing_is_set_where_the_user_did_or_where_it_would_not_be_read(
    told: dict[str, str],
    platform: str,
    loaded: bool,
    count: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = dict(told)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(sys, "platform", platform)
    with monkeypatch.context() as patch:
        if not loaded:
            patch.delitem(sys.modules, "torch", raising=False)
        else:
            patch.setitem(sys.modules, "torch", sys)
        spin_less()
    assert environment.get("GOMP_SPINCOUNT") == count
