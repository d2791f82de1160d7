"""`quintic watch` beside TensorBoard, on the same runs: time, bytes and memory to the first chart.

    python -m bench.watch [--runs 100] [--records 20000]     # writes docs/results/watch.json

Runs are generated: each has a record for every step and a validation every hundredth, and the same
numbers as TensorBoard's events. A headless Chromium with an empty cache opens the page of each as
soon as the command is ready: quintic's when it listens, TensorBoard when it also knows all runs,
since a page that is opened before shows the others only when it is reloaded. First paint is the
browser's own figure (First Contentful Paint); a chart is full when it has a line of every run and
has not changed for a second, which is not counted. quintic draws validation and training loss,
TensorBoard is asked for the training loss alone. Bytes are those that came over the connection
until then, memory is the server's own (PSS of its processes), then and when it has read everything.
Each figure is the median of some rounds, in which both take turns. Needs Chromium and TensorBoard.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.browser import Page, chromium

from bench.results import print_table, write_result
from quintic.metrics_file import METRICS
from quintic.recipes import get_recipe
from quintic.run_dir import CONFIG, TENSORBOARD

EVAL_EVERY, BATCH_TOKENS, SEEDS, DIFFERENT = 100, 2048, 5, 10
SETTLED_S, LAST_S, LOOK_EVERY_S = 1.0, 240.0, 0.1

WATCH_LINES = """(() => {
  const lines = [...document.querySelectorAll('#charts .plot .line')];
  return lines.map(line => line.getAttribute('d').length);
})()"""
TENSORBOARD_LINES = """(() => {
  const card = document.querySelector('scalar-card');
  const rows = card?.querySelectorAll('tb-data-table-content-row') ?? [];
  return [...rows].map(row => row.textContent);
})()"""
"""The chart itself is WebGL in a canvas; the rows below it, one for each line, come with it."""

COLUMNS = {
    "ready_s": "start to ready, s",
    "first_paint_s": "first paint, s",
    "first_chart_s": "page to full chart, s",
    "all_s": "start to full chart, s",
    "first_chart_kb": "kB to it",
    "first_chart_mib": "server's MiB then",
    "settled_mib": "MiB when all is read",
}


def records(seed: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield the records of a run that does not exist."""
    draw = random.Random(seed)
    elapsed_s = 0.0
    for step in range(steps):
        level = 2.9 + 0.002 * seed + 5.5 * math.exp(-step / 900) + 1.2 * math.exp(-step / 9000)
        place = {"step": step, "tokens": step * BATCH_TOKENS}
        if step % EVAL_EVERY == 0:
            elapsed = round(elapsed_s, 3)
            yield {**place, "val_loss": level + 0.02, "val_s": 1.5, "elapsed_s": elapsed}
        step_ms = draw.gauss(180, 8)
        elapsed_s += step_ms / 1000
        yield {
            **place,
            "train_loss": level + draw.gauss(0, 0.06),
            "step_ms": round(step_ms, 3),
            "tokens_per_s": round(1000 * BATCH_TOKENS / step_ms, 1),
            "elapsed_s": round(elapsed_s, 3),
            "lr": 0.006 * (1 - step / steps),
            "lr_factor": 1 - step / steps,
            "optimizer_ms": round(draw.gauss(30, 2), 3),
            "grad_norm": abs(draw.gauss(0.8, 0.1)),
        }


