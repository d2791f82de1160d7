"""The records that quintic comes with, their list, and the reference that all are timed against."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from quintic.config import Config, flatten
from quintic.errors import QuinticError
from quintic.files import write_json
from quintic.track.attempt import Attempt, TimedRun
from quintic.track.record import RECORDS, Record, read_records, standing_ratio
from quintic.track.reference import (
    Sources,
    Target,
    _git,
    check_corpus,
    read_reference,
    reference_sources,
)
from quintic.track.table import draw_history, markdown, records_table
from quintic.track.texts import corpus_of_this_python
from quintic.track.verdict import SIDES, RunResult, stand
from tests.conftest import main

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- records: quintic track --markdown -->\n", "\n<!-- end of the records -->"


def record(name: str, date: str, ratio: float, changed: str = "more layers") -> Record:
    results = tuple(
        RunResult(side, seed, seconds * (1 + seed / 100), 99.0, (1.5 + seed / 1000,))
        for seed in (1, 2)
        for side, seconds in zip(SIDES, (100.0, 100 * ratio), strict=True)
    )
    targets = (Target(1000, 1.6),)
    s = stand(results, targets)
    assert s.ratio is not None and s.bits_per_byte is not None
    assert s.median_s is not None and s.reference_median_s is not None
    return Record(
        name=name,
        date=date,
        recipe="laptop",
        changed=changed,
        commit="0123456789abcdef",
        reference={"commit": "d", "trained_with": None},
        corpus={},
        environment={"quintic": "0.2.0", "device": "cpu (some, 2 threads)"},
        threads=2,
        processes=1,
        targets=targets,
        extents=[[2, 2]],
        seeds=s.seeds,
        bits_per_byte=s.bits_per_byte,
        p=s.p,
        ratio=s.ratio,
        low=s.low,
        high=s.high,
        median_s=s.median_s,
        reference_median_s=s.reference_median_s,
        verdict="record",
        config={},
        runs=results,
    )


FIRST = replace(record("2026-11-28-reference", "2026-11-28", 1.0), recipe="reference")
SECOND = record("2026-11-28-laptop", "2026-11-28", 0.375, "a | b")


def test_the_list_is_the_table_of_the_docs_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in (SECOND, FIRST):
        write_json(tmp_path / f"{one.name}.json", asdict(one))
    found = read_records(tmp_path)
    assert found == [FIRST, SECOND]
    assert standing_ratio(found) == 0.375
    assert records_table(found).rows[1] == [
        "2026-11-28-laptop",
        "0.375 (0.375 to 0.375)",
        "1.5015",
        "2",
        "0.0016",
        "012345678",
    ]
    lines = markdown(found).splitlines()
    assert len(lines) == 6
    assert lines[3].startswith("| [2026-11-28-laptop](../src/quintic/track/records/2026-11-28-l")
    assert lines[3].endswith("| a \\| b | cpu (some, 2 threads), 102 s the reference |")
    monkeypatch.setattr("quintic.cli.track.read_records", lambda: read_records(tmp_path))
    main(["track"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "  2026-11-28-laptop: a | b; cpu (some, 2 threads), 102 s the reference"
    assert max(map(len, said)) <= 100, "piped too"
    main(["track", "--json", "--figure", str(tmp_path / "history.png")])
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == [r.name for r in found]
    assert (tmp_path / "history.png").read_bytes()[:4] == b"\x89PNG"
    draw_history([], tmp_path / "none.png")
    (tmp_path / "broken.json").write_text('{"format": 1}')
    with pytest.raises(QuinticError, match=r"broken.json is not a record of the track: restore it"):
        read_records(tmp_path)


def test_every_record_that_ships_says_what_its_runs_do() -> None:
    reference, best = read_reference(), None
    for one in read_records():
        assert one.name == f"{one.date}-{one.recipe}" or one.name.startswith(one.date)
        assert one.verdict in ("record", "reference")
        assert one.corpus == {split: asdict(text) for split, text in reference.corpus.items()}
        if one.recipe == "reference":
            assert one.ratio == 1.0
        else:
            s = stand(one.runs, one.targets)
            assert (s.ratio, s.seeds, s.bits_per_byte) == (one.ratio, one.seeds, one.bits_per_byte)
            assert s.p == pytest.approx(one.p)
            assert best is None or one.ratio < best
        best = one.ratio


def test_the_page_has_the_table_of_the_records_that_ship() -> None:
    page = (ROOT / "docs" / "track.md").read_text()
    assert page.split(BEGIN)[1].split(END)[0] == markdown(read_records())
    assert (ROOT / "docs" / "track.png").exists() == bool(read_records())
    assert RECORDS.is_relative_to(ROOT)
    for target in read_reference().targets:
        assert f"| {target.bits_per_byte} | {target.place}" in page


def test_the_reference_is_the_laptop_of_its_commit_whatever_laptop_becomes() -> None:
    reference = read_reference()
    config = flatten(Config.from_dict(reference.config))
    assert {
        "model.layers": 4,
        "model.width": 128,
        "model.context": 256,
        "data.embedded_vocab": 2048,
        "optim.muon.lr": 0.006,
        "optim.adamw.lr": 0.005,
        "optim.schedule.cooldown_fraction": 0.7,
        "train.steps": 1100,
        "train.batch_tokens": 2048,
        "train.compile": False,
    }.items() <= config.items()
    assert reference.first_bytes[-1] is None


def test_the_corpus_is_that_of_one_python() -> None:
    reference, found = read_reference(), corpus_of_this_python()
    if sys.version.split()[0] == reference.python:
        check_corpus(found, reference, reference.python)
    else:
        with pytest.raises(QuinticError, match="is another corpus"):
            check_corpus(found, reference, sys.version.split()[0])


def test_the_reference_is_trained_by_its_own_commit_with_the_fields_that_that_knows(
    tmp_path: Path,
) -> None:
    reference = read_reference()
    sources = reference_sources(None, reference, tmp_path)
    attempt = Attempt(
        Config.from_dict(reference.config), 2, 2, 1, 1, reference, Sources("c", tmp_path), "here"
    )
    raw = attempt.config_of(TimedRun("reference", 2))
    assert raw["train"]["seed"] == 2
    assert {s: set(v) for s, v in raw.items() if s != "recipe"} == {
        s: set(v) for s, v in reference.config.items() if s != "recipe"
    }
    assert reference.config["train"]["seed"] == 1337  # untouched
    if _git(ROOT, "rev-parse", "--verify", f"{reference.commit}^{{commit}}") is None:
        assert sources == Sources(None, None)
        return
    assert sources.path is not None and sources.commit == reference.commit
    code = "import quintic; print(quintic.__file__, quintic.__version__)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(sources.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == [str(sources.path / "quintic" / "__init__.py"), "0.1.0"]
    assert reference_sources(str(ROOT), reference, tmp_path).path == ROOT / "src"
    with pytest.raises(QuinticError, match="has no src/quintic: name a checkout of quintic"):
        reference_sources(str(tmp_path), reference, tmp_path)


def test_pairs_alternate_and_further_seeds_need_no_reference() -> None:
    reference = read_reference()
    config = Config.from_dict(reference.config)
    attempt = Attempt(config, 3, 2, 1, 1, reference, Sources(None, None), "here")
    assert [run.name for run in attempt.runs] == [
        *("01-reference", "01-candidate", "02-candidate", "02-reference", "03-candidate"),
    ]
