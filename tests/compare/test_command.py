"""quintic compare, as it is called: on real runs, and on what is none."""

import errno
import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from quintic.cli.main import main
from quintic.config import MuonConfig
from quintic.metrics_file import truncate_metrics
from tests.conftest import tiny_arguments

RESULT = Path(__file__).parents[2] / "docs" / "results" / "laptop-plain"
LLMC = "s:0 tel:11.0\ns:250 tel:4.0\ns:500 tel:3.0\n"


@pytest.fixture(scope="session")
def six(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The folders of two groups of three runs that were trained; tests must not change them."""
    root = tmp_path_factory.mktemp("six")
    folders = []
    for matrices in ("adamw", "muon"):
        for seed in (1, 2, 3):
            folder = root / f"{matrices}-seed{seed}"
            arguments = tiny_arguments(tiny_data)
            arguments += ["--optim.matrices", matrices, "--train.seed", str(seed)]
            if matrices == "adamw":  # which does not heed the learning rate of Muon
                arguments += ["--optim.muon.lr", str(MuonConfig.lr)]
            often = ["--train.eval-every", "4", "--train.checkpoint-every", "12"]
            main([*arguments, *often, "--out", str(folder)])
            folders.append(str(folder))
    return folders


def run(*arguments: str) -> None:
    main(["compare", *arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quintic: ")
    assert len(err.splitlines()) == 1
    return err


def test_two_groups_of_three_real_runs(
    six: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in Path(six[0]).iterdir() if path.is_file()}
    capsys.readouterr()
    run(*six, "--target", "4.5", "--out", str(tmp_path / "all.json"))
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "all.json").read_text())
    assert [(group["label"], len(group["runs"])) for group in found["groups"]] == [
        ("adamw", 3),
        ("muon", 3),
    ]
    assert found["settings"] == {"optim.matrices": ["adamw", "muon"]}
    for group, folders in zip(found["groups"], (six[:3], six[3:]), strict=True):
        finals = [
            json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
            for folder in folders
        ]
        assert group["final_losses"] == finals
        mean = sum(finals) / 3
        assert group["summary"]["mean"] == pytest.approx(mean)
        assert f"{mean:.4f} ± {group['summary']['error']:.4f}" in out
        assert [point["steps"] for point in group["curve"]] == [0, 4, 8, 12]
        assert group["tokens_per_s"] > 0
        assert group["memory_gib"] > 0
    test = found["groups"][1]["difference_to_first"]
    assert 0 < test["p"] <= 1
    assert "Welch's test p = " in out
    assert all(sentence in out for sentence in found["evidence"])
    assert "optim.matrices" in out
    assert "model.width" not in out

    for axis in ("tokens", "steps", "seconds"):
        run(*six, "--target", "4.5", "--x", axis, "--out", str(tmp_path / f"{axis}.png"))
        assert matplotlib.image.imread(tmp_path / f"{axis}.png").shape[1] == 1080
    run(*six, "--out", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert {path: path.read_bytes() for path in before} == before

    # Written again over what it wrote before.
    run(*six, "--out", str(tmp_path / "all.json"))
    assert json.loads((tmp_path / "all.json").read_text())["target"] is None


def test_the_stored_result_and_a_log_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.log").write_text(LLMC)
    run(str(RESULT), "--target", "3.6")
    assert "3.4761" in capsys.readouterr().out
    run(str(tmp_path / "main.log"), str(RESULT), "--target", "3.6", "--batch-tokens", "524288")
    out = capsys.readouterr().out
    assert "183.5M" in out  # 250 * 1.4 steps of 524,288 tokens
    assert "on which data" in out


def test_no_number_is_lost_where_there_is_no_terminal(
    six: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    run(*six, "--target", "4.5")
    out = capsys.readouterr().out
    assert "…" not in out
    assert "peak memory" in out


def test_bad_input_is_refused_in_one_line(
    six: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "main.log"
    log.write_text(LLMC)
    (tmp_path / "empty").mkdir()
    sweep = Path(six[0]).parent
    (tmp_path / "foreign.json").write_text('{"mine": 1}')
    (tmp_path / "folder.png").mkdir()
    first = six[0]
    cases: dict[str, tuple[str, ...]] = {
        "needs at least one run": (),
        "holds no run": (str(tmp_path / "empty"),),
        f"holds no run (config.json is missing): name the folder that quintic train wrote, such as "
        f"{sweep}/adamw-seed1": (str(sweep),),
        f"metrics.jsonl is a file of the run in {first}: name": (f"{first}/metrics.jsonl",),
        "does not exist": (str(tmp_path / "absent"),),
        "neither the folder of a run nor a log": (str(tmp_path / "foreign.json"),),
        "are the same run": (first, first),
        "do not compare": (first, str(RESULT)),
        "give --batch-tokens": (str(log), "--x", "tokens"),
        "has no times: give --x steps": (str(log), "--x", "seconds"),
        "does not say the FLOPs of a token": (str(log), "--x", "flops"),
        "--x is 'tokns': it must be one of": (first, "--x", "tokns"),
        "--target is 'low': it must be a number": (first, "--target", "low"),
        "--target is nan": (first, "--target", "nan"),
        "--batch-tokens is 0": (first, "--batch-tokens", "0"),
        "all of these runs say it: leave it out": (first, "--batch-tokens", "512"),
        "it must end in .png": (first, "--out", str(tmp_path / "figure.pdf")),
        "there is no folder": (first, "--out", str(tmp_path / "none" / "figure.png")),
        "is a folder: name a file": (first, "--out", str(tmp_path / "folder.png")),
        "exists and is no comparison": (first, "--out", str(tmp_path / "foreign.json")),
        "would replace a file of the run": (first, "--out", f"{first}/config.json"),
        "replace a file of the run in": (first, "--out", f"{first}/loss.png"),
    }
    for message, arguments in cases.items():
        assert message in refused(capsys, *arguments), message
    assert (tmp_path / "foreign.json").read_text() == '{"mine": 1}'
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["main.log", "empty", "foreign.json", "folder.png"]
    )


def test_a_full_disk_is_said_before_the_table(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "all.json"

    def full(dir: Path) -> None:
        assert dir == tmp_path
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("quintic.cli.output_file.TemporaryFile", full)
    message = refused(capsys, str(tiny_run), "--out", str(out))  # and prints nothing else
    assert f"--out {out} cannot be written: No space left on device; make room" in message


def test_runs_on_other_data_are_refused_unless_forced(
    six: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.json"
    message = refused(capsys, *six, str(RESULT), "--out", str(out))
    assert "losses on different data or of different tokenizers do not compare" in message
    assert not out.exists()
    run(*six, str(RESULT), "--out", str(out), "--force", "--target", "4.5")
    found = json.loads(out.read_text())
    assert found["comparable"] is False
    assert [group["difference_to_first"] for group in found["groups"]] == [None] * 3
    assert "because of --force" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["NaN", 'null, "diverged": {"train_loss": "inf"}'])
def test_a_run_that_diverged_and_one_that_is_damaged(
    six: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str
) -> None:
    lost = Path(shutil.copytree(six[1], tmp_path / "lost"))
    with (lost / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 12, "tokens": 3072, "train_loss": {loss}}}\n')
    out = tmp_path / "all.json"
    run(six[0], str(lost), *six[3:], "--target", "4.5", "--out", str(out))
    assert "1 of 2 diverged" in capsys.readouterr().out
    text = out.read_text()
    assert "NaN" not in text
    assert json.loads(text)["groups"][0]["summary"] is None

    (lost / "metrics.jsonl").write_text('{"step": 0,\n{"step": 1, "val_loss": 3}\n')
    assert "line 1 is not a record of a run" in refused(capsys, six[0], str(lost))
    (lost / "metrics.jsonl").write_text("")
    assert "is complete and its losses are lost" in refused(capsys, six[0], str(lost))


def test_a_complete_run_whose_last_losses_are_lost_is_not_called_unfinished(
    six: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Path(shutil.copytree(six[1], tmp_path / "lost"))
    truncate_metrics(lost / "metrics.jsonl", 8)
    run(six[0], str(lost))
    note = f"note: {lost} is complete, and losses of it are lost, 4 of 12 steps: it has no final"
    assert note in " ".join(capsys.readouterr().out.split())


def test_a_target_never_reached_gives_no_ratio(
    six: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run(*six, "--target", "0.5")
    out = capsys.readouterr().out
    assert out.count("never") == 6
    assert "×" not in out
    assert "does not reach 0.5, its lowest loss is" in out
