"""quintic scale, as it is called."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from quintic.cli.main import main
from quintic.figure import save_figure
from tests.scale.laws import SIZES, csv_of, folder_of, grid, loss_of

FEW = ("--draws", "200")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of runs that follow a law without noise."""
    return csv_of(tmp_path_factory.mktemp("scale") / "runs.csv", grid())


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    main(["scale", *arguments, *FEW])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["scale", *arguments])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quintic: ")
    assert len(err.splitlines()) == 1
    return err


def data_of(page: Path) -> Any:
    """What a page draws."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text())[1])  # type: ignore[index]


def test_a_law_its_prediction_and_its_best_size(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.json"
    words = said(
        capsys, str(runs), "--predict", "64e6,1.28e9", "8e6,1.6e8", "--budget", "1e16",
        "--hours", "2", "--flop-per-s", "1e12", "--out", str(out),
    )  # fmt: skip
    assert "L = 1.8 + 30 / N^0.35 + 60 / D^0.37, fitted to 20 runs" in words
    assert f"N,D = 64e6,1.28e9: {loss_of(64e6, 1.28e9):.4f}, 95% interval" in words
    assert "That is extrapolation: N is 4 times the largest, D is 2 times the largest" in words
    assert "That is among the runs, in N, D and C." in words
    found = json.loads(out.read_text())
    assert found["quintic scale"] == 1
    (fit,) = found["fits"]
    assert fit["parameters"]["b"]["estimate"] == pytest.approx(0.37, rel=1e-5)
    assert [best["flops"] for best in found["optima"]] == [1e16, 7.2e15]
    best = found["optima"][0]
    n, d = best["parameters"]["estimate"], best["tokens"]["estimate"]
    assert 6 * n * d == pytest.approx(1e16)
    assert loss_of(n, d) == pytest.approx(best["loss"]["estimate"], rel=1e-6)
    assert found["evidence"] and len(found["runs"]) == 20
    said(capsys, str(runs), "--out", str(out))  # its own result is replaced


def test_the_figure_and_the_page(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure, page = tmp_path / "law.png", tmp_path / "law.html"
    drawn: list[Any] = []

    def save(found: Any, path: Path) -> None:
        drawn.append(found)
        save_figure(found, path)

    monkeypatch.setattr("quintic.scale.figure.save_figure", save)
    said(capsys, str(runs), "--predict", "64e6,1.28e9", "--out", str(figure))
    assert matplotlib.image.imread(figure).shape[1] > 1000
    profiles, _ = drawn[0].axes
    assert "10M" in [label.get_text() for label in profiles.get_xticklabels()]
    said(capsys, str(runs), "--predict", "64e6,1.28e9", "--out", str(page))
    text = page.read_text()
    assert "<h1>A law of the loss, fitted to 20 runs</h1>" in text
    assert not re.search(r"(?:src|href)=|https?://(?!www\.w3\.org)", text.split("<script>")[0])
    data = data_of(page)
    labels = [series["label"] for series in data["flops"]]
    assert labels == ["best size by the law", "runs", "N,D = 64e6,1.28e9"]
    for series in [*data["flops"], *data["profiles"]]:
        assert series["x"]["x"] == sorted(series["x"]["x"])


def test_folders_are_fitted_by_both_ways_of_counting_and_a_recipe_is_foreseen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for width in (32, 64, 128, 256):
        for steps in (100, 400, 1600):
            blocks = 2 * 12 * width**2
            name = tmp_path / f"w{width}-{steps}"
            loss = loss_of(blocks, steps * 1000)
            paths.append(str(folder_of(name, width=width, steps=steps, loss=loss)))
    out = tmp_path / "all.json"
    recipe = tmp_path / "w256-1600" / "config.json"
    words = said(
        capsys, *paths, "--count", "blocks", "--predict-config", str(recipe), "--out", str(out)
    )
    found = json.loads(out.read_text())
    assert [fit["count"][:10] for fit in found["fits"]] == ["the matric", "all parame"]
    exponents = [fit["parameters"]["a"]["estimate"] for fit in found["fits"]]
    assert exponents[0] == pytest.approx(0.35, rel=1e-3)
    assert abs(exponents[1] - 0.35) > 0.01, "embeddings change the exponent"
    assert [p["count"] for p in found["predictions"]] == ["blocks", "all"]
    for prediction in found["predictions"]:
        assert prediction["law"]["estimate"] == pytest.approx(
            loss_of(2 * 12 * 256**2, 1600 * 1000), rel=2e-3
        )
    assert "N counts the matrices of the blocks, without embeddings and head" in words
    # A recipe that leaves the vocabulary to its data has that of the runs, 256 rows of 64.
    ladder = json.loads((tmp_path / "w64-400" / "config.json").read_text())
    ladder["model"]["vocab_size"] = None
    (tmp_path / "ladder.json").write_text(json.dumps(ladder))
    recipe = tmp_path / "ladder.json"
    said(capsys, *paths, "--predict-config", str(recipe), "--out", str(out))
    foreseen = json.loads(out.read_text())["predictions"]
    sizes = {one["count"]: one["place"]["parameters"] for one in foreseen}
    assert sizes == {"blocks": 2 * 12 * 64**2, "all": 2 * 12 * 64**2 + 256 * 64}
    other = refused(capsys, *paths, "--predict-config", "modded")
    assert "--predict-config modded has model.context 1,024, and the runs" in other


def test_where_tokens_follow_parameters_the_law_has_one_term(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv_of(tmp_path / "line.csv", [(n, 20 * n) for n in [*SIZES, 32e6, 64e6]])
    words = said(capsys, str(path), "--predict", "256e6,5.12e9", "256e6,1e11")
    assert "L = E + A / C^a" in words
    assert "D follows N in all of these runs, so the law is one in C" in words
    assert "D is 19.5 times what their line has at this N" in words
    refusal = refused(capsys, str(path), "--budget", "1e18")
    assert "the best size for a budget follows from a law in N and D alone" in refusal
    assert "fit the one-term law with --law flops" in refused(
        capsys, str(path), "--law", "two-term"
    )


def test_where_an_exponent_may_be_0_nothing_is_foreseen_beyond_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "all.json", tmp_path / "law.html"
    path = csv_of(tmp_path / "noisy.csv", grid(), noise=0.006, draw=1)
    words = said(capsys, str(path), "--predict", "64e6,1.28e9", "8e6,1.6e8", "--out", str(out))
    found = json.loads(out.read_text())
    (fit,) = found["fits"]
    intervals = {name: fit["parameters"][name] for name in "ab"}
    untold = [name for name, i in intervals.items() if i["low"] <= 0 < i["estimate"]]
    assert fit["exponents whose interval holds 0"] == untold == ["a"]
    low, high = (f"{intervals['a'][end]:.3g}" for end in ("low", "high"))
    assert (
        f"Of this law the interval of a ({low} to {high}) holds 0: the runs do not tell how the "
        "loss falls with N, or whether it does, so the fit carries no prediction beyond them, nor "
        "a claim on the best size for a budget."
    ) in words
    assert words.count("This fit does not carry it.") == 1
    assert [prediction["carried"] for prediction in found["predictions"]] == [False, True]
    assert "The best N grows" not in words and "best N ~ C^" not in words
    growth = "size of the best run grows with FLOPs to the power"
    assert (fit[growth], found["profiles"], found["frontier"]) == (None, [], None)
    assert any("holds 0" in sentence for sentence in found["evidence"])
    refusal = refused(capsys, str(path), "--budget", "1e18", *FEW)
    assert "tell no best size for a budget: the interval of a (" in refusal
    assert "or leave --budget and --hours out" in refusal
    said(capsys, str(path), "--predict", "64e6,1.28e9", "--out", str(page))
    labels = [series["label"] for series in data_of(page)["flops"]]
    assert labels == ["runs", "N,D = 64e6,1.28e9, not carried by the fit"]
    said(capsys, str(path), "--out", str(tmp_path / "law.png"))
    line = [(n, 20 * n) for n in [*SIZES, 32e6]]
    path = csv_of(tmp_path / "line.csv", line, noise=0.006, draw=1)
    words = said(capsys, str(path), "--predict", "256e6,5.12e9")
    assert "the loss falls with C, or whether it does, so the fit carries no prediction" in words
    assert "beyond them. Train sizes" in words
    assert "This fit does not carry it." in words


def test_a_run_far_beside_the_law_is_named_and_hardly_moves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = csv_of(tmp_path / "runs.csv", grid())
    lines = path.read_text().splitlines()

    def raised(row: int) -> None:
        n, d, loss = lines[row - 1].split(",")
        changed = [*lines[: row - 1], f"{n},{d},{1.1 * float(loss)}", *lines[row:]]
        path.write_text("\n".join(changed) + "\n")

    raised(11)
    words = said(capsys, str(path))
    assert f"by more than 6 times the deviation of most runs, lies {path} row 11 (+10.0%)" in words
    irreducible = float(re.search(r"- L = (\S+) \+", words)[1])  # type: ignore[index]
    assert irreducible == pytest.approx(1.8, rel=0.02)
    raised(2)  # at the corner, on which both terms hang
    refusal = refused(capsys, str(path), *FEW)
    assert f"a term vanishes: check the loss of {path} row 2 (+" in refusal
    assert "Far from the law" not in said(capsys, str(csv_of(path, grid())))


def test_tables_that_are_piped_fit_a_hundred_columns(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = said(
        capsys, str(runs), "--predict", "3145728,1310720", "64e6,1.28e9,6e17", "--budget", "1e16"
    )
    tables, sentences = words.split("- L = 1.8", 1)
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= 100
    assert "of one run" in tables and "best sizes" in tables
    assert "Its 2.47e+13 FLOPs are taken as 6 N a token, as those of the runs" in sentences
    assert "N,D = 64e6,1.28e9: " in sentences
    assert "C is 9.77 times the largest" in sentences


def test_runs_that_cannot_carry_a_law_are_refused_with_what_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "few.csv"

    def refusal(pairs: list[tuple[float, float]], *options: str) -> str:
        return refused(capsys, str(csv_of(path, pairs)), *options)

    one_budget = [(n, 1e15 / n) for n in SIZES]
    assert "all have one budget, 6e+15 to 6e+15 FLOPs" in refusal(one_budget)
    two_sizes = [(n, r * n) for n in SIZES[:2] for r in (5, 10, 20, 40)]
    assert "8 runs of 2 sizes (N 1M to 2M): the law in N and D needs 3" in refusal(two_sizes)
    two_lengths = [(n, d) for n in SIZES for d in (1e7, 4e7)]
    assert "10 runs of 2 numbers of tokens (D 10M to 40M)" in refusal(two_lengths)
    sparse = [(1e6, 5e6), (2e6, 8e7), (4e6, 2e7), (8e6, 3.2e8), (16e6, 8e7)]
    assert "5 pairs of N and D, and the law's parameters are five" in refusal(sparse)
    short = [(n, 20 * n) for n in SIZES[:3]]
    assert "3 runs of 3 budgets (C 1.2e+14 to 1.92e+15): the law in C needs 5" in refusal(short)
    assert "D does not follow N, 8 times as many tokens" in refusal(grid(), "--law", "flops")


def test_options_that_make_no_sense_are_refused_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(runs)
    foreign, folder = tmp_path / "foreign.json", tmp_path / "run"
    foreign.write_text("{}")
    folder_of(folder, width=32, steps=100, loss=4.0)
    cases = {
        "--predict is '1e6': it must be parameters and tokens": (first, "--predict", "1e6"),
        "--predict is '1e6,-1'": (first, "--predict", "1e6,-1"),
        "--predict is '1e6,1e7,1e15,1'": (str(tmp_path / "absent"), "--predict", "1e6,1e7,1e15,1"),
        "there is no recipe 'nothing'": (str(tmp_path / "absent"), "--predict-config", "nothing"),
        "--budget is -1.0: it must be a positive": (first, "--budget", "-1"),
        "give both or neither": (first, "--hours", "2"),
        "--flop-per-s is 0.0": (first, "--hours", "2", "--flop-per-s", "0"),
        "--predict 124,2.5e9: 124 parameters (N) are fewer": (first, "--predict", "124,2.5e9"),
        "--predict 1e300,1e300: 1e+300 parameters (N) are more": (
            first,
            "--predict",
            "1e300,1e300",
        ),
        "2.5 tokens (D) are fewer": (first, "--predict", "1e8,2.5"),
        "1e+14 tokens for 1e+06 parameters are 1e+08 a": (first, "--predict", "1e6,1e14"),
        "its FLOPs are 1.67e-06 times 6 N D": (first, "--predict", "1e6,1e8,1e9"),
        "--budget 1000 makes 1000 FLOPs, less than": (first, "--budget", "1000"),
        "--budget 1e+300 makes 1e+300 FLOPs, more": (first, "--budget", "1e300"),
        "makes 0.0072 FLOPs, less": (first, "--hours", "2", "--flop-per-s", "1e-6"),
        "--seed is -1: it must be 0 or more": (first, "--seed", "-1"),
        "--draws is 10: it must be at least 200": (first, "--draws", "10"),
        "--drop-highest-loss is -1": (first, "--drop-highest-loss", "-1"),
        "--count is blocks": (first, "--count", "blocks", *FEW),
        "a CSV stands alone": (first, str(folder)),
        "--predict-config counts parameters in our ways": (first, "--predict-config", "laptop"),
        "it must end in .png for a figure": (first, "--out", str(tmp_path / "law.txt")),
        "exists and is no fit of a law": (first, "--out", str(foreign)),
        "would replace a file of the run": (first, "--out", str(folder / "config.json")),
        "does not exist": (str(tmp_path / "absent"),),
        "No such file": (str(tmp_path / "absent.csv"),),
        "name at least one": (),
    }
    for message, arguments in cases.items():
        assert message in refused(capsys, *arguments), message
