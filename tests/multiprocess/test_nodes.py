"""Two nodes: network namespaces of this machine with addresses of their own, joined by a cable.

torchrun on each, rendezvous and gloo over TCP between them. Needs root and `ip`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.multiprocess.commands import Command, assert_tidy, losses, running, steps_done

ADDRESSES = ("10.213.77.1", "10.213.77.2")
CUT_S = 9.0
"""How long the second node is cut off: beyond the timeout of the watchdog."""


@dataclass(frozen=True)
class Nodes:
    """Two namespaces, and in each the end of the cable between them."""

    namespaces: tuple[str, str]
    interfaces: tuple[str, str]

    def cable(self, node: int, state: str) -> None:
        """Set a node's end up or down."""
        _ip("-n", self.namespaces[node], "link", "set", self.interfaces[node], state)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    tag = uuid.uuid4().hex[:8]
    found = Nodes((f"qa{tag}", f"qb{tag}"), (f"va{tag}", f"vb{tag}"))
    with ExitStack() as stack:
        for namespace in found.namespaces:
            try:
                _ip("netns", "add", namespace)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this machine makes no network namespace: {error.stderr.strip()}")
            stack.callback(_ip, "netns", "del", namespace)
        one, two = found.interfaces
        _ip("link", "add", one, "netns", found.namespaces[0], "type", "veth", "peer", "name", two)
        _ip("link", "set", two, "netns", found.namespaces[1])
        for node, (namespace, address) in enumerate(zip(found.namespaces, ADDRESSES, strict=True)):
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", found.interfaces[node])
            _ip("-n", namespace, "link", "set", "lo", "up")
            found.cable(node, "up")
        yield found


ENTER = """
import ctypes, os
if "RANK" not in os.environ:
    with open("/var/run/netns/NAMESPACE") as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
"""
"""Torchrun enters its namespace, as `ip netns exec` would before it; its rank is then there too."""


def torchrun(node: int, restarts: int) -> list[str]:
    """What starts one process on a node."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29500"),
        *("--rdzv-id", "nodes", "--local-addr", ADDRESSES[node]),
        # Both have the name of this machine, by which torchrun would tell who is the host.
        *("--rdzv-conf", f"is_host={int(node == 0)}", "--max-restarts", str(restarts)),
        *("--monitor-interval", "0.2", "-m", "quintic"),
    ]


def start_both(
    stack: ExitStack, nodes: Nodes, arguments: list[str], logs: Path, restarts: int
) -> list[Command]:
    commands = []
    for node in (0, 1):
        folder = logs / str(node)
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(ENTER.replace("NAMESPACE", nodes.namespaces[node]))
        environment = {"GLOO_SOCKET_IFNAME": nodes.interfaces[node], "PYTHONPATH": str(folder)}
        command = torchrun(node, restarts)
        commands.append(
            stack.enter_context(
                running(arguments, folder, command=command, environment=environment)
            )
        )
    return commands


def test_a_run_across_two_nodes_has_the_losses_of_one_on_one_machine(
    nodes: Nodes, long_run: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    with ExitStack() as stack:
        one, two = start_both(stack, nodes, [*long_run, "--out", str(folder)], tmp_path, 0)
        assert (one.wait(), two.wait()) == (0, 0), one.errors + two.errors
        assert one.alive() == two.alive() == {}
    assert "procs   2 processes" in one.output + two.output
    assert "" in (one.output, two.output), "both spoke"
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)


@pytest.mark.skipif(
    not os.environ.get("QUINTIC_SLOW_TESTS"),
    reason="takes 40 s: set QUINTIC_SLOW_TESTS=1",
)
def test_a_node_that_is_cut_off_and_comes_back_changes_no_loss(
    nodes: Nodes, long_run: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    options = ["--train.hang-timeout-s", "3", "--auto-resume", "--out", str(folder)]
    with ExitStack() as stack:
        one, two = start_both(stack, nodes, [*long_run, *options], tmp_path, 5)
        one.until(lambda: steps_done(folder) > 12, "12 steps")
        nodes.cable(1, "down")
        cut_s = time.monotonic()
        one.until(lambda: "no progress for 3 s" in one.errors + two.errors, "the watchdog")
        print(f"cut off: found after {time.monotonic() - cut_s:.1f} s")
        time.sleep(max(0.0, CUT_S - (time.monotonic() - cut_s)))
        nodes.cable(1, "up")
        assert (one.wait(), two.wait()) == (0, 0), one.errors + two.errors
        print(f"ended {time.monotonic() - cut_s - CUT_S:.1f} s after it came back")
        assert one.alive() == two.alive() == {}
    # Cut off before its first checkpoint was whole, the run begins again.
    assert re.search("resuming from|beginning again at step 0", one.output + two.output)
    assert losses(folder) == losses(undisturbed)
    assert_tidy(folder)
