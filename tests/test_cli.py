"""The command line: what each command prints, writes and refuses to import."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

import quintic
from quintic import run_dir
from quintic.checkpoint import load_tensors
from quintic.cli.generate import _prompts
from quintic.cli.main import main
from quintic.cli.options import COMMANDS, Generate
from quintic.cli.parsing import parse
from quintic.config import Config, DataConfig, MuonConfig, differing_fields
from quintic.console import Console
from quintic.data.bpe_tokenizer import train_bpe
from quintic.data.dataset import open_dataset
from quintic.data.load_tokenizer import load_tokenizer
from quintic.data.shards import write_shard
from quintic.evaluate import gzip_bytes
from quintic.metrics_file import read_records
from quintic.model import int8
from quintic.recipes import RECIPES
from quintic.setup import start
from quintic.train import evaluate_run, train_run
from quintic.trained import load_trained
from tests.conftest import TINY_VOCAB, refusal, tiny_config
from tests.test_evaluate import rolling_nats

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own and on a terminal of one width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def output(arguments: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    main(arguments)
    return capsys.readouterr().out


def help_of(arguments: list[str], capsys: Capture) -> str:
    """A help text, with its boxes and line ends taken out."""
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert not caught.value.code
    return " ".join(re.sub(r"[|│\-─+╭╮╰╯']{2,}|[|│]", " ", capsys.readouterr().out).split())


# Help ---------------------------------------------------------------------------------------------


def test_help_lists_the_commands_and_is_what_no_arguments_give(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert not caught.value.code
    bare = capsys.readouterr().out
    for command in ("train", "sweep", "evaluate", "generate", "recipes", "data"):
        assert re.search(rf"\b{command}\b", bare)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out == bare


def test_help_of_train_shows_every_field_with_the_recipes_value_as_default(capsys: Capture) -> None:
    for recipe, expected in {
        "laptop": ["(default: 0.012)", "(default: aspect)", "(default: embedded)"],
        "gpt2": ["(default: 0.0006)", "(default: 700)", "(default: 18865)", "(default: 0.9 0.95)"],
    }.items():
        text = help_of(["train", recipe], capsys)
        for default in expected:
            assert default in text
    for line in ("model.width INT", "optim.muon.ns steps INT", "train.batch tokens INT"):
        section, _, rest = line.partition(" ")
        assert f"{section}{'-' if rest.split()[0] != 'INT' else ' '}{rest}" in text


def test_help_of_each_command_shows_its_defaults(capsys: Capture) -> None:
    assert "Folder of the run. (required)" in help_of(["evaluate"], capsys)
    text = help_of(["generate"], capsys)
    for default in ("(default: 200)", "(default: 0.8)", "(default: 50)", "(default: newest)"):
        assert default in text
    assert "Folder of shards. (required)" in help_of(["data", "check"], capsys)


def test_help_and_a_mistyped_option_do_not_wait_for_pytorch() -> None:
    program = """
