"""The folder of a run: never overwritten, held by one process, enough to run it again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quintic import run_dir
from quintic.cli.main import main
from quintic.config import Config
from quintic.console import Console
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, read_records
from quintic.recipes import RECIPES
from quintic.setup import start
from quintic.train import train_run
from tests.conftest import tiny_config

CPU = torch.device("cpu")


def test_a_finished_run_holds_exactly_what_is_documented(tiny_run: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == {
        *("config.json", "environment.json", "param_groups.txt", "metrics.jsonl", "loss.png"),
        *("checkpoints", ".lock"),
    }


def test_the_saved_config_alone_gives_the_same_run_again(tiny_run: Path, tmp_path: Path) -> None:
    config = run_dir.read_config(tiny_run)
    assert config.model.vocab_size and config.train.micro_batch, "resolved"
    train_run(start(config, tmp_path / "again", Console()), Console())

    def losses(folder: Path) -> list[float | None]:
        return [r.get("train_loss", r.get("val_loss")) for r in read_records(folder / METRICS)]

    assert losses(tmp_path / "again") == losses(tiny_run)
    assert run_dir.read_config(tmp_path / "again") == config


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_survives_being_saved_and_read(tmp_path: Path, recipe: str) -> None:
    config = RECIPES[recipe].build()
    run_dir.create(tmp_path / "run", config, "routes\n")
    assert run_dir.read_config(tmp_path / "run") == config
    assert (tmp_path / "run" / "param_groups.txt").read_text() == "routes\n"


def test_the_table_names_each_parameter_with_its_effective_learning_rate(tiny_run: Path) -> None:
    table = (tiny_run / "param_groups.txt").read_text().splitlines()
    assert table[0].split()[:3] == ["parameter", "shape", "optimizer"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert len(rows) == 13
    assert " adamw " in rows["embed.weight"]
    up = rows["layers.1.mlp.up.weight"]
    assert "128 x 32" in up and " muon " in up and "0.04" in up  # 0.02 times sqrt(128 / 32)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run_dir.create(tmp_path / "run", Config(), "routes")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(QuinticError, match=r"already holds a run: .*--resume"):
        run_dir.create(tmp_path / "run", Config(recipe="other"), "other")
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert (tmp_path / "run" / "param_groups.txt").read_text() == "routes"


def test_a_folder_with_something_else_and_a_file_are_refused_and_an_empty_one_is_taken(
    tmp_path: Path,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(QuinticError, match="not an empty folder: choose another --out"):
            run_dir.create(tmp_path / name, Config(), "")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    run_dir.create(tmp_path / "empty", Config(), "")
    assert run_dir.read_config(tmp_path / "empty") == Config()


def test_the_default_folder_is_the_first_that_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with run_dir.default_folder("laptop") as first, run_dir.default_folder("laptop") as second:
        assert (first, second) == (Path("runs/laptop-1"), Path("runs/laptop-2"))
        (first / "config.json").touch()
    for name in ("laptop-2", "modded-3"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    with run_dir.default_folder("laptop") as third:
        assert third == Path("runs/laptop-3")
    assert {path.name for path in Path("runs").iterdir()} == {"laptop-1", "laptop-2", "modded-3"}


def test_a_default_folder_that_was_not_used_leaves_nothing_and_a_file_in_its_way_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with run_dir.default_folder("laptop"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(FileExistsError), run_dir.default_folder("laptop"):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("null", "a config is an object with sections, and this is null: restore it"),
        ('{"train": {"stesp": 3}}', "train.stesp: did you mean train.steps"),
        ('{"train": {"steps": "many"}}', "train.steps is 'many'"),
        ('{"train": {"steps": -1}}', "must be positive"),
    ],
)
def test_a_config_that_cannot_be_read_is_named_with_what_is_wrong(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(QuinticError, match=message) as caught:
        run_dir.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_folder_without_a_run_and_an_absent_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match="holds no run"):
        run_dir.read_config(tmp_path)
    with pytest.raises(QuinticError, match="does not exist"):
        run_dir.read_config(tmp_path / "absent")


# One process at a time.


def test_a_folder_held_by_another_process_is_refused_and_free_when_that_process_dies(
    tmp_path: Path,
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from filelock import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]) / '.lock'); lock.acquire(); print('held', flush=True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(QuinticError, match="in use by another process"):
                run_dir.lock(tmp_path)
        finally:
            holder.kill()
    run_dir.lock(tmp_path).release()


def test_a_second_process_that_trains_in_the_same_folder_changes_nothing(
    tiny_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = start(tiny_config(tiny_data), folder, Console())
    held = run_dir.lock(folder)
    (folder / ".loss.png.1.tmp").write_text("the other process is writing this")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(QuinticError, match="in use by another process"):
        train_run(run, Console())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    held.release()


def test_what_a_killed_process_left_half_written_is_cleared_by_the_next(tmp_path: Path) -> None:
    for name in (".loss.png.123.tmp", ".metrics.jsonl.123.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / "mine.tmp").write_text("not ours")
    run_dir.lock(tmp_path).release()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.tmp"}


# environment.json: one entry a start.


def test_each_start_is_recorded_with_what_a_result_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["quintic", "train", "laptop"])
    run_dir.record_environment(tmp_path, CPU)
    monkeypatch.setattr(sys, "argv", ["quintic", "train", "--resume", "run"])
    run_dir.record_environment(tmp_path, CPU)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["command"] for entry in starts] == [
        "quintic train laptop",
        "quintic train --resume run",
    ]
    for entry in starts:
        assert entry["torch"] == torch.__version__
        assert entry["threads"] == torch.get_num_threads()
        assert {"date", "quintic", "commit", "python", "numpy", "platform", "device"} <= set(entry)


def test_a_damaged_record_of_the_past_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{")
    run_dir.record_environment(tmp_path, CPU)
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 1


def test_a_start_that_is_refused_leaves_no_folder(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        main([*tiny, "--train.eval-tokens", "320000", "--out", str(folder)])
    assert caught.value.code == 2
    assert "validation" in capsys.readouterr().err
    assert not folder.exists()
