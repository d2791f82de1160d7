"""What a user can get wrong: one line on standard error, exit code 2, nothing damaged.

Each test gives the command one kind of bad input. `refuse` runs a command and compares every file
below the test's folder before and after.
"""

import errno
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from quintic import run_dir
from quintic.checkpoint import WholeCheckpoint, read_state
from quintic.cli.main import main
from quintic.console import Console
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.gpt2_tokenizer import _r50k
from quintic.data.shards import HEADER_BYTES, write_shard
from quintic.errors import QuinticError
from quintic.metrics_file import read_records, truncate_metrics
from quintic.resuming import resume
from quintic.run_checkpoints import checkpoints, newest_whole
from quintic.run_dir import record_environment

Refuse = Callable[..., str]
Capture = pytest.CaptureFixture[str]


def files_below(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Refuse:
    """refuse(*arguments) -> the message of a command that must be refused without a trace.

    `writes` names files that the command may have written all the same.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, writes: str = "$^") -> str:
        before = files_below(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert err.startswith("quintic: ")
        assert err.count("\n") == 1
        after = files_below(tmp_path)
        changed = {name for name in before | after if before.get(name, 0) != after.get(name, 0)}
        assert not {name for name in changed if not re.search(writes, name)}
        return err.removeprefix("quintic: ").strip()

    return run


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished tiny run, with checkpoints at steps 8 and 12."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    assert [path.name for path in checkpoints(folder / "checkpoints")] == [
        "step-00000008",
        "step-00000012",
    ]
    return folder


@pytest.fixture
def run_at_8(run: Path) -> Path:
    """A copy of the tiny run as it was when stopped after step 8."""
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    return run


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, to be damaged."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    return folder


def losses(folder: Path) -> list[tuple[int, float | None, float | None]]:
    return [
        (record["step"], record.get("train_loss"), record.get("val_loss"))
        for record in read_records(folder / "metrics.jsonl")
    ]


# The command line ---------------------------------------------------------------------------------


def test_unknown_recipe_is_answered_with_the_nearest(refuse: Refuse) -> None:
    assert refuse("train", "modedd") == (
        "there is no recipe 'modedd': did you mean modded? "
        "the recipes are laptop, laptop-plain, modded, modded-adamw, speedrun, modded-medium, "
        "modded-xl, gpt2, and ladder:N"
    )


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--model.widht", "--model.width"),
        ("--optim.muon.lrr", "--optim.muon.lr"),
        ("--optim.muon.ns_step", "--optim.muon.ns-steps"),
        ("--train.batch-tokns", "--train.batch-tokens"),
        ("--warmup-steps", "--optim.schedule.warmup-steps"),
    ],
)
def test_unknown_field_is_answered_with_the_nearest(
    option: str, nearest: str, refuse: Refuse, tiny: list[str]
) -> None:
    message = refuse(*tiny, option, "3")
    assert message == f"there is no option {option}: did you mean {nearest}?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--train.steps ten", "--train.steps is 'ten': it must be an integer"),
        ("--optim.muon.lr x", "--optim.muon.lr is 'x': it must be a number"),
        ("--train.steps 0", "train.steps is 0: it must be positive"),
        ("--train.log-to foo --train.seed 3", "--train.log-to has 'foo': each must be one of tens"),
        ("--train.log_to wandb foo", "--train.log-to has 'foo': each must be one of tensorboard, "),
        ("--train.log-to=foo", "--train.log-to has 'foo': each must be one of tensorboard, wandb"),
        ("--model.layers -2", "model.layers is -2: it must be positive"),
        ("--optim.muon.lr nan", "optim.muon.lr is nan: it must be finite"),
        ("--optim.muon.lr 1e300", "optim.muon.lr is 1e+300: it must be at most 1e12"),
        (
            "--optim.adamw.weight-decay 1e39",
            "optim.adamw.weight_decay is 1e+39: it must be at most",
        ),
        ("--optim.clip-norm 1e200", "optim.clip_norm is 1e+200: it must be at most 1e12"),
        ("--optim.adamw.weight-decay -1", "optim.adamw.weight_decay is -1.0: it must be zero or"),
        ("--optim.muon.momentum 1", "optim.muon.momentum is 1.0: it must be at least 0 and less"),
        ("--data.embedded-vocab 100", "data.embedded_vocab is 100: it must be from 512 to 65,536"),
        ("--model.width 99999999999999999999", "model.width is 99999999999999999999: it must be"),
        (
            "--model.width 33",
            "model.width 33 is not divisible by model.heads 2: choose a multiple, for example "
            "--model.width 32",
        ),
        (
            "--model.width 66",
            "the head width model.width / model.heads = 66 / 2 = 33 is odd, and rotary "
            "embeddings rotate pairs: make it even, for example with --model.width 64",
        ),
        (
            "--train.batch-tokens 250",
            "train.batch_tokens 250 is not a multiple of model.context 32: use "
            "--train.batch-tokens 256",
        ),
        (
            "--train.micro-batch 3",
            "train.batch_tokens 256 is not a multiple of train.micro_batch 3 times model.context "
            "32: the batch has 8 sequences, so --train.micro-batch must divide that",
        ),
        (
            "--train.eval-tokens 500",
            "train.eval_tokens 500 is not a multiple of model.context 32: use --train.eval-tokens "
            "512",
        ),
        (
            "--optim.schedule.warmup-steps 8",
            "optim.schedule.warmup_steps 8 and 5 steps of cooldown do not fit in train.steps 12: "
            "use --optim.schedule.warmup-steps 7, or a smaller --optim.schedule.cooldown-fraction",
        ),
        (
            "--optim.schedule.kind cosine --optim.schedule.cooldown-fraction 0.28 "
            "--optim.schedule.warmup-steps 13",
            "optim.schedule.warmup_steps 13 and 0 steps of cooldown do not fit in train.steps 12: "
            "use --optim.schedule.warmup-steps 12",
        ),
    ],
)
def test_values_of_the_wrong_type_out_of_range_or_inconsistent(
    options: str, message: str, refuse: Refuse, tiny: list[str]
) -> None:
    assert refuse(*tiny, *options.split()).startswith(message)


@pytest.mark.parametrize(
    ("option", "value", "sizes"),
    [
        ("--model.width", 2**62, f"2 layers x {2**62}"),
        ("--model.width", 2**20, f"2 layers x {2**20}"),
        ("--model.layers", 10**9, "1,000,000,000 layers x "),
    ],
)
def test_a_model_too_large_for_any_memory(
    option: str, value: int, sizes: str, refuse: Refuse, tiny: list[str]
) -> None:
    message = refuse(*tiny, option, value)
    assert message.startswith(f"the model of {sizes}") and "does not fit into memory" in message
    assert message.endswith(
        "use fewer --model.layers, or a smaller --model.width or --model.context"
    )


# The data -----------------------------------------------------------------------------------------


def test_data_folder_that_is_missing_empty_or_a_file(
    refuse: Refuse, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    way_out = "name a folder with"
    for name, problem in {
        "nowhere": "dataset nowhere does not exist",
        "file": "dataset file is not a folder",
        "empty": "dataset empty has no train shards: expected files named *_train_*.bin",
    }.items():
        message = refuse(*tiny, "--data.path", name)
        assert message.startswith(problem)
        assert way_out in message


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (
            (1234, 1, 2000),
            "is not a token shard: expected magic 20240520 (or 20240801), found 1234",
        ),
        ((20240520, 2, 2000), "has an unknown version: expected 1 for magic 20240520, found 2"),
        (
            (20240520, 1, 2100),
            "is truncated: expected 5224 bytes for the 2100 tokens of its header, found 5024 bytes",
        ),
        ((20240520, 1, 0), "is empty: its header counts 0 tokens"),
    ],
)
def test_a_shard_with_a_wrong_header_is_named_with_what_was_expected_and_found(
    header: tuple[int, int, int], problem: str, refuse: Refuse, tiny: list[str], data: Path
) -> None:
    shard = data / "tiny_val_000000.bin"
    content = shard.read_bytes()
    shard.write_bytes(struct.pack("<3i", *header) + content[12:])
    assert len(content) == HEADER_BYTES + 2 * 2000
    assert refuse(*tiny, "--data.path", data).startswith(f"shard {shard} {problem}")


@pytest.mark.parametrize(("size", "found"), [(5000, 5000), (100, 100), (0, 0)])
def test_a_shard_that_ends_too_early_is_named_with_both_sizes(
    size: int, found: int, refuse: Refuse, tiny: list[str], data: Path
) -> None:
    shard = data / "tiny_train_000002.bin"
    shard.write_bytes(shard.read_bytes()[:size])
    message = refuse(*tiny, "--data.path", data)
    assert message.startswith(f"shard {shard} is truncated: expected ")
    assert f"found {found} bytes" in message
    assert message.endswith("copy or download it again")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_token_id_beyond_the_vocabulary_is_named_with_its_shard(
    split: str, refuse: Refuse, tiny: list[str], data: Path
) -> None:
    shard = data / {"train": "tiny_train_000001.bin", "val": "tiny_val_000000.bin"}[split]
    write_shard(shard, np.concatenate([np.arange(100), [128], np.arange(1000) % 128]))
    message = refuse(*tiny, "--data.path", data)
    assert message.startswith(f"shard {shard} holds the token id 128, the model's vocabulary has ")
    assert "only the ids 0 to 127: give the model at least 129 ids" in message


def test_too_few_tokens_for_one_batch(refuse: Refuse, tiny: list[str], data: Path) -> None:
    message = refuse(*tiny, "--data.path", data, "--train.batch-tokens", 12_000)
    assert message == (
        f"{data} has 12,000 training tokens, one batch needs 12,001 (375 sequences of 32, and 1 "
        "for the last target): bring more text, or make --train.batch-tokens or --model.context "
        "smaller"
    )


def test_too_few_tokens_for_the_validation(refuse: Refuse, tiny: list[str], data: Path) -> None:
    message = refuse(*tiny, "--data.path", data, "--train.eval-tokens", 3200)
    assert "has 2,000 tokens for it: use at most 1984, with --train.eval-tokens" in message
    assert "use at most 1984" in message


def test_data_made_with_another_tokenizer(
    refuse: Refuse, tiny: list[str], text_data: Path, tmp_path: Path
) -> None:
    other = train_bpe(["one two three one two three"] * 9, 260)
    other.save(tmp_path)
    arguments = [*tiny, "--model.vocab-size", "None", "--data.path", str(text_data)]
    message = refuse(*arguments, "--data.tokenizer", tmp_path / "tokenizer.json")
    assert message.startswith(f"dataset {text_data} was made with the tokenizer 'tokenizer.json'")
    assert f"not with '{tmp_path / 'tokenizer.json'}'" in message
    assert "leave the tokenizer out" in message
    message = refuse(*arguments, "--data.tokenizer", "gpt2")
    assert "not with 'gpt2'" in message
    # Somebody exchanged the vocabulary in the dataset itself.
    shutil.copytree(text_data, tmp_path / "exchanged")
    other.save(tmp_path / "exchanged")
    message = refuse(*arguments, "--data.path", tmp_path / "exchanged")
    assert "was made with the tokenizer" in message


def test_a_model_with_fewer_ids_than_the_tokenizer(
    refuse: Refuse, tiny: list[str], text_data: Path
) -> None:
    message = refuse(*tiny, "--data.path", text_data)
    assert message == (
        f"model.vocab_size is 128 and the tokenizer of {text_data} has 320 tokens: give the model "
        "at least as many, or leave --model.vocab-size out"
    )


def test_data_without_manifest_tokenizer_or_vocabulary(refuse: Refuse, tiny: list[str]) -> None:
    message = refuse(*tiny, "--model.vocab-size", "None")
    assert "--data.tokenizer (gpt2, or a tokenizer.json)" in message
    assert "--model.vocab-size" in message
    message = refuse(*tiny, "--data.tokenizer", "nowhere.json")
    assert "tokenizer 'nowhere.json' is neither 'gpt2' nor a tokenizer.json" in message


# The run folder -----------------------------------------------------------------------------------


def test_a_run_folder_is_never_written_over(refuse: Refuse, tiny: list[str], run: Path) -> None:
    assert refuse(*tiny, "--out", run) == (
        f"{run} already holds a run: continue it with --resume {run}, or choose another --out"
    )


def test_other_peoples_folders_and_files_are_not_written_into(
    refuse: Refuse, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    message = "exists and is not an empty folder: choose another --out"
    assert refuse(*tiny, "--out", "thesis") == f"thesis {message}"
    assert refuse(*tiny, "--out", "thesis/chapter.txt") == f"thesis/chapter.txt {message}"


def test_a_file_in_the_way_of_the_folder(refuse: Refuse, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    assert refuse(*tiny) == "runs/laptop-1: Not a directory: choose another place"
    assert refuse(*tiny, "--out", "runs/a") == "runs/a: Not a directory: choose another place"


def test_a_folder_that_cannot_be_written(refuse: Refuse, tiny: list[str], tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o500)
    if os.access(sealed, os.W_OK):  # the superuser writes everywhere, except for instance here
        sealed = Path("/sys")
        if not sealed.is_dir():
            pytest.skip("the superuser can write everywhere here")
    message = refuse(*tiny, "--out", sealed / "run")
    assert message.startswith(f"{sealed / 'run'}: ")
    assert message.endswith(": check its permissions, or choose another place")


def test_a_run_folder_that_does_not_fit_on_the_disk_is_taken_away_again(
    refuse: Refuse, tiny: list[str]
) -> None:
    with largest_file(400):
        message = refuse(*tiny, "--out", "run")
    assert message == (
        "run: File too large: raise the limit on the size of a file (ulimit -f), "
        "or use another file system"
    )


def test_out_beside_resume(refuse: Refuse, run: Path) -> None:
    message = refuse("train", "--resume", run, "--out", "other")
    assert message == (
        f"{run} goes on in its own folder with --resume {run}; a new one is for more steps or "
        "other data: give --train.steps, or --force-data and --data.path"
    )


def test_another_recipe_beside_resume(refuse: Refuse, run: Path) -> None:
    message = refuse("train", "modded", "--resume", run)
    assert message == (
        f"{run} holds a run of laptop, which cannot continue as modded: leave the recipe out, or "
        "name another folder"
    )


# Resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--resume", "--auto-resume"])
def test_a_run_of_an_attempt_at_the_track_is_not_resumed(
    option: str, run: Path, refuse: Refuse
) -> None:
    attempt = run.parent / "attempt"
    attempt.mkdir()
    mine = shutil.move(run, attempt / "02-candidate")
    (attempt / "attempt.json").write_text("{}")
    resumed = ["--resume", mine] if option == "--resume" else ["laptop", "--out", mine, option]
    assert refuse("train", *resumed) == (
        f"{mine} is a run of the track's attempt in {attempt}, which trains it at one go, since "
        f"its time counts: continue that with quintic track run and --out {attempt}, or begin a "
        "run of your own with another --out"
    )


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["generate"]])
def test_a_folder_that_holds_no_run(command: list[str], refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    way_out = "(config.json is missing): name the folder that quintic train wrote"
    assert refuse(*command, "empty") == f"empty holds no run {way_out}"
    assert refuse(*command, "nowhere") == f"nowhere does not exist {way_out}"


def test_a_file_or_a_folder_within_a_run_where_its_folder_is_asked_for(
    refuse: Refuse, run: Path
) -> None:
    (run / "README.md").write_text("not a run")
    name = "name the folder that quintic train wrote, which is run"
    for command in (["train", "--resume"], ["evaluate"], ["generate"]):
        assert refuse(*command, "run/README.md") == f"run/README.md is a file: {name}"
    found = refuse("evaluate", "run/checkpoints/step-00000012")
    assert found == f"run/checkpoints/step-00000012 holds no run (config.json is missing): {name}"


def test_a_run_without_checkpoint_is_not_loaded(run: Path, refuse: Refuse) -> None:
    shutil.rmtree(run / "checkpoints")
    for command in ("evaluate", "generate"):
        assert refuse(command, run) == (
            f"{run} has no checkpoint to load: train further with --resume {run}"
        )


@pytest.mark.parametrize(
    ("kept", "emptied", "begins"),
    [
        (12, False, False),  # all losses of a run that was finished
        (12, True, False),  # as a mount point without its disk is
        (9, True, False),  # the first was whole before the second was begun, after 8 steps
        (8, True, True),  # the first could not be written
        (5, False, False),
        (4, False, True),  # none yet: the first is that of 4 steps
        (0, False, True),
    ],
)
def test_a_run_whose_checkpoints_are_lost_is_left_as_it_is_and_one_without_any_yet_begins_again(
    tiny_run: Path, tmp_path: Path, kept: int, emptied: bool, begins: bool
) -> None:
    """`kept` is how many steps have their losses."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "checkpoints")
    if emptied:
        (run / "checkpoints").mkdir()
    if kept < 12:
        truncate_metrics(run / "metrics.jsonl", kept)
    config = run_dir.read_config(run)
    if begins:
        assert resume(run, config, Console()).state.step == 0
        return
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    done = 12 if kept == 12 else kept - 1
    with pytest.raises(QuinticError) as caught:
        resume(run, config, Console())
    assert str(caught.value) == (
        f"{run} has no checkpoint any more, and metrics.jsonl says that it came to step {done}: "
        f"bring {run}/checkpoints back, or begin again with another --out, or once {run} is removed"
    )
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_run_that_was_killed_while_it_wrote_its_only_checkpoint_begins_again(
    tiny_data: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "checkpoints")
    only = {"train.checkpoint_every": 99, "train.keep_before_cooldown": False}
    config = run_dir.read_config(run).override(only)
    run_dir.write_config(run, config)
    with pytest.raises(QuinticError, match="has no checkpoint any more"):
        resume(run, config, Console())
    (run / "checkpoints" / ".step-00000012.1.writing").mkdir(parents=True)
    assert resume(run, config, Console()).state.step == 0


def test_checkpoints_behind_a_link_to_a_disk_that_is_not_mounted(
    run: Path, tmp_path: Path, refuse: Refuse
) -> None:
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    message = (
        f"{run}/checkpoints is a link to {tmp_path}/elsewhere, which is not there: bring that "
        "back, as by mounting its disk, or begin again with another --out, or once "
        f"{run} is removed"
    )
    auto = ["train", "laptop", "--out", run, "--auto-resume"]
    longer = ["train", "--resume", run, "--train.steps", "20", "--out", "new"]
    for command in (["train", "--resume", run], auto, longer):
        assert refuse(*command, writes=r"^run/\.lock$") == message


def truncate_tensors(checkpoint: Path) -> None:
    (tensors,) = checkpoint.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])


