"""Kernels asked for by name: used where they can run, refused in one line where they cannot."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quintic.cli import main
from quintic.kernels import runnable
from quintic.kernels.runnable import require_triton
from quintic.metrics import METRICS, read_metrics
from tests.conftest import refusal

ASKED = [("train.loss", "fused", "chunked"), ("optim.muon.kernel", "triton", "torch")]


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
        f"{field} {value} is a Triton kernel and the device is cpu: it needs an NVIDIA or AMD GPU: "
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
    assert obstacle("cuda") == (
        "ASKED is a Triton kernel and Tesla T4 has compute capability 7.5, below 8.0: use INSTEAD"
    )
    here["triton"] = False
    assert "triton is not installed" in obstacle("cuda")
    assert "the device is cpu" in obstacle("cpu")


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("field", "value", "instead"), ASKED)
def test_a_run_with_a_kernel_trains_as_without(
    field: str, value: str, instead: str, tiny: list[str], tmp_path: Path
) -> None:
    def losses(choice: str) -> list[float]:
        folder = tmp_path / choice
        short = ["--train.steps", "3", "--optim.schedule.cooldown-fraction", "0"]
        main([*tiny, *short, f"--{field.replace('_', '-')}", choice, "--out", str(folder)])
        records = read_metrics(folder / METRICS)
        return [r[name] for r in records for name in ("train_loss", "val_loss") if name in r]

    found, expected = losses(value), losses(instead)
    assert len(expected) == 5  # three steps, validation before and after
    assert found == pytest.approx(expected, rel=2e-5)


def test_a_run_goes_on_without_the_kernel_it_began_with(
    device: torch.device,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(tmp_path / "run")
    fused = ["--train.loss", "fused", "--optim.schedule.cooldown-fraction", "0"]
    main([*tiny, *fused, "--train.steps", "1", "--out", folder])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # on another machine
    go_on = ["train", "--resume", folder, "--train.device", "cpu", "--train.steps", "2"]
    assert refusal(go_on, capsys).endswith("use --train.loss chunked")
    main([*go_on, "--train.loss", "chunked"])
    assert len([r for r in read_metrics(Path(folder) / METRICS) if "train_loss" in r]) == 2


def test_importing_quintic_and_its_losses_leaves_triton_alone() -> None:
    code = (
        "import sys, quintic.model.loss, quintic.optim.routing; assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_compile_for_ampere_hopper_and_blackwell(tmp_path: Path) -> None:
    """By Triton's compiler, which needs no GPU; in a process of its own, since here the kernels
    are interpreted."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=subprocess.os.environ | environment,  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    # Hopper's tensor cores for a product, and loads of 16 bytes for the rows of logits.
    assert [line for line in lines if "wgmma" in line and "gram sm_90" in line]
    assert all("ld.global.v4" in line for line in lines if line.startswith("cross_entropy"))
