"""A described dataset as a picture, as a page and on the console: the right numbers, whatever is in
the text and the names."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from quintic.cli.main import main
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.description import DatasetSummary, describe_dataset
from quintic.data.shards import write_shard
from quintic.data_info import figure
from quintic.data_info.figure import draw_description
from quintic.data_info.page import write_page
from quintic.figure import save_figure
from tests.browser import CHROMIUM, chromium
from tests.conftest import refusal

EVIL = "$x</i><script>alert(1)</script>\n\té漢\x1b {{TITLE}}"
FOLDER = "<b>$a$ {{SAMPLES}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 3, 3, 6 and many tokens for training, two empty ones for validation."""
    folder = tmp_path_factory.mktemp("data") / FOLDER
    folder.mkdir()
    tokenizer = train_bpe([], 257)
    tokenizer.save(folder)
    texts = ["ab", "cd", "efghi", EVIL]
    train = [id_ for text in texts for id_ in (tokenizer.eot_id, *tokenizer.encode(text))]
    write_shard(folder / "$web_train_000001.bin", train)
    write_shard(folder / "$web_val_000001.bin", [tokenizer.eot_id] * 2)
    return folder


@pytest.fixture(scope="module")
def summary(folder: Path) -> DatasetSummary:
    return describe_dataset(folder)


def bars(axes: Any, of: str) -> list[float]:
    return [getattr(patch, f"get_{of}")() for patch in axes.patches]


def test_the_picture_has_the_numbers(
    summary: DatasetSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def save(picture: Any, path: Path) -> None:
        drawn.append(picture)
        save_figure(picture, path)

    monkeypatch.setattr(figure, "save_figure", save)
    draw_description(summary, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    lengths, sources, sizes, frequent, longest = drawn[0].axes
    evil = len(EVIL.encode()) + 1
    tokens = 3 + 3 + 6 + evil
    # Lengths of training by powers of two, 2-3, 4-7, .. 32-63: documents, then tokens; then
    # validation, whose documents have one token each.
    wanted = [50, 25, 0, 0, 25, *(100 * n / tokens for n in (6, 6, 0, 0, evil)), 100, 100]
    assert bars(lengths, "height") == pytest.approx(wanted)
    assert bars(sources, "width") == [tokens, 2]
    names = [label.get_text() for label in sources.get_yticklabels()]
    assert names == ["$web (train)", "$web (val)"]
    assert bars(sizes, "height")[:2] == pytest.approx([400 / tokens, 100 * (tokens - 4) / tokens])
    assert bars(longest, "width") == [evil, 6, 3, 3]
    assert longest.get_yticklabels()[0].get_text() == "$x</i><script>alert(1)</"
    most = summary.splits["train"].frequent[0].count
    assert bars(frequent, "width")[0] == most > 1


def test_names_are_drawn_with_signs_that_the_font_has() -> None:
    assert figure._drawable("␣the é Ж") == "␣the é Ж"
    assert figure._drawable("漢") == "\\u6f22"
    assert figure._drawable("a" * 34) == "a" * 34
    assert figure._drawable("a" * 35) == "a" * 34 + "…"


def test_what_is_not_known_is_said_in_picture_and_page(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_val_0.bin", [1, 2, 3])
    summary = describe_dataset(tmp_path)
    draw_description(summary, tmp_path / "a.png")
    write_page(summary, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<p>val documents: not known</p>" in page
    assert '<th scope="row">id 1</th>' in page
    assert "does not say which tokenizer made it" in page


def test_the_page_has_the_numbers_and_the_borders_of_tokens(
    summary: DatasetSummary, tmp_path: Path
) -> None:
    write_page(summary, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert f"<h1>{html.escape(FOLDER)}</h1>" in page
    assert "<script" not in page
    assert (
        "<h3>6 tokens, from token 6 on</h3>"
        '<div class="tokens"><i class="t0">e</i><i class="t1">f</i><i class="t0">g</i>'
        '<i class="t1">h</i><i class="t0">i</i></div>'
    ) in page
    # A line end is marked, a character of several tokens is with the last, a control has a picture.
    assert re.search(r'<i class="t\d end">\n</i><i class="t\d">\t</i>', page)
    assert re.search(r'<i class="t(\d) name">\\xc3</i><i class="t(?!\1)\d">é</i>', page)
    assert "␛" in page
    row = '<th scope="row">2 to 3</th><td>2</td><td>13.3%</td>'
    tokens = summary.splits["train"].tokens
    assert row.replace("13.3%", f"{6 / tokens:.1%}") in page
    assert page.count(">50.0%<") + page.count("</span> 50.0%") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_asks_for_nothing_and_fits_a_phone(
    summary: DatasetSummary, tmp_path: Path
) -> None:
    write_page(summary, tmp_path / "a.html")
    with chromium(tmp_path / "profile") as page:
        page.open(tmp_path / "a.html")
        page.resize(390, 800, dark=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        colours = page.evaluate(
            "[...document.querySelectorAll('.tokens i')].slice(0, 3)"
            ".map(e => getComputedStyle(e).backgroundColor)"
        )
        assert colours[0] == colours[2] != colours[1]
        assert page.complaints() == []
        assert len(page.requests()) == 1


def test_the_command_writes_both_and_prints_borders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png, page = tmp_path / "a.png", tmp_path / "a.html"
    main(["data", "info", str(folder), "--figure", str(png), "--html", str(page)])
    out = capsys.readouterr().out
    assert "sample: e|f|g|h|i\n" in out
    assert "s|c|r|i|p|t" in out
    assert "|↵|⇥|" in out
    assert f"written {png}\nwritten {page}\n" in out
    assert png.stat().st_size > 1000
    assert "Documents, token by token" in page.read_text()
    main(["data", "info", str(folder), "--json"])
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert samples[0]["text"] == "ab"
    assert samples[0]["pieces"] == [["a", True], ["b", True]]


def test_files_of_other_names_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, suffix in (("--figure", ".png"), ("--html", ".html")):
        line = refusal(["data", "info", str(tmp_path / "absent"), option, "a.jpg"], capsys)
        assert f"{option} a.jpg: the file's name must end in {suffix}" in line
    line = refusal(["data", "info", "absent", "--figure", tmp_path / "no" / "a.png"], capsys)
    assert "there is no folder" in line


@pytest.mark.parametrize("heights", [[1] * 9, [9, *[1] * 8], [*[1] * 8, 9], [0, 0]])
def test_a_legend_covers_no_bar(heights: list[int]) -> None:
    drawn = Figure(figsize=(5, 3.5), dpi=130)
    axes = drawn.subplots()
    for name in ("train", "val"):
        axes.bar(range(len(heights)), heights, label=f"{name}, mean 3.770")
    figure._legend_above(axes, columns=2)
    drawn.draw_without_rendering()
    legend = axes.get_legend()
    assert legend is not None
    bottom = legend.get_window_extent().y0
    assert all(bar.get_window_extent().y1 <= bottom for bar in axes.patches)