def empty_tensors(checkpoint: Path) -> None:
    (tensors,) = checkpoint.glob("*.safetensors")
    tensors.write_bytes(b"")


def flip_a_byte(checkpoint: Path) -> None:
    (tensors,) = checkpoint.glob("*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)


def remove_tensors(checkpoint: Path) -> None:
    (tensors,) = checkpoint.glob("*.safetensors")
    tensors.unlink()


def remove_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def garble_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_bytes(b"\x00\xff garbage")


def cut_state(checkpoint: Path) -> None:
    state = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(state[: len(state) // 2])


def state_of_another_kind(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text("[1, 2]")


def state_of_another_step(checkpoint: Path) -> None:
    state = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(state.replace('"step": 12', '"step": 13'))


def state_without_fingerprint(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    del state["fingerprint"]
    (checkpoint / "state.json").write_text(json.dumps(state))


def state_of_a_later_format(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "format": 99}))


def empty_folder(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


DAMAGE = [
    truncate_tensors,
    empty_tensors,
    flip_a_byte,
    remove_tensors,
    remove_state,
    garble_state,
    cut_state,
    state_of_another_kind,
    state_of_another_step,
    state_without_fingerprint,
    state_of_a_later_format,
    empty_folder,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_newest_whole_one(
    damage: Callable[[Path], None], run: Path, capsys: Capture
) -> None:
    newest = run / "checkpoints" / "step-00000012"
    damage(newest)
    main(["evaluate", str(run), "--device", "cpu", "--tokens", "32"])
    out = capsys.readouterr().out
    assert re.search(rf"^skipped: {re.escape(str(newest))}.* (is damaged|format)", out, re.M)
    assert not re.search(r"^skipped: .*(Error|Errno|'NoneType')", out, re.M)
    assert f"{run / 'checkpoints' / 'step-00000008'}, 32 validation tokens" in out


@pytest.mark.parametrize("damage", [flip_a_byte, state_of_another_kind])
def test_a_run_with_a_damaged_newest_checkpoint_continues_from_the_one_before_and_says_so(
    damage: Callable[[Path], None], run: Path, tiny_run: Path, capsys: Capture
) -> None:
    newest = run / "checkpoints" / "step-00000012"
    damage(newest)
    main(["train", "--resume", str(run)])
    out = capsys.readouterr().out
    assert f"skipped: {newest}" in out
    assert f"resuming from {run / 'checkpoints' / 'step-00000008'}" in out
    assert losses(run) == losses(tiny_run)
    assert read_state(newest)["step"] == 12, "written anew"


def test_a_disk_that_fails_is_no_checkpoint_that_does_not_fit(
    refuse: Refuse, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "some/file")

    monkeypatch.setattr("quintic.checkpoint.load", fail)
    message = refuse("evaluate", run, "--device", "cpu")
    assert message == "some/file: Input/output error: check the path and the disk"


def test_a_run_of_which_no_checkpoint_is_whole(refuse: Refuse, run: Path) -> None:
    eight, twelve = checkpoints(run / "checkpoints")
    flip_a_byte(eight)
    remove_state(twelve)
    for command in (
        ["train", "--resume"],
        ["evaluate"],
        ["evaluate", "--checkpoint", "best"],
        ["generate"],
    ):
        message = refuse(*command, run)
        assert message.startswith(f"no checkpoint in {run / 'checkpoints'} is whole: {twelve} is ")
        assert str(eight) in message
        assert "start a new run with another --out" in message


def test_a_checkpoint_under_way_when_the_process_died_is_no_checkpoint(
    run_at_8: Path, tiny_run: Path, capsys: Capture
) -> None:
    left_over = run_at_8 / "checkpoints" / ".step-00000012.1.writing"
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"half")
    main(["train", "--resume", str(run_at_8)])
    assert "step-00000008" in capsys.readouterr().out
    assert losses(run_at_8) == losses(tiny_run)
    assert not left_over.exists()


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("--optim.muon.lr 0.5", "optim.muon.lr"),
        ("--train.seed 1 --data.order shuffle", "data.order, train.seed"),
        ("--model.width 64 --train.batch-tokens 512", "model.width, train.batch_tokens"),
    ],
)
def test_fields_that_a_resume_cannot_change_are_named(
    options: str, fields: str, refuse: Refuse, run_at_8: Path
) -> None:
    assert refuse("train", "--resume", run_at_8, *options.split()) == (
        f"--resume cannot change {fields}: the 8 steps done were trained otherwise; start a new "
        "run with another --out"
    )


def test_fields_that_a_resume_may_change_give_the_same_losses(
    run_at_8: Path, tiny_run: Path, data: Path
) -> None:
    main(
        [
            *("train", "--resume", str(run_at_8), "--data.path", str(data)),
            *("--train.checkpoint-every", "3", "--train.keep-checkpoints", "9"),
        ]
    )
    assert losses(run_at_8) == losses(tiny_run)
    names = [path.name for path in checkpoints(run_at_8 / "checkpoints")]
    assert names == ["step-00000008", "step-00000009", "step-00000012"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("\ufffd\x00", "config.json is not valid JSON"),
        ("[]", "config.json: a config is an object with sections, and this is []: restore"),
        ('{"model": {"widht": 3}}', "config.json: there is no field model.widht: did you mean"),
        ('{"train": {"steps": "many"}}', "config.json: train.steps is 'many': it must be int"),
        ('{"train": {"steps": -1}}', "config.json: train.steps is -1: it must be positive"),
        ('{"optim": {"adamw": {"betas": [0.9]}}}', "config.json: optim.adamw.betas is [0.9]"),
    ],
)
def test_a_damaged_config_is_named(
    content: str, message: str, refuse: Refuse, run_at_8: Path
) -> None:
    (run_at_8 / "config.json").write_text(content)
    for command in (
        ["train", "--resume"],
        ["evaluate"],
        ["evaluate", "--checkpoint", "best"],
        ["generate"],
    ):
        assert refuse(*command, run_at_8).startswith(f"{run_at_8}/{message}")


def test_a_damaged_line_in_the_middle_of_the_metrics_is_named(
    refuse: Refuse, run_at_8: Path, tiny_run: Path
) -> None:
    path = run_at_8 / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "garbage\n", *lines[3:]]))
    message = refuse("train", "--resume", run_at_8, writes=r"environment\.json$")
    assert message == (
        f"{path} line 4 is not a record of a run: 'garbage'; repair or remove the line"
    )
    path.write_text("".join(lines))
    main(["train", "--resume", str(run_at_8)])
    assert losses(run_at_8) == losses(tiny_run)


