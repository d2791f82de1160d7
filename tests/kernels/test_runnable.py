"""Kernels asked for by name: used where they can run, refused in one line where they cannot."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quintic.cli.main import main
from quintic.kernels import runnable
from quintic.kernels.runnable import choose_loss, require_triton
from quintic.metrics_file import METRICS, read_records
from tests.conftest import refusal

SHORT = {
    "train.steps": "2",
    "train.batch-tokens": "64",
    "train.eval-tokens": "64",
    "optim.schedule.cooldown-fraction": "0",
}
"""The interpreter takes milliseconds for each token."""

ASKED = [("train.loss", "fused", "chunked"), ("optim.muon.kernel", "triton", "torch")]


def short() -> list[str]:
    return [text for name, value in SHORT.items() for text in (f"--{name}", value)]


def obstacle(device: str) -> str:
    with pytest.raises(ValueError) as caught:
        require_triton(torch.device(device), asked="ASKED", instead="INSTEAD")
    return str(caught.value)


@pytest.mark.parametrize(("field", "value", "instead"), ASKED)
def test_without_a_gpu_the_command_refuses_in_one_line_and_writes_nothing(
    field: str,
    value: str,
    instead: str,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    option, folder = f"--{field.replace('_', '-')}", tmp_path / "run"
    assert refusal([*tiny, option, value, "--out", str(folder)], capsys) == (
        f"{field} {value} runs a Triton kernel, and the device is cpu, not an NVIDIA or AMD GPU: "
        f"use {option} {instead}"
    )
    assert not folder.exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"capability": (9, 0), "triton": True}
    monkeypatch.setattr(runnable, "find_spec", lambda name: object() if here["triton"] else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: here["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for device in ("cuda", "cpu"):
        require_triton(torch.device(device), asked="ASKED", instead="INSTEAD")
    assert "the device is mps" in obstacle("mps")
    here["capability"] = (7, 5)
    assert obstacle("cuda").endswith("Tesla T4 has compute capability 7.5, below 8.0: use INSTEAD")
    here["triton"] = False
    assert "triton is not installed" in obstacle("cuda")
    assert "the device is cpu" in obstacle("cpu")


def test_the_loss_is_fused_by_itself_on_gpus_that_run_its_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capability = [(8, 0)]
    monkeypatch.setattr(runnable, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # runs the kernel on a CPU, which is for tests
    for device, chosen in (("cuda", "fused"), ("cpu", "chunked"), ("mps", "chunked")):
        assert choose_loss("auto", torch.device(device)) == chosen
    for asked in ("chunked", "plain", "fused"):
        assert choose_loss(asked, torch.device("cuda")) == asked
    capability[0] = (7, 5)
    assert choose_loss("auto", torch.device("cuda")) == "chunked"


def test_a_run_on_a_cpu_has_the_chunked_loss_by_itself(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def records(name: str, *options: str) -> list[float]:
        main([*tiny, *short(), "--train.device", "cpu", *options, "--out", str(tmp_path / name)])
        assert "chunked loss" in capsys.readouterr().out
        found = read_records(tmp_path / name / METRICS)
        return [r[key] for r in found for key in ("train_loss", "val_loss") if key in r]

    assert records("auto") == records("chunked", "--train.loss", "chunked")
    assert '"loss": "auto"' in (tmp_path / "auto" / "config.json").read_text()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("field", "value", "instead"), ASKED)
def test_a_run_with_a_kernel_trains_as_without(
    field: str, value: str, instead: str, tiny: list[str], tmp_path: Path
) -> None:
    def losses(choice: str) -> list[float]:
        folder = tmp_path / choice
        option = f"--{field.replace('_', '-')}"
        main([*tiny, *short(), option, choice, "--out", str(folder)])
        records = read_records(folder / METRICS)
        return [r[name] for r in records for name in ("train_loss", "val_loss") if name in r]

    found, expected = losses(value), losses(instead)
    assert len(expected) == 4  # two steps, validation before and after
    assert found == pytest.approx(expected, rel=2e-5)


def test_a_run_goes_on_without_the_kernel_it_began_with(
    device: torch.device,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(tmp_path / "run")
    main([*tiny, *short(), "--train.loss", "fused", "--train.steps", "1", "--out", folder])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # on another machine
    go_on = ["train", "--resume", folder, "--train.device", "cpu", "--train.steps", "2"]
    assert refusal(go_on, capsys).endswith("use --train.loss chunked")
    main([*go_on, "--train.loss", "chunked"])
    assert len([r for r in read_records(Path(folder) / METRICS) if "train_loss" in r]) == 2


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_compile_for_hopper_and_use_what_it_has(tmp_path: Path) -> None:
    """By Triton's compiler, which needs no GPU; in a process of its own, since here the kernels
    are interpreted. Hopper's: tensor cores for a product, loads of 16 bytes for rows of numbers,
    rounding to float8 in one instruction."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "cross_entropy 1 *bf16 ld.global.v4",
        "cross_entropy 1 *fp8e5 ld.global.v4 cvt.rn.satfinite.e5m2x2.f32",
        "cross_entropy 3 *fp8e5 ld.global.v4 cvt.rn.satfinite.e5m2x2.f32",
        "gram ld.global.v4 wgmma",
        "transpose ld.global.v4",
    ]
