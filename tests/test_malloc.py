"""Memory that a step frees is the next step's, without faults."""

import os
import subprocess
import sys

import pytest

COUNT = """\
import resource, sys
from quintic.malloc import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def step(): return sum(len(b) for b in [bytearray(2**23) for _ in range(8)])
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = faults()
for _ in range(4): step()
print((faults() - before) * resource.getpagesize())
"""


def run(keep: bool, **told: str) -> tuple[str, int]:
    """What it says, and the bytes that four steps of 64 MiB touch for the first time."""
    unset = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", COUNT, "keep" if keep else ""]
    out = subprocess.run(command, env={**unset, **told}, capture_output=True, text=True, check=True)
    said, touched = out.stdout.split()
    return said, int(touched)


@pytest.mark.skipif(sys.platform != "linux", reason="about GNU's C library")
def test_freed_memory_is_touched_once_unless_the_user_has_said_otherwise() -> None:
    assert run(keep=False)[1] > 4 * 2**25, "by itself it gives most back at each step's end"
    said, touched = run(keep=True)
    assert said == "True" and touched < 2**20
    assert run(keep=True, MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
