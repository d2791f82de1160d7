"""`quintic export --to onnx`: the graph, by onnxruntime, against quintic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest
import torch

from quintic.console import Console
from quintic.errors import QuinticError
from quintic.export import onnx as own
from quintic.export.export import export
from quintic.export.source import Source, open_source
from quintic.export.verify import quintic_logits
from tests.conftest import refusal
from tests.export.test_hf import SMALL, drawn

SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gpt2": {"architecture": "gpt2"},
    "one position": {"context": 1},
    "of the speedrun": {
        **{"token_smear": True, "key_smear": True, "bigram_embeddings": 8},
        **{"value_embeddings": 1, "x0_skip": True, "unet_skips": True, "window": 8},
        **{"embed_norm": True, "logit_softcap": 10.0, "tied_head": False},
    },
}


@pytest.fixture(scope="module")
def trained(text_run: Path) -> Source:
    """The source of a run whose vocabulary of 320 is padded to 384."""
    return open_source(text_run, Console(quiet=True))


@pytest.mark.parametrize("switches", SWITCHES)
def test_onnxruntime_computes_the_logits_at_every_length(
    switches: str, trained: Source, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    source = drawn(trained, replace(SMALL, **SWITCHES[switches]))
    said: list[str] = []
    export(source, "onnx", tmp_path / "out", said.append)
    assert any(line.startswith("logits of onnxruntime") for line in said)
    session = onnxruntime.InferenceSession(tmp_path / "out" / own.MODEL_FILE)
    context = source.config.context
    for batch, time in ((1, 1), (1, min(13, context)), (3, context)):
        ids_BT = torch.randint(320, (batch, time), generator=torch.Generator().manual_seed(time))
        (found,) = session.run([own.LOGITS], {own.IDS: ids_BT.numpy()})
        expected = quintic_logits(source, ids_BT)
        assert found.shape == (batch, time, 320)
        atol = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=atol)


def test_without_the_exporters_packages_it_says_which(
    trained: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(QuinticError, match=r"onnx.*pip install .*quintic\[onnx\]"):
        export(trained, "onnx", tmp_path / "out", lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_failure_of_pytorchs_exporter_is_one_line_and_nothing_is_written(
    text_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*arguments: object, **options: object) -> Never:
        message = "\x1b[96mFailed to export the model\x1b[0m.\nNext steps:\n- Modify the model code"
        raise torch.onnx.OnnxExporterError(message) from ValueError("no such operator\nat line 3")

    monkeypatch.setattr("quintic.export.onnx.require_package", lambda *arguments: None)
    monkeypatch.setattr(torch.onnx, "export", fails)
    out = tmp_path / "a" / "out"
    line = refusal(["export", text_run, "--to", "onnx", "--out", out], capsys)
    assert line.startswith(f"PyTorch {torch.__version__} makes no ONNX graph of this model ")
    assert "(ValueError: no such operator): install" in line
    assert not list(tmp_path.iterdir())