import sys
from quintic.cli.main import main
for arguments in (["--help"], ["train", "--help"], ["train", "--train.stps", "3"], ["trian"],
                  ["sweep", "--help"], ["sweep", "--vary", "optim.muon.rl=1"]):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = {"torch", "numpy", "matplotlib", "tokenizers", "tiktoken", "tensorboard"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines[-1] == "[]"
    assert lines[0] == "quintic: there is no option --train.stps: did you mean --train.steps?"


# Mistakes on the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --train.steps abc", "--train.steps is 'abc': it must be an integer"),
        ("train --train.steps=1.5", "--train.steps is '1.5': it must be an integer"),
        ("train --train.steps 3 --train.steps x", "--train.steps is 'x': it must be an integer"),
        ("train --optim.muon.lr fast", "--optim.muon.lr is 'fast': it must be a number"),
        (
            "train --train.micro_batch x",
            "--train.micro-batch is 'x': it must be an integer or None",
        ),
        (
            "train --optim.adamw.betas 0.9 x",
            "--optim.adamw.betas is '0.9 x': it must be 2 values, each a number",
        ),
        ("train --train.steps", "--train.steps needs an integer: see quintic train --help"),
        ("train --resume", "--resume needs a folder or None: see quintic train --help"),
        (
            "train --optim.adamw.betas 0.9",
            "--optim.adamw.betas needs 2 values, each a number: see quintic train --help",
        ),
        (
            "train --model.architecture foo",
            "--model.architecture is 'foo': it must be one of gpt, gpt2",
        ),
        (
            "evaluate run --checkpoint oldest",
            "--checkpoint is 'oldest': it must be one of newest, best",
        ),
        (
            "train --train.no-tensorboard",
            "there is no option --train.no-tensorboard: did you mean --train.log-to?",
        ),
        (
            "train --train.log-to wandb mlfow",
            "--train.log-to has 'mlfow': each must be one of tensorboard, wandb, trackio, mlflow",
        ),
        ("train --model.widht 3", "there is no option --model.widht: did you mean --model.width?"),
        (
            "train --optim.muon.lrr=3",
            "there is no option --optim.muon.lrr: did you mean --optim.muon.lr?",
        ),
        (
            "train --train.batch_tokenz 3",
            "there is no option --train.batch_tokenz: did you mean --train.batch-tokens?",
        ),
        (
            "train --optim.muon.ns-stepz 3",
            "there is no option --optim.muon.ns-stepz: did you mean --optim.muon.ns-steps?",
        ),
        ("train --steps 3", "there is no option --steps: did you mean --train.steps?"),
        ("train --lr 3", "there is no option --lr: did you mean --optim.muon.lr?"),
        ("train --train.no-compil", "there is no option --train.no-compil: did you mean "),
        ("train --wibble", "there is no option --wibble: see quintic train --help"),
        ("generate run --toknes 3", "there is no option --toknes: did you mean --tokens?"),
        ("generate --toknes 3", "there is no option --toknes: did you mean --tokens?"),
        ("generate run --model.width 3", "there is no option --model.width: see quintic generate"),
        ("generate", "generate needs the folder of the run: see quintic generate --help"),
        ("data push d --to hub:a/b", "there is no option --to: see quintic data push --help"),
        ("generate --run d", "there is no option --run: see quintic generate --help"),
        ("data check", "data check needs the folder of shards: see quintic data check --help"),
        ("data build text", "data build needs --out, the folder of the dataset; new, empty, or of"),
        ("generate run other", "generate does not understand 'other': see quintic generate --help"),
        ("train laptop extra", "train does not understand 'extra': see quintic train --help"),
        (
            "train --train.compile 5",
            "train does not understand '5': a recipe comes first, and ",
        ),
        (
            "train laptop --model.tied_head false",
            "--model.tied-head is 'false', and a switch takes no value: give --model.tied-head for "
            "True and --model.no-tied-head for False",
        ),
        ("compare --no-paired=True a b", "--no-paired is 'True', and a switch takes no value"),
        ("train laptop --out a --train.seed 3 --out=b", "--out is given 2 times: give it once"),
        (
            "train --train.seed 3 modded",
            "the recipe 'modded' must come first: quintic train modded",
        ),
        (
            "trian",
            "there is no command 'trian': did you mean train? the commands are train, sweep, ",
        ),
        ("--wibble", "there is no command '--wibble': the commands are train, "),
        ("data", "data needs one of fetch, build, import, export, push, info, check: see"),
        ("data chek x", "there is no command 'chek': did you mean check? the commands are "),
        (
            "train lapto",
            "there is no recipe 'lapto': did you mean laptop? the recipes are laptop, ",
        ),
        ("train --train.seed -1", "train.seed is -1: it must be from 0 to 2**64 - 1"),
    ],
)
def test_a_mistyped_command_gets_one_line_with_value_rule_and_way_out(
    command: str, message: str, capsys: Capture, tmp_path: Path
) -> None:
    assert refusal(command.split(), capsys).startswith(message)
    assert not list(tmp_path.iterdir())


def test_every_command_is_known_to_what_explains_its_mistakes(capsys: Capture) -> None:
    """Else a mistyped option of a new command would be answered without its nearest."""
    commands = refusal(["x"], capsys).split("the commands are ")[1].split(", ")
    for group in ("data", "muon", "track"):
        inside = refusal([group, "x"], capsys).split("the commands are ")[1]
        commands += [f"{group} {name}" for name in inside.split(", ")]
        commands.remove(group)
    assert sorted(commands) == sorted(COMMANDS)