def test_a_last_line_of_the_metrics_cut_short_is_no_harm(run_at_8: Path, tiny_run: Path) -> None:
    path = run_at_8 / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 12, "tok')
    main(["train", "--resume", str(run_at_8)])
    assert losses(run_at_8) == losses(tiny_run)


def test_a_damaged_record_of_the_environment_is_begun_anew(run_at_8: Path) -> None:
    for content in ("{", '{"date": 1}', "7", "\ufffd"):
        (run_at_8 / "environment.json").write_text(content)
        record_environment(run_at_8, torch.device("cpu"))
        (start,) = json.loads((run_at_8 / "environment.json").read_text())
        assert start["torch"] == torch.__version__


def test_two_processes_do_not_train_in_one_folder(refuse: Refuse, run_at_8: Path) -> None:
    program = (
        "import sys; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(run_at_8 / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        message = refuse("train", "--resume", run_at_8)
        other.communicate("")
    assert message == (
        f"{run_at_8} is in use by another process that trains in it: wait for it, or stop it"
    )
    main(["train", "--resume", str(run_at_8)])
    assert losses(run_at_8)[-1][0] == 12


def test_a_resume_of_a_run_in_use_picks_no_checkpoint_that_the_other_takes_away(
    refuse: Refuse, run_at_8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pick(root: Path) -> WholeCheckpoint | None:
        found = newest_whole(root)
        assert found is not None
        shutil.rmtree(found.path)  # by the process that trains
        return found

    monkeypatch.setattr("quintic.resuming.newest_whole", pick)
    with FileLock(run_at_8 / ".lock"):
        message = refuse("train", "--resume", run_at_8)
    assert message.startswith(f"{run_at_8} is in use by another process that trains in it")


# Disk full ----------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses (EFBIG) what would make any file larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_whole(folder: Path, steps: list[int]) -> None:
    """Exactly these checkpoints, all whole, and nothing half written beside them."""
    found = checkpoints(folder / "checkpoints")
    assert [read_state(path)["step"] for path in found] == steps
    assert sorted((folder / "checkpoints").iterdir()) == found
    assert not list(folder.glob(".*.tmp"))


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones_whole(
    refuse: Refuse, run_at_8: Path, tiny_run: Path
) -> None:
    before = files_below(run_at_8 / "checkpoints")
    sizes = [path.stat().st_size for path in run_at_8.rglob("*.safetensors")]
    with largest_file(min(sizes) - 1):
        message = refuse(
            "train", "--resume", run_at_8, writes=r"(environment|metrics|config|loss)\.\w+$"
        )
    assert message == (
        f"could not write a checkpoint to {run_at_8}/checkpoints: File too large; what is there is "
        f"whole (the last checkpoint is {run_at_8}/checkpoints/step-00000008): raise the limit on "
        "the size of a file (ulimit -f), or use another file system, then continue with --resume "
        f"{run_at_8}"
    )
    assert files_below(run_at_8 / "checkpoints") == before
    main(["train", "--resume", str(run_at_8)])
    assert losses(run_at_8) == losses(tiny_run)
    assert_whole(run_at_8, [8, 12])


def test_metrics_that_cannot_be_written_are_named_and_the_run_continues_afterwards(
    refuse: Refuse, run_at_8: Path, tiny_run: Path
) -> None:
    path = run_at_8 / "metrics.jsonl"
    with path.open("a") as file:  # so that it is the largest file that is written again
        file.writelines('{"step": 7, "tokens": 1792, "padding/acc": 0.5}\n' for _ in range(100))
    records = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < 8]
    size = len("\n".join(records)) + 1
    # The config is written again as it is; the environment gets an entry for the resume.
    config, environment = (run_at_8 / f"{name}.json" for name in ("config", "environment"))
    fits = max(size + 100, config.stat().st_size, environment.stat().st_size + 900)
    with largest_file(fits):
        message = refuse(
            "train", "--resume", run_at_8, writes=r"(environment|metrics|config|loss)\.\w+$"
        )
    assert message == (
        f"{run_at_8}: File too large; the last checkpoint is {run_at_8}/checkpoints/step-00000008: "
        "raise the limit on the size of a file (ulimit -f), or use another file system, then "
        f"continue with --resume {run_at_8}"
    )
    assert_whole(run_at_8, [8])
    main(["train", "--resume", str(run_at_8)])
    assert [r for r in losses(run_at_8) if r[1:] != (None, None)] == losses(tiny_run)


def test_a_file_system_that_is_full_leaves_checkpoints_whole_and_the_run_resumes(
    tiny_run: Path, tmp_path: Path
) -> None:
    """The real thing: a file system of one MiB, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    small = tmp_path / "small"
    small.mkdir()
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0"'
    if (
        unshare is None
        or subprocess.run(
            [unshare, "--mount", "--map-root-user", "sh", "-c", mount, str(small)],
            capture_output=True,
        ).returncode
    ):
        pytest.skip("this system does not let us mount a small file system")
    script = f"""
{mount} && cp -r "$1" "$0/run" && rm -r "$0/run/checkpoints/step-00000012" || exit 99
free=$(df -k --output=avail "$0" | tail -1)
dd if=/dev/zero of="$0/ballast" bs=1024 count=$((free - 60)) 2> /dev/null
"$2" -m quintic train --resume "$0/run"
code=$?
cp -r "$0/run" "$3"
exit $code
"""
    done = subprocess.run(
        [
            *(unshare, "--mount", "--map-root-user", "sh", "-c", script, str(small)),
            *(str(tiny_run), sys.executable, str(tmp_path / "after")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert re.match(r"quintic: .*No space left on device.*make room", done.stderr)
    assert_whole(tmp_path / "after", [8])
    main(["train", "--resume", str(tmp_path / "after")])
    assert losses(tmp_path / "after") == losses(tiny_run)


def test_memory_that_does_not_suffice_for_a_step_is_said_without_an_allocators_words(
    refuse: Refuse, run_at_8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quintic.train.forward_backward", lambda *_: torch.empty(2**50))
    does_not_fit = "does not fit into the memory of cpu (4194304.00 GiB more were asked for): use"
    for micro_batch, smaller in ((8, "--train.micro-batch 4"), (1, "a smaller --model.context")):
        found = refuse(
            *("train", "--resume", run_at_8, "--train.micro-batch", micro_batch),
            writes=r"(environment|metrics|config)\.\w+$",
        )
        assert found == f"train.micro_batch {micro_batch} {does_not_fit} {smaller}"


# The machine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_asked_for_and_absent(
    device: str, refuse: Refuse, tiny: list[str], run: Path
) -> None:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if present[device]:
        pytest.skip(f"this machine has {device}")
    for command in (
        [*tiny, "--train.device", device],
        ["train", "--resume", str(run), "--train.device", device],
        ["evaluate", str(run), "--device", device],
        ["generate", str(run), "--device", device],
    ):
        message = refuse(*command)
        assert message.startswith(f"there is no {device} device here that PyTorch ")
        assert message.endswith("ask for one of these, or for auto")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and an empty cache for tiktoken, whose folder this is."""
    # Nothing listens on port 9 of this machine: a download fails at once, wherever the test runs.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    cache = tmp_path / "tiktoken-cache"
    cache.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    _r50k.cache_clear()  # an earlier test may have loaded it
    return cache


def test_a_vocabulary_that_cannot_be_downloaded_is_missed_by_generate_alone(
    offline: Path, tiny: list[str], refuse: Refuse, tmp_path: Path, capsys: Capture
) -> None:
    """Training and evaluation need ids only: they work and say what they had to leave out."""
    options = ["--data.tokenizer", "gpt2", "--model.vocab-size", "None", "--train.steps", "2"]
    main([*tiny, *options, "--out", "run"])
    out = capsys.readouterr().out
    assert "vocabulary 50,304" in out
    assert "no bits per byte: GPT-2's vocabulary cannot be downloaded" in out
    assert "figure  run/loss.png" in out
    assert losses(tmp_path / "run")[-1][0] == 2

    main(["evaluate", "run", "--device", "cpu"])
    out = capsys.readouterr().out
    assert re.search(r"validation loss [\d.]+ nats per token, perplexity [\d.]+\n", out)
    assert "no bits per byte: GPT-2's vocabulary cannot be downloaded" in out

    message = refuse("generate", "run", "--device", "cpu", writes="tiktoken-cache")
    assert message.startswith("GPT-2's vocabulary cannot be downloaded")
    assert (
        "tiktoken's file r50k_base.tiktoken, put it under the name "
        "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4 into the folder that TIKTOKEN_CACHE_DIR names"
    ) in message
    assert str(offline) in message


def test_a_tokenizer_that_training_needs_for_its_numbers_must_be_there(
    refuse: Refuse, tiny: list[str], text_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(text_data, tmp_path / "data")
    (tmp_path / "data" / "tokenizer.json").unlink()
    message = refuse(*tiny, "--data.path", "data", "--model.vocab-size", "None")
    assert "no file data/tokenizer.json" in message


# Divergence ---------------------------------------------------------------------------------------


def weights_of(checkpoint: Path) -> Iterator[torch.Tensor]:
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield tensors.get_tensor(name)


@pytest.mark.parametrize(
    ("learning_rate", "checkpoint_every", "rule"),
    [
        # The first update already overflows float32.
        ("1e39", 1, r"is not finite after step 1 and was not saved: there is no checkpoint yet"),
        # Weights of 1e30 are finite; what comes of them is not.
        ("1e30", 1, r"not finite after step 2 and .*: the last checkpoint is run/.*/step-00000001"),
        ("1e30", 99, r"^the loss is \w+ at step \d: training has diverged, there is no checkpoint"),
    ],
)
def test_a_run_that_diverges_names_step_and_last_checkpoint_and_saves_no_such_weights(
    learning_rate: str,
    checkpoint_every: int,
    rule: str,
    tiny: list[str],
    refuse: Refuse,
    tmp_path: Path,
) -> None:
    message = refuse(
        *(*tiny, "--optim.adamw.lr", learning_rate, "--out", "run"),
        *("--train.checkpoint-every", checkpoint_every, "--train.keep-checkpoints", 99),
        writes="^run",
    )
    assert re.search(rule, message)
    assert message.endswith(
        "; start again with a lower --optim.muon.lr or --optim.adamw.lr, in another --out, or in "
        "this one once run is removed"
    )
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        for tensor in weights_of(path):
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all()
    if learning_rate == "1e39":
        assert refuse(*tiny, "--out", "run") == (
            "run already holds a run: continue it with --resume run, choose another --out, or "
            "remove it, since it has no checkpoint"
        )
        assert refuse("train", "--resume", "run", "--optim.adamw.lr", "0.1") == (
            "--resume cannot change optim.adamw.lr: run was begun otherwise; remove it, of which "
            "no step is saved, or start a new run with another --out"
        )


def test_a_diverged_run_can_be_looked_at(
    tiny: list[str], refuse: Refuse, tmp_path: Path, capsys: Capture
) -> None:
    refuse(*tiny, "--optim.adamw.lr", "1e30", "--out", "run", writes="^run")
    records: list[dict[str, Any]] = read_records(tmp_path / "run" / "metrics.jsonl")
    assert not np.isfinite([list(r.values())[2] for r in records]).all(), "the loss is on record"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--force-data"], "--force-data is for a run that continues: give --resume"),
        (["--max-restarts", "3"], "--max-restarts is for processes that --procs starts"),
        (["--max-restarts", "-1", "--procs", "2"], "--max-restarts is -1: it must be 0 or more"),
    ],
)
def test_an_option_that_has_nothing_to_act_on(
    refuse: Refuse, options: list[str], message: str
) -> None:
    assert message in refuse("train", *options)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b"])
