"""A run folder of quintic 0.1.0 resumes, evaluates, generates and compares.

`run-0.1.0/run` was written by commit d333073 up to step 6 of 12; the command is in its
environment.json. Of the run with `data/` it is what a crash after step 6 leaves: the later
checkpoint, the losses from step 6 on, the lock and the figure are taken away.
`uninterrupted.json` has those losses as that commit recorded them in the same run, to its end.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from quintic.cli.main import main
from quintic.config import Config

GOLDEN = Path(__file__).parent / "run-0.1.0"


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of the run and of its data, elsewhere than its config says."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run", tmp_path / "data"


def losses(run: Path) -> list[tuple[int, str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return pairs([json.loads(line) for line in lines])


def pairs(records: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return [(r["step"], k, r[k]) for r in records for k in ("train_loss", "val_loss") if k in r]


def cpu() -> str:
    """The processor's own name; its kernels decide the last bits."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return ""


def test_it_resumes_to_the_losses_of_the_run_that_never_stopped(moved: tuple[Path, Path]) -> None:
    run, data = moved
    recorded = json.loads((GOLDEN / "uninterrupted.json").read_text())
    expected = [
        (r["step"], k, r[k])
        for r in recorded["losses"]
        for k in ("train_loss", "val_loss")
        if k in r
    ]
    assert len(expected) == 9
    main(["train", "--resume", str(run), "--data.path", str(data)])
    found = [loss for loss in losses(run) if loss[0] >= 6]
    assert [loss[:2] for loss in found] == [loss[:2] for loss in expected]
    same = (torch.__version__, cpu()) == (recorded["torch"], recorded["cpu"])
    for (step, kind, loss), (_, _, wanted) in zip(found, expected, strict=True):
        assert math.isclose(loss, wanted, rel_tol=0 if same else 1e-6), (step, kind)
    assert json.loads((run / "config.json").read_text())["format"] == 2


def test_its_old_names_are_read_and_what_had_no_effect_is_not(moved: tuple[Path, Path]) -> None:
    saved = json.loads((moved[0] / "config.json").read_text())
    assert "format" not in saved
    config = Config.from_dict(saved)
    muon, default = config.optim.muon, Config()
    assert config.model.x0_skip
    assert (muon.normuon, muon.ns_coefficients, muon.beta2) == (True, "polar_express", 0.9)
    assert (config.train.mtp_tokens, config.train.prefetch_to_gpu) == (2, "off")
    assert (saved["optim"]["sgd"]["lr"], saved["data"]["embedded_vocab"]) == (0.5, 2048)
    assert config.optim.sgd == default.optim.sgd
    assert config.data.embedded_vocab == default.data.embedded_vocab


def test_it_evaluates_generates_and_compares(
    moved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = moved
    at_6 = next(loss for step, kind, loss in losses(run) if (step, kind) == (6, "val_loss"))
    main(["evaluate", str(run), "--data", str(data), "--device", "cpu"])
    assert f"validation loss {at_6:.4f} nats per token" in capsys.readouterr().out
    main(["generate", str(run), "--data", str(data), "--device", "cpu", "--tokens", "8"])
    assert capsys.readouterr().out.strip()
    main(["train", "--resume", str(run), "--data.path", str(data)])
    out = run.parent / "comparison.json"
    main(["compare", str(GOLDEN / "run"), str(run), "--out", str(out)])
    comparison = json.loads(out.read_text())
    assert comparison["settings"] == {}, "both formats tell of one config"
    (group,) = comparison["groups"]
    assert [one["final_loss"] for one in group["runs"]] == [None, losses(run)[-1][2]]
