"""Early stopping: when it happens, that it is an ordinary end, and that no restart moves it."""

import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import quintic.run_dir
import quintic.train
from quintic.checkpoint import read_state
from quintic.cli.main import main
from quintic.compare.comparison import compare
from quintic.compare.runs import read_run
from quintic.config import Config, TrainConfig
from quintic.console import Console, RunProgress
from quintic.distributed.world import World
from quintic.early_stop import why_stop
from quintic.errors import QuinticError
from quintic.evaluate import LossSums
from quintic.metrics_file import METRICS, STOPPED_EARLY, MetricsRecord, read_records
from quintic.recipes import get_recipe
from quintic.resuming import resume
from quintic.run import Run
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.setup import start
from quintic.sweep.plan import Choices, PlannedRun, make_plan
from quintic.sweep.record import Outcome, outcome_in
from quintic.train import train_run
from tests.conftest import refusal, tiny_config
from tests.multiprocess.worlds import run_world

NAN, INF = math.nan, math.inf
PATIENT = ["--train.eval-every", "1", "--train.patience", "2"]


def without_times(folder: Path) -> list[MetricsRecord]:
    timed = ("val_s", "elapsed_s", "step_ms", "tokens_per_s", "optimizer_ms", "memory_gib")
    records = read_records(folder / METRICS)
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


