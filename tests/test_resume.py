"""Resume is exact: whatever ended a run, continuing it gives the run that was never ended.

"Equal" is equality of every loss in `metrics.jsonl`, bit for bit and in order, so that a step that
is missing, repeated or computed from another state fails.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quintic.train
from quintic.checkpoint import read_state, save_checkpoint
from quintic.cli.main import main
from quintic.console import Console, RunProgress
from quintic.continuity import check_continues
from quintic.device import check_compiler
from quintic.distributed.world import World
from quintic.errors import QuinticError
from quintic.metrics_file import METRICS, MetricsRecord, read_records
from quintic.recipes import get_recipe
from quintic.resuming import resume
from quintic.run_checkpoints import checkpoints
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.setup import start
from quintic.train import train_run
from tests import warm
from tests.conftest import made_once, refusal, tiny_arguments, tiny_config
from tests.waiting import outputs, wait_until

Losses = list[tuple[int, str, float]]

STEPS = 150
LONG = [
    *("--data.order", "shuffle", "--train.steps", str(STEPS)),
    *("--train.checkpoint-every", "10", "--train.eval-every", "25", "--optim.clip-norm", "1.0"),
    *("--optim.muon.momentum-warmup-steps", "100"),
    *("--model.window", "30", "--model.window-start", "2", "--train.batch-stages", "2"),
    *("--train.mtp-tokens", "3"),
]
"""A run long enough to be killed in, with everything that depends on the step."""


def losses(folder: Path) -> Losses:
    """Every loss in the order of the file."""
    return [
        (record["step"], name, record[name])
        for record in read_records(folder / METRICS)
        for name in ("val_loss", "train_loss")
        if name in record
    ]


def assert_in_order(folder: Path) -> None:
    """Nothing in the folder that does not belong there, and every checkpoint whole."""
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}
    assert names == {
        *("config.json", "environment.json", "param_groups.txt", "metrics.jsonl", "loss.png"),
        *("checkpoints", ".lock"),
    }
    kept = checkpoints(folder / CHECKPOINTS)
    assert sorted((folder / CHECKPOINTS).iterdir()) == kept
    for path in kept:
        assert read_state(path)["step"] == int(path.name.removeprefix("step-"))


@pytest.fixture(scope="module")
def never_stopped(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:

    def make(folder: Path) -> None:
        main([*tiny_arguments(tiny_data), *LONG, "--out", str(folder / "run")])

    folder = made_once(tmp_path_factory, "never-stopped", make) / "run"
    found = losses(folder)
    assert [step for step, name, _ in found if name == "train_loss"] == list(range(STEPS))
    assert [step for step, name, _ in found if name == "val_loss"] == list(range(0, STEPS + 1, 25))
    return found


@contextmanager
def quintic_process(
    arguments: list[str], moment: str = "", environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, with the threads that this one computes with; `moment`
    is what it calls of `tests.moments` before it begins."""
    program = (
        f"import sys; from quintic.cli.main import main; from tests.moments import *; {moment}\n"
        "main(sys.argv[1:])"
    )
    process = warm.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **(environment or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Return once the loss of a step is in `metrics.jsonl`."""
    written, path = f'{{"step": {step},', folder / METRICS
    wait_until(
        lambda: (
            path.exists()
            and any(
                line.startswith(written) and "train_loss" in line
                for line in path.read_text().splitlines()
            )
        ),
        f"step {step}",
        alive=lambda: process.poll() is None,
        said=lambda: str(process.communicate()) if process.poll() is not None else "",
    )


def kill_at(arguments: list[str], folder: Path, step: int, delay_s: float) -> None:
    with quintic_process(arguments, f"kill_after({step}, {delay_s}, at_most=6)") as process:
        said = outputs(process)
        assert process.returncode in (-signal.SIGKILL, -signal.SIGPROF), said
    assert any(entry[:2] == (step, "train_loss") for entry in losses(folder))


# Real signals to a real process.


def test_a_run_killed_four_times_at_random_moments_equals_one_never_stopped(
    tiny_data: Path, tmp_path: Path, never_stopped: Losses
) -> None:
    """The first time before there is a checkpoint."""
    folder, random = tmp_path / "run", np.random.default_rng(20241014)
    arguments = [*tiny_arguments(tiny_data), *LONG, "--out", str(folder)]
    step = 2
    for i in range(4):
        kill_at(arguments, folder, step, delay_s=random.uniform(1e-6, 0.02))
        found = checkpoints(folder / CHECKPOINTS)
        assert i > 0 or found == [], "killed too late to show what it is to show"
        saved = int(found[-1].name.removeprefix("step-")) if found else 0
        step = saved + int(random.integers(8, 30))
        arguments = ["train", "--resume", str(folder)]
    main(arguments)
    assert losses(folder) == never_stopped
    assert_in_order(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_saves_says_how_to_resume_and_equals_one_never_stopped(
    tiny_data: Path, tmp_path: Path, never_stopped: Losses, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    arguments = [*tiny_arguments(tiny_data), *LONG, "--out", str(folder)]
    with quintic_process(arguments, "hold_at(34)") as process:
        wait_for_step(process, folder, 33)
        process.send_signal(number)
        out, err = outputs(process)
    assert (process.returncode, err) == (0, "")
    done = losses(folder)[-1][0] + 1
    assert 33 < done < STEPS
    last = out.strip().splitlines()[-1]
    assert f"stopped and saved at step {done} of {STEPS}" in last
    assert last.endswith(f"quintic train --resume {folder}")
    assert checkpoints(folder / CHECKPOINTS)[-1].name == f"step-{done:08d}"
    main(["train", "--resume", str(folder)])
    assert losses(folder) == never_stopped
    assert_in_order(folder)


def test_a_second_ctrl_c_stops_at_once_and_the_run_continues_from_what_was_saved(
    tiny_data: Path, tmp_path: Path, never_stopped: Losses
) -> None:
    folder = tmp_path / "run"
    arguments = [*tiny_arguments(tiny_data), *LONG, "--out", str(folder)]
    # The step in progress takes hours, as a large model's can: one Ctrl-C would wait for it.
    with quintic_process(arguments, "hold_at(13, forever=True)") as process:
        for said in ("now", "told"):
            assert process.stdout is not None
            while said not in (line := process.stdout.readline()):
                assert line, outputs(process)
            assert process.poll() is None, "the first Ctrl-C waits for the step"
            process.send_signal(signal.SIGINT)
        _, err = outputs(process)
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    assert [path.name for path in checkpoints(folder / CHECKPOINTS)] == ["step-00000010"]
    main(["train", "--resume", str(folder)])
    assert losses(folder) == never_stopped
    assert_in_order(folder)


def test_a_compiled_run_stopped_and_continued_equals_one_never_stopped(
    tiny_data: Path, tmp_path: Path
) -> None:
    """The resume in a process of its own, with the compiler's cache of the run that was stopped."""
    try:
        check_compiler(torch.device("cpu"))
    except QuinticError as error:
        pytest.skip(str(error))
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    smallest = [
        *("--model.layers", "1", "--model.width", "16", "--train.compile"),
        *("--train.checkpoint-every", "100", "--train.eval-every", "20", "--train.steps", "60"),
        # A momentum that changes each step, since a compiled number would be a new function each.
        *("--optim.muon.momentum-warmup-steps", "50"),
        *("--model.window", "16", "--model.window-start", "2", "--train.batch-stages", "2"),
        *("--train.mtp-tokens", "2"),
    ]
    # g++ takes less time without vector instructions, on which nothing here depends.
    scalar = "import torch._inductor.config as inductor; inductor.cpp.vec_isa_ok = False"
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    arguments = [*tiny_arguments(tiny_data), *smallest]
    begin = f"hold_at(24); {scalar}; main({[*arguments, '--out', str(stopped)]})"
    # Once it has stopped, the same process trains the whole run, with what it has compiled.
    with quintic_process([*arguments, "--out", str(whole)], begin, environment) as process:
        wait_for_step(process, stopped, 23)
        process.send_signal(signal.SIGTERM)
        _, err = outputs(process)
        assert (process.returncode, err) == (0, "")  # no "hit recompile_limit" either
    assert 23 < losses(stopped)[-1][0] + 1 < 60
    with quintic_process(["train", "--resume", str(stopped)], scalar, environment) as process:
        _, err = outputs(process)
        assert (process.returncode, err) == (0, "")
    assert len(losses(whole)) == 64
    assert losses(stopped) == losses(whole)
    assert_in_order(stopped)


# The same in this process, where each step can be tried.


def stop_when(
    patch: pytest.MonkeyPatch, condition: Callable[[MetricsRecord], bool], number: signal.Signals
) -> None:
    """Send this process a signal when a record is written that fulfils a condition."""
    own = RunProgress.show

    def show(self: RunProgress, record: MetricsRecord) -> None:
        own(self, record)
        if condition(record):
            os.kill(os.getpid(), number)

    patch.setattr(RunProgress, "show", show)


@pytest.fixture(scope="module")
def never_stopped_tiny(tiny_run: Path) -> Losses:
    return losses(tiny_run)


def test_a_run_stopped_after_every_single_step_equals_one_never_stopped(
    tiny: list[str],
    tmp_path: Path,
    never_stopped_tiny: Losses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve starts, one step each; SIGTERM and Ctrl-C in turn."""
    folder = tmp_path / "run"
    monkeypatch.setattr(quintic.train, "_draw", lambda *_: None)  # 12 figures would take seconds
    arguments = [*tiny, "--out", str(folder)]
    for step in range(11):
        with monkeypatch.context() as patch:
            number = (signal.SIGTERM, signal.SIGINT)[step % 2]
            stop_when(patch, lambda record: "train_loss" in record, number)
            main(arguments)
        assert losses(folder)[-1][:2] == (step, "train_loss"), "no validation before it stops"
        assert checkpoints(folder / CHECKPOINTS)[-1].name == f"step-{step + 1:08d}"
        arguments = ["train", "--resume", str(folder)]
    main(arguments)
    assert losses(folder) == never_stopped_tiny


def test_a_stop_during_a_validation_is_heeded_before_the_next_step(
    tiny: list[str],
    tmp_path: Path,
    never_stopped_tiny: Losses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_when(
            patch, lambda record: "val_loss" in record and record["step"] == 5, signal.SIGTERM
        )
        main([*tiny, "--out", str(folder)])
    assert losses(folder)[-1][:2] == (5, "val_loss")
    # A checkpoint of a step that was validated knows its loss, and can be the best.
    state = read_state(folder / CHECKPOINTS / "step-00000005")
    assert state["val_loss"] == losses(folder)[-1][2]
    main(["train", "--resume", str(folder)])
    assert losses(folder) == never_stopped_tiny


def test_a_ctrl_c_while_the_last_checkpoint_is_written_does_not_cut_it_short(
    tiny: list[str],
    tmp_path: Path,
    never_stopped_tiny: Losses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = save_checkpoint

    def interrupted(
        root: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any], world: World
    ) -> Path:
        if state["step"] == 12:
            time.sleep(0.2)  # until the loop is over and only waits
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return own(root, tensors, state, world)

    monkeypatch.setattr("quintic.checkpoint_writer.save_checkpoint", interrupted)
    main([*tiny, "--out", str(tmp_path / "run")])
    assert losses(tmp_path / "run") == never_stopped_tiny
    assert checkpoints(tmp_path / "run" / CHECKPOINTS)[-1].name == "step-00000012"
    assert_in_order(tmp_path / "run")


@pytest.mark.parametrize(
    ("crash_at", "said"), [(6, "resuming from"), (2, "beginning again at step 0")]
)
def test_a_crash_is_continued_from_the_checkpoint_before_or_from_the_beginning(
    tiny: list[str],
    tmp_path: Path,
    never_stopped_tiny: Losses,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    crash_at: int,
    said: str,
) -> None:
    folder = tmp_path / "run"
    own = quintic.train.apply_schedule

    def crash(run: Any, step: int) -> Any:
        if step == crash_at:
            raise RuntimeError("the machine went away")
        return own(run, step)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="went away"):
        patch.setattr(quintic.train, "apply_schedule", crash)
        main([*tiny, "--out", str(folder)])
    assert losses(folder)[-1][:2] == (crash_at - 1, "train_loss")
    main(["train", "--resume", str(folder)])
    assert said in capsys.readouterr().out
    assert losses(folder) == never_stopped_tiny
    assert_in_order(folder)


def test_a_damaged_newest_checkpoint_is_skipped_and_said_and_the_run_is_the_same(
    tiny_run: Path,
    tmp_path: Path,
    never_stopped_tiny: Losses,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    newest = checkpoints(folder / CHECKPOINTS)[-1]
    (tensors,) = newest.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    main(["train", "--resume", str(folder)])
    out = capsys.readouterr().out
    assert f"skipped: {tensors} is damaged: expected" in out
    assert f"resuming from {folder / CHECKPOINTS / 'step-00000008'}" in out
    assert losses(folder) == never_stopped_tiny
    assert_in_order(folder)


def test_a_damaged_checkpoint_is_not_counted_among_those_that_are_kept(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one damaged, newer checkpoint would push out the only whole one."""
    folder = tmp_path / "run"
    only = ["--train.keep-checkpoints", "2", "--train.no-keep-before-cooldown"]
    main([*tiny, *only, "--out", str(folder)])
    (tensors,) = (folder / CHECKPOINTS / "step-00000012").glob("*.safetensors")
    tensors.write_bytes(b"")
    with monkeypatch.context() as patch:
        stop_when(patch, lambda record: record["step"] == 8, signal.SIGTERM)
        main(["train", "--resume", str(folder), "--train.keep-checkpoints", "1"])
    assert [path.name for path in checkpoints(folder / CHECKPOINTS)] == ["step-00000009"]
    read_state(folder / CHECKPOINTS / "step-00000009")


def test_a_setting_that_goes_with_what_is_changed_is_no_change_of_its_own() -> None:
    laptop = get_recipe("laptop")
    moved = laptop.override({"data.path": "elsewhere"})
    assert moved.data.embedded_vocab != laptop.data.embedded_vocab
    check_continues(Path("run"), laptop, moved, 4)
    with pytest.raises(QuinticError, match=r"--resume cannot change optim\.matrices: the 4 steps"):
        check_continues(Path("run"), laptop, laptop.override({"optim.matrices": "sgd"}), 4)


def test_a_run_without_a_cooldown_goes_on_from_its_end(tiny: list[str], tmp_path: Path) -> None:
    constant = [*tiny, "--optim.schedule.cooldown-fraction", "0"]
    long, short = tmp_path / "long", tmp_path / "short"
    main([*constant, "--out", str(long)])
    main([*constant, "--train.steps", "7", "--out", str(short)])
    assert losses(short)[-1][:2] == (7, "val_loss")
    main(["train", "--resume", str(short), "--train.steps", "12"])
    assert losses(tmp_path / "short-to-12") == losses(long)
    assert losses(short)[-1][:2] == (7, "val_loss")


def test_another_micro_batch_on_resume_gives_the_same_losses_to_rounding(
    tiny_run: Path, tmp_path: Path, never_stopped_tiny: Losses
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / CHECKPOINTS / "step-00000012")
    main(["train", "--resume", str(folder), "--train.micro-batch", "2"])
    found = losses(folder)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in never_stopped_tiny]
    assert [loss for *_, loss in found] == pytest.approx(
        [loss for *_, loss in never_stopped_tiny], rel=5e-6, abs=0
    )


def test_a_finished_run_is_left_as_it_is(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    main(["train", "--resume", str(folder)])
    assert "is complete: all 12 steps are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_elapsed_time_goes_on_where_the_checkpoint_left_it(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    shutil.rmtree(folder / CHECKPOINTS / "step-00000012")
    path = folder / CHECKPOINTS / "step-00000008" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "elapsed_s": 1000.0}))
    main(["train", "--resume", str(folder)])
    for record in read_records(folder / METRICS):
        low, high = (0, 1000) if record["step"] < 8 else (1000, 1100)
        assert low <= record["elapsed_s"] < high