def test_the_version_of_tyro_is_pinned_since_its_hook_for_errors_is_private() -> None:
    """With another version the messages above may be lost: run these tests, then move the pin."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert f"tyro=={tyro.__version__}" in project["dependencies"]


def test_on_a_narrow_terminal_in_colour_the_message_is_the_same_plain_line(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "quintic", "train", "--train.device", "gpu"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "40"},
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert done.stderr == (
        "quintic: --train.device is 'gpu': it must be one of auto, cuda, mps, cpu\n"
    )


@pytest.mark.parametrize(
    ("command", "package"), [("compare run", "scipy"), ("data info data", "pyarrow")]
)
def test_a_command_whose_extra_is_not_installed_says_how_to_install_it(
    command: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = command.split()[0]
    assert refusal(command.split(), capsys) == (
        f"quintic {name} needs the package {package}: pip install 'quintic[{name}]'"
    )


# recipes ------------------------------------------------------------------------------------------


def test_recipes_prints_every_recipe_with_size_tokens_hardware_and_expected_loss(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = output(["recipes"], capsys)
    for name in RECIPES:
        assert re.search(rf"^ +{name} +[\d.]+M +[\d,]+M ", text, re.MULTILINE), "nothing is cut off"
    assert re.search(r"modded +123\.6M +2,674M +one 80 GB GPU", text)
    assert re.search(r"gpt2 +124\.5M +9,891M +one 80 GB GPU +3\.285 FineWeb", text)


# train --------------------------------------------------------------------------------------------


def test_overrides_reach_config_json_and_the_rest_is_the_recipes(tiny_run: Path) -> None:
    config = run_dir.read_config(tiny_run)
    assert (config.recipe, config.model.width, config.model.vocab_size) == ("laptop", 32, 128)
    assert (config.train.steps, config.train.log_to) == (12, ())
    laptop = RECIPES["laptop"].build()
    changed = {f for f in differing_fields(config, laptop) if f.startswith("optim.")}
    assert changed == {
        *("optim.muon.lr", "optim.adamw.lr", "optim.adamw.head_lr"),
        "optim.schedule.cooldown_fraction",
    }
    assert config.optim.muon.scale == "aspect"
    assert config.train.micro_batch == 8, "what was left to quintic is resolved"
    assert config.train.precision == "float32"
    assert Path(config.data.path).is_absolute()
    saved = json.loads((tiny_run / run_dir.CONFIG).read_text())
    assert Config.from_dict(saved) == config


def test_what_an_option_switches_off_takes_the_recipes_settings_of_it_along() -> None:
    command = parse(["train", "laptop", "--optim.matrices", "sgd", "--data.path", "some/folder"])
    laptop = RECIPES["laptop"].build()
    assert (laptop.optim.muon.lr, laptop.data.embedded_vocab) == (0.012, 2048)
    assert command.optim == replace(laptop.optim, matrices="sgd", muon=MuonConfig())
    assert command.data == DataConfig(path="some/folder", order="shuffle")


def test_an_option_without_effect_is_refused_also_where_it_says_what_the_file_says(
    tmp_path: Path, capsys: Capture
) -> None:
    """Fails where a value that is the recipe's counts as not given."""
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"optim": {"muon": {"lr": 0.007, "normuon": True}}}))
    for options in (["--optim.muon.lr=0.007"], ["--optim.muon.normuon"]):
        message = refusal(["train", path, "--optim.matrices", "sgd", *options], capsys)
        field, value = ("lr", 0.007) if "lr" in options[0] else ("normuon", True)
        assert message == (
            f"optim.muon.{field} is {value}, which has no effect with optim.matrices sgd: leave it "
            "out, or use --optim.matrices muon"
        )
    command = parse(["train", str(path), "--optim.matrices", "sgd"])
    assert command.optim.muon == MuonConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.sgd.lr", "0.5"], "optim.sgd.lr is 0.5, which has no effect with optim.matrices"),
        (
            ["--train.cast-once"],
            "there is no option --train.cast-once: did you mean --train.cache-",
        ),
        (
            ["--train.no-cast-once"],
            "no option --train.no-cast-once: did you mean --train.no-cache-",
        ),
        (["--train.upload=ahead"], "--train.upload: did you mean --train.prefetch-to-gpu?"),
        (["--model.embed_shortcut"], "--model.embed_shortcut: did you mean --model.x0-skip?"),
    ],
)
def test_what_has_no_effect_and_old_names_are_refused(
    options: list[str], message: str, capsys: Capture
) -> None:
    assert message in refusal(["train", "laptop", *options], capsys)


def test_hyphen_and_underscore_and_equals_sign_name_the_same_option(
    tiny: list[str], tmp_path: Path
) -> None:
    spellings = ["--train.eval_every=4", "--optim.adamw.betas", "0.8", "0.9", "--train.seed", "7"]
    main([*tiny, "--train.steps", "2", *spellings, "--out", "run"])
    config = run_dir.read_config(tmp_path / "run")
    assert (config.train.eval_every, config.train.seed) == (4, 7)
    assert config.optim.adamw.betas == (0.8, 0.9)


def test_a_run_says_what_was_chosen_and_what_to_do_next(tiny: list[str], capsys: Capture) -> None:
    text = output([*tiny, "--train.steps", "2", "--out", "run"], capsys)
    for beginning in ("device  cpu", "model   gpt, 2 layers x 32", "optim   Muon on", "data    "):
        assert re.search(rf"^{re.escape(beginning)}", text, re.MULTILINE)
    assert "AdamW on 1 parameter (4,096 elements), lr 0.005" in text
    assert "step 0/2  validation loss " in text
    assert "step 2/2  validation loss " in text
    assert "figure  run/loss.png" in text
    assert "\x1b" not in text, "plain lines where there is no terminal"


