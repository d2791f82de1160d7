"""The page: self-contained, whatever the text and the names in it, and alive in a real browser."""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintic.data.bpe_tokenizer import BpeTokenizer, train_bpe
from quintic.data.token_text import pieces, token_name
from quintic.data.tokenizer import END_OF_TEXT
from quintic.diagnostics.heatmaps import heat_maps
from quintic.diagnostics.record import DIAGNOSTICS, to_line
from quintic.recipes import get_recipe
from quintic.report.contents import Contents, Measured, read_contents
from quintic.report.page import write_report
from quintic.report.text import level
from quintic.report.time_spent import step_times, time_spent
from quintic.report.token_losses import Predictions, TokenLosses
from quintic.run_dir import PARAM_GROUPS, SAMPLES
from tests.browser import CHROMIUM, Page, chromium
from tests.diagnostics.records import diagnostics_record
from tests.watch.runs import task_record, write_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{VERDICT}} &amp;"
TEXT = f"def f(x):\n    return '{EVIL}' + x  # é€\x00\x1b\n" * 12
CONTEXT = 32


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return train_bpe([TEXT], 280)


@pytest.fixture(scope="module")
def contents(tokenizer: BpeTokenizer) -> Contents:
    """A report of a run that nobody trained, with hostile text wherever text comes from outside."""
    ids = np.array([*tokenizer.encode(TEXT), tokenizer.eot_id])
    ids = np.resize(ids, 16 * CONTEXT)
    random = np.random.default_rng(0)
    losses = TokenLosses(ids, random.exponential(2.0, len(ids)), CONTEXT)
    p_NK = np.full((len(ids), 2), [0.625, 0.0625])
    predictions = Predictions(np.stack([ids[::-1], ids], axis=1), p_NK, np.arange(1, len(ids) + 1))
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)
    records: list[dict[str, Any]] = [
        {
            "step": step,
            "tokens": 64 * step,
            "train_loss": 5 / (1 + step),
            "step_ms": 10.0 + step,
            "tokens_per_s": 6400.0,
            "elapsed_s": 0.01 * (step + 1),
            "optimizer_ms": 5.0 + step / 2,
            "lr": 0.01,
        }
        for step in range(20)
    ]
    records.append({"step": 20, "tokens": 1280, "val_loss": 1.5, "val_s": 0.3, "elapsed_s": 0.2})
    header = ["parameter", "shape", "optimizer", "lr", "scale", "effective lr", "weight decay"]
    rest = ["muon", "0.006", "1", "0.006", "0"]
    names = ["layers.0.up.weight", "layers.1.up.weight", "layers.3.up.weight"]
    return Contents(
        folder=Path(EVIL.replace("/", "")),
        config=replace(get_recipe("laptop"), recipe=EVIL),
        records=records,
        samples=[
            {"step": step, "tokens": 64 * step, "prompt": EVIL, "text": EVIL, "sample_s": 0.1}
            for step in range(0, 30)
        ],
        environments=[{"command": EVIL, "commit": None, "data": "abc123", "device": "cpu"}],
        param_groups=[
            header,
            ["embed.weight", "280 x 4", "adamw", *rest[1:]],
            *([name, "4 x 4", *rest] for name in names),
        ],
        measured=Measured(20, losses, predictions, counts, tokenizer),
        heat_maps=heat_maps([diagnostics_record(step) for step in (0, 10, 20)]),
        missing=[f"nothing: {EVIL}"],
    )


