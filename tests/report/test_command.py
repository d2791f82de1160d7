"""quintic report, and the report at the end of a run."""

import shutil
from pathlib import Path

import pytest

from quintic.config import Config
from quintic.console import Console
from quintic.distributed.world import World
from quintic.run_dir import CONFIG, REPORT
from tests.conftest import main, refusal, tiny_arguments, tiny_config
from tests.multiprocess.worlds import run_world

SECTIONS = ("curves", "samples", "losses", "text", "time", "parameters", "starts")


def sections(page: Path) -> list[str]:
    text = page.read_text()
    return [name for name in SECTIONS if f'<section id="{name}">' in text]


@pytest.fixture
def run_copy(text_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_run, tmp_path / "run"))


def test_a_run_ends_with_the_page_that_the_command_writes_too(
    text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "<b>run"
    options = ["--model.vocab-size", "None", "--train.sample-tokens", "8", "--train.report"]
    main([*tiny_arguments(text_data), *options, "--out", str(folder)])
    assert f"report  {folder / REPORT}" in capsys.readouterr().out
    page = folder / REPORT
    assert sections(page) == [*SECTIONS]
    assert "<h1>&lt;b&gt;run</h1>" in page.read_text()
    at_end = page.read_text()
    main(["report", str(folder)])
    assert page.read_text() == at_end
    main(["report", str(folder), "--out", str(tmp_path / "elsewhere.html")])
    assert (tmp_path / "elsewhere.html").read_text() == at_end
    assert "missing" not in capsys.readouterr().out


def test_what_is_missing_is_said_and_the_rest_reported(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_copy / "checkpoints")
    main(["report", str(run_copy)])
    said = capsys.readouterr().out
    assert "missing: samples along the way: train.sample_tokens is 0" in said
    assert f"missing: the losses token by token: {run_copy} has no checkpoint to load" in said
    assert sections(run_copy / REPORT) == ["curves", "time", "parameters", "starts"]
    (run_copy / "metrics.jsonl").unlink()
    (run_copy / "param_groups.txt").unlink()
    main(["report", str(run_copy)])
    assert "curves and times: metrics.jsonl has no record" in capsys.readouterr().out
    assert "No validation has measured this run yet." in (run_copy / REPORT).read_text()


def test_data_that_have_gone_are_missing_and_may_be_named(
    run_copy: Path, text_data: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run_copy / CONFIG).read_text()
    (run_copy / CONFIG).write_text(config.replace(str(text_data), "/gone"))
    main(["report", str(run_copy)])
    assert "missing: the losses token by token: " in capsys.readouterr().out
    assert "losses" not in sections(run_copy / REPORT)
    main(["report", str(run_copy), "--data", str(text_data)])
    assert "losses" in sections(run_copy / REPORT)
    other = refusal(["report", run_copy, "--data", tiny_data], capsys)
    assert "is not the data that" in other


def test_what_cannot_be_reported_is_refused_in_one_line(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        message = refusal(["report", *arguments], capsys)
        assert sorted(tmp_path.rglob("*")) == before
        return message

    assert "holds no run" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "none")
    assert "it must be .html" in refused(run_copy, "--out", tmp_path / "page.pdf")
    assert "there is no folder" in refused(run_copy, "--out", tmp_path / "none" / "page.html")
    assert f"name it {REPORT}" in refused(run_copy, "--out", run_copy / "page.html")
    (tmp_path / "folder.html").mkdir()
    assert "is a folder: name a file" in refused(run_copy, "--out", tmp_path / "folder.html")
    (run_copy / "metrics.jsonl").write_text("junk\n")
    assert "metrics.jsonl line 1 is not a record of a run" in refused(run_copy)
    config = (run_copy / CONFIG).read_text()
    (run_copy / CONFIG).write_text(config.replace('"format": 2', '"format": 9'))
    assert "update quintic" in refused(run_copy)
    assert not (run_copy / REPORT).exists()


def test_a_page_that_cannot_be_written_harms_no_run(
    text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = ["--train.steps", "2", "--train.report", "--model.vocab-size", "None"]

    def break_it(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("quintic.pages.fill.replacing", break_it)
        main([*tiny_arguments(text_data), *options, "--out", str(folder)])
    said = capsys.readouterr().out
    assert f"no report: No space left on device; see quintic report {folder}" in said
    assert not (folder / REPORT).exists()
    main(["report", str(folder)])
    assert "losses" in sections(folder / REPORT)


def close_among(world: World, config: Config, folder: Path) -> None:
    from quintic.cli.train import _report
    from quintic.setup import start
    from quintic.train import train_run

    console = Console(quiet=True)
    run = start(config, folder, console, world)
    train_run(run, console)
    if world.is_main:
        _report(run, console)


def test_of_sharded_weights_the_page_says_how_to_measure_them(
    text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model.vocab_size": None, "train.sharding": "fsdp", "train.steps": 2}
    folder = tmp_path / "run"
    run_world(2, close_among, tiny_config(text_data, changes), folder)
    assert "the weights were divided among processes" in (folder / REPORT).read_text()
    assert sections(folder / REPORT) == ["curves", "time", "parameters", "starts"]
    main(["report", str(folder)])
    assert "losses" in sections(folder / REPORT)