def test_default_folders_are_numbered_by_recipe_and_a_refused_start_takes_no_number(
    tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    short = [*tiny, "--train.steps", "1"]
    main(short)
    refusal([*short, "--data.path", "nowhere"], capsys)
    main(short)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["laptop-1", "laptop-2"]
    for folder in (tmp_path / "runs").iterdir():
        assert (folder / run_dir.CONFIG).exists()


def test_an_empty_folder_may_be_the_out(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    main([*tiny, "--train.steps", "1", "--out", "empty"])
    assert len(read_records(tmp_path / "empty" / "metrics.jsonl")) == 3


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    tiny_run: Path, capsys: Capture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    text = output(["train", "--resume", str(tiny_run)], capsys)
    assert text == f"resuming from {tiny_run}/checkpoints/step-00000012\n" + (
        f"{tiny_run} is complete: all 12 steps are done\n"
    )
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_python_dash_m_is_the_command_and_a_closed_pipe_is_no_error_to_tell() -> None:
    """As `python -m quintic recipes | true`: the reader is gone before the first line comes."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "quintic", "recipes"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["train", "--help"], ["--help"]])
def test_a_help_text_into_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "quintic", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_training_goes_on_where_the_reader_of_its_output_goes_away(
    tiny: list[str], tmp_path: Path
) -> None:
    """As with `| head -1`: the reader is gone while the run trains."""
    command = [sys.executable, "-m", "quintic", *tiny, "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"device")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "run" / "checkpoints" / "step-00000012" / "state.json").exists()


# evaluate -----------------------------------------------------------------------------------------


def loss_in(text: str) -> float:
    found = re.search(r"validation loss ([\d.]+) nats per token", text)
    assert found
    return float(found[1])


def test_evaluate_gives_the_loss_that_the_run_measured_at_its_end(
    tiny_run: Path, capsys: Capture
) -> None:
    text = output(["evaluate", str(tiny_run), "--device", "cpu"], capsys)
    last = read_records(tiny_run / "metrics.jsonl")[-1]
    assert loss_in(text) == pytest.approx(last["val_loss"], abs=1e-4)
    assert "step-00000012, 512 validation tokens" in text
    assert "no bits per byte" in text, "nobody knows the tokenizer of the tiny data"


def test_evaluate_with_a_tokenizer_gives_bits_per_byte_beside_gzip_and_unigram(
    text_run: Path, capsys: Capture
) -> None:
    text = output(["evaluate", str(text_run), "--device", "cpu", "--checkpoint", "best"], capsys)
    assert re.search(r"perplexity [\d.]+, [\d.]+ bits per byte\n", text)
    assert re.search(r"gzip -9 [\d.]+, unigram model [\d.]+ bits per byte\n", text)


def test_evaluate_takes_a_number_of_tokens_and_refuses_one_that_does_not_fit(
    tiny_run: Path, capsys: Capture
) -> None:
    command = ["evaluate", str(tiny_run), "--device", "cpu", "--tokens"]
    assert "step-00000012, 64 validation tokens" in output([*command, "64"], capsys)
    assert "use a multiple of the context, such as 32" in refusal([*command, "33"], capsys)
    assert "validation on 0 tokens" in refusal([*command, "0"], capsys)
    assert "use at most 1984" in refusal([*command, "3200"], capsys)


def test_evaluate_of_a_moved_dataset_gives_the_same_loss_and_of_another_one_is_refused(
    tiny_run: Path, tiny_data: Path, text_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["evaluate", str(tiny_run), "--device", "cpu"]
    (tmp_path / "moved").mkdir()
    for number, shard in enumerate(sorted(tiny_data.iterdir())):
        split = "val" if "_val_" in shard.name else "train"
        (tmp_path / "moved" / f"renamed_{split}_{number}.bin").write_bytes(shard.read_bytes())
    expected = loss_in(output(command, capsys))
    assert loss_in(output([*command, "--data", "moved"], capsys)) == expected
    message = refusal([*command, "--data", text_data], capsys)
    assert message == (
        f"{tiny_run} does not say which tokenizer it was trained with: name it, gpt2 or a "
        "tokenizer.json, with --tokenizer"
    )


LONG = "".join(f"def other_{i}(x):\n    return x * {i} - 'ünseen'\n\n" for i in range(9))
SHORT = "def f(x):"


def documents(folder: Path) -> tuple[str, str]:
    """Two files of text: one of several contexts and a part of one, one of less than one."""
    (folder / "long.py").write_text(LONG)
    (folder / "short.txt").write_bytes(b"\xef\xbb\xbf" + SHORT.encode())  # with a byte order mark
    return "long.py", "short.txt"


def rows_of(text: str) -> dict[str, list[float]]:
    """The numbers of a table, by the names of its rows."""
    rows = [
        line.split("  ") for line in text.splitlines() if re.search(r"\d\.\d{4}$", line.strip())
    ]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {name: [float(cell.replace(",", "")) for cell in row] for name, *row in cells}


def test_evaluate_of_files_scores_every_byte_of_them_once(
    text_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = documents(tmp_path)
    text = output(["evaluate", str(text_run), "--device", "cpu", "--text", *files], capsys)
    found = rows_of(text)
    assert list(found) == [*files, "total"]
    tokenizer, model = load_tokenizer(str(text_run)), load_trained(text_run, device="cpu").model
    tokens, size, nats, packed = 0, 0, 0.0, 0
    for name, content in zip(files, (LONG, SHORT), strict=True):
        losses = rolling_nats(model, [tokenizer.eot_id, *tokenizer.encode(content)])
        assert (len(losses) > 3 * 32 and len(losses) % 32) if content is LONG else len(losses) < 32
        row = len(losses), len(content.encode()), math.fsum(losses), gzip_bytes(content.encode())
        assert found[name] == pytest.approx(scores_of(*row), abs=1e-4)
        tokens, size, nats, packed = tokens + row[0], size + row[1], nats + row[2], packed + row[3]
    assert found["total"] == pytest.approx(scores_of(tokens, size, nats, packed), abs=1e-4)


def scores_of(tokens: int, size: int, nats: float, packed: int) -> list[float]:
    mean = nats / tokens
    perplexity = round(math.exp(mean), 2)
    return [tokens, size, mean, perplexity, nats / math.log(2) / size, 8 * packed / size]


def test_evaluate_of_standard_input_and_of_a_dataset_of_one_document_are_those_of_its_file(
    text_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was moved, and whose data is gone, needs neither."""
    shutil.copytree(text_run, tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": {"path": "gone"}}))
    command = ["evaluate", "moved", "--device", "cpu"]
    name, _ = documents(tmp_path)
    ((_, (tokens, size, mean, _, bits, _)),) = rows_of(
        output([*command, "--text", name], capsys)
    ).items()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LONG.encode())))
    found = rows_of(output([*command, "--text", "-"], capsys))
    assert found["standard input"][:3] == [tokens, size, mean]

    (tmp_path / "long.txt").write_text(LONG)
    build = ["data", "build", "long.txt", "--out", "data", "--val-share", "1", "--workers", "1"]
    main([*build, "--tokenizer", "moved/tokenizer.json"])
    text = output([*command, "--data", "data"], capsys)
    assert f"step-00000012, {tokens:.0f} validation tokens of data\n" in text
    assert f"validation loss {mean:.4f} nats per token" in text
    assert f", {bits:.4f} bits per byte\non the same text: gzip -9 " in text
    assert f"the {tokens:.0f} tokens that are text, over their {size:.0f} bytes; 0 are" in text
    assert "unigram" not in text, "whose frequencies are those of the run's own data"
    assert loss_in(output([*command, "--data", "data", "--tokens", "64"], capsys)) != mean
    # Ready-made shards say nothing of their tokenizer, but the user can.
    (tmp_path / "data" / "manifest.json").unlink()
    (tmp_path / "data" / "tokenizer.json").unlink()
    assert refusal([*command, "--data", "data"], capsys) == (
        "dataset data does not say which tokenizer made it: if it was that of moved, name that, "
        "gpt2 or a tokenizer.json, with --tokenizer"
    )
    assert output([*command, "--data", "data", "--tokenizer", "moved"], capsys) == text


