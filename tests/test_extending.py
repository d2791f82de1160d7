"""What docs/extending.md shows works: each of its blocks, from outside and inside the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import quintic
from quintic.console import Console
from quintic.run_dir import CHECKPOINTS, read_config
from quintic.setup import set_up
from quintic.train import forward_backward
from tests import warm
from tests.conftest import flags_of, main, tiny_options

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
LION, SHARDS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
HUNKS = re.findall(r"```diff\n--- (\S+)\n(.*?)\n```", TEXT, re.DOTALL)

TUTORIAL = '''
import torch


class Tutorial(torch.optim.Optimizer):
    """Everything that a state can be, made in the first step; needs its matrices whole."""

    def __init__(self, params, lr, beta=0.9, weight_decay=0.25):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["norm_max"] = 0.0
            for p in group["params"]:
                if p not in self.state:
                    self.state[p] = {
                        "step": 0, "largest": 0.0, "even": True, "nothing": None,
                        "average": torch.zeros_like(p), "column.sums": p.new_zeros(p.shape[1]),
                        "count": torch.tensor(0),
                    }
                state = self.state[p]
                state["step"] += 1
                state["even"] = not state["even"]
                state["count"] += 1
                state["largest"] = max(state["largest"], p.grad.abs().max().item())
                state["average"].lerp_(p.grad, 1 - group["beta"])
                state["column.sums"] += p.grad.sum(0)
                assert state["nothing"] is None
                assert group["k"] == state["step"] == int(state["count"])
                shift = state["column.sums"] / state["step"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (state["average"] + 0.1 * shift) / (state["largest"] + 1e-8))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's own, with the modules of their optimizers."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "lion.py").write_text(LION)
    (folder / "tutorial.py").write_text(TUTORIAL)
    return folder


def arguments(data: Path, changes: dict[str, Any]) -> list[str]:
    """The command line of a tiny run that keeps the checkpoint of every step."""
    kept = {"train.steps": 8, "train.checkpoint_every": 1, "train.keep_checkpoints": 100}
    tiny = tiny_options(data)
    if "optim.matrices" in changes:
        del tiny["optim.muon.lr"]  # which would have no effect
    options = {**tiny, **kept, **changes}
    return ["train", "laptop", *flags_of(options), "--train.no-report", "--train.log-to"]


def command(folder: Path, *arguments: str, plain: bool = False) -> str:
    """Run `quintic` as installed, in a folder that is not on Python's path by itself."""
    return warm.output_of(
        [sys.executable, "-P", "-m", "quintic", *arguments],
        plain=plain,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(quintic.__file__).parents[1])},
    )


