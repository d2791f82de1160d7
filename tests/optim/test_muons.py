"""Learning rates of other implementations of Muon, against what was recorded of the real ones.

Each record has its package's version, and `findings/muons.sh` measures them all again.
"""

import importlib.util
import io
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from quintic import run_dir
from quintic.cli.main import main
from quintic.cli.parsing import parse
from quintic.config import Config, MuonConfig
from quintic.errors import QuinticError
from quintic.optim import muons
from quintic.optim.muon import Muon
from quintic.optim.muons import convert, implementation, implementations
from quintic.recipes import get_recipe
from tests.conftest import refusal, tiny_config

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "src/quintic/optim/muons.json").read_text())
EQUAL = [
    name
    for name, row in RECORD.items()
    if "ten_steps" in row.get("measured", {}) and not name.startswith(("heavyball", "optax"))
]
"""Those that were run and that options of quintic repeat, but for the rounding of bfloat16."""
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    """The script that measured the record; what it runs is imported where it is run."""
    spec = importlib.util.spec_from_file_location("findings_muons", ROOT / "findings/muons.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moved(measuring: ModuleType, shape: tuple[int, int], **settings: Any) -> np.ndarray:
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Muon([weight], **settings)
    for gradient in measuring.ten_gradients(shape):
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    result: np.ndarray = weight.detach().numpy()
    return result


@pytest.mark.parametrize("name", EQUAL)
def test_ten_steps_with_the_printed_settings_end_where_the_real_package_ended(
    measuring: ModuleType, name: str, capsys: Capture
) -> None:
    axes = "64x256" if RECORD[name].get("axes") == "in, out" else "256x64"
    arguments = ["--from", name, "--lr", "1", "--weight-decay", "0", "--shape", axes]
    (found,) = json.loads(convert_line(capsys, *arguments, "--json"))
    settings = found["settings"]
    assert settings.pop("momentum_warmup_steps") == 0
    recorded = np.array(RECORD[name]["measured"]["ten_steps_of_256x64"])
    ours = moved(measuring, (256, 64), **settings)[::51, 0]
    assert np.abs(ours - recorded).max() < 0.03 * np.abs(recorded).max()
    # And what is said to remain is nothing of these steps.
    remains = " ".join(found["unmatched"])
    assert not any(word in remains for word in ("newest", "polynomial", "momentum is", "unless"))


def test_what_the_packages_were_measured_against_is_quintics_muon(measuring: ModuleType) -> None:
    for shape, scale in [((64, 256), "aspect"), ((256, 64), "rms"), ((128, 128), "max_dim")]:
        reference = measuring.reference_displacement(shape, scale)
        ours = moved(measuring, shape, lr=1.0, scale=scale)
        assert np.abs(ours - reference).max() < 2e-3 * np.abs(reference).max()


@pytest.mark.parametrize("source", ["torch", "torch:match_rms_adamw", "keras", "timm:rms_to_rms"])
@pytest.mark.parametrize("target", ["optax", "max_dim", "keras:no_rms_rate", "dtensor-muon"])
@pytest.mark.parametrize("shape", [(768, 3072), (3072, 768), (96, 96)])
def test_there_and_back_are_the_same_rates_and_a_weight_shrinks_alike(
    source: str, target: str, shape: tuple[int, int]
) -> None:
    one, other = implementation(source), implementation(target)
    there = convert(one, other, shape, lr=0.02, weight_decay=0.1)
    assert there.weight_decay is not None
    assert there.lr * other.scale_of(shape) == pytest.approx(0.02 * one.scale_of(shape))
    scaled = other.scale_of(shape) if target == "dtensor-muon" else 1.0
    assert there.lr * there.weight_decay * scaled == pytest.approx(0.02 * 0.1)
    back = convert(other, one, shape, lr=there.lr, weight_decay=there.weight_decay)
    assert (back.lr, back.weight_decay) == pytest.approx((0.02, 0.1))


def test_the_page_shows_the_record(measuring: ModuleType) -> None:
    assert measuring.table(RECORD) in (ROOT / "docs/muons.md").read_text()


def test_the_script_installs_the_recorded_versions_and_measures_each() -> None:
    script = (ROOT / "findings/muons.sh").read_text()
    pinned = dict(re.findall(r"([\w-]+)(?:\[cpu\])?==([\d.]+)", script))
    for name, row in RECORD.items():
        if "measured" in row:
            package = name.partition(":")[0]
            assert pinned[package] == row["measured"]["version"]
            assert re.search(rf"\s{name}\s", script), name


def convert_line(capsys: Capture, *arguments: str) -> str:
    main(["muon", "convert", *arguments])
    return capsys.readouterr().out


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if re.match(r"\s*\d+ x \d+ ", line)]