def test_evaluate_on_the_training_tokens(text_run: Path, text_data: Path, capsys: Capture) -> None:
    text = output(["evaluate", str(text_run), "--device", "cpu", "--split", "train"], capsys)
    assert "step-00000012, 512 training tokens\ntraining loss " in text
    trained, stream = load_trained(text_run, device="cpu"), open_dataset(text_data).train
    tokens = torch.from_numpy(stream.read(0, 513))
    with torch.no_grad():
        loss = trained.model.loss(tokens[:-1].view(16, 32), tokens[1:].view(16, 32))
    assert f"training loss {loss:.4f} nats per token" in text


def test_what_evaluate_cannot_use_is_refused_in_one_line(
    text_run: Path, text_data: Path, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    name, _ = documents(tmp_path)
    for file, content in {
        "empty": b"",
        "mark": b"\xef\xbb\xbf",
        "binary": b"text\xff\x00\x01",
        "utf16": LONG.encode("utf-16"),
    }.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "foreign").mkdir()
    eot = load_tokenizer(str(text_data)).eot_id
    write_shard(tmp_path / "foreign" / "x_val_000000.bin", [eot, 5, 5, 400])
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one" / "x_val_000000.bin", [eot])
    other = train_bpe([LONG], 280).save(tmp_path)
    build = ["data", "build", "short.txt", "--out", "built", "--val-share", "1", "--workers", "1"]
    main([*build, "--tokenizer", "tokenizer.json"])
    command = ["evaluate", text_run, "--device", "cpu"]
    own = ["--tokenizer", text_data]
    for options, message in {
        ("--text", name, "gone"): "gone cannot be read (No such file or directory): name a text",
        ("--text", "foreign"): "foreign is a folder: name its files, or build a dataset of it",
        ("--text", "empty"): "empty is empty: name a file that has text",
        ("--text", "mark"): "mark is empty: name a file that has text",
        ("--text", "binary"): "binary is not UTF-8 from byte 4 on: name a text file, or convert it",
        ("--text", "utf16"): "utf16 is UTF-16 and not UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW",
        ("--text",): "--text names no file: give one or more, - for standard input",
        ("--text", name, "--data", "built"): "--data is for a dataset and --text for files: leave",
        ("--text", name, "--tokens", "32"): "--tokens is for a dataset and --text for files",
        ("--text", name, "--split", "train"): "--split is for a dataset and --text for files",
        ("--text", name, "--tokenizer", other): f"{text_run} was trained with the tokenizer",
        ("--data", "built"): "dataset built was made with another tokenizer than that of "
        f"{text_run}: build it with quintic data build --tokenizer {text_run}/tokenizer.json, or "
        "evaluate its text with --text",
        ("--data", "gone"): "dataset gone does not exist: name a folder with",
        ("--data", "built", "--split", "train"): "dataset built has no train shards",
        ("--data", "foreign", *own): "foreign/x_val_000000.bin holds the token id 400 as its token "
        "3, counted from 0, the vocabulary has only the ids 0 to 319",
        ("--data", "one", *own): "one has one val token, which no other precedes: name a dataset",
        ("--data", "foreign", *own, "--tokens", "32"): "validation on 32 tokens needs 33",
    }.items():
        assert message in refusal([*command, *options], capsys), options