def checkpoint(run: Path, step: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint of one process."""
    (file,) = (run / CHECKPOINTS / f"step-{step:08d}").glob("*.safetensors")
    return load_file(file)


def stopped(run: Path, step: int, to: Path) -> Path:
    """A copy of a run as it was when it had been stopped after a step."""
    shutil.copytree(run, to)
    for path in (to / CHECKPOINTS).iterdir():
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)
    return to


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


LION_OPTIONS = {"optim.matrices": "lion:Lion", "optim.custom.lr": 0.01}


@pytest.fixture(scope="module")
def lion_run(folder: Path, tiny_data: Path) -> Path:
    own = ["--optim.custom.options", "beta1=0.8", "weight_decay=0.5"]
    run = [*arguments(tiny_data, LION_OPTIONS), *own, "--out", "lion-run"]
    out = command(folder, *run, plain=True)
    assert "optim   lion:Lion on 12 parameters (24,576 elements), lr 0.01, beta1=0.8" in out
    return folder / "lion-run"


# A module of one's own ----------------------------------------------------------------------------


def test_the_lion_of_the_docs_trains_and_is_named_where_the_run_is_described(
    lion_run: Path,
) -> None:
    config = read_config(lion_run)
    assert config.optim.matrices == "lion:Lion"
    assert config.optim.custom.keywords == {"beta1": 0.8, "weight_decay": 0.5}
    (line,) = re.findall(
        r"layers\.0\.mlp\.up\.weight .*", (lion_run / "param_groups.txt").read_text()
    )
    assert line.split()[-5:] == ["lion:Lion", "0.01", "1", "0.01", "0.5"]


def test_its_first_update_is_the_sign_of_the_gradient(lion_run: Path) -> None:
    lr, decay = 0.01, 0.5
    # The same run with another optimizer has the same first gradient.
    config = read_config(lion_run).override({"optim.matrices": "sgd"})
    run = set_up(config, Path("unused"), Console())
    forward_backward(run, run.loader.batch(0))
    after, moved = checkpoint(lion_run, 1), 0
    for name, p in run.state.model.named_parameters():
        if name.startswith("layers."):
            assert p.grad is not None
            # (1 - beta1) times the gradient has the gradient's sign; zero has none.
            expected = p.detach() * (1 - lr * decay) - lr * p.grad.sign()
            torch.testing.assert_close(after[f"model.{name}"], expected, rtol=0, atol=1e-7)
            torch.testing.assert_close(after[f"optim.{name}.average"], 0.01 * p.grad)
            moved += bool(p.grad.any())
    assert moved == 4  # the output projections, which are zero and let nothing past them


def test_it_resumes_bit_for_bit(lion_run: Path, folder: Path, tmp_path: Path) -> None:
    again = stopped(lion_run, 5, tmp_path / "again")
    command(folder, "train", "--resume", str(again))
    assert_same(checkpoint(again, 8), checkpoint(lion_run, 8))


TUTORIAL_OPTIONS = {"optim.matrices": "tutorial:Tutorial", "optim.custom.lr": 0.02}


def test_a_state_that_begins_in_the_first_step_resumes_bit_for_bit(
    folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Tensors of any shape and Python's numbers, of parameters and of their group."""
    run = folder / "tutorial-run"
    command(folder, *arguments(tiny_data, TUTORIAL_OPTIONS), "--out", str(run))
    whole = checkpoint(run, 8)
    name = "layers.1.mlp.down.weight"
    assert whole[f"number.{name}.step"].item() == whole[f"group.{name}.k"].item() == 8
    assert whole[f"number.{name}.even"].dtype == torch.bool
    assert whole[f"optim.{name}.column.sums"].shape == (128,)
    for step in (1, 5):
        again = stopped(run, step, tmp_path / f"from-{step}")
        command(folder, "train", "--resume", str(again))
        assert_same(checkpoint(again, 8), whole)


def test_it_is_saved_by_two_processes_and_resumed_by_one(
    folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    run = folder / "two"
    command(folder, *arguments(tiny_data, TUTORIAL_OPTIONS), "--out", str(run), "--procs", "2")
    alone = stopped(run, 4, tmp_path / "alone")
    command(folder, "train", "--resume", str(alone))
    found, files = checkpoint(alone, 8), (run / CHECKPOINTS / "step-00000008").glob("*.safetensors")
    parts = [load_file(file) for file in files]
    assert len(parts) == 2
    names = {name for part in parts for name in part}
    assert found.keys() == names
    for part in parts:
        for name, tensor in part.items():
            if name.startswith(("number.", "group.")) and "largest" not in name:
                assert torch.equal(found[name], tensor), name
            elif name != "rng.cpu" and found[name].shape == tensor.shape:
                torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def test_what_is_elementwise_is_cut_by_rows_and_anything_else_refused_there(
    folder: Path, tiny_data: Path, lion_run: Path, tmp_path: Path
) -> None:
    changes = {"train.steps": 1, "train.sharding": "fsdp"}
    own = ["--optim.custom.options", "beta1=0.8", "weight_decay=0.5", "--procs", "2"]
    run = arguments(tiny_data, {**LION_OPTIONS, **changes})
    command(folder, *run, *own, "--out", str(tmp_path / "rows"))
    # Resumed by one process, the rows are together again.
    (tmp_path / "rows" / CHECKPOINTS / "step-00000001").rename(tmp_path / "saved")
    parts = [load_file(file) for file in sorted((tmp_path / "saved").glob("*.safetensors"))]
    expected = checkpoint(lion_run, 1)
    for name, tensor in expected.items():
        if name.endswith(".average"):
            rows = torch.cat([part[name] for part in parts])
            torch.testing.assert_close(rows, tensor, rtol=1e-4, atol=1e-8)
    run = arguments(tiny_data, {**TUTORIAL_OPTIONS, **changes})
    with pytest.raises(AssertionError) as refused:
        command(folder, *run, "--procs", "2", "--out", str(tmp_path / "refused"))
    assert "tutorial:Tutorial needs them whole: use --train.sharding zero1" in str(refused.value)


# What may be wrong with it ------------------------------------------------------------------------

OWN = "import torch\nclass Own(torch.optim.Optimizer):\n"
INIT = "    def __init__(self, params, lr, a=1): super().__init__(params, {'lr': lr})\n"
STEP = "    def step(self):\n        for p in self.param_groups[0]['params']: "
KEEPS = f"{OWN}{INIT}{STEP}self.state[p]"
LATER = f"""{INIT[:-1]}; self.late = 0; self.nan = float("nan")
{STEP}
            self.state[p]["n"] = self.state[p].get("n", 0) + 1
        if self.state[p]["n"] == 2: self.late = 1
"""
POP = "self.param_groups[0]['params'].pop()"
UNSAVED = "in its state, which a checkpoint cannot hold"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, [], r"there is no module own in .* or on PYTHONPATH: run quintic in the folder"),
        ("import nowhere_at_all", [], r"own imports nowhere_at_all: install it"),
        ("x = = 1", [], r"importing own raised SyntaxError: invalid syntax \(own\.py, line 1\)"),
        ("raise SystemExit", [], r"importing own raised SystemExit"),
        ("Owl = 1", [], r"own\.py has no class Own: did you mean own:Owl\?"),
        ("Own = 1", [], r"it must be a subclass of torch\.optim\.Optimizer"),
        ("def Own(params, lr): pass", [], r"it must be a subclass of torch\.optim\.Optimizer"),
        (OWN + INIT, ["b=1"], r"unexpected keyword argument 'b': it takes lr, a, and was given"),
        (OWN + INIT.replace("a=1", "a"), [], r"missing a required argument: 'a': it takes lr, a,"),
        (OWN + INIT.replace("super()", "a.x"), ["a=2"], r"Own\(lr=0\.001, a=2\) raised Attribute"),
        (OWN + INIT.replace("(params,", "(list(params[0]['params']),"), [], r"must hand the param"),
        (
            OWN + INIT + STEP + "p.y",
            [],
            r"its step raised AttributeError: .*own\.py",
        ),
        (KEEPS + "['x'] = [1]", [], f"keeps list 'x' {UNSAVED}"),
        (KEEPS + "[3] = 1", [], f"keeps int 3 {UNSAVED}"),
        (
            KEEPS + "['x'] = 2**64",
            [],
            f"keeps int 'x' {UNSAVED}",
        ),
        (
            OWN + INIT + "    def step(self): self.t = 1",
            [],
            r"changes self\.t, which no",
        ),
        (f"{OWN}{LATER}", [], r"its step changes self\.late, which no checkpoint holds"),
        (
            KEEPS[: -len("[p]")] + "['global']['n'] = 1",
            [],
            r"Own keeps dict in self\.state\['global'",
        ),
        (KEEPS + " = p.detach()", [], r"Own keeps Tensor in self\.state\[Parameter\], which a"),
        (KEEPS + "['x'] = p.detach().to_sparse()", [], f"keeps Tensor 'x' {UNSAVED}: keep dense"),
        (
            OWN + INIT + "    def step(self): __import__('sys').exit(0)",
            [],
            r"its step raised SystemExit: 0 \(.*own",
        ),
        (
            OWN + INIT.replace("super()", "__import__('sys').exit(3)"),
            [],
            r"raised SystemExit: 3 \(.*own\.py, line 3",
        ),
        (f"{OWN}    def __init__(self, params, lr): pass", [], r"must call super\(\)\.__init__"),
        (f"{OWN}{INIT[:-1]}; {POP}\n", [], r"must hand the params"),
        (
            f"{OWN}{INIT}    def step(self): {POP}",
            [],
            r"changes self\.param_groups\[0\]\['params'\]",
        ),
        (
            OWN + INIT + "    def step(self): self.param_groups.pop()",
            [],
            r"changes self\.param_groups\[0\]\['params'\]",
        ),
        (
            f"{OWN}{INIT[:-1]}; self.m = [torch.zeros(1)]\n    def step(self): self.m[0].add_(1)",
            [],
            r"its step changes self\.m, which no checkpoint holds: keep what a step must remember",
        ),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    source: str | None,
    options: list[str],
    message: str,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    if source is not None:
        Path("own.py").write_text(source)
    own = ["--optim.custom.options", *options] if options else []
    changes = {"optim.matrices": "own:Own", "train.steps": 2}
    with pytest.raises(SystemExit) as ended:
        main([*arguments(tiny_data, changes), *own, "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    monkeypatch.delitem(sys.modules, "own", raising=False)


def test_a_run_whose_class_was_refused_in_a_later_step_goes_on_once_it_is_mended(
    tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(f"{OWN}{LATER}")
    run = tmp_path / "run"
    with pytest.raises(AssertionError, match=r"its step changes self\.late"):
        command(tmp_path, *arguments(tiny_data, {"optim.matrices": "own:Own"}), "--out", str(run))
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["step-00000001"]
    mended = LATER.replace("self.late = 1", "pass  # not kept in self any more")
    (tmp_path / "own.py").write_text(f"{OWN}{mended}")
    command(tmp_path, "train", "--resume", str(run))
    assert checkpoint(run, 8)["number.layers.0.mlp.up.weight.n"] == 8


# Within the package -------------------------------------------------------------------------------


def test_the_edits_of_the_docs_add_each_thing_to_the_tree(folder: Path, tmp_path: Path) -> None:
    """One file and one line for the optimizer; all at once, in a copy of the sources."""
    tree = tmp_path / "src"
    shutil.copytree(Path(quintic.__file__).parent, tree / "quintic")
    (tree / "quintic" / "optim" / "lion.py").write_text(LION)
    added = 0
    for name, hunk in HUNKS:
        lines = hunk.splitlines()
        old, new = ("\n".join(x[1:] for x in lines if not x.startswith(s)) for s in "+-")
        source = (tmp_path / name).read_text()
        assert source.count(old) == 1, f"{name} has not the place: {old}"
        (tmp_path / name).write_text(source.replace(old, new))
        added += "lion" in new
    assert added == 1
    changes = {
        "optim.matrices": "lion",
        "optim.lion.lr": 0.01,
        "optim.schedule.kind": "inverse_sqrt",
        "optim.schedule.warmup_steps": 2,
        "model.activation": "silu",
        "model.mlp_ratio": 2,
        "train.steps": 4,
    }
    options = arguments(Path("counting"), changes)
    index = options.index("--optim.schedule.cooldown-fraction")
    own = ["--optim.lion.options", "beta1=0.8", "--out", "run"]
    started = [*options[:index], *options[index + 2 :], *own]
    program = (
        f"{SHARDS}\nfrom quintic.cli.main import main\nmain({started})\n"
        "print('HELP')\nmain(['train', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out, shown = done.stdout.split("HELP\n")
    assert "optim   Lion on 12 parameters (16,384 elements), lr 0.01, beta1=0.8" in out
    saved = checkpoint(tmp_path / "run", 1)
    assert saved["model.layers.0.mlp.up.weight"].shape == (64, 32)
    assert saved["optim.layers.0.mlp.down.weight.average"].any()
    lines = [*(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    factors = [float(f) for line in lines for f in re.findall(r'"lr_factor": ([\d.]+)', line)]
    assert factors == pytest.approx([0.5, 1.0, (2 / 3) ** 0.5, 0.5**0.5])
    assert "--optim.lion.lr FLOAT" in shown
    assert "--model.mlp-ratio INT" in shown
