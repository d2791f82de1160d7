"""The examples run as they stand, and show what they say."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import tiny_options

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def output_of(script: str, *arguments: str) -> str:
    """Return what an example prints; it must end well."""
    program = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    return warm.output_of([sys.executable, "-c", program, str(EXAMPLES / script), *arguments])


def test_every_example_is_run_by_a_test() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {"train.py", "own_loop.py"}
    assert NOTEBOOKS


def test_training_from_python_takes_30_lines_and_learns(tiny_data: Path, tmp_path: Path) -> None:
    source = (EXAMPLES / "train.py").read_text().split('"""')[2]
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    changes = [f"{field}={json.dumps(value)}" for field, value in tiny_options(tiny_data).items()]
    text = output_of("train.py", str(tmp_path / "run"), *changes)
    first, last = map(float, re.findall(r"validation loss ([\d.]+) to ([\d.]+)", text)[0])
    assert last < first
    assert "logits (1, 8, 128)" in text


def test_muon_trains_in_ones_own_loop() -> None:
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output_of("own_loop.py"))]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_runs(path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=600,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(env={**os.environ})
    text = "".join(o.get("text", "") for cell in code for o in cell.outputs)
    # The figure that README.md and docs/claims.md give.
    assert "1.37 times the steps, 95% interval 1.32 to 1.42" in text
    images = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert images
