"""`python -m bench.gpu`: the parts in turn, figures written after each, a short table last."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.changes import parse_changes
from bench.gpu.budget import Budget
from bench.gpu.ceilings import describe_device, measure_ceilings
from bench.gpu.floor import NOMINAL_TB_PER_S, NOMINAL_TFLOPS, floor
from bench.gpu.parity import run_checks, run_marked_tests
from bench.gpu.steps import AS_IS, SWITCHES, free, measure_recipe
from bench.gpu.training import train_recipe, unpacked
from bench.results import RESULTS, print_table, write_result
from quintic.config import Config
from quintic.device import choose_device, device_name
from quintic.errors import QuinticError
from quintic.recipes import get_recipe

PARTS = ("floor", "ceilings", "parity", "steps", "train")

PARITY_SHARE = 0.3
"""Of the time left, that the marked tests may take at most: they took 93 s of 540 in 12 processes
on 16 cores beside an H200."""

CLOSING_S = 5.0


class Report:
    """The figures so far; every change is on disk at once."""

    def __init__(self, device: torch.device, folder: Path, options: argparse.Namespace) -> None:
        places = ("out", "data")  # of one machine only, and no result depends on them
        named = {k: v for k, v in vars(options).items() if k not in places}
        self.figures: dict[str, Any] = {"options": named}
        self._device, self._folder = device, folder
        device_part = re.sub(r"[^a-z0-9]+", "-", _short_name(device).lower()).strip("-")
        # What is counted depends on no device.
        self._name = "gpu-floor" if options.parts == ["floor"] else f"gpu-{device_part}"
        self._began = time.monotonic()

    def add(self, part: str, value: Any) -> Path:
        """Set the figures of a part and write everything."""
        self.figures[part] = value
        self.figures["seconds"] = round(time.monotonic() - self._began, 1)
        return write_result(
            self._name, self.figures, self._device, module="bench.gpu", folder=self._folder
        )


def _short_name(device: torch.device) -> str:
    return device_name(device) if device.type == "cuda" else device.type


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="What one GPU does with quintic; see bench/gpu/__init__.py.",
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS[:-1], help="train needs --data")
    add("--recipes", nargs="+", default=["modded"])
    add("--set", type=parse_changes, nargs="*", default=[], metavar="FIELD=VALUE")
    add("--switch", type=parse_changes, nargs="*", default=[], metavar="FIELD=VALUE[,FIELD=VALUE]",
        help="further ways to train, each measured by itself")  # fmt: skip
    add("--only-switches", action="store_true", help="the given switches, not the usual ones")
    add(
        "--plain",
        choices=("compiled", "eager"),
        default="compiled",
        help="the loop to compare with",
    )
    add("--rounds", type=int, default=8, help="steps that are timed of each way")
    add("--data", type=Path, help="folder of .bin or .bin.xz shards, for the part train")
    add("--minutes", type=float, default=5.0, help="of training, for each recipe")
    add("--steps", type=int, help="of training, for each recipe alike, instead of by --minutes")
    add("--budget", type=float, default=540.0, help="seconds for everything")
    add("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    add("--threads", type=int, help="CPU threads; default PyTorch's")
    add("--out", type=Path, default=RESULTS, help="where figures and run folders go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if "train" in options.parts and options.data is None:
        parser().error("the part train needs --data, a folder of shards")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        _run(options)
    except QuinticError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(options: argparse.Namespace) -> None:
    budget = Budget(options.budget - CLOSING_S)
    device = choose_device(options.device)
    changes = {"train.device": device.type}
    for more in options.set:
        changes |= more
    configs = [get_recipe(name).override(changes) for name in options.recipes]
    report = Report(device, options.out, options)
    described = describe_device(device)
    report.add("device", described)
    print(", ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    tables: list[tuple[tuple[str, ...], list[tuple[object, ...]]]] = []
    ceilings: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []

    if "ceilings" in options.parts and budget.allows(5, "ceilings"):
        ceilings = measure_ceilings(device)
        print(
            f"product {ceilings['product']}: {ceilings['product_tflops']:,.1f} TFLOP/s; "
            f"copy {ceilings['copy_tb_per_s']:.3f} TB/s",
            flush=True,
        )
        report.add("ceilings", ceilings)
        free(device)
    if "floor" in options.parts:
        rated = ceilings if device.type == "cuda" else {}
        rates = (
            rated.get("product_tflops", NOMINAL_TFLOPS),
            rated.get("copy_tb_per_s", NOMINAL_TB_PER_S),
        )
        floors = {config.recipe: floor(config, *rates) for config in configs}
        report.add("floor", floors)
        tables.append(floor_table(floors))
    if "parity" in options.parts:
        checks = run_checks(device, budget)
        report.add("parity", {"checks": checks})
        report.add("parity", {"checks": checks, "tests": run_marked_tests(budget, PARITY_SHARE)})
        tables.append(parity_table(report.figures["parity"]))
        free(device)
    if "steps" in options.parts:
        usual = () if options.only_switches else SWITCHES
        for config in configs:
            for row in measure_recipe(
                config,
                (*usual, *options.switch),
                device,
                budget,
                rounds=options.rounds,
                product_tflops=ceilings.get("product_tflops"),
                plain_compiled=options.plain == "compiled",
            ):
                rows.append(row)
                report.add("steps", rows)
                print(json.dumps({k: v for k, v in row.items() if k != "longest_kernels"}))
        tables += [kernel_table(row) for row in rows if row["way"] == AS_IS]
        tables.append(step_table(rows))
    if "train" in options.parts:
        trained = _train(options, configs, device, budget, rows, report)
        tables.append(training_table(trained))
    path = report.add("said", budget.said)
    for header, lines in tables:
        print()
        print_table(header, lines)
    for line in (*step_notes(rows), *budget.said):
        print(f"note: {line}")
    print(f"written to {path}, {report.figures['seconds']} s")


def _train(
    options: argparse.Namespace,
    configs: list[Config],
    device: torch.device,
    budget: Budget,
    rows: list[dict[str, Any]],
    report: Report,
) -> list[dict[str, Any]]:
    trained: list[dict[str, Any]] = []
    with unpacked(options.data) as data:
        for config in configs:
            if not budget.allows(60 if device.type == "cuda" else 1, f"training {config.recipe}"):
                continue
            known = [
                row["step_ms"]
                for row in rows
                if (row["recipe"], row["way"]) == (config.recipe, AS_IS) and "step_ms" in row
            ]
            trained.append(
                train_recipe(
                    config,
                    data,
                    options.out / f"train-{config.recipe}",
                    device,
                    budget,
                    minutes=options.minutes,
                    step_ms=known[0] if known else None,
                    steps=options.steps,
                )
            )
            report.add("train", trained)
            free(device)
    return trained


Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


def floor_table(floors: dict[str, dict[str, Any]]) -> Table:
    header = ("floor", "GFLOP/token", "MB/token", "ms arithmetic", "ms memory", "tokens/s")
    names = ("gflop_per_token", "mb_per_token", "arithmetic_ms", "memory_ms", "floor_tokens_per_s")
    return header, [(recipe, *(row[name] for name in names)) for recipe, row in floors.items()]


def parity_table(parity: dict[str, Any]) -> Table:
    lines: list[tuple[object, ...]] = [
        (
            check["name"],
            f"{check['fast']:.2e}" if "fast" in check else "-",
            f"{check['plain']:.2e}" if "plain" in check else check.get("raised", "-")[:60],
            "passes" if check["passed"] else "FAILS",
        )
        for check in parity["checks"]
    ]
    tests = parity["tests"]
    passed = {True: "passes", False: "FAILS", None: "-"}[tests.get("passed")]
    lines.append(("marked tests", "", tests.get("summary", tests.get("skipped", "-")), passed))
    return ("parity with float64", "fast", "plain", ""), lines


def step_table(rows: list[dict[str, Any]]) -> Table:
    header = ("step", "ms", "tokens/s", "MFU product", "data sheet", "GiB", "fwd", "bwd", "opt",
              "wait", "times plain")  # fmt: skip
    return header, [_step_line(row) for row in rows if "step_ms" in row]


def _step_line(row: dict[str, Any]) -> tuple[object, ...]:
    product, datasheet = row.get("mfu_of_product"), row.get("mfu_of_datasheet")
    memory = row.get("peak_memory_gib")
    return (
        f"{row['recipe']}: {row['way']}",
        f"{row['step_ms']:,.1f}",
        f"{row['tokens_per_s']:,}",
        *("-" if share is None else f"{share:.1%}" for share in (product, datasheet)),
        "-" if memory is None else f"{memory:.1f}",
        *(f"{row['shares'][part]:.1%}" for part in ("forward", "backward", "optimizer", "waiting")),
        f"{row.get('times_the_plain_loop', 1.0):.2f}",
    )


def step_notes(rows: list[dict[str, Any]]) -> list[str]:
    """What the table leaves out: ways that were not measured, and steps that make the host wait."""
    notes = []
    for row in rows:
        name = f"{row['recipe']}: {row['way']}"
        notes += [f"{name} {k}: {row[k]}" for k in ("refused", "failed", "skipped") if k in row]
        if row.get("synchronizes"):
            notes.append(f"{name} makes the host wait: {row['synchronizes']}")
    return notes


def kernel_table(row: dict[str, Any]) -> Table:
    header = (f"longest kernels of {row['recipe']}", "ms", "calls", "share")
    return header, [
        (kernel["kernel"][:70], kernel["ms"], kernel["calls"], f"{kernel['share']:.1%}")
        for kernel in row.get("longest_kernels", [])
    ]


def training_table(trained: list[dict[str, Any]]) -> Table:
    header = ("trained", "steps", "seconds", "epochs", "validation loss")
    return header, [
        (
            row["recipe"],
            f"{row['steps']:,} of {row['of_steps']:,}",
            f"{row['training_s']:.0f}",
            row["epochs"],
            "-" if row["final_val_loss"] is None else f"{row['final_val_loss']:.4f}",
        )
        for row in trained
    ]


if __name__ == "__main__":
    main()
