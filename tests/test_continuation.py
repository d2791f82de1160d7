"""A run that begins with a checkpoint of another: continued, on other data, or with its weights."""

import json
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quintic import run_dir
from quintic.checkpoint import read_state, save_checkpoint
from quintic.cli.main import main
from quintic.cli.options import Train
from quintic.cli.parsing import parse
from quintic.cli.train import new_folder
from quintic.compare.groups import check_same_data, differing_settings, group_runs
from quintic.compare.runs import read_run
from quintic.config import Config
from quintic.console import Console
from quintic.continuation import continue_run
from quintic.data.corpus import _dataset_of_tree
from quintic.data.shards import HEADER_BYTES, write_shard
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, lost_records, read_records
from quintic.optim.schedule import lr_factor, steps_alike, steps_before_cooldown
from quintic.recipes import get_recipe
from quintic.resuming import resume
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.setup import start
from quintic.train import train_run
from tests.conftest import made_once, refusal, tiny_arguments, tiny_config
from tests.test_bad_input import files_below
from tests.test_resume import assert_in_order, losses, stop_when

Capture = pytest.CaptureFixture[str]
LONGER = ["--train.steps", "20"]
"""12 steps fall from step 8 on, 20 from step 13 on."""


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder / CHECKPOINTS)]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (folder / CHECKPOINTS / f"step-{step:08d}").glob("*.safetensors")
    return load_file(file)


def assert_equal_states(one: Path, other: Path, step: int) -> None:
    left, right = tensors(one, step), tensors(other, step)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]) or name.startswith("rng."), name


@pytest.fixture(scope="module")
def long_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 20 steps from the start; tests must not change it."""

    def make(folder: Path) -> None:
        main([*tiny_arguments(tiny_data), *LONGER, "--out", str(folder / "run")])

    return made_once(tmp_path_factory, "long-run", make) / "run"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny run of 12 steps, with checkpoints at steps 8 and 12."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def other_data(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny data with its last validation token and one training token changed."""
    folder = Path(shutil.copytree(tiny_data, tmp_path / "other-data"))
    for name in ("tiny_train_000001.bin", "tiny_val_000000.bin"):
        tokens = np.frombuffer((folder / name).read_bytes()[HEADER_BYTES:], dtype=np.uint16).copy()
        tokens[::2] ^= 1
        write_shard(folder / name, tokens)
    return folder


# The checkpoint before the cooldown.


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 8),  # 12 steps, of which round(0.4 * 12) fall, the first of them from the full rate
        ({"train.steps": 20}, 13),
        ({"optim.schedule.cooldown_fraction": 0.0}, None),
        ({"optim.schedule.cooldown_fraction": 1.0}, None),
        ({"optim.schedule.kind": "cosine"}, None),
        ({"train.batch_stages": 2}, None),
        ({"train.mtp_tokens": 2}, None),
        ({"model.window": 8, "model.window_start": 2}, None),
        ({"model.window": 8}, 8),
    ],
)
def test_the_steps_before_the_cooldown_are_those_that_every_longer_run_has_too(
    tiny_data: Path, changes: dict[str, Any], steps: int | None
) -> None:
    config = tiny_config(tiny_data, changes)
    assert steps_before_cooldown(config) == steps
    if steps is not None:
        longer = config.override({"train.steps": 10 * config.train.steps})
        assert steps_alike(config, longer) == steps
        assert lr_factor(config, steps - 1) == 1 > lr_factor(config, steps)


@pytest.mark.parametrize(
    ("options", "kept"),
    [([], [8, 12]), (["--train.no-keep-before-cooldown"], [12])],
)
def test_the_checkpoint_before_the_cooldown_is_saved_and_never_pruned(
    tiny: list[str], tmp_path: Path, options: list[str], kept: list[int]
) -> None:
    rarely = ["--train.checkpoint-every", "5", "--train.eval-every", "100"]
    main([*tiny, *rarely, "--train.keep-checkpoints", "1", *options, "--out", str(tmp_path / "r")])
    assert names(tmp_path / "r") == [f"step-{step:08d}" for step in kept]


# More steps.


