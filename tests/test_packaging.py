"""What is released: an sdist and a wheel that are whole, and extras that training does without."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import quintic
from quintic.errors import QuinticError, require_package
from tests.conftest import tiny_arguments

ROOT = Path(__file__).parents[1]
SHIPPED = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "src", "tests")

PAGES = (
    "compare/page.html",
    "data_info/page.html",
    "pages/chart.js",
    "pages/controls.html",
    "pages/heatmap.js",
    "pages/style.css",
    "report/page.html",
    "scale/page.html",
    "watch/page.css",
    "watch/page.html",
    "watch/page.js",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist and of the wheel built from it, without network."""
    pytest.importorskip("build", reason="the package `build` of the extra `dev` is not installed")
    tree = tmp_path_factory.mktemp("tree")  # a copy, since a build writes beside the sources
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(tree)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / "dist"


def test_sdist_and_wheel_have_the_version_and_twine_accepts_them(built: Path) -> None:
    version = quintic.__version__
    names = [f"quintic-{version}-py3-none-any.whl", f"quintic-{version}.tar.gz"]
    assert sorted(path.name for path in built.iterdir()) == names
    pytest.importorskip("twine", reason="the package twine of the extra `dev` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_package_whole_and_no_tests(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    pages = {f"quintic/{name}" for name in PAGES}
    assert {"quintic/py.typed", "quintic/track/reference.json", *pages} <= held
    records = (ROOT / "src" / "quintic" / "track" / "records").glob("*.json")
    assert {path.relative_to(ROOT / "src").as_posix() for path in records} <= held
    sources = {path.relative_to(ROOT / "src") for path in (ROOT / "src" / "quintic").rglob("*.py")}
    assert {path.as_posix() for path in sources} <= held
    metadata = f"quintic-{quintic.__version__}.dist-info/"
    assert all(name.startswith(("quintic/", metadata)) for name in held)
    assert metadata + "licenses/LICENSE" in held


def test_the_sdist_holds_the_sources_and_no_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/quintic/py.typed"} <= held
    assert not [name for name in held if name.startswith("tests")]


def test_the_version_is_the_same_wherever_it_stands() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)[0] == quintic.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [quintic.__version__]


def test_every_pinned_version_satisfies_what_the_project_asks_for() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    asked = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (packaging.Requirement(text) for texts in asked for text in texts):
        name = requirement.name.lower().replace("_", "-")
        # PyTorch stands in the Makefile and brings its own triton; the trackers ask for older
        # versions of others, and are tested in an environment of their own.
        if name not in ("quintic", "torch", "triton", "setuptools", "wandb", "trackio", "mlflow"):
            assert name in pins, f"constraints.txt does not pin {name}"
            assert requirement.specifier.contains(pins[name]), requirement


def test_a_missing_package_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    require_package("scipy", "compare", "quintic compare")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(QuinticError, match=r"^quintic compare needs the package scipy: pip"):
        require_package("scipy", "compare", "quintic compare")


WITHOUT_EXTRAS = """
import json, sys
from pathlib import Path
corpus, library, arguments = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for module in json.loads(sys.argv[4]):
    sys.modules[module] = None  # importing it fails, and nobody finds it
from quintic.cli.main import main
from quintic.data.corpus import _dataset_of_tree
_dataset_of_tree(library, 320, corpus)
main(arguments)
"""


def test_neither_training_nor_the_embedded_corpus_needs_an_extra(
    tiny_data: Path, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for index in range(40):
        functions = (f"def f_{index}_{n}(x):\n    return x + {n * index}\n\n\n" for n in range(40))
        (library / f"module_{index}.py").write_text("".join(functions))
    arguments = [*tiny_arguments(tiny_data), "--out", str(tmp_path / "run")]
    extras = ["huggingface_hub", "httpx2", "pyarrow", "orjson", "zstandard", "scipy"]
    argv = [str(tmp_path / "corpus"), str(library), json.dumps(arguments), json.dumps(extras)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *argv], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
