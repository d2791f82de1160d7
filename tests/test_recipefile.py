"""A config in a file in place of a recipe's name."""

import json
from pathlib import Path

import pytest

from quintic.cli.main import main
from quintic.recipefile import read_recipe
from quintic.recipes import get_recipe


def test_a_config_in_a_file_is_a_recipe_and_keeps_its_name(tmp_path: Path) -> None:
    config = get_recipe("modded-adamw").override({"optim.adamw.betas": (0.8, 0.99)})
    path = tmp_path / "best.json"
    path.write_text(json.dumps(config.to_dict()))
    assert read_recipe(path) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: "),
        ("\ufffd\x00", "is not valid JSON: "),
        ("[" * 100_000, "is not valid JSON: "),
        ("[]", "config section config is not an object"),
        ('{"train": {"stesp": 3}}', "there is no field train.stesp: did you mean train.steps?"),
        ('{"train": {"steps": -1}}', "train.steps is -1: it must be positive"),
        (
            '{"recipe": "../away"}',
            "recipe is '../away': it names the folder of the run, so it must",
        ),
        (None, None),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_file_that_is_no_config_is_refused_in_one_line(
    command: str,
    content: str | None,
    message: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as caught:
        main([command, str(path)])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    if content is None:
        assert err.startswith(f"quintic: there is no recipe file {path}: name the best.json of a")
    else:
        assert err.startswith(f"quintic: {path}{':' if message != 'is not valid JSON: ' else ''} ")
        assert message is not None
        assert message in err


def test_a_recipe_file_comes_first_and_does_not_continue_a_run_of_another_recipe(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps(get_recipe("modded").to_dict()))
    for arguments, message in {
        ("--train.steps", "3", str(path)): f"the recipe '{path}' must come first: quintic train",
        (str(path), "--resume", str(tiny_run)): f"{tiny_run} holds a run of laptop, which cannot "
        "continue as modded",
    }.items():
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        assert capsys.readouterr().err.startswith(f"quintic: {message}")
