"""Logs in the formats of modded-nanogpt and llm.c."""

from pathlib import Path

import pytest

from quintic.compare.comparison import compare
from quintic.compare.groups import group_runs
from quintic.compare.logs import read_logs
from quintic.compare.record import RunRecord
from quintic.compare.runs import read_runs
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


# As in records/track_3_optimization/results/1bd8db7a-f3a3-4195-856d-cab7e0816443.txt, shortened:
# the program is at the top, without a rule before it, and trains twenty times.
TRACK3_PROGRAM = """\
import os
val_tokens = 20 * 524288
batch_size = 8 * 64 * 1024
"""
TRACK3 = """\
step:0/3350 val_loss:10.82584 train_time:0.001s step_avg:nanms
step:125/3350 val_loss:4.66393 train_time:22.870s step_avg:182.95ms
step:3325/3350 val_loss:3.27931 train_time:493.185s step_avg:146.78ms
step:3350/3350 val_loss:3.27874 train_time:496.855s step_avg:146.79ms
step:0/3350 val_loss:10.82584 train_time:0.000s step_avg:nanms
step:125/3350 val_loss:4.69112 train_time:18.442s step_avg:147.54ms
step:3350/3350 val_loss:3.27839 train_time:492.485s step_avg:147.03ms
"""
# Fields before and after, of 20260619_cwd_rowfloor_tailema and 20260525_aurora_ema_ref; the second
# program ends before the steps that it names.
FIELDS = """\
step:1250/2900 val_loss:3.57062 val_avg_loss:3.5 val_ema_loss:3.5 train_time:4612.01s step_avg:3.9ms
step:2850/2900 val_loss:3.27897 train_time:2137.538s step_avg:750.01ms ema_beta:0 ref_step:2375
step:2860/2900 val_loss:3.27837 train_time:2145.235s step_avg:750.08ms ema_beta:0 ref_step:2375
"""


def written(folder: Path, text: str, name: str = "log.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def read_log(path: Path, batch_tokens: int | None = None) -> RunRecord:
    (run,) = read_logs(path, batch_tokens)
    return run


def whole(program: str = PROGRAM, losses: str = MODDED) -> str:
    return f"{RULE}\n{program}{RULE}\nRunning pytorch 2.4.1\n|====+===|\n{RULE}\n{losses}"


def test_a_log_of_modded_nanogpt_gives_losses_tokens_and_seconds(tmp_path: Path) -> None:
    (run,) = read_runs(written(tmp_path, whole()))
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


def test_each_trial_of_a_log_of_track_3_is_a_run_with_seconds(tmp_path: Path) -> None:
    path = written(tmp_path, f"{TRACK3_PROGRAM}\n{RULE}\n{RULE}\n{TRACK3}")
    one, two = read_runs(path)
    assert [(p.steps, p.tokens, p.seconds, p.loss) for p in one.validations] == [
        (0, 0, 0.0, 10.82584),
        (125, 125 * 524_288, 22.87, 4.66393),
        (3325, 3325 * 524_288, 493.185, 3.27931),
        (3350, 3350 * 524_288, 496.855, 3.27874),
    ]
    assert [(p.steps, p.seconds) for p in two.validations] == [
        (0, 0),
        (125, 18.442),
        (3350, 492.485),
    ]
    assert two.tokens_per_s == pytest.approx(524_288 / 0.14703)
    assert [run.path.name for run in (one, two)] == ["log.txt#1", "log.txt#2"]
    (group,) = group_runs([one, two])
    assert group.label == "log.txt"
    assert [run.final_loss for run in group.counted] == [3.27874, 3.27839]
    # So they are without the program, and where no trial validates before its first step.
    lines = TRACK3.splitlines(keepends=True)
    bare = read_runs(written(tmp_path, "".join([*lines[1:4], *lines[5:]]), "bare.txt"))
    assert [len(run.validations) for run in bare] == [3, 2]
    assert len(group_runs(bare)) == 1


def test_further_fields_are_passed_over_and_an_end_that_all_trials_share_is_the_end(
    tmp_path: Path,
) -> None:
    program = f"{TRACK3_PROGRAM}\n{RULE}\n"
    one = read_log(written(tmp_path, program + FIELDS, "one"))
    assert [(p.steps, p.loss, p.seconds) for p in one.validations] == [
        (1250, 3.57062, 4612.01),
        (2850, 3.27897, 2137.538),
        (2860, 3.27837, 2145.235),
    ]
    assert one.final_loss is None  # it may as well have been killed there
    other = read_log(written(tmp_path, program + FIELDS.replace("3.27837", "3.27899"), "other"))
    (group,) = group_runs([one, other])
    assert [run.final_loss for run in group.runs] == [3.27837, 3.27899]
    assert any("stop at step 2,860 of 2,900" in note for note in compare([one, other]).notes)
    cut = read_log(
        written(tmp_path, program + "".join(FIELDS.splitlines(keepends=True)[:2]), "cut")
    )
    assert [run.final_loss for run in group_runs([one, cut])[0].runs] == [None, None]


@pytest.mark.parametrize(
    ("program", "tokens"),
    [
        ("    batch_size = 8*64*1024 # batch size in tokens\n    seq_len = 64*1024 # x", 524_288),
        ("    train_batch_size: int = 2048 * 24 * 8\n    val_batch_size: int = 4 * 64", 393_216),
        ("batch_size = 524288\n", 524_288),
        ("assert world_size == 8 # 8xH100\n    train_seq_len = 48*1024 # FlexAttention", 393_216),
        ("    seq_len = 48*1024 # FlexAttention", None),  # of one process of how many?
        ("    batch_size : int = 8*64 # batch size, in sequences, across all devices", None),
        ("    train_bs_schedule: tuple = (8 * 2048 * 8, 16 * 2048 * 8)", None),
    ],
)
def test_the_batch_is_read_where_a_program_of_2025_or_2026_says_it(
    tmp_path: Path, program: str, tokens: int | None
) -> None:
    log = written(tmp_path, f"import torch\n{program}\n{RULE}\n{LATER}")
    assert read_log(log).validations[1].tokens == (None if tokens is None else 125 * tokens)


def test_runs_of_which_one_does_not_say_its_tokens_are_compared_by_steps(tmp_path: Path) -> None:
    known, unknown = written(tmp_path, whole(), "known"), written(tmp_path, LATER, "unknown")
    found = compare([*read_runs(known), *read_runs(unknown)], axis="auto")
    assert found.axis == "steps"
    assert found.notes[0].startswith(f"{unknown} does not say how many tokens a step has")
    assert compare(read_runs(known), axis="auto").axis == "tokens"


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
    assert run.gaps == (() if step is not None else (125,))
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