def make_runs(root: Path, count: int, steps: int) -> None:
    """Write runs: config, metrics, and TensorBoard's events of the same numbers."""
    base = get_recipe("laptop").override({"train.steps": steps, "train.eval_every": EVAL_EVERY})
    for number in range(count):
        folder = root / f"run-{number:03}"
        folder.mkdir(parents=True)
        lr = 0.001 * (1 + number // SEEDS)
        config = base.override({"train.seed": number % SEEDS, "optim.adamw.lr": lr})
        (folder / CONFIG).write_text(json.dumps(config.to_dict()))
        if number >= DIFFERENT:  # numbers as another run's, of a config of its own
            copied = root / f"run-{number % DIFFERENT:03}"
            shutil.copy(copied / METRICS, folder)
            shutil.copytree(copied / TENSORBOARD, folder / TENSORBOARD)
            continue
        found = [*records(number, steps)]
        (folder / METRICS).write_text("".join(json.dumps(record) + "\n" for record in found))
        _write_events(folder / TENSORBOARD, found)


def _write_events(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    """Write what torch's SummaryWriter does for each number of a record, sooner."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir()
    with (folder / "events.out.tfevents.1000000000.bench.1.0").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1e9, file_version="brain.Event:2").SerializeToString())
        for record in found:
            for name, value in record.items():
                if name in ("step", "tokens"):
                    continue
                summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
                at = 1e9 + record["elapsed_s"]
                event = Event(wall_time=at, step=record["step"], summary=summary)
                writer.write(event.SerializeToString())
        writer.flush()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def listening(command: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, which begins when it listens."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end_s = time.monotonic() + LAST_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, f"{command[2]} ended"
            assert time.monotonic() < end_s, f"{command[2]} does not listen"
            time.sleep(0.02)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def memory_mib(group: int) -> float:
    """Return the memory of the processes of a group, what they share with others by its part."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == group:
                found = re.search(r"^Pss: +(\d+)", (process / "smaps_rollup").read_text(), re.M)
                total += int(found[1]) if found else 0
    return total / 1024


def received_bytes(page: Page) -> int:
    """Return the bytes of all answers, with their headers, as they came over the connection."""
    total = 0
    for event in page.events:
        if event["method"] == "Network.responseReceived":
            total += event["params"]["response"]["encodedDataLength"]
        elif event["method"] == "Network.dataReceived":
            total += event["params"]["encodedDataLength"]
    return total


def measure(
    command: Sequence[str],
    page_path: str,
    port: int,
    script: str,
    lines: int,
    runs_path: str | None,
) -> dict[str, float]:
    """Return what it takes from the start of a server, and from opening its page, to a chart of so
    many lines; `runs_path` answers with the runs that the server has come to."""
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        page.start()  # before the clock: both find a browser that runs
        began = time.monotonic()
        with listening(command, port) as process:
            while runs_path is not None:
                with urllib.request.urlopen(address + runs_path) as answer:
                    if len(json.load(answer)) >= lines:
                        break
                time.sleep(LOOK_EVERY_S)
            opened = time.monotonic()
            page.call("Page.navigate", url=address + page_path)
            drawn, changed, bytes_then, memory = None, opened, 0, 0.0
            while drawn is None or len(drawn) < lines or time.monotonic() - changed < SETTLED_S:
                assert time.monotonic() - opened < LAST_S, (
                    f"no chart of {lines}: {drawn and len(drawn)}"
                )
                time.sleep(LOOK_EVERY_S)
                if (found := page.evaluate(script)) != drawn:
                    drawn, changed = found, time.monotonic()
                    bytes_then, memory = received_bytes(page), memory_mib(process.pid)
            paint = page.evaluate(
                "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            )
            settled = [memory, math.inf]
            while abs(settled[-1] - settled[-2]) > 1:
                time.sleep(3)
                settled.append(memory_mib(process.pid))
        return {
            "ready_s": opened - began,
            "first_paint_s": paint / 1000,
            "first_chart_s": changed - opened,
            "all_s": changed - began,
            "first_chart_kb": bytes_then / 1000,
            "first_chart_mib": memory,
            "settled_mib": settled[-1],
            "lines": float(len(drawn)),
        }


def main() -> None:
    """Measure both in turn, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="runs that are there already, or are to stay")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not any(root.glob("*")):
            make_runs(root, options.runs, options.records)
        found: dict[str, list[dict[str, float]]] = {"quintic watch": [], "TensorBoard": []}
        for _ in range(options.rounds):
            port, other = free_port(), free_port()
            python = [sys.executable, "-m"]
            watch = [*python, "quintic", "watch", str(root), "--no-browser", "--port", str(port)]
            board = [*python, "tensorboard.main", "--logdir", str(root), "--port", str(other)]
            found["quintic watch"].append(
                measure(watch, "/", port, WATCH_LINES, 2 * options.runs, None)
            )
            found["TensorBoard"].append(
                measure(
                    board,
                    "/?tagFilter=train_loss#timeseries",
                    other,
                    TENSORBOARD_LINES,
                    options.runs,
                    "/data/runs",
                )
            )
            print(found["quintic watch"][-1], found["TensorBoard"][-1], sep="\n", flush=True)
    middle = {
        name: {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
        for name, rounds in found.items()
    }
    print_table(
        ["", *COLUMNS.values()],
        [[name, *(f"{figures[key]:.2f}" for key in COLUMNS)] for name, figures in middle.items()],
    )
    figures = {"runs": options.runs, "records": options.records, "medians": middle, "rounds": found}
    print(write_result("watch", figures, torch.device("cpu")))


if __name__ == "__main__":
    main()
