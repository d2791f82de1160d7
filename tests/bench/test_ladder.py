"""`python -m bench.ladder` at a toy size, and what decides whether a rung is kept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from bench.ladder.__main__ import main
from bench.ladder.climb import Rung, climb
from bench.ladder.figure import draw_ladder
from bench.ladder.techniques import (
    LADDERS,
    SHORT,
    Ladder,
    Technique,
    bits_per_byte,
    small_modded,
)

from quintic.compare.comparison import compare
from quintic.compare.runs import read_run
from quintic.compare.statistics import difference
from quintic.config import Config, differing_fields
from quintic.data.dataset import open_dataset
from quintic.errors import QuinticError
from quintic.recipes import get_recipe
from quintic.run_dir import read_config
from tests.conftest import TINY_VOCAB

pytestmark = pytest.mark.usefixtures("warm_runs")

TOY = {
    **{"model.layers": 2, "model.width": 32, "model.context": 32, "model.vocab_size": TINY_VOCAB},
    **{"train.steps": 8, "train.batch_tokens": 256, "train.micro_batch": 4},
    **{"train.eval_every": 4, "train.eval_tokens": 256, "train.compile": False},
}
LOWER = Technique("lower", {"train.steps": 40}, "none")
HIGHER = Technique("higher", {"model.logit_softcap": 0.01}, "none")
"""With logits that close to nothing a model knows nothing."""
WILD = Technique("wild", {"optim.adamw.lr": 1e30}, "none")
"""Diverges."""


def toy(data: Path) -> Config:
    return small_modded({**TOY, "data.path": str(data)})


def climbed(foot: Config, techniques: list[Technique], folder: Path, said: list[str]) -> list[Rung]:
    return list(climb(foot, techniques, folder, seeds=(1, 2), jobs=1, say=said.append))


def test_each_rung_stands_on_what_was_kept_and_what_is_done_is_not_done_again(
    tiny_data: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    techniques = [WILD, LOWER, HIGHER]
    rungs = climbed(toy(tiny_data), techniques[:2], tmp_path / "runs", said)
    assert [(rung.name, rung.upon, rung.kept) for rung in rungs] == [
        ("modded", (), True),
        ("wild", (), False),
        ("lower", (), True),
    ]
    assert rungs[1].losses == {1: None, 2: None} and rungs[1].difference is None
    assert len(said) == 6
    again = climbed(toy(tiny_data), techniques, tmp_path / "runs", said)
    assert again[:3] == rungs and len(said) == 8
    assert again[3].upon == ("lower",) and not again[3].kept
    config = json.loads((tmp_path / "runs" / "03-higher-seed2" / "config.json").read_text())
    assert config["train"]["steps"] == 40 and config["model"]["logit_softcap"] == 0.01
    assert config["train"]["seed"] == 2 and config["recipe"] == "modded"
    draw_ladder(again, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ((4.0, 4.1, 4.2), True),
        ((6.0, 6.1, 6.2), False),  # higher
        ((4.9, 5.1, 5.2), False),  # lower, and no more than the noise
        ((4.0, 4.1, None), False),  # one diverged
    ],
)
def test_a_rung_is_kept_where_it_ends_lower_by_more_than_the_noise(
    losses: tuple[float | None, ...], kept: bool
) -> None:
    values = [loss for loss in losses if loss is not None]
    found = difference(values, [5.0, 5.1, 5.2]) if len(values) == len(losses) else None
    rung = Rung("x", HIGHER, (), dict(enumerate(losses)), found)
    assert rung.kept is kept


def test_the_command_writes_numbers_figure_and_runs_that_compare_reads(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ",".join(f"{field}={json.dumps(value)}" for field, value in TOY.items())
    command = [
        *("--data", str(tiny_data), "--seeds", "1", "--set", changes),
        *("--out", str(tmp_path / "runs"), "--results", str(tmp_path), "--only", "softcap"),
    ]
    main(command)
    record: dict[str, Any] = json.loads((tmp_path / "ladder.json").read_text())
    assert record["environment"]["command"] == "python -m bench.ladder"
    foot, softcap = record["rungs"]
    assert foot["kept"] and softcap["technique"]["record"] == "2025-01-04_SoftCap"
    runs = [read_run(folder) for folder in sorted((tmp_path / "ladder").iterdir())]
    comparison = compare(runs)
    assert [result.group.label for result in comparison.results] == [
        "00-modded-seed1",
        "01-softcap-seed1",
    ]
    assert list(foot["losses"].values()) == list(comparison.results[0].final_losses)
    found = comparison.results[1].difference_to_first
    assert found is not None and found.value == softcap["difference"]["value"]
    assert (tmp_path / "ladder.png").stat().st_size > 5000
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:2] == ["softcap", "yes" if softcap["kept"] else "no"]


def test_a_stop_is_said_in_a_line(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bench.trainings.execute", lambda *plan, **options: False)
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(tiny_data), "--out", str(tmp_path / "runs")])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped and saved; the same command goes on\n"


def test_what_a_user_can_get_wrong_is_one_line(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "runs")])
    assert "name its folder with --data" in capsys.readouterr().err
    for arguments, message in (
        (["--only", "softcup"], "there is no technique 'softcup': they are value-embeddings, "),
        (["--set", "train.step=4"], "did you mean train.steps?"),
        (["--seeds", "0"], "--seeds is 0: it must be at least 1"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["--data", str(tiny_data), "--out", str(tmp_path / "runs"), *arguments])
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(QuinticError, match=r"00-modded-seed1 failed: .*00-modded-seed1.log"):
        climbed(toy(tmp_path / "none"), [], tmp_path / "runs", [])


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_every_technique_fits_the_run_and_all_before_it(ladder: Ladder) -> None:
    changes: dict[str, Any] = {}
    for technique in ladder.techniques:
        ladder.foot(technique.changes if ladder.name == "ladder" else {})
        if technique.name != "float8-head":  # which does not go with several tokens
            changes |= technique.changes
            ladder.foot(changes)
    assert len({technique.name for technique in ladder.techniques}) == len(ladder.techniques)


def test_the_laptop_ladder_leads_to_laptop() -> None:
    changes: dict[str, Any] = {}
    for technique in LADDERS["laptop"].techniques[:8]:
        changes |= technique.changes
    reached, laptop = LADDERS["laptop"].foot(changes), get_recipe("laptop")
    own = {"recipe", "train.steps", *SHORT}
    assert set(differing_fields(reached, laptop)) <= own


def test_a_loss_in_bits_per_byte_is_that_of_the_score(text_run: Path, text_data: Path) -> None:
    """But for the ends of text, which have a loss and no bytes."""
    config = read_config(text_run)
    loss = read_run(text_run).final_loss
    assert loss is not None
    dataset = open_dataset(text_data, str(text_data))
    targets = dataset.val.read(1, config.train.eval_tokens)
    text = dataset.load_tokenizer().decode_bytes(
        targets[targets != dataset.load_tokenizer().eot_id]
    )
    nats = loss * config.train.eval_tokens
    assert loss * bits_per_byte(config) == pytest.approx(nats / math.log(2) / len(text))
