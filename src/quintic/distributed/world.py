"""The processes of a run: who is who, and every collective, with the bytes it sends counted.

A run of one process has a `World` of size 1 and no process group. Several meet in `rendezvous.py`.
CPU tensors travel over gloo, CUDA tensors over NCCL.

Shapes: N processes, L elements of one of them.
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.tensor import DTensor, Shard

from quintic.errors import QuinticError


class AsyncCollective:
    """A collective under way; `wait` gives its result. `keep` must live until then."""

    def __init__(self, work: Any, result: Callable[[], Tensor], keep: Tensor | None = None) -> None:
        self._work, self._result, self._keep = work, result, keep

    def wait(self) -> Tensor:
        """Wait until the result may be used (on CUDA: by later work of the current stream)."""
        if self._work is not None:
            self._work.wait()
            self._work = self._keep = None
        return self._result()


@dataclass
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    start: str = ""
    """The name of this start of the processes: a restart of the same run has another."""
    store: Any = None
    """Keys and values that the ranks of this start share; outlives a rank that dies."""
    side_group: Any = None
    """A gloo group for what runs beside the steps, such as writing checkpoints."""
    cpu_mesh: DeviceMesh | None = None
    """The ranks in a row, for tensors of which each has some rows in CPU memory."""
    sent_bytes: int = 0
    """Bytes that this rank has sent in collectives, by the volume of the algorithm: (N-1)/N of the
    buffer for reduce-scatter, all-gather and all-to-all, twice that for all-reduce."""

    @property
    def is_main(self) -> bool:
        """Rank 0, which alone writes and speaks."""
        return self.rank == 0

    def reduce_scatter(self, parts_NL: Tensor) -> AsyncCollective:
        """Reduce-scatter: rank i gets the sum over ranks of row i, [L].

        gloo would reduce everything everywhere and throw most away, so there each rank sends its
        rows to their owners, which add them in the order of the ranks: half the bytes.
        """
        self._count(parts_NL)
        if parts_NL.is_cuda:
            sum_L = torch.empty_like(parts_NL[0])
            work = _reduce_scatter(sum_L, parts_NL.view(-1), async_op=True)
            return AsyncCollective(work, lambda: sum_L, keep=parts_NL)
        received_NL = torch.empty_like(parts_NL)
        work = dist.all_to_all_single(received_NL, parts_NL, async_op=True)
        return AsyncCollective(work, lambda: received_NL.sum(0), keep=parts_NL)

    def all_gather(self, parts_NL: Tensor) -> AsyncCollective:
        """All-gather in place: row i comes from rank i; this rank has filled its own."""
        self._count(parts_NL)
        work = _all_gather(parts_NL.view(-1), parts_NL[self.rank], async_op=True)
        return AsyncCollective(work, lambda: parts_NL)

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """All-to-all: part i goes to rank i; those that came, of these shapes, in their order."""
        if self.size == 1:
            return list(parts)
        self.sent_bytes += sum(
            part.numel() * part.element_size() for i, part in enumerate(parts) if i != self.rank
        )
        return exchange(parts, shapes)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same on each; changes the tensor."""
        if self.size > 1:
            self._count(tensor, passes=2)
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> AsyncCollective:
        """The maximum over all ranks, asynchronously; changes the tensor."""
        work = None
        if self.size > 1:
            self._count(tensor, passes=2)
            work = dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)
        return AsyncCollective(work, lambda: tensor)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.side_group)
        return values

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """Do something on every rank and return what each one's gave.

        Raises what the action raised, on every rank, where it failed on any: on the others a
        `QuinticError` that names the rank.
        """
        error: Exception | None = None
        value = None
        try:
            value = action()
        except Exception as raised:
            error = raised
        outcomes = self.all_gather_object((value, error and error_words(error)))
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise QuinticError(f"rank {rank}: {message}")
        return [value for value, _ in outcomes]

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0 and return what it gave, on every rank; raises as `together`."""
        return self.together(lambda: action() if self.is_main else None)[0]

    def as_rows(self, rows: Tensor, shape: Sequence[int]) -> DTensor:
        """This rank's rows, in CPU memory, as a part of the whole; nothing is copied."""
        assert self.cpu_mesh is not None, "a world of one has everything"
        whole = torch.empty(tuple(shape), device="meta")
        size, stride = whole.shape, whole.stride()
        return DTensor.from_local(
            rows, self.cpu_mesh, [Shard(0)], run_check=False, shape=size, stride=stride
        )

    def another_store(self, timeout: timedelta) -> PrefixStore:
        """A connection of its own to `store`, for another thread: calls on one wait in turn."""
        return PrefixStore(self.start, connect_store(timeout))

    @contextmanager
    def first_on_each_node(self) -> Iterator[None]:
        """Local rank 0 does this before the other ranks of its node, which find it done."""
        if self.local_rank != 0:
            self.all_gather_object(None)
        yield
        if self.local_rank == 0:
            self.all_gather_object(None)

    def _count(self, tensor: Tensor, passes: int = 1) -> None:
        self.sent_bytes += (
            passes * tensor.numel() * tensor.element_size() * (self.size - 1) // max(1, self.size)
        )