@pytest.fixture(scope="module")
def reached(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that stopped at its target, at step 5 of 12; tests must not change it."""
    folder = tmp_path_factory.mktemp("early-stop") / "run"
    by_step = {
        r["step"]: r["val_loss"] for r in read_records(tiny_run / METRICS) if "val_loss" in r
    }
    assert by_step[0] > by_step[5] > by_step[10]
    config = read_config(tiny_run).override({"train.target_loss": by_step[5]})
    assert train_run(start(config, folder, Console(quiet=True)), Console(quiet=True))
    return folder


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([4.0, 3.0, 3.5], 1, True),
        ([4.0, 3.0, 3.5], 2, False),
        ([4.0, 3.0, 3.5, 3.2], 2, True),
        ([4.0, 3.0, 3.5, 2.9], 1, False),
        ([4.0, 3.0, 3.0], 1, True),  # equal is no improvement
        ([4.0, 3.0, NAN], 1, True),
        ([4.0, NAN, 3.0], 2, False),
        ([NAN, 3.0], 1, False),
        ([INF, NAN, NAN], 2, True),
        ([4.0], 1, False),
    ],
)
def test_patience_counts_the_validations_since_the_lowest(
    losses: list[float], patience: int, stops: bool
) -> None:
    why = why_stop(TrainConfig(patience=patience), losses)
    assert (why is not None) == stops
    assert why is None or f"train.patience is {patience}" in why


@pytest.mark.parametrize(
    ("losses", "stops"),
    [([4.0, 3.0], True), ([4.0, 2.9], True), ([4.0, 3.01], False), ([2.0, 3.01], False),
     ([4.0, NAN], False)],
)  # fmt: skip
def test_the_target_is_reached_at_or_below_it(losses: list[float], stops: bool) -> None:
    why = why_stop(TrainConfig(target_loss=3.0), losses)
    assert (why is not None) == stops
    assert why is None or why.startswith(f"the validation loss, {losses[-1]:.4f}, is at")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_loss": INF}, "train.target_loss is inf: it must be finite"),
        ({"target_loss": NAN}, "train.target_loss is nan: it must be finite"),
        ({"target_loss": 0.0}, "train.target_loss is 0.0: it must be positive"),
        ({"target_loss": 3.0, "eval_every": 10}, "no validation lies between the first and the"),
        ({"patience": 0}, "train.patience is 0: it must be positive"),
        ({"patience": 4}, r"more than the validations between the first and the last step \(3\)"),
    ],
)
def test_a_rule_that_makes_no_sense_or_never_acts_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    rest = {"steps": 10, "eval_every": 3}  # after the first, at steps 3, 6 and 9
    TrainConfig(steps=10, eval_every=3, patience=3, target_loss=3.0)
    with pytest.raises(QuinticError, match=said):
        TrainConfig(**{**rest, **changes})


def test_stopping_early_is_an_ordinary_end_and_says_so(
    reached: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = without_times(tiny_run), without_times(reached)
    *before, last = stopped
    reason = last.pop(STOPPED_EARLY)
    assert [*before, last] == whole[: len(stopped)]
    assert (last["step"], "val_loss" in last) == (5, True)
    assert reason.startswith(f"the validation loss, {last['val_loss']:.4f}, is at")
    newest = checkpoints(reached / CHECKPOINTS)[-1]
    assert (newest.name, read_state(newest)["val_loss"]) == ("step-00000005", last["val_loss"])
    assert (reached / "loss.png").exists()

    main(["evaluate", str(reached)])
    assert f"validation loss {last['val_loss']:.4f}" in capsys.readouterr().out
    # From the beginning, for what is printed.
    arguments = ["train", str(reached / "config.json"), "--out", str(tmp_path / "again")]
    main(arguments)
    out = capsys.readouterr().out
    assert "stops early at a validation loss of" in out
    assert f"stopped early at step 5 of 12: {reason}\n" in out
    assert "figure  " in out


def test_a_resume_of_what_stopped_early_says_why_and_how_to_go_on_and_going_on_is_exact(
    reached: Path,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reached, folder)
    before = without_times(folder)

    def locked(_: Path) -> None:
        raise PermissionError("it may lie where nobody can write")

    with monkeypatch.context() as patch:
        patch.setattr(quintic.run_dir, "lock", locked)
        main(["train", "--resume", str(folder)])
        # Another rule that holds as well.
        main(["train", "--resume", str(folder), "--train.target-loss", "100"])
    out = capsys.readouterr().out
    assert out.count(f"{folder} stopped early, at step 5 of 12: {before[-1][STOPPED_EARLY]}") == 1
    assert "is at train.target_loss 100 or below" in out
    assert "give another --train.target-loss or --train.patience with --resume, or None" in out
    assert without_times(folder) == before
    again = resume(folder, read_config(folder), Console(quiet=True))
    assert train_run(again, Console(quiet=True)), "a program need not ask whether it is done"
    assert without_times(folder) == before

    main(["train", "--resume", str(folder), "--train.target-loss", "None"])
    assert without_times(folder) == without_times(tiny_run)
    assert read_config(folder) == read_config(tiny_run)


def measured(losses: list[float], run: Run, watchdog: object) -> float:
    """Stand in for `evaluate_run`, with a loss for each step."""
    loss = losses[run.state.step]
    run.validation = LossSums(tokens=1, nats=loss, text_nats=loss)
    return loss


def test_patience_is_counted_exactly_whatever_interrupts_the_run(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stop by a signal after every step; a crash before the checkpoint of the end; damage to
    that checkpoint."""
    monkeypatch.setattr(quintic.train, "_draw", lambda *_: None)
    losses = [5.0, 4.0, 4.5, 3.0, 3.5, 3.0, 2.0]  # the last is never measured
    monkeypatch.setattr(quintic.train, "evaluate_run", partial(measured, losses))
    whole, folder = tmp_path / "whole", tmp_path / "run"
    main([*tiny, *PATIENT, "--out", str(whole)])
    expected = without_times(whole)
    assert (expected[-1]["step"], STOPPED_EARLY in expected[-1]) == (5, True)

    own = RunProgress.show

    def show(self: RunProgress, record: MetricsRecord) -> None:
        own(self, record)
        if "train_loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = [*tiny, *PATIENT, "--out", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "show", show)
        for _ in range(5):
            main(arguments)
            arguments = ["train", "--resume", str(folder)]

    def crash(*_: Any) -> None:
        raise RuntimeError("the machine went away")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="went away"):
        patch.setattr("quintic.checkpoint_writer.CheckpointWriter.save", crash)
        shutil.rmtree(folder / CHECKPOINTS / "step-00000005")
        main(arguments)
    assert STOPPED_EARLY in read_records(folder / METRICS)[-1]
    main(arguments)
    assert without_times(folder) == expected
    newest = folder / CHECKPOINTS / "step-00000005"
    (newest / "state.json").write_text("")
    capsys.readouterr()
    main(arguments)
    assert "skipped: " in capsys.readouterr().out
    assert without_times(folder) == expected
    assert read_state(newest)["val_loss"] == 3.0


