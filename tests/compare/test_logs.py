"""Logs in the formats of modded-nanogpt and llm.c."""

from pathlib import Path

import pytest

from quintic.compare.groups import group_runs
from quintic.compare.logs import read_log
from quintic.compare.runs import read_run
from quintic.errors import QuinticError

RULE = "=" * 100

PROGRAM = """\
import os
import torch
# -----------
class Hyperparameters:
    batch_size : int = 8*64 # batch size, in sequences, across all devices
    device_batch_size : int = 64 # batch size, in sequences, per device
    sequence_length : int = 1024 # sequence length, in tokens
    learning_rate : float = 0.0036
    print(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{t:.0f}ms")
"""

# As in records/track_1_short/2024-10-14_ModernArch of modded-nanogpt, shortened.
MODDED = """\
step:0/5100 val_loss:16.0058 train_time:278ms step_avg:nanms
step:1/5100 train_loss:16.0026 train_time:42703ms step_avg:nanms
step:10/5100 train_loss:7.0049 train_time:54881ms step_avg:nanms
step:125/5100 train_loss:4.9301 train_time:20288ms step_avg:176.42ms
step:125/5100 val_loss:4.9493 train_time:20289ms step_avg:176.43ms
step:250/5100 val_loss:4.3293 train_time:42363ms step_avg:176.51ms
step:5100/5100 train_loss:3.2686 train_time:910545ms step_avg:178.89ms
step:5100/5100 val_loss:3.2741 train_time:910546ms step_avg:178.89ms
"""

# As in records/track_1_short/2025-02-01_RuleTweak: the clock counts every step, no training loss.
LATER = """\
step:0/1770 val_loss:10.8258 train_time:0ms step_avg:0.03ms
step:1/1770 train_time:70ms step_avg:70.50ms
step:125/1770 val_loss:4.6539 train_time:12048ms step_avg:96.38ms
step:1770/1770 val_loss:3.2788 train_time:179828ms step_avg:101.60ms
peak memory allocated: 30724 MiB reserved: 45952 MiB
"""

# llm.c's train_gpt2.py, and the C program, which adds learning rate and norm of the gradient.
LLMC = """\
s:0 tel:10.968871
s:0 trl:10.965596
s:1 trl:10.814037
s:250 tel:6.012345
s:250 eval:0.2943
s:9535 trl:3.340180
s:9536 tel:3.275959
"""
LLMC_C = "s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:19560 tel:3.2722\n"