def test_torch_and_quintic_share_a_learning_rate(capsys: Capture) -> None:
    out = convert_line(capsys, "--from", "torch", "--lr", "0.02", "--shape", "768x3072", "3072x768")
    assert rows(out) == [
        ["768", "x", "3072", "1", "0.02", "0.02", "0.1"],
        ["3072", "x", "768", "1", "0.04", "0.02", "0.1"],
    ]
    assert "the weight decay is torch's own, 0.1" in out
    assert (
        "--optim.muon.scale aspect --optim.muon.lr 0.02 --optim.muon.weight-decay 0.1 "
        "--optim.muon.momentum 0.95 --optim.muon.momentum-warmup-steps 0 --optim.muon.nesterov "
        "--optim.muon.ns-steps 5 --optim.muon.ns-coefficients quintic --optim.muon.no-cautious "
        "--optim.muon.no-normuon"
    ) in out
    assert "torch averages gradients and quintic adds them" in out


def test_shapes_are_read_as_the_library_has_them(capsys: Capture) -> None:
    out = convert_line(capsys, "--from", "optax", "--lr", "0.02", "--shape", "768x3072")
    assert rows(out) == [["3072", "x", "768", "1", "0.04", "0.02", "0"]]
    assert "corrects its average" in out


def test_scales_that_differ_by_shape_need_a_group_for_each(capsys: Capture) -> None:
    args = ["--to", "max_dim", "--from", "torch", "--lr", "0.02", "--weight-decay", "0.05"]
    out = convert_line(capsys, *args, "--shape", "64x256", "256x64")
    assert rows(out) == [
        ["64", "x", "256", "1", "0.02", "0.00125", "0.8"],
        ["256", "x", "64", "1", "0.04", "0.0025", "0.4"],
    ]
    assert "each shape needs a parameter group of its own" in out


def settings_from(capsys: Capture, *arguments: str) -> tuple[dict[str, Any], str]:
    """What is to be set in quintic, and what remains."""
    (found,) = json.loads(convert_line(capsys, *arguments, "--json"))
    settings = dict(found["settings"])
    # The options are the same, and quintic train takes them.
    muon = parse(["train", *found["options"].split()]).config.optim.muon
    assert {name: getattr(muon, name) for name in settings} == settings
    return settings, " ".join(found["unmatched"])


def test_all_that_quintic_has_an_option_for_is_set(capsys: Capture) -> None:
    shape = ["--shape", "768x3072"]
    timm, remains = settings_from(capsys, "--from", "timm", "--lr", ".001", *shape)
    assert (timm["ns_coefficients"], timm["nesterov"], timm["scale"]) == ("dion", False, "rms")
    assert "together" not in remains
    timm, _ = settings_from(capsys, "--from", "timm:nesterov", *shape)
    assert timm["nesterov"] and timm["ns_coefficients"] == "dion"
    dion, remains = settings_from(capsys, "--from", "dion:rms_norm", *shape)
    assert dion == {
        **{"scale": "rms", "lr": 0.01, "weight_decay": 0.01, "momentum": 0.95, "ns_steps": 5},
        **{"momentum_warmup_steps": 0, "nesterov": False, "ns_coefficients": "polar_express"},
        **{"cautious": False, "normuon": False},
    }
    assert remains.startswith("dion:rms_norm 0.1.0 was read and not run")
    heavy, _ = settings_from(capsys, "--from", "heavyball", *shape)
    assert (heavy["momentum"], heavy["ns_coefficients"]) == (0.9, "dion")
    cautious, remains = settings_from(capsys, "--from", "dtensor-muon", *shape)
    assert cautious["cautious"] and "smaller too" not in remains
    to_keras = convert_line(capsys, "--from", "dtensor-muon", "--to", "keras", *shape)
    assert "dtensor-muon decays only where the update makes a weight smaller too" in to_keras