def test_a_finished_run_goes_on_as_one_that_was_that_long_from_the_start_also_when_killed(
    run: Path,
    long_run: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, new = files_below(run), tmp_path / "run-to-20"
    with monkeypatch.context() as patch:
        stop_when(patch, lambda record: record["step"] == 14, signal.SIGTERM)
        main(["train", "--resume", str(run), *LONGER])
    out = capsys.readouterr().out
    assert f"continuing {run} in {new} from step 8: the newest checkpoint that a run of 20" in out
    assert out.strip().splitlines()[-1].endswith(f"quintic train --resume {new}")
    main(["train", "--resume", str(new)])
    assert losses(new) == losses(long_run)
    assert_equal_states(new, long_run, 20)
    assert names(new) == names(long_run)
    assert_in_order(new)
    assert files_below(run) == before, "the finished run stays as it is"

    config = read_config(new)
    assert (config.train.steps, config.continued_from.run) == (20, "run")
    assert (config.continued_from.at_step, config.continued_from.anew) == (8, 0)
    assert config.continued_from.fingerprint == read_run(run).data.fingerprint
    assert config.init_from.run is None
    # It is the run of 20 steps, and counts as that once.
    (group,) = group_runs([read_run(long_run), read_run(new)])
    assert [one.path for one in group.counted] == [long_run]
    assert len(group_runs([read_run(run), read_run(new)])) == 2


def test_a_run_that_is_under_way_goes_on_in_its_own_folder_or_in_another(
    run: Path, long_run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / CHECKPOINTS / "step-00000012")
    before = files_below(run / CHECKPOINTS)
    main(["train", "--resume", str(run), *LONGER, "--out", str(tmp_path / "new")])
    assert files_below(run / CHECKPOINTS) == before
    main(["train", "--resume", str(run), *LONGER])
    for folder in (run, tmp_path / "new"):
        assert losses(folder) == losses(long_run)
        assert_equal_states(folder, long_run, 20)


def test_the_new_folder_is_a_run_before_its_first_step(run: Path, tmp_path: Path) -> None:
    (tmp_path / ".new.new" / "left-by-a-killed-process").mkdir(parents=True)
    config = read_config(run).override({"train.steps": 20})
    new = continue_run(run, config, tmp_path / "new", Console())
    assert (new.state.step, new.config.train.steps, new.done) == (8, 20, False)
    assert losses(tmp_path / "new") == [entry for entry in losses(run) if entry[0] < 8]
    assert names(tmp_path / "new") == ["step-00000008"]
    again = resume(tmp_path / "new", new.config, Console())
    assert again.state.step == 8
    assert {path.name for path in tmp_path.iterdir()} == {"run", "new"}


def test_another_cooldown_may_begin_where_the_first_did(
    run: Path, tiny: list[str], tmp_path: Path
) -> None:
    later = ["--train.steps", "14", "--optim.schedule.cooldown-fraction", "0.2"]
    main(["train", "--resume", str(run), *later, "--out", str(tmp_path / "new")])
    main([*tiny, *later, "--out", str(tmp_path / "whole")])
    assert losses(tmp_path / "new") == losses(tmp_path / "whole")


def test_the_same_command_again_continues_the_new_run_with_auto_resume_and_is_refused_without(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    command = ["train", "--resume", str(run), "--train.steps", "14", "--out", str(new)]
    with monkeypatch.context() as patch:
        stop_when(patch, lambda record: record["step"] == 9, signal.SIGTERM)
        main([*command, "--auto-resume"])
    assert "already holds a run: continue it with --resume" in refusal(command, capsys)
    main([*command, "--auto-resume"])
    assert f"resuming from {new}/checkpoints/step-00000010" in capsys.readouterr().out
    assert losses(new)[-1][:2] == (14, "val_loss")
    # A scheduler that asks for more steps of the run itself would find a new folder at each start.
    arguments = ["train", "laptop", "--out", str(run), "--auto-resume", *LONGER]
    message = refusal(arguments, capsys)
    assert message == (
        f"{run} stays as it is, and what goes on from it has a folder of its own, which "
        f"--auto-resume must know: give --resume {run} and another --out"
    )


def test_the_folder_is_chosen_before_processes_start(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*options: str) -> Path | None:
        command = parse(["train", "--resume", str(run), *options])
        assert isinstance(command, Train)
        return new_folder(command, ExitStack())

    assert chosen() is None
    assert chosen(*LONGER) == chosen(*LONGER, "--fresh-cooldown") == run.with_name("run-to-20")
    assert chosen(*LONGER, "--out", "there") == Path("there")
    assert chosen("--force-data") == run.with_name("run-to-12")
    # What a launcher starts again has begun it, and may have created it.
    new = run.with_name("run-to-20")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert chosen(*LONGER, "--out", str(new)) == new
    continue_run(run, read_config(run).override({"train.steps": 20}), new, Console())
    assert chosen(*LONGER, "--fresh-cooldown", "--out", str(new)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--train.steps", "20", "--train.seed", "2"],
            "--resume cannot change train.seed: the ste",
        ),
        (["--train.steps", "10"], "the learning rate of such a run is another from step 7 on, and"),
        (["--train.steps", "10"], "; give more than the 12 steps that it has done, begin a new"),
        (
            ["--train.steps", "10", "--fresh-cooldown"],
            "newest checkpoint, of step 12, and train.st",
        ),
        (
            ["--train.steps", "20", "--optim.clip-norm", "1", "--fresh-cooldown"],
            "--resume cannot change optim.clip_norm",
        ),
        (["--force-data", "--train.steps", "20"], "run was trained on: leave --force-data out"),
    ],
)
def test_what_cannot_go_on_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: Capture, options: list[str], message: str
) -> None:
    before = files_below(tmp_path)
    command = ["train", "--resume", run, *options, "--out", tmp_path / "new"]
    assert message in refusal(command, capsys)
    assert files_below(tmp_path) == before