def test_a_rule_that_a_resume_adds_counts_what_was_before_and_an_end_at_once_is_saved(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quintic.train, "_draw", lambda *_: None)
    losses = [5.0, 4.0, 4.5, 4.5, 4.5]
    monkeypatch.setattr(quintic.train, "evaluate_run", partial(measured, losses))
    folder = tmp_path / "run"
    main([*tiny, "--train.eval-every", "1", "--train.steps", "3", "--out", str(folder),
          "--optim.schedule.cooldown-fraction", "0"])  # fmt: skip
    main(["train", "--resume", str(folder), "--train.steps", "9", "--train.patience", "2"])
    longer = tmp_path / "run-to-9"
    assert STOPPED_EARLY in read_records(longer / METRICS)[-1]
    assert read_records(longer / METRICS)[-1]["step"] == 3

    at_once = tmp_path / "at-once"
    main([*tiny, "--train.target-loss", "6", "--out", str(at_once)])
    assert [path.name for path in checkpoints(at_once / CHECKPOINTS)] == ["step-00000000"]
    assert [record["step"] for record in read_records(at_once / METRICS)] == [0]
    assert outcome_in(at_once, PlannedRun("", {}, read_config(at_once))).kind == "finished"


def train_with_rounding(world: World, config: Config, folder: Path) -> tuple[bool, int]:
    """Train; rank 1 measures each validation loss a little higher, as on another device. Whether
    the run ended, and at which step."""
    own = quintic.train.evaluate_run
    quintic.train.evaluate_run = lambda *given: own(*given) * (1 + 1e-12 * world.rank)
    run = start(config, folder, Console(quiet=True), world)
    return train_run(run, Console(quiet=True)), run.state.step


def test_all_processes_stop_where_rank_0_does(
    tiny_data: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """While a checkpoint is written, too."""
    *_, wanted, _ = (r["val_loss"] for r in read_records(tiny_run / METRICS) if "val_loss" in r)
    config = tiny_config(tiny_data, {"train.eval_every": 1, "train.target_loss": wanted})
    folder = tmp_path / "run"
    one, two = run_world(2, train_with_rounding, config, folder)
    *_, before, last = (r for r in read_records(folder / METRICS) if "val_loss" in r)
    assert one == two == (True, last["step"])
    assert before["val_loss"] > wanted >= last["val_loss"]
    # The loss of rank 1 is above, so alone it would have gone on.
    exactly = config.override({"train.target_loss": last["val_loss"]})
    assert run_world(2, train_with_rounding, exactly, tmp_path / "exactly") == [one, two]


def test_compare_and_sweep_take_it_for_the_end_and_compare_says_so(
    reached: Path, tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reached, folder)
    loss = read_records(folder / METRICS)[-1]["val_loss"]
    run = read_run(folder)
    assert (run.finished, run.stopped_at, run.final_loss) == (True, 5, loss)
    found = compare([read_run(tiny_run), run], target=loss, axis="steps")
    assert len(found.results) == 2, "a rule tells runs apart"
    assert found.results[1].to_target["steps"].values == (5.0,)
    (note,) = [note for note in found.notes if str(folder) in note]
    assert "stopped early at step 5 of 12" in note
    assert str(run.stopped_early) in note

    planned = PlannedRun("run", {}, read_config(folder))
    assert outcome_in(folder, planned) == Outcome("finished", loss)
    shutil.rmtree(folder / CHECKPOINTS / "step-00000005")
    assert outcome_in(folder, planned) == Outcome()


def test_a_sweep_to_a_target_is_refused_since_it_ranks_by_the_final_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    varied = [Choices("optim.muon.lr", (0.01, 0.02))]
    with pytest.raises(QuinticError, match=r"train\.target_loss is 3\.0, at which each run would"):
        make_plan(get_recipe("laptop").override({"train.target_loss": 3.0}), varied)
    said = refusal(["sweep", "laptop", "--vary", "train.target_loss=3,4"], capsys)
    assert said.startswith("--vary cannot vary train.target_loss: each run would end at it")
