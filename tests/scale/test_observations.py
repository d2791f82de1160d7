"""Runs from a CSV and from folders: what is read, and what is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quintic.errors import QuinticError
from quintic.scale.csv_file import read_csv
from quintic.scale.runs import read_folders
from tests.scale.laws import SIZES, csv_of, folder_of, grid, runs_of


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(QuinticError) as caught:
        read_csv(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_third_of_parameters_tokens_and_flops_follows_from_two(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for text in (
        "parameters,tokens,loss\n10e3,5e3,2.5\n",
        "Model Size,Training FLOP,loss\n10e3,300e6,2.5\n",
        "D,C,val_loss,N\n5e3,300e6,2.5,10e3\n",
        "\ufefftokens,flops,Final Loss\n5e3,300e6,2.5\n",
        "\ufeffparameters;tokens;loss\n10e3;5e3;2.5\n",
        '"D"\t"run, or so"\t"C"\tloss\n5e3\ta, b; c\t300e6\t2.5\n',
    ):
        path.write_text(text)
        (run,) = read_csv(path).runs
        assert (run.parameters, run.tokens, run.flops, run.loss) == ({"given": 1e4}, 5e3, 3e8, 2.5)


def test_flops_of_all_three_are_taken_as_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,C,loss,non-embedding parameters\n10e3,5e3,450e6,2.5,7e3\n")
    (run,) = read_csv(path).runs
    assert run.flops == 450e6
    assert run.parameters == {"all": 1e4, "blocks": 7e3}


def test_numbers_in_another_unit_are_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    millions = refused(path, "N,D,loss\n124,2500,3\n")
    assert "row 2: 124 parameters (N) are fewer than any run has: is a column in" in millions
    billions = refused(path, "N,D,loss\n124e6,2.5e9,3\n124e6,5,2.9\n")
    assert "row 3: 5 tokens (D) are fewer than any run has" in billions
    of_flops = refused(path, "N,C,loss\n124,1e18,3\n")
    assert "124 parameters (N)" in of_flops
    assert "20 tokens (what FLOPs = 6 N D leaves)" in refused(path, "N,C,loss\n1e6,1.2e8,3\n")
    assert "2500 tokens for 1.24e+08 parameters are 2e-05 a parameter" in refused(
        path, "N,D,loss\n124e6,2500,3\n"
    )
    assert "row 2: loss is 3200, more than guessing has" in refused(
        path, "N,D,loss\n124e6,2.5e9,3200\n"
    )


def test_flops_of_another_unit_or_far_from_those_of_the_other_rows_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "runs.csv"

    def text(flops_of: Callable[[int, float, float], float]) -> str:
        rows = [f"{n},{d},{flops_of(i, n, d)},3" for i, (n, d) in enumerate(grid())]
        return "\n".join(["N,D,compute,loss", *rows]) + "\n"

    path.write_text(text(lambda _, n, d: 2.5 * (6 * n + 1e4 * n**0.5) * d))
    assert len(read_csv(path)) == 20, "another way of counting is none of our business"
    one = refused(path, text(lambda i, n, d: (5.48 if i == 7 else 1) * 6 * n * d))
    assert "row 9: compute is 5.2608e+15, 5.48 times what the other rows have for this size" in one
    assert one.endswith(
        "or leave the column compute out, and FLOPs = 6 x parameters x tokens is taken"
    )
    petaflops = refused(path, text(lambda _, n, d: 6e-15 * n * d))
    assert "compute is 1e-15 times 6 x parameters x tokens in the middle of the rows" in petaflops


def test_rows_of_one_size_and_length_are_seeds_of_a_group(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss\n10e3,5e3,2.5\n20e3,5e3,2.4\n10e3,5e3,2.6\n")
    assert read_csv(path).group_R.tolist() == [0, 1, 0]


def test_what_is_no_list_of_runs_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    assert "has no column of loss (its columns are N, D)" in refused(path, "N,D\n1,2\n")
    missing = refused(path, "N,loss\n1,2\n")
    assert "parameters alone of parameters, tokens and FLOPs, of which a law needs two" in missing
    assert "(its columns are N, loss)" in missing
    assert "has none of parameters, tokens and FLOPs" in refused(path, "loss;seed\n3;1\n")
    assert "two columns of parameters, 'N' and 'params'" in refused(path, "N,params,D,loss\n")
    assert "row 3: N is 'many', which is no number" in refused(path, "N,D,loss\n1,2,3\nmany,2,3\n")
    assert "row 2: loss is '', which is no number" in refused(path, "N,D,loss\n1,2\n")
    comma = refused(path, "N;D;loss\n1e6;2e6;3,25\n")
    assert comma.endswith("loss is '3,25', which is no number: write 3.25")
    assert "row 2: loss is -3: it must be a positive" in refused(path, "N,D,loss\n1,2,-3\n")
    more = refused(path, "N,D,loss,blocks\n10,2,3,11\n")
    assert "row 2: blocks is 11, more than all parameters, 10" in more
    assert "row 2: tokens is inf: it must be a positive" in refused(path, "N,D,loss\n1,inf,3\n")
    assert "row 2: loss is nan: it must be a positive" in refused(path, "N,D,loss\n1,2,nan\n")
    assert "row 2: parameters (the parameters that the file gives) is 0" in refused(
        path, "N,D,loss\n0,2,3\n"
    )
    twice = refused(path, "N,D,loss\n1,2,3\n2,2,3\n1,2,3\n")
    assert "row 4 repeats row 2, of the same size, tokens and loss" in twice
    seeds = refused(path, "N,D,loss,seed\n1,2,3,1\n1,2,3.1,1\n")
    assert "row 3 repeats row 2, of the same size, tokens and seed" in seeds
    assert "has no row below its header" in refused(path, "N,D,loss\n")
    for nothing in ("", "\n \n", "\ufeff"):
        assert "is empty: write a header, such as parameters,tokens,loss" in refused(path, nothing)
    path.write_bytes(b"\xff\xfe\x00N,D")
    with pytest.raises(QuinticError, match="is no CSV"):
        read_csv(path)


def test_the_highest_losses_are_left_out_and_never_some_of_equal_ones() -> None:
    runs = runs_of(grid())
    kept = runs.without_highest(3)
    assert len(kept) == 17
    assert kept.loss_R.max() < sorted(runs.loss_R)[-3]
    with pytest.raises(QuinticError, match="is 20: it must be from 0 to 19"):
        runs.without_highest(20)
    equal = runs_of(grid(), seeds=2)
    with pytest.raises(QuinticError, match="there are 2 runs of that loss or a higher one"):
        equal.without_highest(1)


def test_folders_give_counts_tokens_flops_and_groups(tmp_path: Path) -> None:
    paths = [
        folder_of(tmp_path / "a1", width=32, steps=100, seed=1, loss=4.0),
        folder_of(tmp_path / "a2", width=32, steps=100, seed=2, loss=4.1),
        folder_of(tmp_path / "b1", width=64, steps=100, seed=1, loss=3.5),
    ]
    runs, notes = read_folders(paths)
    assert notes == []
    assert runs.group_R.tolist() == [0, 0, 1]
    first, _, wide = runs.runs
    # Four matrices of D x D and two of 4 D x D in each of two blocks; the head is tied.
    assert first.parameters["blocks"] == 2 * 12 * 32**2
    assert wide.parameters["blocks"] == 2 * 12 * 64**2
    assert first.parameters["all"] == pytest.approx(2 * 12 * 32**2 + 256 * 32, abs=64)
    config = json.loads((paths[0] / "config.json").read_text())
    context, batch = config["model"]["context"], config["train"]["batch_tokens"]
    assert first.tokens == 100 * batch
    per_token = 6 * (2 * 12 * 32**2 + 256 * 32) + 6 * 2 * context * 32
    assert first.flops == pytest.approx(per_token * first.tokens, rel=0.01)
    assert (first.loss, first.seed) == (4.0, 1)


def test_runs_that_are_no_evidence_are_refused_by_name(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", width=32, steps=100, loss=4.0)

    def message(*paths: Path) -> str:
        with pytest.raises(QuinticError) as caught:
            read_folders(paths)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    def append(path: Path, record: dict[str, object]) -> Path:
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        return path

    link = tmp_path / "link"
    link.symlink_to(good)
    for same in (good, link):
        assert f"{same} and {good} are the same run: name each once" in message(good, same)
    again = folder_of(tmp_path / "again", width=32, steps=100, loss=4.2)
    assert f"{again} repeats {good}, of the same config and seed" in message(good, again)
    copy = folder_of(tmp_path / "copy", width=32, steps=100, seed=2, loss=4.0)
    assert f"{copy} repeats {good}" in message(good, copy)
    diverged = append(
        folder_of(tmp_path / "diverged", width=64, steps=200, loss=4.0),
        {"step": 200, "val_loss": float("nan")},
    )
    assert f"{diverged} diverged at step 200" in message(good, diverged)
    unfinished = folder_of(tmp_path / "unfinished", width=64, steps=200, loss=4.0)
    text = (unfinished / "metrics.jsonl").read_text().replace('"step": 200', '"step": 150')
    (unfinished / "metrics.jsonl").write_text(text)
    assert f"{unfinished} is unfinished, 150 of 200 steps" in message(good, unfinished)
    foreign = folder_of(tmp_path / "foreign", width=64, steps=100, loss=4.0)
    (foreign / "environment.json").write_text(json.dumps([{"data": "0" * 64}]))
    found = message(good, foreign)
    assert "losses on different data or of different tokenizers do not compare" in found
    assert "--force" not in found


def test_other_configs_of_one_size_and_length_are_noted(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", width=32, steps=100, loss=4.0)
    other = folder_of(tmp_path / "other", width=32, steps=100, loss=4.3)
    config = json.loads((other / "config.json").read_text())
    config["optim"]["muon"]["lr"] = 0.005
    (other / "config.json").write_text(json.dumps(config))
    _, (note,) = read_folders([good, other])
    assert "are of one size and as many tokens, and differ in optim.muon.lr" in note


@pytest.mark.parametrize("seed", ["nan", "inf", "0.5", "first"])
def test_a_seed_that_is_none_is_refused_by_row(tmp_path: Path, seed: str) -> None:
    message = refused(tmp_path / "a.csv", f"N,D,loss,seed\n1e6,2e7,3,1\n1e6,3e7,3,{seed}\n")
    assert f"row 3: seed is {seed!r}, which is no seed: write a whole number" in message


def test_rows_are_counted_as_a_spreadsheet_does_empty_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = '\nN,D,loss,note\n\n1e6,2e7,3,"two\nlines"\n,,,\n2e6,2e7,2.9\n\n1e6,2e7,3\n'
    assert "row 8 repeats row 4, of the same size" in refused(path, text)
    assert "row 6: loss is 'low'" in refused(path, text.replace("2.9", "low"))
    path.write_text(text.replace("2.9", "2.9,\u2028").removesuffix("1e6,2e7,3\n"))
    assert [run.label for run in read_csv(path).runs] == [f"{path} row 4", f"{path} row 6"]


def test_rows_with_more_cells_than_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    message = refused(path, "N,D,loss\n1e6,1e7,4\n1000000,0,20000000,0,3\n")
    assert "row 3 has 5 cells and the first row names 3 columns" in message
    path.write_text("N,D,loss\n1e6,1e7,4,,\n")  # a spreadsheet's empty ones
    assert [run.loss for run in read_csv(path).runs] == [4.0]


def test_seeds_may_be_missing_or_written_by_pandas(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("N,D,loss,seed\n1e6,2e7,3.1,1.0\n1e6,2e7,3.2,2.0\n1e6,3e7,3,\n2e6,3e7,2.9\n")
    assert [run.seed for run in read_csv(path).runs] == [1, 2, None, None]


def test_a_csv_of_a_law_is_the_law(tmp_path: Path) -> None:
    runs = read_csv(csv_of(tmp_path / "runs.csv", grid()))
    assert sorted(set(runs.parameters("given"))) == SIZES