def test_a_recipe_whose_name_is_no_folder(refuse: Refuse, tmp_path: Path, name: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"recipe": name}))
    assert "it names the folder of the run" in refuse("train", "r.json")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_a_shuffle_beyond_its_range(refuse: Refuse, tmp_path: Path, seed: int) -> None:
    (tmp_path / "text.txt").write_text("text")
    line = refuse("data", "build", "text.txt", "--out", "out", "--shuffle", seed)
    assert f"--shuffle is {seed}: it must be from 0 to 2**64 - 1" in line


def test_the_largest_learning_rates_and_decays_diverge_in_one_line(
    tiny: list[str], refuse: Refuse
) -> None:
    for names in (["muon"], ["adamw"], ["muon", "adamw"]):
        options = [f"--optim.{n}.{what}=1e12" for n in names for what in ("lr", "weight-decay")]
        message = refuse(*tiny, *options, "--out", "-".join(names), writes="muon|adamw")
        assert "training has diverged" in message


def test_a_run_in_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_computed(
    tiny: list[str], tiny_run: Path, tmp_path: Path, refuse: Refuse
) -> None:
    # safetensors would write checkpoints there that it cannot read again.
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    message = (
        f"{str(folder)!r} is not UTF-8, and no run can be read from a folder of such a name: name "
        "another folder, or rename this one"
    )
    assert refuse(*tiny, "--out", folder) == message
    assert refuse("sweep", *tiny[1:], "--vary", "optim.muon.lr=1,2", "--out", folder) == message
    shutil.copytree(tiny_run, folder)
    for arguments in (
        ["train", "--resume"],
        ["evaluate"],
        ["evaluate", "--checkpoint", "best"],
        ["generate"],
    ):
        assert refuse(*arguments, folder) == message


def test_data_in_a_folder_whose_name_is_not_utf8_is_data(
    tiny: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(tiny_data, folder)
    main([*tiny, "--data.path", str(folder), "--out", str(tmp_path / "run")])
    main(["train", "--resume", str(tmp_path / "run")])