# Everything that must survive is in the state.


@pytest.mark.parametrize("architecture", ["gpt", "gpt2"])
def test_every_tensor_of_a_resumed_run_is_bit_equal_and_training_on_moves_them_alike(
    tiny_data: Path, tmp_path: Path, architecture: str
) -> None:
    folder = tmp_path / "run"
    config = tiny_config(
        tiny_data, {"model.architecture": architecture, "train.steps": 6, "train.eval_every": 100}
    )
    run = start(config, folder, Console())
    train_run(run, Console())
    again = resume(folder, run.config, Console())
    saved, loaded = run.state.on_cpu(), again.state.on_cpu()
    assert saved.keys() == loaded.keys()
    kinds = {name.rsplit(".", 1)[-1] for name in saved if name.startswith("optim.")}
    assert kinds == {"momentum", "exp_avg", "exp_avg_sq", "step"}
    for name, tensor in saved.items():
        assert torch.equal(tensor, loaded[name]), name
        assert tensor.dtype == loaded[name].dtype
        assert name.startswith("rng") or tensor.any(), f"{name} is zero and would prove nothing"
    for state, other in ((run.state, again.state), (again.state, run.state)):
        assert (state.step, state.val_loss) == (other.step, other.val_loss)
        assert (state.elapsed_s, state.fingerprint) == (other.elapsed_s, other.fingerprint)

    # One more step of both: the momentum that was loaded is the one the update reads, whole stacks
    # of it, and not a copy beside it.
    momenta = {name: t.clone() for name, t in loaded.items() if name.endswith(".momentum")}
    for one in (run, again):
        one.config = replace(one.config, train=replace(one.config.train, steps=7))
        train_run(one, Console())
        shutil.rmtree(folder / CHECKPOINTS / "step-00000007")
    for name, tensor in run.state.on_cpu().items():
        assert torch.equal(tensor, again.state.on_cpu()[name]), name
    for name, before in momenta.items():
        assert not torch.equal(before, again.state.on_cpu()[name]), name


