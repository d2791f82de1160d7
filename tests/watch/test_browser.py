"""The page in a real browser: curves, axes, selection, values under the pointer, and live."""

import json
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from quintic.diagnostics.record import DIAGNOSTICS, to_line
from quintic.metrics_file import METRICS
from tests.browser import CHROMIUM, Page, chromium
from tests.diagnostics.records import diagnostics_record
from tests.waiting import wait_until
from tests.watch.runs import append, task_record, train_record, validation_record, write_run
from tests.watch.served import Served, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
EVIL = "<img src=x onerror=alert(1)>"
LINES = "[...document.querySelectorAll('#charts figure:nth-child(1) .plot .line')]"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A run that has finished, a live one of another seed, and one that crashed."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "a-seed1", 100, train__seed=1)
    write_run(root / "a-seed2", 60, train__seed=2)
    crashed = write_run(root / EVIL, 20, optim__muon__lr=0.5)
    before = time.time() - 3600
    os.utime(crashed / METRICS, (before, before))
    sample = {"step": 50, "tokens": 1, "prompt": "def ", "text": EVIL}
    (root / "a-seed2" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    lines = (to_line(diagnostics_record(step)) for step in (0, 20))
    (root / "a-seed2" / DIAGNOSTICS).write_text("".join(lines))
    with serving(root) as found:
        yield found


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(f"http://127.0.0.1:{served.port}/")
        until(opened, f"{LINES}.length === 3")
        yield opened


def until(page: Page, condition: str) -> None:
    wait_until(lambda: page.evaluate(f"!!({condition})"), condition)


def lines(page: Page) -> list[str]:
    found: list[str] = page.evaluate(f"{LINES}.map(line => line.getAttribute('d'))")
    return found


def cell(page: Page, row: int, column: int) -> str:
    selector = f"#runs tbody tr:nth-child({row}) > :nth-child({column})"
    text: str = page.evaluate(f"document.querySelector('{selector}').textContent")
    return text


def test_the_table_says_what_each_run_does(page: Page) -> None:
    names = [cell(page, row, 1) for row in (1, 2, 3)]
    assert names == [EVIL, "a-seed1", "a-seed2"]
    assert [cell(page, row, 2) for row in (1, 2, 3)] == ["crashed", "finished", "running"]
    assert [cell(page, 3, column) for column in (3, 4, 5, 6, 7)] == [
        "59 of 100",
        "4.4100",
        "4.7000",
        "4,096",
        "20 s",
    ]
    assert page.evaluate("document.getElementById('news').textContent") == (
        "1 crashed, 1 finished, 1 running"
    )


def test_the_last_sample_of_the_live_run_is_text(page: Page) -> None:
    until(page, "!document.getElementById('one').hidden")
    assert page.evaluate("document.getElementById('one-title').textContent") == "a-seed2"
    assert page.evaluate("document.getElementById('sample').textContent") == f"def {EVIL}"
    assert page.evaluate("document.images.length") == 0


def test_heat_maps_are_of_the_run_that_is_shown_and_grow_with_it(
    page: Page, served: Served
) -> None:
    section = "document.getElementById('diagnostics')"
    label = f"{section}.querySelector('.plot').getAttribute('aria-label')"
    until(page, f"{label}.startsWith('momentum') && {label}.includes('2 rows over 2 steps')")
    page.evaluate(f"{section}.querySelector('select').focus()")
    page.press("ArrowDown")
    assert page.evaluate(label).startswith("update: median")
    with (served.root / "a-seed2" / DIAGNOSTICS).open("a") as file:
        file.write(to_line(diagnostics_record(40)))
    served.look()
    until(page, f"{label}.includes('over 3 steps')")
    assert page.evaluate(label).startswith("update: median")
    page.click("[aria-label='details of a-seed1']")
    until(page, f"{section}.hidden")
    page.click("[aria-label='details of a-seed2']")
    until(page, f"!{section}.hidden")


def test_what_differs_is_told(page: Page) -> None:
    until(page, "document.querySelector('#differences td')")
    head = page.evaluate(
        "[...document.querySelectorAll('#differences th[scope=col]')].map(e => e.textContent)"
    )
    assert head == ["run", "optim.muon.lr"]


def test_switching_the_axis_asks_for_other_curves(page: Page) -> None:
    label = "document.querySelector('#charts .label-x').textContent"
    assert page.evaluate(label) == "training tokens"
    before = lines(page)
    page.click("[value=seconds]")
    until(page, f"{label} === 'seconds of training'")
    ticks = page.evaluate("[...document.querySelectorAll('.tick-x')].map(e => e.textContent)")
    assert "50" in ticks
    page.click("[value=flops]")
    until(page, f"{label} === 'floating-point operations of training'")
    page.click("[value=tokens]")
    until(page, f"{label} === 'training tokens'")
    assert lines(page) == before


def test_scales_and_smoothing_redraw(page: Page) -> None:
    before = lines(page)
    page.click("#log-y")
    assert lines(page) != before
    page.click("#log-y")
    assert lines(page) == before
    page.evaluate(
        "(() => { const s = document.getElementById('smoothing'); s.value = 0.1;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    assert lines(page) != before
    assert page.evaluate("document.querySelectorAll('#charts .raw').length") == 6
    assert page.evaluate("document.getElementById('smoothing-value').value") == (
        "over 10.0% of the axis"
    )
    page.evaluate(
        "(() => { const s = document.getElementById('smoothing'); s.value = 0;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    assert lines(page) == before


def test_a_run_that_is_not_selected_is_not_drawn(page: Page) -> None:
    before = lines(page)
    page.click("#runs tbody tr:nth-child(2) input")
    until(page, f"{LINES}.length === 2")
    assert lines(page)[1] != before[1]
    page.click("#none")
    until(page, f"{LINES}.length === 0")
    page.click("#all")
    until(page, f"{LINES}.length === 3")
    assert lines(page) == before


def test_seeds_become_one_curve_with_a_band(page: Page) -> None:
    page.click("#grouped")
    until(page, f"{LINES}.length === 2")
    assert page.evaluate("document.querySelectorAll('#charts figure:nth-child(1) .band').length")
    page.click("#grouped")
    until(page, f"{LINES}.length === 3")


def test_the_pointer_and_the_keys_show_values(page: Page) -> None:
    x, y = page.evaluate(
        "(() => { scrollTo(0, 0); const e = document.querySelector('#charts .plot');"
        "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
        "return [b.right - 20, b.y + b.height / 2]; })()"
    )
    page.move(x, y)
    tip = "document.querySelector('#charts .tip').innerText"
    assert "a-seed1: 4.1000 at 204.8k tokens" in page.evaluate(tip)
    assert "a-seed2: 4.7000 at 102.4k tokens" in page.evaluate(tip)
    page.move(2, 2)
    assert page.evaluate("document.querySelector('#charts .tip').hidden")
    page.evaluate("document.querySelector('#charts .plot').focus()")
    page.press("Home")
    assert "a-seed1: 5.1000 at 0 tokens" in page.evaluate(tip)
    page.press("Escape")
    assert page.evaluate("document.querySelector('#charts .tip').hidden")


def test_scores_that_come_later_have_a_chart_and_of_one_run_a_table(
    page: Page, served: Served
) -> None:
    figure = "[...document.querySelectorAll('#charts figure')].find(f => f.querySelector('h2')"
    figure += ".textContent === 'blimp acc (share of items right)')"
    assert page.evaluate(f"!{figure}")
    append(served.root / "a-seed2", [task_record(59, 0.625)])
    served.look()
    until(page, f"{figure}?.querySelector('.level')")
    assert page.evaluate(f"{figure}.querySelectorAll('.plot .line').length") == 1
    rows = "[...document.querySelectorAll('#scores tbody tr')].map(r => r.innerText.split('\\t'))"
    until(page, f"{rows}.length === 3")
    assert page.evaluate(rows)[0] == ["blimp acc", "0.6250", "0.0625", "0.5000", "59"]
    boxes = "[...document.getElementById('fields').elements].map(box => box.value)"
    assert [name for name in page.evaluate(boxes) if "/" in name] == [
        "blimp/acc",
        "lambada_openai/acc",
        "lambada_openai/perplexity",
    ]


def test_what_a_run_writes_is_drawn_and_what_a_resume_cuts_is_gone(
    page: Page, served: Served
) -> None:
    before = lines(page)
    append(served.root / "a-seed2", [train_record(60), validation_record(80, 3.0)])
    served.look()
    until(page, f"{LINES}[2].getAttribute('d') !== {json.dumps(before[2])}")
    assert cell(page, 3, 3) == "80 of 100"
    assert cell(page, 3, 5) == "3.0000"
    write_run(served.root / "later", 10)
    served.watcher.discover()
    served.look()
    until(page, f"{LINES}.length === 4")
    assert cell(page, 4, 1) == "later"


def test_curves_without_an_answer_are_asked_for_with_the_next_news(
    page: Page, served: Served
) -> None:
    """And what is shown stays as it is."""
    drawn = "charts.get('val_loss').chart.options.series"
    on_steps = f"{drawn}.filter(s => s.x.steps?.every(x => x <= 100)).length"
    page.evaluate("answers = fetch; fetch = () => Promise.reject(new Error('no answer')); 0")
    page.click("[aria-label='details of a-seed1']")
    page.click("[value=steps]")
    until(page, "get('news').textContent === 'no curves: no answer'")
    assert page.evaluate("get('one-title').textContent") == "a-seed2"
    page.evaluate("fetch = answers; 0")
    assert page.evaluate(on_steps) == 0
    append(served.root / "a-seed2", [train_record(81)])
    served.look()
    until(page, f"{on_steps} === 4")
    page.click("[value=tokens]")
    until(page, f"{on_steps} === 0")


def test_a_measured_value_that_has_no_place_is_not_told_beside_its_mean(page: Page) -> None:
    """On an axis of powers of ten nothing below 0 has one, but the mean around it may."""
    told = """(() => {
        const host = document.body.appendChild(document.createElement("div"));
        const series = [{ label: "a", x: { steps: [0, 1, 2] }, y: [4, MIDDLE, 4] }];
        const chart = new Chart(host, { series, axes: {}, axis: "steps", logY: true,
          smoothing: 0.5 });
        chart.show(chart.scales.x.place(1));
        const text = chart.tip.textContent;
        host.remove();
        return text;
    })()"""
    assert page.evaluate(told.replace("MIDDLE", "2")) == "a: 2.8478 (measured 2.0000) at 1 "
    assert page.evaluate(told.replace("MIDDLE", "-1")) == "a: 1.1194 at 1 "
    assert page.evaluate(told.replace("MIDDLE", "null")) == ""


def test_nothing_is_asked_of_another_machine_and_nothing_goes_wrong(
    page: Page, served: Served
) -> None:
    asked = {url.split("?")[0] for url in page.requests()}
    own = f"http://127.0.0.1:{served.port}/"
    assert {url for url in asked if not url.startswith(own)} <= {"data:,"}
    assert page.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(page: Page, dark: bool) -> None:
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core here: pip install 'quintic[browser]'")
    page.resize(1100, 1000, dark=dark)
    page.evaluate((Path(found.origin).parent / "axe.min.js").read_text() + ";0")
    report = page.evaluate("axe.run()")
    page.resize(1100, 1000)
    assert len(report["passes"]) > 10
    faults = [
        (fault["id"], fault["impact"], [node["html"][:200] for node in fault["nodes"]])
        for fault in report["violations"]
    ]
    assert [fault for fault in faults if fault[1] in ("serious", "critical")] == []


def test_a_field_of_any_name_and_a_curve_that_is_gone_do_not_stop_the_page(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    odd, run = 'odd"] \\', write_run(tmp_path / "one", 10)
    append(run, [{**train_record(10), odd: 1.0}])
    with serving(tmp_path) as served, chromium(tmp_path_factory.mktemp("profile")) as page:
        page.open(f"http://127.0.0.1:{served.port}/")
        until(page, f"{LINES}.length === 1")
        fields = "[...document.querySelectorAll('[name=\"field\"]')].map(box => box.value)"
        assert odd in page.evaluate(fields)
        page.evaluate(
            "get('filter').value = 'one'; get('filter').dispatchEvent(new Event('input'))"
        )
        write_run(tmp_path / "two", 10)
        served.watcher.discover()
        (run / METRICS).write_text("")  # begun anew, with nothing measured yet
        served.look()
        until(page, "runs.size === 2")
        until(page, f"{LINES}.length === 1 && charts.get('val_loss').series.size === 1")
        rows = "[...document.querySelectorAll('#runs tbody tr')].map(row => row.hidden)"
        assert page.evaluate(rows) == [False, True]
        assert page.evaluate(fields).count(odd) == 1
        append(run, [validation_record(0, 5.0)])
        served.look()
        until(page, "charts.get('val_loss').series.size === 2")
        (run / METRICS).write_text("")
        served.look()
        until(page, "charts.get('val_loss').series.size === 1")
        assert page.complaints() == []
