"""The page: self-contained, whatever the names in it, and alive in a real browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from quintic.compare.comparison import compare
from quintic.compare.page import write_page
from tests.browser import CHROMIUM, Page, chromium
from tests.compare.records import group_of, record

MUON = group_of("muon", [3.20, 3.21, 3.19], settings={"optim.matrices": "muon"})
ADAMW = group_of("adamw", [3.40, 3.42, 3.41], settings={"optim.matrices": "adamw"})
EVIL = "</script><img src=x onerror=alert(1)>&{{DATA}}"


class Elements(HTMLParser):
    """Names and attributes of all elements, and the text of the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._reads_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._reads_data = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._reads_data:
            self.data += data
            self._reads_data = False


def written(folder: Path, *arguments: Any, **options: Any) -> str:
    write_page(compare(*arguments, **options), folder / "page.html")
    return (folder / "page.html").read_text()


def test_the_page_has_the_numbers_the_tables_and_the_sentences(tmp_path: Path) -> None:
    text = written(tmp_path, [*ADAMW, *MUON], target=3.5)
    data = json.loads(Elements(text).data)
    assert [series["label"] for series in data["series"]] == ["adamw", "muon"]
    last = {"y": pytest.approx(3.2), "low": 3.19, "high": 3.21}
    assert {name: data["series"][1][name][-1] for name in last} == last
    ends = {"tokens": 20_000.0, "steps": 20, "seconds": pytest.approx(10.0)}
    assert {axis: places[-1] for axis, places in data["series"][1]["x"].items()} == ends
    assert data["levels"] == [{"y": 3.5, "text": "target 3.5"}]
    assert "<td>3.2000 ± 0.0058</td>" in text
    assert "<h1>6 runs side by side</h1>" in text
    assert "band from the lowest to the highest run" in text
    assert "band from" not in written(tmp_path, [MUON[0]])
    assert '<th scope="row">muon</th>' in text
    assert "the evidence supports that its final loss is lower" in text
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    text = written(tmp_path, [*ADAMW, *MUON])
    elements = Elements(text).found
    assert elements
    assert not [(tag, a) for tag, a in elements if {"src", "href", "data", "action"} & a.keys()]
    assert not {tag for tag, _ in elements} & {"link", "img", "iframe", "object", "base"}
    addresses = set(re.findall(r"https?://[^\"' )]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements, no request
    policy = next(a["content"] for t, a in elements if a.get("http-equiv") and t == "meta")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_names_are_never_markup(tmp_path: Path) -> None:
    # Of one name, so that they are called by their recipes.
    runs = [
        record("a/run", [8, 3], settings={"recipe": EVIL, "x": EVIL}),
        record("b/run", [8, 3], settings={"recipe": "{{NOTES}}", "x": "{{NOTES}}"}),
        record("\udcff/run", [8, 3], settings={"recipe": "\udcff", "x": 1}),  # no text at all
    ]
    runs[0] = replace(runs[0], device=EVIL)
    runs[1] = replace(runs[1], device="another")
    elements = Elements(written(tmp_path, runs))
    assert "img" not in {tag for tag, _ in elements.found}
    labels = [series["label"] for series in json.loads(elements.data)["series"]]
    assert labels[:2] == [EVIL, "{{NOTES}}"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of two groups and a diverged run, in a real browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("page")
    lost = replace(record(EVIL.replace("/", "-"), [8]), diverged_at=3, steps_planned=20)
    write_page(compare([*ADAMW, *MUON, lost], target=3.5), folder / "page.html")
    with chromium(folder / "profile") as page:
        page.open(folder / "page.html")
        yield page


def drawn(page: Page) -> tuple[str, list[str], list[str]]:
    """The label of the axis, the ticks, and the paths of the lines."""
    label, ticks, lines = page.evaluate(
        "[document.querySelector('.label-x').textContent,"
        "[...document.querySelectorAll('.tick-x, .tick-y')].map(e => e.textContent),"
        "[...document.querySelectorAll('#chart .plot .line')].map(e => e.getAttribute('d'))]"
    )
    return label, ticks, lines


def test_a_browser_draws_every_group_and_asks_for_nothing(browser: Page) -> None:
    label, ticks, lines = drawn(browser)
    assert label == "training tokens"
    assert "10k" in ticks
    assert len(lines) == 3
    assert all("NaN" not in line for line in lines)
    assert browser.evaluate("document.querySelectorAll('#chart .plot .band').length") == 2
    assert browser.evaluate("document.querySelectorAll('#chart .plot .level').length") == 1
    assert browser.evaluate("document.images.length") == 0
    assert [url.split(":")[0] for url in browser.requests()] == ["file"]
    assert browser.complaints() == []


def test_switching_axis_and_scale_redraws(browser: Page) -> None:
    before = drawn(browser)
    browser.click("[value=seconds]")
    seconds = drawn(browser)
    assert seconds[0] == "seconds of training"
    assert seconds[1] != before[1]
    browser.click("#log-x")
    logarithmic = drawn(browser)
    assert logarithmic[2] != seconds[2]
    assert len(logarithmic[2]) == 2  # of the run that diverged only step 0 is left, at no place
    browser.click("#log-y")
    assert drawn(browser)[2] != logarithmic[2]
    assert all("NaN" not in line for line in drawn(browser)[2])
    browser.click("#whole")
    assert "8" in drawn(browser)[1]
    for selector in ("#log-x", "#log-y", "#whole", "[value=tokens]"):
        browser.click(selector)
    assert drawn(browser) == before
    assert browser.complaints() == []


def test_hovering_shows_the_values(browser: Page) -> None:
    x, y = browser.evaluate(
        "(() => { scrollTo(0, 0);"
        "const b = document.querySelector('#chart .plot').getBoundingClientRect();"
        "return [b.right - 30, b.y + b.height / 2]; })()"
    )
    browser.move(x, y)
    tip = browser.evaluate("document.querySelector('#chart .tip').innerText")
    assert "muon: 3.2000 (3.1900 to 3.2100) at 20k tokens" in tip
    assert "adamw: 3.4100 (3.4000 to 3.4200) at 20k tokens" in tip
    left, right, width = browser.evaluate(
        "(() => { const b = document.querySelector('#chart .tip').getBoundingClientRect();"
        " return [b.left, b.right, document.documentElement.clientWidth]; })()"
    )
    assert 0 <= left < right <= width
    browser.move(2, 2)
    assert browser.evaluate("document.querySelector('#chart .tip').hidden")


def test_a_click_in_the_legend_hides_a_group(browser: Page) -> None:
    assert len(drawn(browser)[2]) == 3
    browser.click("#chart .keys button:nth-child(2)")
    assert len(drawn(browser)[2]) == 2
    second = "document.querySelectorAll('#chart .keys button')[1]"
    assert browser.evaluate(f"{second}.ariaPressed") == "false"
    for number in (1, 3):
        browser.click(f"#chart .keys button:nth-child({number})")
    assert drawn(browser)[2] == []
    for number in (1, 2, 3):
        browser.click(f"#chart .keys button:nth-child({number})")
    assert len(drawn(browser)[2]) == 3
    assert browser.complaints() == []


def test_every_column_is_in_sight_at_1100_pixels(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    groups = [
        run
        for number in range(3)
        for run in group_of(
            f"speedrun-of-a-long-name-{number}",
            [3.2, 3.3, 3.25, 3.27, 3.22],
            settings={"optim.muon.ns_coefficients": number},
            tokens_per_s=1_234_567.0,
            memory_gib=123.45,
            optimizer_share=0.0123,
        )
    ]
    write_page(compare(groups, target=3.5), tmp_path / "page.html")
    with chromium(tmp_path / "profile") as page:
        page.open(tmp_path / "page.html")
        tables = page.evaluate(
            "[...document.querySelectorAll('.wide')].map(e => [e.querySelectorAll('thead th')"
            ".length, e.clientWidth, e.scrollWidth, document.documentElement.scrollWidth])"
        )
    assert tables[0][0] == 10
    for _, visible, whole, document in tables:
        assert whole <= visible < document <= 1100