def test_a_run_without_a_constant_phase_names_the_ways_out(
    tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    cosine = ["--optim.schedule.kind", "cosine", "--optim.schedule.cooldown-fraction", "0.28"]
    main([*tiny, *cosine, "--out", str(run)])
    assert refusal(["train", "--resume", run, *LONGER], capsys) == (
        f"{run} cannot go on to 20 steps as it is: the learning rate of such a run is another from "
        "step 1 on, and its oldest checkpoint is step-00000008; add --fresh-cooldown to take the "
        "learning rate up again from the newest and down to the new end, begin a new run with its "
        f"weights, --init-from {run}, or one of 20 steps from the start"
    )
    main(["train", "--resume", str(run), *LONGER, "--fresh-cooldown"])
    assert "in {} from step 12: with the learning rate at 0.345 of its peak again".format(
        tmp_path / "run-to-20"
    ) in " ".join(capsys.readouterr().out.split("\n"))


def test_what_else_depends_on_the_length_of_a_run_is_not_begun_anew(
    tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    main([*tiny, "--train.batch-stages", "2", "--train.eval-every", "100", "--out", str(run)])
    command = ["train", "--resume", run, *LONGER, "--fresh-cooldown"]
    message = refusal(command, capsys)
    assert "train.batch_stages, train.mtp_tokens or model.window_start would go back" in message


def test_a_fresh_cooldown_goes_on_from_the_end_at_the_rate_of_the_longer_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    command = ["train", "--resume", str(run), *LONGER, "--fresh-cooldown", "--out", str(new)]
    with monkeypatch.context() as patch:
        stop_when(patch, lambda record: record["step"] == 15, signal.SIGTERM)
        main(command)
    main(["train", "--resume", str(new)])
    # The same by hand: the state of step 12, and the schedule of 20 steps.
    config: Config = read_config(run).override({"train.steps": 20})
    by_hand = resume(run, read_config(run), Console())
    by_hand.config = config
    train_run(by_hand, Console())
    after = [entry for entry in losses(run) if entry[0] >= 12 and entry[:2] != (12, "val_loss")]
    assert [
        entry for entry in losses(new) if entry[0] >= 12 and entry[:2] != (12, "val_loss")
    ] == after
    assert_equal_states(new, run, 20)
    records = read_records(new / METRICS)
    factors = {r["step"]: r["lr_factor"] for r in records if "lr_factor" in r}
    assert [factors[step] for step in range(7, 20)] == [
        *(1, 4 / 5, 3 / 5, 2 / 5, 1 / 5),  # steps 7 to 11 of 12
        *(1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8),
    ]
    assert [r["step"] for r in records if "val_loss" in r] == [0, 5, 10, 12, 15, 20]
    assert read_config(new).continued_from.anew == 12


def test_a_fresh_cooldown_is_another_config_than_that_of_one_run_and_its_seeds_are_a_group(
    tiny_run: Path, long_run: Path, tiny: list[str], tmp_path: Path
) -> None:
    main([*tiny, "--train.seed", "7", "--out", str(tmp_path / "seed7")])
    for run, name in ((tiny_run, "fresh1"), (tmp_path / "seed7", "fresh2")):
        fresh = ["--fresh-cooldown", "--out", str(tmp_path / name)]
        main(["train", "--resume", str(run), *LONGER, *fresh])
    paths = (tmp_path / "fresh1", tmp_path / "fresh2", long_run)
    fresh_runs, alone = group_runs([read_run(path) for path in paths])
    assert [run.path for run in fresh_runs.counted] == [*paths[:2]]
    settings = differing_settings([fresh_runs, alone])
    assert settings["continued_from.anew"] == [12, 0]
    assert settings.keys() == {"continued_from.anew", "continued_from.before"}


def test_a_new_folder_that_cannot_be_written_leaves_nothing(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quintic.checkpoint_writer.save_checkpoint", full)
    before = files_below(tmp_path)
    assert refusal(["train", "--resume", run, *LONGER], capsys) == (
        f"{tmp_path}/run-to-20 could not be created: No space left on device: make room, or choose "
        "another --out"
    )
    assert files_below(tmp_path) == before


def test_losses_that_are_lost_are_said_when_a_run_goes_on(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = run / METRICS
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not 2 < json.loads(line)["step"] < 7))
    said = f"note: {path} lacks losses of steps 3 to 6: they are lost, and the curve has a hole"
    continue_run(run, read_config(run).override({"train.steps": 20}), tmp_path / "new", Console())
    assert said in " ".join(capsys.readouterr().out.split())
    assert resume(run, read_config(run), Console()).done
    assert "lacks" not in capsys.readouterr().out, "nothing is added to the curve of a finished run"
    shutil.rmtree(run / CHECKPOINTS / "step-00000012")
    resume(run, read_config(run), Console())
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("kept", "changes", "steps"),
    [
        ([], {}, "steps 0 to 7"),
        ([0, 1, 2, 3, 4, 6, 7], {}, "step 5"),
        ([1, 2, 4, 5, 6, 7], {}, "2 steps from 0 to 3"),
        ([0, 5], {"train.log_every": 5}, None),
        ([4, 5, 6, 7], {"continued_from.anew": 4, "continued_from.run": "other"}, None),
        ([*range(8)], {}, None),
        ([0, 5], {"train.log_every": 100, "train.eval_every": 2}, "3 steps from 2 to 6"),
    ],
)
def test_lost_losses_are_those_of_steps_that_were_written(
    tiny_data: Path, tmp_path: Path, kept: list[int], changes: dict[str, Any], steps: str | None
) -> None:
    path = tmp_path / METRICS
    path.write_text(
        "".join(f'{{"step": {step}, "train_loss": 1.0, "val_loss": 1.0}}\n' for step in kept)
    )
    found = lost_records(path, tiny_config(tiny_data, changes), 8)
    assert found == (
        steps and f"{path} lacks losses of {steps}: they are lost, and the curve has a hole there"
    )


def test_a_damaged_record_is_named_in_the_run_that_goes_on(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = run / METRICS
    path.write_text("no record\n" + path.read_text())
    before = files_below(tmp_path)
    assert refusal(["train", "--resume", run, *LONGER], capsys) == (
        f"{path} line 1 is not a record of a run: 'no record'; repair or remove the line"
    )
    assert files_below(tmp_path) == before


def test_a_new_folder_that_another_process_is_creating_is_left_to_it(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / ".new.new").mkdir()
    held = run_dir.lock(tmp_path / ".new.new")
    before = files_below(tmp_path)
    command = ["train", "--resume", run, *LONGER, "--out", tmp_path / "new"]
    assert refusal(command, capsys) == (
        f"{tmp_path}/new is being created by another process: choose another --out"
    )
    assert files_below(tmp_path) == before
    held.release()


def test_a_new_folder_that_another_process_has_created_meanwhile_is_named_once(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, new = save_checkpoint, tmp_path / "new"

    def save(*arguments: Any) -> Path:
        shutil.copytree(run, new)
        return own(*arguments)

    monkeypatch.setattr("quintic.checkpoint_writer.save_checkpoint", save)
    assert refusal(["train", "--resume", run, *LONGER, "--out", new], capsys) == (
        f"{new} already holds a run: continue it with --resume {new}, or choose another --out"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"run", "new"}


# Other data.


def test_on_other_data_it_goes_on_as_a_new_run_with_a_curve_of_its_own(
    run: Path, other_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.rmtree(run / CHECKPOINTS / "step-00000012")
    before, new = files_below(run), tmp_path / "run-to-12"
    first = read_state(run / CHECKPOINTS / "step-00000008")
    moved = ["--data.path", str(other_data)]
    main(["evaluate", str(run), "--device", "cpu", "--data", str(tiny_data_of(run))])
    message = refusal(["train", "--resume", run, *moved], capsys)
    assert message.endswith("train on with this one in a new run with --resume and --force-data")
    main(["train", "--resume", str(run), *moved, "--force-data"])
    out = capsys.readouterr().out
    assert f"on other data, {other_data}: its losses are not those of {run}" in out
    assert {k: v for k, v in files_below(run).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }
    found = losses(new)
    assert [entry[:2] for entry in found if entry[1] == "val_loss"] == [
        *((8, "val_loss"), (10, "val_loss"), (12, "val_loss"))
    ], "no loss on the first text"
    assert [step for step, name, _ in found if name == "train_loss"] == [8, 9, 10, 11]
    origin = read_config(new).continued_from
    assert (origin.run, origin.at_step, origin.anew) == ("run", 8, 8)
    assert origin.fingerprint == first["fingerprint"] != read_run(new).data.fingerprint
    assert read_state(new / CHECKPOINTS / "step-00000012")["fingerprint"] != first["fingerprint"]
    # evaluate takes the data it goes on with, from its first checkpoint on.
    shutil.rmtree(new / CHECKPOINTS / "step-00000012")
    main(["evaluate", str(new), "--device", "cpu"])
    assert f"validation loss {found[0][2]:.4f}" in capsys.readouterr().out
    # The first is other data, whose tokenizer nobody knows.
    text = refusal(["evaluate", new, "--data", tiny_data_of(run)], capsys)
    assert text.startswith(f"{new} does not say which tokenizer it was trained with")


def tiny_data_of(folder: Path) -> str:
    return read_config(folder).data.path


def test_compare_knows_a_run_on_other_data_from_the_first_and_from_one_of_that_data_alone(
    run: Path, other_data: Path, tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    moved, new, alone = ["--data.path", str(other_data)], tmp_path / "new", tmp_path / "alone"
    command = ["train", "--resume", str(run), *moved, "--force-data", "--out", str(new)]
    text = refusal(command, capsys)
    assert text == f"{run} has done 12 steps, and train.steps is 12: give more, --train.steps"
    main([*command, "--train.steps", "20"])
    main([*tiny, *moved, *LONGER, "--out", str(alone)])
    with pytest.raises(QuinticError, match="losses on different data"):
        check_same_data([read_run(run), read_run(new)])
    groups = group_runs([read_run(new), read_run(alone)])
    assert [group.label for group in groups] == ["new", "alone"]
    assert differing_settings(groups)["continued_from.anew"] == [8, 0]
    main(["compare", str(new), str(alone)])
    note = f"{new} goes on from run, which trained its first 8 steps otherwise: on other data or"
    assert note in " ".join(capsys.readouterr().out.split())


# Weights only.


def test_a_run_begins_with_anothers_weights_and_needs_it_no_more(
    run: Path,
    tiny: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = ["--train.steps", "6", "--optim.schedule.warmup-steps", "2", "--train.seed", "3"]
    command = [*tiny, *short, "--init-from", str(run)]
    main([*command, "--out", str(tmp_path / "whole")])
    assert f"with the weights of {run}/checkpoints/step-00000012" in capsys.readouterr().out
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_when(patch, lambda record: record["step"] == 0, signal.SIGTERM)
        main([*command, "--out", str(stopped)])
    final = losses(run)[-1]
    weights = tensors(run, 12)
    run.rename(tmp_path / "gone")
    main(["train", "--resume", str(stopped)])
    assert losses(stopped) == losses(tmp_path / "whole")
    assert_equal_states(stopped, tmp_path / "whole", 6)
    assert_in_order(stopped)
    # It starts where the other ended, with an optimizer that has seen nothing.
    assert losses(stopped)[0] == (0, "val_loss", final[2])
    began = tmp_path / "began"
    shutil.copytree(tmp_path / "gone", run)
    main([*command, "--train.keep-checkpoints", "9", "--out", str(began)])
    first = tensors(began, 0)
    assert {name for name in first if name.startswith("model.")} == {
        name for name in weights if name.startswith("model.")
    }
    for name, tensor in first.items():
        if name.startswith("model."):
            assert torch.equal(tensor, weights[name]), name
        assert not name.startswith("optim.") or not tensor.any(), name
    record = read_config(stopped).init_from
    assert (record.run, record.at_step, len(record.checkpoint or "")) == ("run", 12, 12)


def test_best_is_the_other_checkpoint_to_begin_with(
    run: Path, tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    eight, twelve = ((run / CHECKPOINTS / name / "state.json") for name in names(run))
    for path, loss in ((eight, 1.0), (twelve, 2.0)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "val_loss": loss}))
    best = ["--init-from", str(run), "--checkpoint", "best", "--train.steps", "1"]
    main([*tiny, *best, "--out", str(tmp_path / "new")])
    assert f"with the weights of {eight.parent}" in capsys.readouterr().out
    assert read_config(tmp_path / "new").init_from.at_step == 8


def test_the_model_is_that_of_the_weights_and_compare_knows_it_from_one_from_scratch(
    run: Path, tiny_data: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Without a model option, a recipe whose model is another."""
    own = [
        # Shuffled, since with one order both seeds have one loss, and with one time are a copy.
        *("--data.path", str(tiny_data), "--data.order", "shuffle", "--train.device", "cpu"),
        *("--train.steps", "2", "--train.eval-tokens", "512", "--train.log-to"),
        *("--init-from", str(run)),
    ]
    for seed in ("1", "2"):
        main(["train", "laptop", *own, "--train.seed", seed, "--out", str(tmp_path / seed)])
    config = read_config(tmp_path / "1")
    assert config.model == read_config(run).model != get_recipe("laptop").model
    scratch = config.override({"train.seed": 1, "init_from.run": None, "init_from.at_step": 0})
    scratch = scratch.override({"init_from.checkpoint": None})
    train_run(start(scratch, tmp_path / "scratch", Console()), Console())
    groups = group_runs([read_run(tmp_path / name) for name in ("1", "2", "scratch")])
    assert [[run.path.name for run in group.counted] for group in groups] == [
        ["1", "2"],
        ["scratch"],
    ]
    assert differing_settings(groups).keys() == {"init_from.at_step", "init_from.checkpoint"}


def test_a_model_that_is_not_that_of_the_weights_is_refused_by_name(
    run: Path, tiny: list[str], capsys: Capture
) -> None:
    options = ["--model.layers", "3", "--model.activation", "gelu", "--init-from", run]
    assert refusal([*tiny, *options], capsys) == (
        f"the weights of {run} are of a model with model.activation 'relu2', not 'gelu', "
        "model.layers 2, not 3: leave the option out, since the model is that of --init-from"
    )


def test_data_of_another_tokenizer_is_refused(
    text_run: Path, text_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "library").mkdir()
    for index in range(30):
        text = "".join(f"the word {index} {line} and the next\n" for line in range(60))
        (tmp_path / "library" / f"{index}.py").write_text(text)
    other = _dataset_of_tree(tmp_path / "library", 280, tmp_path / "other")
    command = ["train", "laptop", "--init-from", text_run, "--train.eval-tokens", "512"]
    assert refusal([*command, "--data.path", other], capsys) == (
        f"{other} was made with another tokenizer than the data of {text_run}, so its ids mean "
        f"other text to the weights: build it with --tokenizer {text_run / 'tokenizer.json'}"
    )
    small = ["--train.steps", "1", "--train.batch-tokens", "256", "--train.device", "cpu"]
    same = ["--data.path", str(text_data), *small, "--out", str(tmp_path / "new")]
    main([*map(str, command), *same])
    assert (tmp_path / "new" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fresh-cooldown"], "--fresh-cooldown is for a run that continues: give --resume"),
        (["--checkpoint", "best"], "--checkpoint best chooses the weights of --init-from"),
        (["--init-from", "nowhere"], "nowhere does not exist"),
        (["--init-from", "nowhere", "--resume", "{run}"], "nowhere does not exist"),
        (
            ["--init-from", "{run}", "--resume", "{run}"],
            "--init-from begins a new run and --resume",
        ),
    ],
)
def test_options_that_do_not_go_together(
    run: Path, capsys: Capture, options: list[str], message: str
) -> None:
    assert message in refusal(["train", *(o.format(run=run) for o in options)], capsys)


def test_the_config_of_a_run_that_began_elsewhere_is_no_recipe_without_where(
    run: Path, tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    new, more = tmp_path / "new", ["--train.steps", "1"]
    main([*tiny, *more, "--init-from", str(run), "--out", str(new)])
    again = ["train", str(new / "config.json"), "--out", str(tmp_path / "again")]
    message = refusal(again, capsys)
    assert message.startswith("the config is that of a run which began with the weights of run")
    main([*again, "--init-from", str(run)])
    assert losses(tmp_path / "again") == losses(new)
    # Nor does it begin at step 0 where its checkpoints are gone.
    shutil.rmtree(new / CHECKPOINTS)
    message = refusal(["train", "--resume", new], capsys)
    assert message.startswith(f"{new} began with a checkpoint of run and has none any more")