def connect_store(timeout: timedelta) -> TCPStore:
    """Connect to the store of a run of several processes, which torch elastic keeps, or rank 0.

    PyTorch's `env://` does the same, except that rank 0 then waits in silence until all are there.
    Raises `KeyError` and `ValueError` where the environment is not what a launcher sets, and
    `RuntimeError` where the store cannot be reached.
    """
    elastic = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not elastic and os.environ["RANK"] == "0",
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )


ALONE = World()
"""The world of a run of one process, which sends nothing."""


def local_rows(tensor: Tensor) -> Tensor:
    """The rows of a tensor that are on this rank; the tensor itself where it is whole."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def check_identical(world: World, facts: Mapping[str, Any]) -> None:
    """Raise `QuinticError` on every rank where a rank differs from rank 0 in what it is about to
    do: its code, its config, its data. `facts` are compared, by the words for them."""
    everywhere = world.all_gather_object((socket.gethostname(), {**facts, "code": _code_digest()}))
    _, expected = everywhere[0]
    for rank, (host, found) in enumerate(everywhere):
        for what, value in found.items():
            if value != expected[what]:
                raise QuinticError(
                    f"rank {rank} on {host} has other {what} than rank 0 ({value!s:.12}, not "
                    f"{expected[what]!s:.12}): all must have the same; copy rank 0's there"
                )


def _code_digest() -> str:
    """Hash quintic's own source files and PyTorch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def error_words(error: BaseException) -> str:
    """An error in one line: its first, without the source position that gloo puts before it and
    the advice that it puts behind."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0].split("] ", 1)[-1].partition(". This is typically")[0]


def _single(new_name: str, old_name: str) -> Any:
    """A collective on one tensor; PyTorch 2.13 gave them new names."""
    return getattr(dist, new_name, None) or getattr(dist, old_name)


def exchange(
    parts: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: Any = None
) -> list[Tensor]:
    """Send a tensor to each rank of a group; return those that came, which have these shapes."""
    sent = torch.cat([part.reshape(-1) for part in parts])
    sizes = [math.prod(shape) for shape in shapes]
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [p.numel() for p in parts], group=group)
    return [r.view(*shape) for r, shape in zip(received.split(sizes), shapes, strict=True)]


def all_gather(own: Tensor, group: Any) -> Tensor:
    """Return what all ranks of a group have, of one shape, one behind the other."""
    gathered = own.new_empty(dist.get_world_size(group) * len(own), *own.shape[1:])
    _all_gather(gathered, own, group=group)
    return gathered


_reduce_scatter = _single("reduce_scatter_single", "reduce_scatter_tensor")
_all_gather = _single("all_gather_single", "all_gather_into_tensor")
