"""Building, checking and loading data: `python -m bench.data`.

The text is that of the training shards corpus_train_*.bin.xz in the folder that QUINTIC_BENCH_DATA
names (default ../shared/data), 450 MB, none of it twice. GPT-2's vocabulary must be at hand
(TIKTOKEN_CACHE_DIR).

Build throughput is that of the command and counts everything: start-up, unpacking, parsing,
hashing, writing, with gigatoken where it is installed. It is compared with as many processes that
do nothing but tokenize the same text, which they hold in memory: with tiktoken as it comes, goal
2.5 times its rate; and with our own form of its pattern, whose ids are the same. Peak memory is to
be the same for 50 MB of text and for the large input. `--against COMMIT` compares with the build of
that commit instead, in turn, with 1 and 2 processes; every file must be the same, and the goal
against d333073 is 3 times its rate.

`check` is compared with SHA-256 alone and with reading
alone, both on several threads; goal: the slower of the two. The loader must give at least 100 times
what a training step consumes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tiktoken
import torch
import zstandard

from bench.results import interleaved, median_ratio, print_table, write_result
from bench.step import QuinticStep
from quintic.config import BatchSizes, resolve_vocabulary
from quintic.cores import available_cores
from quintic.data.dataset import open_dataset
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.loader import Loader
from quintic.data.manifest import Manifest
from quintic.data.prefetch import Prefetcher
from quintic.data.shards import HEADER_BYTES, TokenStream
from quintic.data.verify import check_dataset
from quintic.device import choose_device
from quintic.model.build import build_model
from quintic.recipes import get_recipe

ROOT = Path(__file__).parents[1]
SHARDS = "corpus_train_*.bin.xz"
READ_BYTES = 1 << 22
SMALL_MEGABYTES = 50

Encode = Callable[[str], object]


def data_folder() -> Path:
    """Return the folder of the benchmark corpus."""
    named = os.environ.get("QUINTIC_BENCH_DATA")
    return Path(named) if named else ROOT.parent / "shared" / "data"


def documents() -> Iterator[bytes]:
    """Yield the documents of the shards as lines of JSON, each once."""
    tokenizer = load_tokenizer("gpt2")
    for path in sorted(data_folder().glob(SHARDS)):
        with lzma.open(path) as file:
            ids = np.frombuffer(file.read(), "<u2", offset=HEADER_BYTES)
        for document in np.split(ids, np.flatnonzero(ids == tokenizer.eot_id)):
            # A shard may begin and end in the middle of a document, even of a character.
            text = tokenizer.decode_bytes(document.tolist()).decode(errors="replace")
            if text.strip():
                yield json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def write_input(path: Path, text_bytes: int) -> int:
    """Documents with so much text in all, as .jsonl.zst; returns the bytes of text."""
    written = 0
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packer:
        for line in documents():
            packer.write(line)
            written += len(json.loads(line)["text"].encode())
            if written >= text_bytes:
                return written
    raise SystemExit(f"{SHARDS} have {written / 1e6:.0f} MB of text: ask for fewer --megabytes")


class Taken(NamedTuple):
    """Seconds by the clock, and of all processors together."""

    clock: float
    cpu: float


def build(
    path: Path, out: Path, workers: int, source: Path = ROOT
) -> tuple[Taken, dict[str, float]]:
    """What a build by the command takes, and the peak memory of its processes in MiB."""
    command = [sys.executable, "-m", "quintic", "data", "build", str(path), "--out", str(out)]
    command += ["--workers", str(workers), "--shard-tokens", "20_000_000", "--name", "bench"]
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    # As pip leaves it: otherwise each process compiles it where bytecode is not written.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(source / "src")], check=True)
    began, cpu_before = time.perf_counter(), _cpu_of_children()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    with ThreadPoolExecutor(1) as watcher:
        peaks = watcher.submit(_peaks_mib, process.pid)
        process.wait()
        clock = time.perf_counter() - began
        taken = Taken(clock, _cpu_of_children() - cpu_before)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    parent_mib = peaks.result().pop(process.pid, 0.0)
    return taken, {
        "parent_mib": parent_mib,
        "worker_mib": max(peaks.result().values(), default=0.0),
    }


def _peaks_mib(pid: int) -> dict[int, float]:
    """Peak memory of a process and its children by their number, looked at until it ends."""
    peaks: dict[int, float] = {}
    while peak := _peak_mib(pid):
        peaks[pid] = max(peaks.get(pid, 0.0), peak)
        for child in _children(pid):
            peaks[child] = max(peaks.get(child, 0.0), _peak_mib(child))
        time.sleep(0.1)
    return peaks


def _cpu_of_children() -> float:
    """Seconds of processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _peak_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):  # it has just ended
        return 0.0