def test_evaluate_with_another_standard_library_names_the_python_whose_it_was(
    text_run: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(text_run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    values["data"]["path"] = "embedded"
    path.write_text(json.dumps(values))
    (start,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    starts = [{**start, "python": "3.9.99"}]
    (tmp_path / "run" / "environment.json").write_text(json.dumps(starts))
    monkeypatch.setattr("quintic.setup.embedded_dataset", lambda *_, **__: tiny_data)
    message = refusal(["evaluate", str(tmp_path / "run"), "--device", "cpu"], capsys)
    assert "it is the standard library of Python 3.9.99; use that Python" in message
    assert "--force-data" not in message


def test_a_damaged_newest_checkpoint_is_skipped_and_said(
    text_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(text_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000012" / "state.json").write_text("{}")
    text = output(["evaluate", "run", "--device", "cpu"], capsys)
    assert "skipped: run/checkpoints/step-00000012 is damaged" in text
    assert "run/checkpoints/step-00000008, 512 validation tokens" in text
    main(["generate", "run", "--tokens", "3", "--device", "cpu"])
    captured = capsys.readouterr()
    assert "skipped" in captured.err
    assert "skipped" not in captured.out, "standard output has the text and nothing else"


@pytest.mark.parametrize("which", ["newest", "best"])
def test_evaluate_of_a_run_in_use_takes_another_checkpoint_where_the_one_picked_is_taken_away(
    which: str, tiny_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    taken_away = tmp_path / "run/checkpoints/step-00000012"

    def load(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
        if taken_away.exists():
            assert checkpoint.name == taken_away.name
            shutil.rmtree(taken_away)
            if which == "best":  # the newest by another validation loss
                path = checkpoint.with_name("step-00000008") / "state.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "val_loss": 1.0}))
        load_tensors(checkpoint, tensors)

    monkeypatch.setattr("quintic.trained.load_tensors", load)
    text = output(["evaluate", "run", "--device", "cpu", "--checkpoint", which], capsys)
    assert "run/checkpoints/step-00000008, 512 validation tokens" in text
    assert "skipped" not in text


# generate -----------------------------------------------------------------------------------------


def generated(run: Path, capsys: Capture, *options: str) -> str:
    return output(["generate", str(run), "--device", "cpu", *options], capsys)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(
    text_run: Path, capsys: Capture
) -> None:
    command = ("--prompt", "def ", "--tokens", "24", "--temperature", "1.5")
    one = generated(text_run, capsys, *command, "--seed", "1")
    assert one.startswith("def ")
    assert generated(text_run, capsys, *command, "--seed", "1") == one
    assert generated(text_run, capsys, *command, "--seed", "2") != one
    assert generated(text_run, capsys, *command) != one


def test_temperature_zero_and_top_k_one_take_the_likeliest_token_whatever_the_seed(
    text_run: Path, capsys: Capture
) -> None:
    command = ("--prompt", "def ", "--tokens", "12")
    likeliest = generated(text_run, capsys, *command, "--temperature", "0")
    assert generated(text_run, capsys, *command, "--temperature", "0", "--seed", "9") == likeliest
    assert generated(text_run, capsys, *command, "--top-k", "1", "--seed", "9") == likeliest
    assert generated(text_run, capsys, *command, "--temperature", "1.5") != likeliest


def test_an_empty_prompt_begins_a_document(text_run: Path, capsys: Capture) -> None:
    text = generated(text_run, capsys, "--tokens", "8", "--temperature", "0")
    assert text.strip()
    empty = generated(text_run, capsys, "--prompt", "", "--tokens", "8", "--temperature", "0")
    assert empty == text


def test_more_tokens_than_the_context_and_a_longer_prompt_are_continued(
    text_run: Path, capsys: Capture
) -> None:
    """The context is 32 tokens."""
    long = generated(text_run, capsys, "--prompt", "x", "--tokens", "100", "--seed", "4")
    short = generated(text_run, capsys, "--prompt", "x", "--tokens", "20", "--seed", "4")
    assert long.startswith(short.removesuffix("\n"))
    assert len(long) > len(short)
    prompt = "return argument + other\n" * 20
    text = generated(text_run, capsys, "--prompt", prompt, "--tokens", "5")
    assert text.startswith(prompt)
    assert len(text) > len(prompt) + 1


def test_any_text_is_a_prompt_even_one_that_is_no_utf8(text_run: Path, capsys: Capture) -> None:
    """A byte that is no UTF-8 reaches Python as a lone surrogate, which cannot be printed."""
    text = generated(text_run, capsys, "--prompt", "λ 漢字 🙂 \udcff", "--tokens", "2")
    assert text.startswith("λ 漢字 🙂 ")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tokens", "0", "--tokens is 0: it must be at least 1"),
        ("--temperature", "-1", "--temperature is -1.0: it must be finite, zero or positive"),
        ("--temperature", "nan", "--temperature is nan: it must be finite, zero or positive"),
        ("--top-k", "0", "--top-k is 0: it must be at least 1, or left out"),
        ("--seed", "-1", "--seed is -1: it must be from 0 to 2**64 - 1"),
        ("--top-p", "0", "--top-p is 0.0: it must be above 0 and at most 1, or left out"),
        ("--min-p", "2", "--min-p is 2.0: it must be from 0 to 1, or left out"),
        ("--samples", "0", "--samples is 0: it must be at least 1"),
        ("--batch", "-2", "--batch is -2: it must be at least 1"),
        ("--stop", "", "--stop is an empty text, which would end every text: leave it out"),
    ],
)
def test_sampling_settings_out_of_range_are_refused(
    option: str, value: str, message: str, text_run: Path, capsys: Capture
) -> None:
    assert refusal(["generate", str(text_run), option, value], capsys) == message


@pytest.mark.skipif(not int8.runs_int8(), reason="needs AVX-512 VNNI")
def test_generate_in_eight_bits_is_the_same_alone_and_in_any_batch(
    text_run: Path, capsys: Capture
) -> None:
    command = ("--weights", "int8", "--prompt", "def ", "--tokens", "40", "--json", "--logprobs")
    lines = generated(text_run, capsys, *command, "--samples", "3").splitlines()
    assert generated(text_run, capsys, *command, "--samples", "3", "--batch", "1") == (
        "".join(line + "\n" for line in lines)
    )
    assert len({json.loads(line)["text"] for line in lines}) == 3
    streamed = generated(text_run, capsys, *command[:-2])
    assert streamed == "def " + json.loads(lines[0])["text"] + "\n"


def test_eight_bits_are_refused_where_the_processor_has_no_products_for_them(
    text_run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "runs_int8", lambda: False)
    command = ["generate", str(text_run), "--device", "cpu", "--weights", "int8"]
    assert refusal(command, capsys) == (
        "--weights int8 needs a processor with AVX-512 VNNI: leave it out"
    )


def test_guesses_ahead_leave_what_is_generated_as_it_is(text_run: Path, capsys: Capture) -> None:
    command = ("--prompt", "x = x\n" * 3, "--tokens", "40")
    assert generated(text_run, capsys, *command, "--draft", "ngram") == (
        generated(text_run, capsys, *command)
    )
    several = ("--samples", "2", "--json", "--logprobs")
    alone = generated(text_run, capsys, *command, *several, "--batch", "1")
    guessed = generated(text_run, capsys, *command, *several, "--batch", "1", "--draft", "ngram")
    for line, expected in zip(guessed.splitlines(), alone.splitlines(), strict=True):
        assert json.loads(line)["ids"] == json.loads(expected)["ids"]
    assert refusal(["generate", str(text_run), *command, *several, "--draft", "ngram"], capsys) == (
        "--draft is for one text at a time, and 2 come at once: leave it out, which is faster for "
        "several, or add --batch 1"
    )


def test_generate_continues_the_prompts_of_a_file(
    text_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "prompts.txt").write_text("def \n\n  if\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "def "}\n"  if"\n')
    options = ("--tokens", "6", "--seed", "5", "--samples", "2")
    by_lines = generated(
        text_run,
        capsys,
        *options,
        "--json",
        "--logprobs",
        "--prompts",
        str(tmp_path / "prompts.txt"),
    )
    found = [json.loads(line) for line in by_lines.splitlines()]
    assert [(f["prompt"], f["seed"]) for f in found] == [
        ("def ", 5), ("def ", 6), ("  if", 5), ("  if", 6)
    ]  # fmt: skip
    assert all(len(f["ids"]) == len(f["logprobs"]) == 6 for f in found)
    blocks = generated(text_run, capsys, *options, "--prompts", str(tmp_path / "prompts.jsonl"))
    assert blocks == "".join(
        f"--- prompt {1 + i // 2}, seed {5 + i % 2}\n{f['prompt']}{f['text']}\n"
        for i, f in enumerate(found)
    )
    alone = generated(text_run, capsys, "--tokens", "6", "--seed", "6", "--prompt", "def ")
    assert alone == f"def {found[1]['text']}\n"


def test_generate_ends_before_a_stop_string_and_says_what_it_cuts(
    text_run: Path, capsys: Capture
) -> None:
    options = ("--tokens", "30", "--temperature", "0", "--prompt", "def ")
    free = generated(text_run, capsys, *options)
    stop = free[len("def ") + 3 :][:2]
    cut = generated(text_run, capsys, *options, "--stop", "never", stop)
    assert cut == free[: free.index(stop, len("def "))] + "\n"
    main(
        ["generate", str(text_run), "--device", "cpu", "--tokens", "1", "--prompt", "x = 1\n" * 99]
    )
    assert "the prompt has " in (said := capsys.readouterr().err)
    assert "tokens: the model sees the last 32, its context" in said


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "x", ("--prompt", "y"), "--prompt is one text and --prompts a file of them"),
        ("a.txt", "\n \n", (), "a.txt has no prompt: write one a line"),
        ("a.jsonl", "{", (), "a.jsonl:1 is no JSON: "),
        (
            "a.jsonl",
            '"x"\n{"text": 1}',
            (),
            'a.jsonl:2 must be a text, or an object with a text "p',
        ),
        ("a.txt", "x", ("--logprobs",), "--logprobs are printed with --json: add that"),
        (".", None, (), " cannot be read (Is a directory): name a text file"),
        ("none.txt", None, (), "none.txt cannot be read"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(
    name: str,
    content: str | None,
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    command = ["generate", "no-run", "--prompts", str(tmp_path / name), *options]
    assert message in refusal(command, capsys)


def test_a_line_of_prompts_ends_at_a_newline_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "a\u2028b"}\r\n"c\u0085d"\n'.encode())
    (tmp_path / "a.txt").write_bytes("a\x0cb\u2028c\u0085d\r\ne\n".encode())
    found = [
        _prompts(Generate(run=tmp_path, prompts=str(tmp_path / name)))
        for name in ("a.jsonl", "a.txt")
    ]
    assert found == [["a\u2028b", "c\u0085d"], ["a\x0cb\u2028c\u0085d", "e"]]


def test_generate_needs_a_tokenizer_and_says_how_to_name_one(
    tiny_run: Path, text_data: Path, capsys: Capture
) -> None:
    command = ["generate", str(tiny_run), "--device", "cpu"]
    message = refusal(command, capsys)
    assert "does not say which tokenizer made it: name it, gpt2 or the path" in message
    message = refusal([*command, "--tokenizer", str(text_data / "tokenizer.json")], capsys)
    assert f"has 320 tokens and the model of {tiny_run} knows {TINY_VOCAB}" in message


def test_generate_needs_nothing_but_the_run_folder(
    text_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a move to a machine without the data, whose Python has another standard library."""
    shutil.copytree(text_run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    expected = generated(text_run, capsys, "--tokens", "8")
    for data in (str(tmp_path / "gone"), "embedded"):
        values = json.loads(path.read_text())
        values["data"]["path"] = data
        path.write_text(json.dumps(values))
        monkeypatch.delattr("quintic.setup.embedded_dataset", raising=False)
        assert generated(tmp_path / "run", capsys, "--tokens", "8") == expected


def test_a_run_folder_keeps_the_name_of_gpt2_and_nothing_of_a_tokenizer_that_nobody_knows(
    tiny_data: Path, tiny_run: Path, tmp_path: Path
) -> None:
    changes = {"data.tokenizer": "gpt2", "model.vocab_size": None, "train.steps": 1}
    train_run(start(tiny_config(tiny_data, changes), tmp_path / "run", Console()), Console())
    assert run_dir.kept_tokenizer(tmp_path / "run") == "gpt2"
    assert run_dir.kept_tokenizer(tiny_run) is None
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_another_tokenizer_in_a_runs_folder_is_refused(
    text_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(text_run, run)
    content = json.loads((run / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = (token for token, index in vocabulary.items() if index in (40, 41))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (run / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "text").write_text("def f(x)")
    for command in (
        ["generate", run],
        ["evaluate", run, "--text", tmp_path / "text"],
        ["export", run, "--to", "hf"],
    ):
        line = refusal(command, capsys)
        assert line.startswith(f"{run}/tokenizer.json is not the tokenizer of the run (fingerprint")
    assert not (run / "export").exists()


def test_generate_takes_the_tokenizer_that_is_named_where_the_data_does_not_say(
    text_run: Path, text_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    for shard in text_data.glob("*.bin"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    options = ("--tokens", "8", "--prompt", "def ")
    named = ("--data", str(tmp_path), "--tokenizer", str(text_data))
    assert generated(text_run, capsys, *options, *named) == generated(text_run, capsys, *options)


# data ---------------------------------------------------------------------------------------------


def test_data_info_counts_and_samples(text_data: Path, tiny_data: Path, capsys: Capture) -> None:
    text = output(["data", "info", str(text_data)], capsys)
    assert "tokenizer.json, vocabulary 320" in text
    assert re.search(r"fingerprint  [0-9a-f]{64}\n", text)
    assert re.search(r"train\W+1\W+[\d,]+\W+\d\d ", text), "one shard, its tokens, its documents"
    assert "sample: " in text
    text = output(["data", "info", str(tiny_data)], capsys)
    assert "tokenizer    unknown, vocabulary unknown" in text
    assert re.search(r"train\W+3\W+12,000 \W+unknown", text)
    assert "note: dataset" in text


def test_data_check_passes_what_is_whole_and_lists_what_is_not(
    text_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = output(["data", "check", str(text_data)], capsys)
    assert re.search(rf"{re.escape(str(text_data))} is in order: 2 shards, [\d,]+ tokens", text)
    assert text.startswith("check: started\ncheck: done\n")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in text_data.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (shard,) = copy.glob("*_train_*.bin")
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", str(copy)])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert f"problem: {shard.name} has the checksum" in captured.out
    assert captured.err.startswith(f"quintic: {copy} has ")


def test_a_cpu_is_a_device_and_an_absent_one_is_refused(tiny_run: Path, capsys: Capture) -> None:
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    message = refusal(["evaluate", str(tiny_run), "--device", absent], capsys)
    assert message.startswith(f"there is no {absent} device here that PyTorch ")
    assert "cpu; ask for one of these, or for auto" in message


def test_the_version_is_the_packages(capsys: Capture) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"quintic {quintic.__version__}\n"


def test_a_field_that_is_given_twice_otherwise_counts_the_last_time_and_this_is_said(
    tiny: list[str], tmp_path: Path, capsys: Capture
) -> None:
    repeated = ["--train.steps=2", "--train.seed", "3", "--train.seed", "3", "--train.no-compile"]
    main([*tiny, *repeated, "--train.compile", "--train.no-compile", "--train.steps", "1"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert said == [
        "note: --train.steps is given 3 times: --train.steps 1 counts",
        "note: --train.compile is given 3 times: --train.no-compile counts",
    ]
    assert run_dir.read_config(tmp_path / "runs" / "laptop-1").train.steps == 1


def test_a_run_that_is_stopped_before_its_first_step_does_not_say_that_it_saved(
    tiny: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = evaluate_run

    def stopped(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return own(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("quintic.train.evaluate_run", stopped)
        main([*tiny, "--out", "run"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "stopped at step 0 of 12; begin again with: quintic train --resume run"
    main(["train", "--resume", "run"])
    assert read_records(Path("run/metrics.jsonl"))[-1]["step"] == 12
