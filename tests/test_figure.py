"""loss.png: a whole picture, from any records."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from quintic.figure import draw_loss, running_mean
from quintic.metrics_file import MetricsRecord
from tests.watch.runs import task_record

PLACE = ("step", "tokens", "elapsed_s", "tasks_s", "blimp/acc")


def records(steps: int) -> list[MetricsRecord]:
    found: list[MetricsRecord] = []
    for step in range(steps):
        if step % 5 == 0:
            found.append({"step": step, "tokens": 256 * step, "val_loss": 6 / (step + 1) ** 0.3})
        found.append({"step": step, "tokens": 256 * step, "train_loss": 6.1 / (step + 1) ** 0.3})
    return found


def picture(path: Path) -> np.ndarray:
    pixels: np.ndarray = matplotlib.image.imread(path)
    return pixels


def has(pixels: np.ndarray, colour: str) -> bool:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(pixels[..., :3] - rgb).max(-1) < 0.02).any())


def test_both_losses_are_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    draw_loss(records(40), path, "a run")
    both = picture(path)
    assert both.shape == (630, 1080, 4)
    assert has(both, "#8da9c4")
    assert has(both, "#c8553d")
    draw_loss([r for r in records(40) if "train_loss" in r], path, "a run")
    assert not has(picture(path), "#c8553d")
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_scores_have_a_panel_with_a_line_a_band_and_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr("quintic.figure.save_figure", lambda figure, path: figures.append(figure))
    scored = [task_record(step, acc) for step, acc in ((0, 0.5), (20, 0.625), (40, 0.75))]
    draw_loss([*records(40), *scored], tmp_path / "loss.png", "a run")
    _, panel = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}
    blimp = [[0, 0.5], [20 * 2048, 0.625], [40 * 2048, 0.75]]
    assert lines.pop("blimp acc 0.7500 ± 0.0625") == blimp
    assert [y for _, y in lines.pop("lambada_openai acc 0.2500 ± 0.0312")] == [0.25] * 3
    assert [[y for _, y in data] for data in lines.values()] == [[0.5, 0.5]]  # chance
    edges = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0.4375, 0.8125)
    draw_loss(records(40), tmp_path / "loss.png", "a run")
    assert len(figures[1].axes) == 1
    old = [{name: v for name, v in r.items() if name in PLACE} for r in scored]
    draw_loss([*records(40), *old], tmp_path / "loss.png", "a run")
    (line,) = figures[2].axes[1].get_lines()  # of a run before this release
    assert line.get_label() == "blimp acc 0.7500"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_records_are_enough(tmp_path: Path, count: int) -> None:
    draw_loss(records(40)[:count], tmp_path / "loss.png", "a run")
    assert picture(tmp_path / "loss.png").size > 0


def test_a_title_is_taken_as_it_is(tmp_path: Path) -> None:
    # Between dollar signs matplotlib would look for a formula, and not find one.
    draw_loss(records(3), tmp_path / "loss.png", r"run-$\oops{$_1, 123 parameters")
    assert picture(tmp_path / "loss.png").size > 0


def test_a_failed_drawing_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loss.png"
    draw_loss(records(5), path, "a run")
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="no space"):
        draw_loss(records(9), path, "a run")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_running_mean_is_the_mean_of_the_newest_values() -> None:
    values = [float(v) for v in np.random.default_rng(0).normal(size=100)]
    found = running_mean(values, share=0.1)
    expected = [np.mean(values[max(0, i - 9) : i + 1]) for i in range(100)]
    assert found == pytest.approx(expected)
    assert running_mean([3.0, 1.0], share=0.04) == [3.0, 1.0]
    assert running_mean([]) == []