def test_the_global_random_state_is_restored(tiny_run: Path, tmp_path: Path) -> None:
    """No layer draws today; one with dropout would resume exactly all the same."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    with torch.random.fork_rng(devices=[]):
        run = resume(folder, read_config(folder), Console())
        expected = run.state.on_cpu()["rng.cpu"]
        torch.manual_seed(99)
        assert not torch.equal(torch.get_rng_state(), expected)
        resume(folder, read_config(folder), Console())
        assert torch.equal(torch.get_rng_state(), expected)


# A checkpoint knows the config that trained it.


def edit_config(folder: Path, changes: dict[str, Any]) -> None:
    """Edit `config.json` by hand, as a user would."""
    values = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *sections, field = name.split(".")
        inner = functools.reduce(dict.__getitem__, sections, values)
        assert inner[field] != value
        inner[field] = value
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.activation": "gelu"}, "model.activation 'relu2', not 'gelu'"),
        ({"model.heads": 1}, "model.heads 2, not 1"),
        ({"train.steps": 24}, "train.steps 12, not 24"),
        (
            {"model.width": 64, "optim.muon.lr": 0.5},
            "model.width 32, not 64, optim.muon.lr 0.02, not 0.5",
        ),
    ],
)
def test_a_config_edited_by_hand_is_refused_and_the_field_named(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    edit_config(folder, changes)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    for command in (["evaluate"], ["generate"], ["train", "--resume"]):
        text = refusal([*command, str(folder)], capsys)
        assert f"step-00000012 was trained with {said} as the config.json of its run says" in text
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_of_another_run_of_the_same_shape_is_refused(
    tiny: list[str], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    main([*tiny, "--train.seed", "7", "--out", str(folder)])
    shutil.rmtree(folder / CHECKPOINTS)
    shutil.copytree(tiny_run / CHECKPOINTS, folder / CHECKPOINTS)
    for command in (["evaluate", str(folder)], ["train", "--resume", str(folder)]):
        text = refusal(command, capsys)
        assert "was trained with train.seed 1337, not 7 as the config.json" in text


def test_what_changes_nothing_computed_may_be_edited_and_a_checkpoint_that_says_nothing_loads(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    edit_config(folder, {"train.micro_batch": 2, "train.keep_checkpoints": 7})
    main(["evaluate", str(folder), "--device", "cpu"])
    loss = capsys.readouterr().out
    # A checkpoint of quintic 0.1, which did not keep it.
    path = folder / CHECKPOINTS / "step-00000012" / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("config")["train"]["steps"] == 12
    path.write_text(json.dumps(state))
    main(["evaluate", str(folder), "--device", "cpu"])
    assert capsys.readouterr().out == loss


def test_a_checkpoint_whose_config_cannot_be_read_is_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    path = folder / CHECKPOINTS / "step-00000012" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {"format": 99}}))
    assert f"{path}: config format 99 needs quintic" in refusal(["evaluate", str(folder)], capsys)
