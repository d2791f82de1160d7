"""Files of builds that must be the same, byte for byte: `python -m bench.data_same`.

docs_sample.jsonl.zst and docs_val.jsonl.zst in the folder that QUINTIC_BENCH_DATA names (default
../shared/data) are built by another commit, by default d333073, and here: with 1, 2 and 4
processes, and with 2 that are killed (SIGKILL to the parent) five times, each when it is a sixth
further than the one before, and started again; all of this with the packages of quintic[fast],
which must be there, and without. Progress is kept after every task instead of every ten seconds, so
that what is killed has some to go on from. What was compared is deleted: one dataset is there at
once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.data import ROOT, checkout, contents, data_folder
from bench.results import print_table, write_result
from quintic.data.manifest import Manifest

INPUTS = ("docs_sample.jsonl.zst", "docs_val.jsonl.zst")
KILLS = 5

# The command, with what a benchmark may do that a user has no option for.
PROGRAM = """
import sys
from quintic.cli.main import main
from quintic.data.build import fast_encoder, pipeline
if "reference" in sys.argv[1]: fast_encoder.find_spec = lambda module: None
if "killed" in sys.argv[1]: pipeline.COMMIT_EVERY_S = 0.0
main(sys.argv[2:])
"""


def start(kind: str, out: Path, workers: int, source: Path = ROOT) -> subprocess.Popen[bytes]:
    """Start a build of another commit, "before", or of a kind that PROGRAM tells apart."""
    program = ["-m", "quintic"] if kind == "before" else ["-c", PROGRAM, kind]
    arguments = [str(data_folder() / name) for name in INPUTS]
    arguments += ["--out", str(out), "--workers", str(workers)]
    arguments += ["--shard-tokens", "1_000_000", "--name", "bench"]
    return subprocess.Popen(
        [sys.executable, *program, "data", "build", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(source / "src")},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a build that must succeed."""
    if process.wait():
        raise SystemExit(f"a build failed: {process.args!r}")


def killed(kind: str, out: Path, tokens: int) -> list[int]:
    """Build with 2 processes, killed on the way; returns the tokens that were kept at each kill."""
    kept = []
    for number in range(1, KILLS + 1):
        process = start(kind, out, 2)
        while _kept_tokens(out) < tokens * number / (KILLS + 1):
            if process.poll() is not None:
                raise SystemExit(f"a build ended before it could be killed: {process.args!r}")
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(_kept_tokens(out))
    finish(start(kind, out, 2))
    return kept


def _kept_tokens(out: Path) -> int:
    """Return how many tokens a build would go on after."""
    try:
        return int(json.loads((out / ".build" / "progress.json").read_bytes())["tokens"])
    except FileNotFoundError:
        return 0


def measure(folder: Path, commit: str, processes: Sequence[int]) -> dict[str, Any]:
    """Build everything, and compare; ends the program at the first difference."""
    before = folder / "before"
    with checkout(commit, folder / "sources") as source:
        finish(start("before", before, 1, source))
    wanted = contents(before)
    tokens = sum(record.tokens for record in Manifest.read(before).shards)
    shutil.rmtree(before)
    builds = []

    def compare(name: str, out: Path, **facts: Any) -> None:
        if contents(out) != wanted:
            raise SystemExit(f"other files than {commit}'s: {name}, in {out}")
        builds.append({"build": name, "encoder": Manifest.read(out).encoder, **facts})
        shutil.rmtree(out)

    for kind in ("fast", "reference"):
        for count in processes:
            out = folder / f"{kind}-{count}"
            finish(start(kind, out, count))
            compare(f"{count} processes", out)
        out = folder / f"{kind}-killed"
        kept = killed(f"{kind}, killed", out, tokens)
        compare(f"2 processes, killed {KILLS} times", out, kept_tokens=kept)
    shards = {name: digest for name, digest in wanted.items() if name.endswith(".bin")}
    return {
        "against": commit,
        "inputs": INPUTS,
        "tokens": tokens,
        "same_files": len(wanted),
        "builds": builds,
        "sha256": shards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", default="d333073")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(Path(temporary), options.against, options.processes)
    rows = [(build["build"], build["encoder"], "the same") for build in figures["builds"]]
    print_table(("build", "encoder", f"{figures['same_files']} files"), rows)
    device = torch.device("cpu")
    written = write_result("data-same-cpu", figures, device, module="bench.data_same")
    print(f"written to {written}")


if __name__ == "__main__":
    main()