def test_rates_that_differ_by_shape_leave_the_other_settings(capsys: Capture) -> None:
    dion, _ = settings_from(capsys, "--from", "dion", "--shape", "64x256", "256x64")
    assert not {"lr", "weight_decay"} & dion.keys()
    assert (dion["nesterov"], dion["ns_coefficients"]) == (False, "polar_express")


def test_what_cannot_be_matched_is_said_with_its_size(capsys: Capture) -> None:
    out = convert_line(capsys, "--from", "heavyball", "--lr", "0.02", "--shape", "64x64")
    assert "0.55 of the direction in heavyball and 0.19 in quintic" in out
    assert "momentum is" not in out and "--optim.muon.momentum 0.9 " in out
    steps = RECORD["heavyball"]["measured"]["ten_steps"]
    assert f"{steps['difference']:.1%} of their way" in out
    mlx = convert_line(capsys, "--from", "mlx", "--lr", "0.02", "--shape", "64x64")
    assert rows(mlx)[0][-2:] == ["no", "equal"] and "before the orthogonalisation" in mlx


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "r"
    config = tiny_config(Path("unused"))
    changes = {
        "optim.muon.lr": 0.01,
        "optim.muon.scale": "aspect",
        "optim.muon.weight_decay": 0.1,
        "optim.muon.ns_coefficients": "polar_express",
        "optim.muon.normuon": True,
    }
    run_dir.create(folder, config.override(changes), "")
    return folder


def test_a_run_has_all_its_matrices_converted_from_its_own_rates(
    capsys: Capture, run: Path
) -> None:
    out = convert_line(capsys, "--model", str(run), "--to", "keras")
    table = rows(out)
    assert "Polar Express in quintic" in out and "NorMuon: quintic divides rows" in out
    same, remains = settings_from(capsys, "--model", str(run), "--to", "aspect")
    assert MuonConfig(**same) == run_dir.read_config(run).optim.muon and not remains
    width = run_dir.read_config(run).model.width
    layers = run_dir.read_config(run).model.layers
    square = next(row for row in table if row[0] == row[2] == str(width))
    assert square[3] == str(4 * layers)
    assert float(square[5]) == pytest.approx(0.01 / (0.2 * width**0.5), rel=1e-3)
    assert float(square[5]) * float(square[6]) == pytest.approx(0.001, rel=1e-3)


def test_a_recipe_or_a_rung_of_the_ladder_has_all_its_matrices_converted(capsys: Capture) -> None:
    for name in ("laptop-plain", "ladder:4"):
        recipe = get_recipe(name)
        width, layers, lr = recipe.model.width, recipe.model.layers, recipe.optim.muon.lr
        out = convert_line(capsys, "--model", name, "--to", recipe.optim.muon.scale)
        assert f"the learning rate is {name}'s own, {lr:g}" in out
        up = next(row for row in rows(out) if (row[0], row[2]) == (str(4 * width), str(width)))
        assert up[3] == str(layers)
        assert float(up[5]) == pytest.approx(lr, rel=1e-3)


def test_hyperparameters_are_read_from_param_groups(capsys: Capture, tmp_path: Path) -> None:
    groups = [
        {"lr": 0.01, "initial_lr": 0.02, "weight_decay": 0.0, "momentum": 0.9, "nesterov": False,
         "ns_coefficients": [3.4445, -4.775, 2.0315], "eps": 1e-7, "ns_steps": 4,
         "adjust_lr_fn": "match_rms_adamw", "params": [0, 1]},
        {"lr": 3e-4, "use_muon": False, "params": [2]},
    ]  # fmt: skip
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(groups))
    out = convert_line(capsys, "--from", "torch", "--groups", str(path), "--shape", "64x256")
    assert rows(out) == [["64", "x", "256", "1", "0.064", "0.02", "0"]]
    assert "--optim.muon.scale rms --optim.muon.lr 0.02" in out
    assert "before the schedule; now 0.01" in out and "--optim.muon.ns-steps 4" in out
    assert "--optim.muon.momentum 0.9 " in out and "--optim.muon.no-nesterov" in out
    keras = ["--from", "torch", "--to", "keras", "--groups", str(path), "--shape", "64x256"]
    out = convert_line(capsys, *keras)
    assert "momentum is 0.9 in torch:match_rms_adamw and 0.95 in keras" in out
    assert "4 iterations of Newton-Schulz in torch:match_rms_adamw and 5 in keras" in out


