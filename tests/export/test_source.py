"""The model that leaves a run: in float32, with the window of its step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from quintic.console import Console
from quintic.export.source import open_source
from quintic.export.verify import quintic_logits, sample_ids
from tests.conftest import main, tiny_arguments


@pytest.fixture(scope="module")
def growing(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in float64 whose window grows from 4 to 28, after 8 of 12 steps."""
    folder = tmp_path_factory.mktemp("growing") / "run"
    switches = ["--model.window", "28", "--model.window-start", "4", "--train.precision", "float64"]
    vocabulary = ["--model.vocab-size", "None"]
    main([*tiny_arguments(text_data), *vocabulary, *switches, "--out", str(folder)])
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    return folder


def test_a_window_that_grows_leaves_as_it_is_at_the_checkpoints_step(growing: Path) -> None:
    source = open_source(growing, Console(quiet=True))
    assert source.trained.checkpoint.state["step"] == 8
    assert (source.config.window, source.config.window_start) == (20, None)
    ids_BT = sample_ids(source)
    with torch.no_grad():
        expected = source.trained.model(ids_BT)[..., : source.tokenizer.vocab_size]
    assert expected.dtype == torch.float64
    difference = (quintic_logits(source, ids_BT) - expected).abs().max()
    assert difference < 1e-4 * expected.abs().max()


def test_weights_of_a_run_in_float64_leave_as_the_nearest_in_float32(growing: Path) -> None:
    source = open_source(growing, Console(quiet=True))
    for name, parameter in source.trained.model.named_parameters():
        assert torch.equal(source.tensors[name], parameter.detach().to(torch.float32))


def test_the_sample_is_one_document_a_row(text_run: Path) -> None:
    source = open_source(text_run, Console(quiet=True))
    ids_BT = sample_ids(source)
    assert ids_BT.shape == (2, 32)
    assert (ids_BT == source.tokenizer.eot_id).nonzero().tolist() == [[0, 0], [1, 0]]