def with_tiktoken() -> Encode:
    """Its fastest call for GPT-2's vocabulary: into an array, special tokens taken as text."""
    return partial(tiktoken.get_encoding("r50k_base").encode_to_numpy, disallowed_special=())


def with_quintic() -> Encode:
    return load_tokenizer("gpt2").encode_to_array


def tokenize_only(path: Path, workers: int, load: Callable[[], Encode]) -> Taken:
    """What processes take that hold the texts in memory and only tokenize them."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1)
    cpu = context.SimpleQueue()
    processes = [
        context.Process(target=_tokenize_share, args=(path, index, workers, load, barrier, cpu))
        for index in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    return Taken(time.perf_counter() - began, sum(cpu.get() for _ in processes))


def _tokenize_share(
    path: Path,
    index: int,
    workers: int,
    load: Callable[[], Encode],
    barrier: Barrier,
    cpu: SimpleQueue[float],
) -> None:
    encode = load()
    with path.open("rb") as file:
        lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
        texts = [json.loads(line)["text"] for i, line in enumerate(lines) if i % workers == index]
    encode("ready")
    barrier.wait()
    began = time.process_time()
    for text in texts:
        encode(text)
    cpu.put(time.process_time() - began)
    os._exit(0)  # freeing the texts is no tokenizing


def measure_build(folder: Path, workers: int, megabytes: int, rounds: int) -> dict[str, Any]:
    """Throughput against tokenizing alone, and peak memory of a small and of a large input."""
    small, large = folder / "small.jsonl.zst", folder / "large.jsonl.zst"
    text_bytes = {"small": write_input(small, SMALL_MEGABYTES * 1_000_000)}
    text_bytes["large"] = write_input(large, megabytes * 1_000_000)
    _, memory_small = build(small, folder / "small", workers)
    builds = [build(large, folder / "large", workers)]
    tokens = sum(len(stream) for stream in open_dataset(folder / "large").streams.values())
    loads = {"tokenize_only": with_tiktoken, "own_tokenizer_only": with_quintic}
    taken = {name: [tokenize_only(large, workers, load)] for name, load in loads.items()}
    for index in range(1, rounds):  # in turn, so that drift hits all alike
        builds.append(build(large, folder / f"large-{index}", workers))
        for name, load in loads.items():
            taken[name].append(tokenize_only(large, workers, load))
    taken["build"] = [built for built, _ in builds]
    # In processor time too, which says more where other programs run beside.
    over = {
        f"build_over_{name}{kind}": round(
            median_ratio(
                [getattr(t, of) for t in taken[name]], [getattr(t, of) for t in taken["build"]]
            ),
            3,
        )
        for name in loads
        for kind, of in (("", "clock"), ("_by_cpu", "cpu"))
    }
    return {
        "workers": workers,
        "text_mb": {name: round(size / 1e6, 1) for name, size in text_bytes.items()},
        "tokens": tokens,
        **{
            f"{name}_tokens_per_s": round(tokens / statistics.median(t.clock for t in times))
            for name, times in taken.items()
        },
        **over,
        "seconds": {name: [t._asdict() for t in times] for name, times in taken.items()},
        "peak_mib_small": memory_small,
        "peak_mib_large": builds[0][1],
    }


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Another commit's sources, in a folder that is new."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def measure_against(
    folder: Path, commit: str, workers: Sequence[int], megabytes: int, rounds: int
) -> dict[str, Any]:
    """Seconds of builds of this commit and of another one, and of tiktoken alone, in turn."""
    path = folder / "large.jsonl.zst"
    text_bytes = write_input(path, megabytes * 1_000_000)
    figures: dict[str, Any] = {"text_mb": round(text_bytes / 1e6, 1), "against": commit}
    with checkout(commit, folder / "sources") as source:
        for count in workers:
            taken: dict[str, list[Taken]] = {"now": [], "before": [], "tiktoken_only": []}
            for index in range(rounds):
                now, before = folder / f"now-{count}-{index}", folder / f"before-{count}-{index}"
                taken["before"].append(build(path, before, count, source)[0])
                taken["now"].append(build(path, now, count)[0])
                taken["tiktoken_only"].append(tokenize_only(path, count, with_tiktoken))
                if (found := contents(now)) != contents(before):
                    raise SystemExit(f"other files than {commit}'s, with {count} workers")
            figures[f"{count}_workers"] = {
                **{
                    f"rate_over_{of}_by_{kind}": round(
                        median_ratio(
                            [getattr(t, kind) for t in taken[of]],
                            [getattr(t, kind) for t in taken["now"]],
                        ),
                        2,
                    )
                    for of in ("before", "tiktoken_only")
                    for kind in Taken._fields
                },
                "encoder": Manifest.read(now).encoder,
                "same_files": len(found),
                "load_average": os.getloadavg(),
                "seconds": {name: [t._asdict() for t in times] for name, times in taken.items()},
            }
    return figures


def contents(folder: Path) -> dict[str, object]:
    """What must be the same: SHA-256 of every file, and JSON's content less what d333073 had not:
    who encoded, and by what the input is known again."""
    found: dict[str, object] = {}
    for path in folder.iterdir():
        if path.suffix == ".json":
            content = json.loads(path.read_bytes())
            for newer in ("encoder", "input_content"):
                content.pop(newer, None)
            found[path.name] = content
        else:
            found[path.name] = _sha256(path)
    return found


def measure_check(folder: Path) -> dict[str, Any]:
    """Megabytes a second of `check`, of SHA-256 alone and of reading alone."""
    paths = sorted(folder.glob("*.bin"))
    size = sum(path.stat().st_size for path in paths)

    def each(work: Callable[[Path], object]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(work, paths))

    def from_disk(work: Callable[[], object]) -> None:
        for path in paths:
            _forget(path)
        work()

    check = partial(check_dataset, folder)
    candidates: dict[str, Callable[[], object]] = {
        "check": check,
        "sha256": partial(each, _sha256),
        "check_from_disk": partial(from_disk, check),
        "sha256_from_disk": partial(from_disk, partial(each, _sha256)),
        "read_from_disk": partial(from_disk, partial(each, _read)),
    }
    seconds = interleaved(candidates, rounds=5, warmup=1)
    return {
        "mb": round(size / 1e6, 1),
        "shards": len(paths),
        "mb_per_s": {
            name: round(size / 1e6 / statistics.median(taken)) for name, taken in seconds.items()
        },
    }


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget(path: Path) -> None:
    """Drop a file from the system's cache, so that it is read from disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_loader(stream: TokenStream, device: torch.device) -> dict[str, Any]:
    """Tokens a second of batches of 64 sequences of 1,024, into pinned memory where there is a
    GPU; files in the system's cache."""
    for shard in stream.shards:
        _read(shard.path)
    figures = {}
    orders: tuple[Literal["stream", "shuffle"], ...] = ("stream", "shuffle")
    for order in orders:
        loader = Loader(stream, context=1024, batches=BatchSizes(64), seed=0, order=order)
        steps = min(500, len(stream) // (64 * 1024))
        with Prefetcher(loader.batch, 0, steps, pin=device.type == "cuda") as batches:
            batches.get(0)
            began = time.perf_counter()
            for step in range(1, steps):
                batches.get(step)
        tokens = (steps - 1) * 64 * 1024
        figures[f"{order}_tokens_per_s"] = round(tokens / (time.perf_counter() - began))
    return figures


def measure_waiting(stream: TokenStream, device: torch.device, steps: int) -> dict[str, Any]:
    """The share of training steps of `laptop-plain` that passes waiting for data."""
    laptop = get_recipe("laptop-plain")
    config = resolve_vocabulary(laptop, laptop.data.embedded_vocab)
    loader = Loader(
        stream,
        context=config.model.context,
        batches=config.batches,
        seed=0,
        order="shuffle",
    )
    model = build_model(config.model, compute_dtype=torch.float32, loss="chunked").to(device)
    step_of = QuinticStep(config, model, device, compiled=False)
    with Prefetcher(loader.batch, 0, steps + 1, pin=device.type == "cuda") as batches:
        batches.get(0)
        waited, began = batches.wait_s, time.perf_counter()
        for step in range(1, steps + 1):
            # Other ids than the recipe's, whose vocabulary is smaller; the work is the same.
            inputs, targets = (
                part.to(device) % laptop.data.embedded_vocab for part in batches.get(step)
            )
            step_of.forward_backward(inputs, targets)
            step_of.optimizer_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    return {
        "steps": steps,
        "step_tokens_per_s": round(steps * config.train.batch_tokens / seconds),
        "share_waiting": round((batches.wait_s - waited) / seconds, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--megabytes", type=int, default=400, help="text of the large input")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-build", action="store_true", help="neither check nor loader")
    parser.add_argument("--against", metavar="COMMIT", help="compare building with that commit's")
    parser.add_argument("--steps", type=int, default=10, help="training steps")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    options = parser.parse_args()
    device = choose_device(options.device)
    if options.against:
        with tempfile.TemporaryDirectory() as temporary:
            figures = measure_against(
                Path(temporary), options.against, (1, 2), options.megabytes, options.rounds
            )
        print(json.dumps(figures, indent=1))
        module = f"bench.data --against {options.against} --megabytes {options.megabytes}"
        module += f" --rounds {options.rounds}"
        written = write_result(f"data-against-{device.type}", figures, device, module=module)
        print(f"written to {written}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        built = measure_build(folder, options.workers, options.megabytes, options.rounds)
        figures = {"build": built}
        if not options.only_build:
            stream = open_dataset(folder / "large").train
            figures["check"] = measure_check(folder / "large")
            figures["loader"] = measure_loader(stream, device)
            figures["training"] = measure_waiting(stream, device, options.steps)
    rows = [
        (
            f"build, {built['text_mb'][size]:,.0f} MB of text",
            f"{built['build_tokens_per_s']:,}" if size == "large" else "",
            f"{built[f'peak_mib_{size}']['parent_mib']:.0f}",
            f"{built[f'peak_mib_{size}']['worker_mib']:.0f}",
        )
        for size in ("small", "large")
    ]
    rows.append(("tiktoken alone", f"{built['tokenize_only_tokens_per_s']:,}", "", ""))
    rows.append(("our tokenizer alone", f"{built['own_tokenizer_only_tokens_per_s']:,}", "", ""))
    header = (f"{built['workers']} processes", "tokens/s", "parent, peak MiB", "worker, peak MiB")
    print_table(header, rows)
    for of, name in (("tiktoken", "tokenize_only"), ("our tokenizer", "own_tokenizer_only")):
        print(
            f"building reaches {built[f'build_over_{name}']:.1%} of {of} alone by the clock, "
            f"{built[f'build_over_{name}_by_cpu']:.1%} by processor time"
        )
    for part in list(figures)[1:]:
        print(f"{part}: {json.dumps(figures[part])}")
    kind, flag = ("data-build", " --only-build") if options.only_build else ("data", "")
    name = f"{kind}-{device.type}-{built['workers']}workers"
    print(f"written to {write_result(name, figures, device, module=f'bench.data{flag}')}")


if __name__ == "__main__":
    main()