def test_the_table_lists_every_name(capsys: Capture) -> None:
    main(["muon", "table"])
    out = capsys.readouterr().out
    assert all(re.search(rf"^\s*{re.escape(name)}\s", out, re.M) for name in implementations())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "troch", "--lr", "1", "--shape", "2x2"], "did you mean torch?"),
        (["--from", "torch", "--to", "kears", "--shape", "2x2"], "did you mean keras?"),
        (["--from", "torch", "--shape", "768"], "--shape is '768'"),
        (["--from", "torch", "--shape", "768x3.5"], "--shape is '768x3.5'"),
        (["--from", "torch", "--shape", "0x5"], "--shape is '0x5'"),
        (["--from", "torch", "--shape", "4x4x4"], "matrices only"),
        (["--from", "torch", "--lr", "-1", "--shape", "2x2"], "--lr is -1"),
        (["--from", "torch", "--lr", "nan", "--shape", "2x2"], "--lr is nan"),
        (["--from", "torch", "--weight-decay", "-1", "--shape", "2x2"], "--weight-decay is -1"),
        (["--from", "optax", "--shape", "2x2"], "give it with --lr"),
        (["--from", "torch"], "needs the shapes"),
        (["--shape", "2x2"], "needs --from"),
        (["--from", "torch", "--model", "absent", "--lr", "1"], "there is no recipe 'absent'"),
        (["--model", "moded"], "is the folder of no run, and there is no recipe 'moded': did you"),
        (["--form", "torch", "--shape", "2x2"], "did you mean --from?"),
        (["--from", "muon-fsdp2", "--shape", "2x2"], "the names are quintic, max_dim"),
        (["--from", "torch", "--groups", "absent", "--shape", "2x2"], "absent"),
        (["--from", "torch", "--shape", f"2x{'9' * 400}"], "--shape is '2x999"),
        (["--from", "torch", "--shape", f"2x{'9' * 5000}"], "--shape is '2x999"),
        (["--from", "keras", "--lr", "1e308", "--shape", "8x2048"], "have no equal in floating"),
        (["--from", "keras", "--lr", "5e-324", "--shape", "8x8"], "have no equal in floating"),
    ],
)
def test_what_cannot_be_converted_is_named(
    arguments: list[str], said: str, capsys: Capture
) -> None:
    assert said in refusal(["muon", "convert", *arguments], capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a list of objects"),
        ('[{"lr": "x"}]', "group 0 has lr 'x'"),
        ('[{"lr": -1}]', "group 0 has lr -1"),
        ('[{"lr": 1, "use_muon": false}]', "no group for Muon"),
        ('[{"lr": 1, "adjust_lr_fn": "other"}]', "'torch:other'"),
        ('[{"lr": 1, "ns_coefficients": 3}]', "group 0 has ns_coefficients 3"),
        ('[{"lr": 1, "ns_steps": 4.5}]', "group 0 has ns_steps 4.5"),
        ('[{"lr": 1, "nesterov": "x"}]', "nesterov 'x'"),
        ('[{"lr": 1, "ns_steps": "x"}]', "group 0 has ns_steps 'x'"),
        ('[{"lr": Infinity}]', "group 0 has lr inf"),
        (f'[{{"lr": {"9" * 400}}}]', "group 0 has lr 999"),
        (f'[{{"lr": 1, "ns_steps": {"9" * 400}}}]', "group 0 has ns_steps 999"),
        ('[{"lr": "tensor(0.0004)"}]', "a tensor as text, which is rounded: write the groups as"),
        ('[{"lr": 1, "initial_lr": "tensor(.)"}]', "initial_lr 'tensor(.)', a tensor as text"),
        ('[{"lr": 1, "momentum": 1.5}]', "momentum 1.5: it must be at least 0 and below 1"),
        ("\x80", "is not JSON"),
    ],
)
def test_param_groups_that_cannot_be_read_are_named(
    text: str, said: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "groups.json"
    path.write_text(text, encoding="latin-1")
    arguments = ["--from", "torch", "--shape", "2x2", "--groups", str(path)]
    assert said in refusal(["muon", "convert", *arguments], capsys)


def test_a_run_without_muon_has_nothing_to_convert(tmp_path: Path, capsys: Capture) -> None:
    config: Config = tiny_config(Path("unused")).override({"optim.matrices": "adamw"})
    run_dir.create(tmp_path / "r", config, "")
    arguments = ["muon", "convert", "--model", str(tmp_path / "r")]
    assert "none to Muon" in refusal(arguments, capsys)


def test_the_names_of_polynomials_are_those_of_the_record() -> None:
    assert {one.polynomial for one in implementations().values()} <= set(muons.POLYNOMIALS)


@pytest.mark.parametrize("lr", [torch.tensor(0.0123456), torch.tensor([3.6e-4])])
def test_the_snippet_of_the_page_writes_groups_that_hold_dtypes_and_tensors(
    lr: torch.Tensor,
) -> None:
    page = (ROOT / "docs/muons.md").read_text()
    snippet = re.search(r"    (groups = .*)\n    (json.dump\(.*)\n", page)
    assert snippet is not None
    optimizer = Muon([torch.nn.Parameter(torch.zeros(2, 2))], lr=lr, ns_dtype=torch.bfloat16)
    file = io.StringIO()
    exec("\n".join(snippet.groups()), {"json": json, "optimizer": optimizer, "file": file})
    (group,) = muons.parse_groups(file.getvalue().encode(), implementation("max_dim"))
    assert group.lr == lr.item() and json.loads(file.getvalue())[0]["ns_dtype"] == "torch.bfloat16"


@pytest.mark.parametrize("text", ["{}", "[{}]", '[{"lr": 0.1}, {"weight_decay": 0.1}]'])
def test_a_group_without_a_learning_rate_is_no_group_of_an_optimizer(text: str) -> None:
    with pytest.raises(QuinticError, match=r"group [01] has no lr: give the groups as json.dump"):
        muons.parse_groups(text.encode(), implementation("torch"))


def test_groups_of_quintics_own_say_their_scale_and_those_of_adamw_are_left_out() -> None:
    text = json.dumps(
        [
            {"lr": 0.02, "scale": "aspect", "ns_coefficients": "quintic", "optimizer": "muon"},
            {"lr": 0.003, "optimizer": "adamw"},
        ]
    )
    (group,) = muons.parse_groups(text.encode(), implementation("max_dim"))
    assert (group.source.name, group.source.polynomial, group.lr) == ("aspect", "jordan", 0.02)


def test_groups_of_quintics_own_say_cautious_and_normuon(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    own = {"lr": 0.02, "scale": "aspect", "weight_decay": 0.1, "cautious": True, "normuon": True}
    path.write_text(json.dumps([own]))
    arguments = ["--from", "quintic", "--groups", str(path), "--shape", "64x256"]
    settings, _ = settings_from(capsys, *arguments)
    assert settings["cautious"] and settings["normuon"] and settings["scale"] == "aspect"
    out = convert_line(capsys, *arguments, "--to", "torch")
    assert "NorMuon: quintic divides rows" in out
    assert "quintic decays only where the update makes a weight smaller too" in out
    path.write_text(json.dumps([{**own, "normuon": "x"}]))
    assert "group 0 has normuon 'x': it must be true" in refusal(
        ["muon", "convert", *arguments], capsys
    )


@pytest.mark.parametrize(
    ("group", "name", "polynomial", "newest"),
    [
        ({"adjust_lr_fn": "match_rms_adamw", "nesterov": False}, "timm", "five", 0.05),
        ({"adjust_lr_fn": "original", "nesterov": True}, "timm:original", "five", 0.0975),
        ({"ns_coefficients": "original", "momentum": 0.9}, "timm", "jordan", 0.1),
        ({"ns_coefficients": "quintic"}, "timm", "five", 0.05),
        ({"ns_coefficients": [4.0, -6.0, 2.0]}, "timm", "coefficients [4.0, -6.0, 2.0]", 0.05),
    ],
)
def test_groups_of_timm_say_what_timm_means(
    group: dict[str, Any], name: str, polynomial: str, newest: float
) -> None:
    (found,) = muons.parse_groups(
        json.dumps([{"lr": 0.1, **group}]).encode(), implementation("timm")
    )
    assert (found.source.name, found.source.polynomial) == (name, polynomial)
    assert found.source.newest[1] == pytest.approx(newest)
