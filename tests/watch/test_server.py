"""The server: what it says, to whom, and that it names no path."""

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quintic.diagnostics.record import DIAGNOSTICS, to_line
from quintic.metrics_file import METRICS, truncate_metrics
from quintic.watch.server import FILES
from tests.diagnostics.records import diagnostics_record
from tests.watch.runs import append, config, task_record, train_record, write_run
from tests.watch.served import Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Two seeds, and a run of another learning rate."""
    write_run(tmp_path / "a-seed1", 60, train__seed=1)
    write_run(tmp_path / "a-seed2", 40, train__seed=2)
    write_run(tmp_path / "b", 20, optim__muon__lr=0.5)
    with serving(tmp_path) as found:
        yield found


def event(stream: http.client.HTTPResponse) -> dict[str, Any]:
    line = stream.fp.readline()
    while not line.startswith(b"data: "):
        line = stream.fp.readline()
    found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return found


def test_the_stream_tells_of_all_runs_and_then_of_those_that_change(served: Served) -> None:
    stream = served.get("/events")
    assert stream.getheader("Content-Type") == "text/event-stream"
    first = event(stream)
    assert [run["name"] for run in first["runs"]] == ["a-seed1", "a-seed2", "b"]
    append(served.root / "b", [train_record(20), train_record(21)])
    served.look()
    news = event(stream)
    assert [(run["name"], run["step"]) for run in news["runs"]] == [("b", 21)]
    truncate_metrics(served.root / "b" / METRICS, 10)  # as a resume does
    append(served.root / "b", [train_record(10, 1.25)])
    served.look()
    news = event(stream)
    assert [(run["step"], run["train_loss"]) for run in news["runs"]] == [(10, 1.25)]
    shutil.rmtree(served.root)
    served.look()
    news = event(stream)
    assert [run["state"] for run in news["runs"]] == ["gone"] * 3
    assert news["missing"] == [str(served.root)]


def test_curves_are_of_the_axis_and_no_longer_than_asked_for(served: Served) -> None:
    one = served.id("a-seed1")
    found = served.json(f"/curves?runs={one}&field=val_loss&axis=steps")
    assert found["series"] == [{"ids": [one], "label": "a-seed1", "x": [0, 50], "y": [5.1, 4.6]}]
    ends = {"tokens": 59 * 2048, "steps": 59, "seconds": 30, "flops": 59 * 2048 * 1e6}
    for axis, end in ends.items():
        series = served.json(f"/curves?runs={one}&field=train_loss&axis={axis}")["series"]
        assert series[0]["x"][-1] == pytest.approx(end, rel=1e-6)
    few = served.json(f"/curves?runs={one}&field=train_loss&axis=steps&points=20&band=1")
    lines = few["series"][0]
    assert len(lines["x"]) == len(lines["y"]) == len(lines["low"]) == 15  # 4 steps each
    assert (lines["low"][0], lines["y"][0], lines["high"][0]) == (4.97, 4.985, 5)
    part = served.json(f"/curves?runs={one}&field=train_loss&axis=steps&from=30&to=32")
    assert part["series"][0]["x"] == [29, 30, 31, 32, 33]
    assert served.json(f"/curves?runs={one},gone&field=none&axis=steps")["series"] == []


def test_scores_are_curves_in_their_standard_error_and_of_one_run_a_table(served: Served) -> None:
    assert served.json(f"/run?id={served.id('b')}")["scores"] == []
    append(served.root / "b", [task_record(0, 0.5), task_record(20, 0.625)])
    served.look()
    query = f"/curves?runs={served.id('b')},{served.id('a-seed1')}&axis=steps&band=1"
    found = served.json(f"{query}&field=blimp/acc")
    (series,) = found["series"]
    assert (series["x"], series["y"]) == ([0, 20], [0.5, 0.625])
    assert (series["low"], series["high"]) == ([0.4375, 0.5625], [0.5625, 0.6875])
    assert found["levels"] == [{"y": 0.5, "text": "chance 0.5", "last": True}]
    assert served.json(f"{query}&field=lambada_openai/perplexity")["levels"] == []
    blimp, words, perplexity = served.json(f"/run?id={served.id('b')}")["scores"]
    of_blimp = {"name": "blimp acc", "value": 0.625, "stderr": 0.0625, "chance": 0.5}
    assert blimp == {**of_blimp, "step": 20}
    assert (words["value"], words["chance"]) == (0.25, None)
    assert (perplexity["value"], perplexity["stderr"]) == (60, None)


def test_seeds_are_one_curve_with_a_band(served: Served) -> None:
    ids = ",".join(served.watcher.runs)
    found = served.json(f"/curves?runs={ids}&field=val_loss&axis=steps&grouped=1")["series"]
    assert [(one["label"], len(one["ids"])) for one in found] == [("a", 2), ("b", 1)]
    assert found[0]["x"] == [0, 50]
    assert found[0]["y"] == [5.15, 4.6]  # one of the two has come to step 50
    assert (found[0]["low"], found[0]["high"]) == ([5.1, 4.6], [5.2, 4.6])


def test_what_differs_between_the_configs_is_named(served: Served) -> None:
    found = served.json(f"/differences?runs={','.join(served.watcher.runs)}")
    assert found["runs"] == ["a-seed1", "a-seed2", "b"]
    lr = str(config().optim.muon.lr)
    assert found["fields"] == {"optim.muon.lr": [lr, lr, "0.5"]}
    assert found["unknown"] == []


def test_one_run_alone_has_its_last_whole_sample(served: Served) -> None:
    path = f"/run?id={served.id('b')}"
    assert served.json(path)["sample"] is None
    sample = {"step": 10, "tokens": 1, "prompt": "def", "text": " f(): <b>\u00e9"}
    (served.root / "b" / "samples.jsonl").write_text(
        json.dumps({**sample, "step": 0}) + "\n" + json.dumps(sample) + '\n{"step": 20, "te'
    )
    found = served.json(path)
    assert found["sample"] == {"step": 10, "prompt": "def", "text": " f(): <b>\u00e9"}
    assert found["started"] == {"command": "quintic train", "device": "cpu"}


def test_one_run_alone_has_its_heat_maps_and_says_why_it_has_none(served: Served) -> None:
    path, run = f"/diagnostics?id={served.id('b')}", served.watcher.runs[served.id("b")]
    assert served.json(path) == {"steps": [], "maps": []}
    assert run.summary["diagnostics"] == 0
    file = served.root / "b" / DIAGNOSTICS
    file.write_text(to_line(diagnostics_record(0)) + to_line(diagnostics_record(10)) + '{"st')
    served.look()
    assert run.summary["diagnostics"] == file.stat().st_size
    found = served.json(path)
    assert found["steps"] == [0, 10]
    assert found["maps"][0]["rows"] == ["0.up", "1.up"]
    file.write_text('{"step": 0}\n')
    assert served.json(path)["problem"].startswith(
        "diagnostics.jsonl has records that this version"
    )
    assert served.get("/diagnostics?id=b").status == 404


@pytest.mark.parametrize("name", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}"])
def test_this_machine_is_let_in_by_its_names(served: Served, name: str) -> None:
    assert served.get("/", name.format(served.port)).status == 200


@pytest.mark.parametrize(
    "name", ["evil.example:{}", "evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{}", ""]
)
@pytest.mark.parametrize("path", ["/", "/events", "/run?id=1"])
def test_any_other_name_is_refused(served: Served, name: str, path: str) -> None:
    answer = served.get(path, name.format(served.port))
    assert answer.status == 421
    assert answer.read() == b"this page is at http://127.0.0.1:%d/ alone\n" % served.port


@pytest.mark.parametrize(
    "path",
    [
        *("/../config.json", "/%2e%2e/config.json", "//etc/passwd", "/b/config.json", "/server.py"),
        *("/run?id=../b", "/run?id=b", "/run"),
    ],
)
def test_no_request_names_a_path(served: Served, path: str) -> None:
    assert served.get(path).status == 404


def test_a_query_that_no_page_sends_is_refused(served: Served) -> None:
    for query in ("axis=week", "points=many", "points=inf", "from=nan"):
        assert served.get(f"/curves?field=val_loss&{query}").status == 400
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("POST", "/run", b"x")
    assert connection.getresponse().status == 501


def test_the_page_may_ask_this_server_alone(served: Served) -> None:
    for path in FILES:
        answer = served.get(path, **{"Accept-Encoding": "gzip"})
        assert answer.status == 200
        policy = answer.getheader("Content-Security-Policy")
        assert policy is not None
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("Content-Encoding") == "gzip"