class _Elements(HTMLParser):
    """What a browser takes for elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.fixture(scope="module")
def page(contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(contents, path)
    return path.read_text(encoding="utf-8")


def test_hostile_text_is_no_markup(page: str) -> None:
    found = _Elements()
    found.feed(page)
    assert found.tags.count("script") == 2
    assert "img" not in found.tags
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "alert(1)</script>" not in page
    assert page.count("{{VERDICT}}") >= 5  # as text: of what is filled in nothing is filled
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


def test_equal_parameters_are_one_line_and_many_samples_are_chosen(page: str) -> None:
    assert "layers.(0-1, 3).up.weight" in page
    assert "layers.1" not in page
    steps = [int(n) for n in re.findall(r"<summary>step (\d+),", page)]
    assert (steps[0], steps[-1], len(steps)) == (0, 29, 12)
    assert "30 are in samples.jsonl" in page
    # 280 * 4 and three matrices of 16
    assert "<td>1,168</td>" in page


def test_where_the_time_went(contents: Contents) -> None:
    spent = time_spent(contents.records, contents.samples)
    assert spent.optimizer_s == pytest.approx(0.1)
    assert spent.gradients_s == pytest.approx(0.1)
    assert (spent.validation_s, spent.tasks_s) == (0.3, 0.0)
    assert spent.samples_s == pytest.approx(3.0)
    assert spent.total_s == pytest.approx(3.5)
    steps = step_times(contents.records)
    assert steps is not None
    assert (steps.median_ms, steps.slowest_ms, steps.slowest_step) == (19.5, 29.0, 19)
    assert (steps.tokens_per_s, steps.mfu, steps.memory_gib) == (6400.0, None, None)
    assert step_times([]) is None


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path) -> None:
    config = get_recipe("laptop")
    empty = Contents(tmp_path / "run", config, [], [], [], [], missing=["everything"])
    write_report(empty, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "No validation has measured this run yet." in page
    assert "<li>everything</li>" in page
    assert 'id="losses"' not in page and 'id="time"' not in page


def test_heat_maps_are_there_with_diagnostics_alone(contents: Contents, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    without = read_contents(folder)
    write_report(without, tmp_path / "report.html")
    assert 'id="diagnostics"' not in (tmp_path / "report.html").read_text()
    assert not [text for text in without.missing if "weights" in text]
    (folder / DIAGNOSTICS).write_text(to_line(diagnostics_record(0)))
    write_report(read_contents(folder), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<section id="diagnostics"><h2>What Muon does to the weights</h2>' in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["diagnostics"] == heat_maps([diagnostics_record(0)])
    (folder / DIAGNOSTICS).write_text('{"step": 0}\n')
    damaged = read_contents(folder)
    assert not damaged.heat_maps
    assert [text for text in damaged.missing if text.startswith("what the optimizer does")]
    (folder / SAMPLES).write_text("{\n")
    found = [text for text in read_contents(folder).missing if text.startswith("samples along")]
    assert len(found) == 1 and "samples.jsonl line 1 is not a record" in found[0]


def test_scores_are_a_chart_in_their_standard_error_and_a_table(
    contents: Contents, tmp_path: Path
) -> None:
    scored = [task_record(step, acc) for step, acc in ((0, 0.5), (20, 0.625))]
    write_report(replace(contents, records=[*contents.records, *scored]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    blimp, words = data["scores"]
    assert blimp["label"] == "blimp acc"
    assert blimp["x"] == {"tokens": [0, 40960], "steps": [0, 20], "seconds": [0.0, 10.0]}
    assert blimp["y"] == [0.5, 0.625]
    assert (blimp["low"], blimp["high"]) == ([0.4375, 0.5625], [0.5625, 0.6875])
    assert (words["label"], words["y"]) == ("lambada_openai acc", [0.25, 0.25])
    assert data["chances"] == [{"y": 0.5, "text": "chance of blimp", "last": True}]
    rows = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in page.split("<tr>")]
    assert ["blimp acc", "0.6250 ± 0.0625", "0.5000", "20"] in rows
    assert ["lambada_openai acc", "0.2500 ± 0.0312", "-", "20"] in rows
    assert ["lambada_openai perplexity", "60.00", "-", "20"] in rows
    write_report(contents, tmp_path / "report.html")
    assert "last scores" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("junk", ["name  shape\nembed  wide\n", "junk\nof one column\n"])
def test_a_table_of_parameters_that_was_edited_has_no_number_of_them(
    tmp_path: Path, junk: str
) -> None:
    folder = write_run(tmp_path / "run", 1)
    (folder / PARAM_GROUPS).write_text(junk)
    write_report(read_contents(folder), tmp_path / "report.html")
    assert 'scope="row">parameters' not in (tmp_path / "report.html").read_text()


def test_losses_that_are_not_finite_are_gaps(contents: Contents, tmp_path: Path) -> None:
    lost = {**contents.records[0], "step": 20, "tokens": 1280, "train_loss": math.nan}
    diverged = replace(contents, records=[*contents.records[:20], lost])
    write_report(diverged, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    (each,) = (c for c in data["curves"] if c["label"] == "training loss")
    assert each["y"][-2:] == [0.25, None]
    assert each["x"]["steps"][-1] == 20
    assert "Training diverged: the loss is not finite at step 20." in page


def test_curves_of_long_runs_are_means_of_few_points(contents: Contents, tmp_path: Path) -> None:
    records = [{**contents.records[0], "step": s, "tokens": s, "lr": s} for s in range(20_000)]
    write_report(replace(contents, records=records), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    (rates,) = data["lr"]
    assert len(rates["y"]) == 1429  # 14 steps each
    assert (rates["x"]["steps"][0], rates["y"][0]) == (13, 6.5)
    assert len(page) < 1_000_000


def test_pieces_of_characters_are_named_by_their_bytes(tokenizer: BpeTokenizer) -> None:
    plain = train_bpe(["aa"], 257)  # every byte a token
    ids = plain.encode("a€\n")
    assert [*pieces(plain, [*ids, plain.eot_id])] == [
        ("a", True),
        (r"\xe2", False),
        (r"\x82", False),
        ("€", True),
        ("\n", True),
        (END_OF_TEXT, False),
    ]
    assert [token_name(plain, i) for i in plain.encode(" \n\t\x00")] == ["␣", "↵", "⇥", "\\u0000"]
    assert token_name(None, 7) == "id 7"
    assert [level(-math.log(p)) for p in (0.95, 0.6, 0.3, 0.1, 0.02, 0.002, 1e-4)] == [*range(7)]


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("browser")
    write_report(contents, folder / "report.html")
    with chromium(folder / "profile") as page:
        page.open(folder / "report.html")
        yield page


def middle_of_token(page: Page, index: int) -> tuple[float, float]:
    x, y = page.evaluate(
        f"(() => {{ const e = document.querySelectorAll('#tokens i')[{index}]; "
        "e.scrollIntoView({block: 'center'}); const b = e.getClientRects()[0]; "
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    return x, y


def test_a_browser_draws_the_curves_and_asks_for_nothing(browser: Page) -> None:
    charts = "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.line').length)"
    assert browser.evaluate(charts) == [2, 1, 1, 0]  # and a heat map
    browser.click("[value=seconds]")
    labels = "[...document.querySelectorAll('.label-x')].map(e => e.textContent)"
    assert browser.evaluate(labels)[:2] == ["seconds of training"] * 2
    assert [url.split(":")[0] for url in browser.requests()] == ["file"]
    assert browser.complaints() == []


def test_a_heat_map_shows_the_value_of_a_cell_and_changes_by_the_keyboard(browser: Page) -> None:
    host = "document.querySelector('#diagnostics .heatmap')"
    tip, cells = f"{host}.querySelector('.tip')", f"{host}.querySelectorAll('.cells')"
    # Two rows of three columns, of which the first was not measured: 0.5, 0.25, 0.25 and 0.125.
    assert browser.evaluate(f"[...{cells}].map(p => p.getAttribute('fill')).sort()") == [
        "rgb(253,231,37)",
        "rgb(33,145,140)",
        "rgb(68,1,84)",
    ]
    x, y = browser.evaluate(
        f"(() => {{ {host}.scrollIntoView({{block: 'center'}});"
        f"const b = {host}.querySelector('.frame').getBoundingClientRect();"
        "return [b.x + b.width * 5 / 6, b.y + b.height * 3 / 4]; })()"
    )
    browser.move(x, y)
    assert browser.evaluate(f"{tip}.textContent") == "1.up, step 20: 0.125"
    browser.evaluate(f"{host}.querySelector('.plot').focus()")
    browser.press("Home")
    assert browser.evaluate(f"{tip}.textContent") == "1.up, step 0: not measured"
    browser.press("ArrowUp")
    browser.press("ArrowUp")  # there is no row above
    browser.press("ArrowRight")
    assert browser.evaluate(f"{tip}.textContent") == "0.up, step 10: 0.5"
    browser.press("Escape")
    assert browser.evaluate(f"{tip}.hidden")
    browser.evaluate(f"{host}.querySelector('select').focus()")
    browser.press("ArrowDown")  # 0.8, 0.81 and 0.82, of which the first does not count
    texts = f"[...{host}.querySelectorAll('text')].map(e => e.textContent)"
    assert browser.evaluate(texts)[-3:-1] == ["\u2264 0.81", "0.82"]
    browser.press("End")
    label = browser.evaluate(f"{host}.querySelector('.plot').getAttribute('aria-label')")
    assert label.startswith("MLP: dead units: 2 rows over 3 steps, from 0% to 25%;")


def test_pointing_at_a_token_shows_what_was_expected(
    browser: Page, contents: Contents, tokenizer: BpeTokenizer
) -> None:
    assert contents.measured is not None
    losses = contents.measured.losses
    browser.move(*middle_of_token(browser, 5))
    text = browser.evaluate("document.getElementById('token').textContent")
    name, nats = token_name(tokenizer, int(losses.targets_N[5])), losses.nats_N[5]
    assert text.startswith(f"{name}: ")
    assert f"{nats:.2f} nats, rank 6. Expected:" in text
    likeliest = token_name(tokenizer, int(losses.targets_N[::-1][5]))
    assert text.endswith(f"Expected:{likeliest} 63%{name} 6.3%")


def test_arrow_keys_go_from_token_to_token(browser: Page) -> None:
    now = "[...document.querySelectorAll('#tokens i')].findIndex(e => e.matches('.now'))"
    browser.evaluate("document.getElementById('tokens').focus()")
    before = browser.evaluate(now)
    for key, moved in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key)
        assert browser.evaluate(now) == before + moved
    browser.evaluate("document.getElementById('tokens').blur()")
    assert browser.evaluate("document.getElementById('token').hidden") is True


def test_colours_can_be_taken_away(browser: Page) -> None:
    colour = "getComputedStyle(document.querySelector('#tokens .c6')).backgroundColor"
    with_colours = browser.evaluate(colour)
    browser.click("#coloured")
    assert browser.evaluate(colour) == "rgba(0, 0, 0, 0)" != with_colours
    browser.click("#coloured")
    assert browser.evaluate(colour) == with_colours


@pytest.mark.skipif(
    importlib.util.find_spec("axe_playwright_python") is None,
    reason="pip install axe-playwright-python, which brings axe-core",
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Page, scheme: str) -> None:
    found = importlib.util.find_spec("axe_playwright_python")
    assert found is not None and found.origin is not None
    axe = Path(found.origin).with_name("axe.min.js").read_text()
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    browser.evaluate(axe + "; 0")
    answer = browser.call(
        "Runtime.evaluate",
        expression="axe.run().then(r => r.violations.map(v => [v.impact, v.id]))",
        awaitPromise=True,
        returnByValue=True,
    )
    assert answer["result"]["value"] == []