def written(folder: Path, text: str, name: str = "log.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def whole(program: str = PROGRAM, losses: str = MODDED) -> str:
    return f"{RULE}\n{program}{RULE}\nRunning pytorch 2.4.1\n|====+===|\n{RULE}\n{losses}"


def test_a_log_of_modded_nanogpt_gives_losses_tokens_and_seconds(tmp_path: Path) -> None:
    run = read_run(written(tmp_path, whole()))
    assert run.source == "modded-nanogpt"
    batch = 8 * 64 * 1024
    assert [(p.steps, p.loss, p.tokens, p.seconds) for p in run.validations] == [
        (0, 16.0058, 0, 0.0),  # the clock begins after the first ten steps
        (125, 4.9493, 125 * batch, 20.289),
        (250, 4.3293, 250 * batch, 42.363),
        (5100, 3.2741, 5100 * batch, 910.546),
    ]
    assert run.finished
    assert run.final_loss == 3.2741
    assert run.tokens_per_s == pytest.approx(batch / 0.17889)
    assert run.diverged_at is None


def test_a_log_that_does_not_tell_its_batch_takes_the_given_one(tmp_path: Path) -> None:
    path = written(tmp_path, LATER)
    assert not read_log(path).has("tokens")
    run = read_log(path, 393_216)
    assert [point.tokens for point in run.validations] == [0, 125 * 393_216, 1770 * 393_216]
    assert run.validations[0].seconds == 0
    assert run.memory_gib == pytest.approx(30724 / 1024)
    # What the log says of itself stands.
    assert read_log(written(tmp_path, whole()), 7).validations[1].tokens == 125 * 8 * 64 * 1024


def test_logs_of_llm_c_give_validation_losses_without_times(tmp_path: Path) -> None:
    run = read_log(written(tmp_path, LLMC, "main.log"))
    assert run.source == "llm.c"
    assert [(p.steps, p.loss) for p in run.validations] == [
        (0, 10.968871),
        (250, 6.012345),
        (9536, 3.275959),
    ]
    assert run.final_loss == 3.275959
    assert not run.has("seconds")
    assert not run.has("tokens")
    assert read_log(written(tmp_path, LLMC_C), 524_288).validations[-1].tokens == 19560 * 524_288


def test_what_a_crashed_run_logged_twice_counts_once_and_the_later_time(tmp_path: Path) -> None:
    text = (
        "s:0 tel:11.0\ns:0 trl:11.0\ns:250 tel:6.1\ns:250 trl:6.0\ns:500 tel:5.5\ns:500 trl:nan\n"
        "s:250 tel:6.2\ns:250 trl:6.0\ns:400 trl:5.7\n"
    )
    run = read_log(written(tmp_path, text))
    assert [(p.steps, p.loss) for p in run.validations] == [(0, 11.0), (250, 6.2)]
    assert run.diverged_at is None


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("s:0 tel:11.0\ns:0 trl:11.0\ns:250 tel:nan\ns:500 tel:nan\n", 250),
        ("s:0 tel:11.0\ns:7 trl:-nan\n", 7),
        ("s:0 tel:11.0\ns:250 tel:6.0\ns:250 trl:nan\n", 250),
        ("s:0 tel:inf\n", 0),
        (MODDED.replace("3.2741", "nan"), 5100),
        (MODDED.replace("4.9493", "nan"), None),  # it came back, as no diverged run does
    ],
)
def test_a_loss_that_is_not_finite_at_the_end_is_a_run_that_diverged(
    tmp_path: Path, text: str, step: int | None
) -> None:
    run = read_log(written(tmp_path, text))
    assert run.diverged_at == step
    assert (run.final_loss is None) == (step is not None)
    assert all(point.loss < 20 for point in run.validations)


def test_a_log_that_stops_early_has_no_final_loss(tmp_path: Path) -> None:
    run = read_log(written(tmp_path, "".join(MODDED.splitlines(keepends=True)[:6])))
    assert run.steps_planned == 5100
    assert not run.finished
    assert run.final_loss is None


def test_logs_of_one_program_are_a_group_and_others_stand_alone(tmp_path: Path) -> None:
    texts = {
        "one": whole(),
        "two": whole(losses=MODDED.replace("3.2741", "3.2752")),
        "other": whole(PROGRAM.replace("0.0036", "0.0018")),
        "bare-1": MODDED,
        "bare-2": MODDED,
    }
    runs = [read_log(written(tmp_path, text, name)) for name, text in texts.items()]
    groups = [[run.path.name for run in group.runs] for group in group_runs(runs)]
    assert groups == [["one", "two"], ["other"], ["bare-1"], ["bare-2"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is neither the folder of a run nor a log"),
        ("hello\nstep 5 of 10\n", "no line reads like `step:125/5100 val_loss:4.9493"),
        ("s:0 trl:11.0\n", "has no validation loss yet"),
        ("s:0 tel:eleven\n", "line 1: 'eleven' is not a number"),
        ("s:0 tel:11.0\nstep:1/9 val_loss:x train_time:1ms step_avg:1ms\n", "line 2: 'x' is not"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(QuinticError, match=message):
        read_log(written(tmp_path, text))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    path.write_bytes(bytes(range(256)) * 50)
    with pytest.raises(QuinticError, match="is neither the folder of a run nor a log"):
        read_log(path)


def test_a_file_larger_than_any_log_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    with path.open("wb") as file:
        file.truncate(1 << 29)  # a hole: it takes no room
    with pytest.raises(QuinticError, match="more than any log"):
        read_log(path)
