"""Laws of the whole tree: nothing at import, and imports in one direction."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import quintic
from tests.waiting import LAST_BOUND_S

ROOT = Path(quintic.__file__).parent


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from outside_functions(child)


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names that a file imports; with `lazy`, those that its functions import as well."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else outside_functions(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
    return names


def own_imports(name: str, *, lazy: bool = True) -> set[str]:
    found = imports(MODULES[name], lazy=lazy)
    return {module for module in found if module.split(".")[0] == "quintic"}


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def within_any(names: set[str], package: str) -> bool:
    return any(within(name, package) for name in names)


IMPORT_EVERYTHING = """
import importlib, json, sys
events = []
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        events.append(f"{event} {arguments}")
sys.addaudithook(watch)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
socket_seen = len(events)
import socket
socket.socket().close()
print(json.dumps({"events": events[:socket_seen], "works": len(events) > socket_seen}))
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=LAST_BOUND_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_opens_no_socket() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    for package in ("triton", "transformers", "lm_eval"):
        if find_spec(package) is None:
            names = [n for n in names if not within_any(imports(MODULES[n]), package)]
    assert len(names) > 25
    found = json.loads(python(IMPORT_EVERYTHING, json.dumps(names)))
    assert found == {"events": [], "works": True}


def test_importing_quintic_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, quintic; print([m for m in ('torch', 'numpy', 'tyro') if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    assert quintic.__all__ == sorted(quintic.__all__)
    assert set(quintic.__all__) <= set(dir(quintic))
    for name in quintic.__all__:
        assert getattr(quintic, name).__name__ == name
    assert not hasattr(quintic, "nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'quintic'"):
        from quintic import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_help_of_the_command_needs_no_torch() -> None:
    # It would make a mistyped option take seconds.
    code = (
        "import sys, quintic.cli.parsing as p; print({'torch', 'numpy'} & set(sys.modules) or [])"
    )
    assert python(code).strip() == "[]"


def test_only_the_command_imports_the_command_line_library() -> None:
    users = {name for name, path in MODULES.items() if within_any(imports(path), "tyro")}
    assert users
    assert all(within(name, "quintic.cli") for name in users)


def test_nothing_imports_the_command_but_its_entry_point() -> None:
    users = {name for name in MODULES if within_any(own_imports(name), "quintic.cli")}
    assert {name for name in users if not within(name, "quintic.cli")} == {"quintic.__main__"}


def test_the_model_knows_nothing_of_data_optimizers_or_training() -> None:
    for name in MODULES:
        if within(name, "quintic.model"):
            for found in own_imports(name):
                allowed = ("model", "kernels", "config", "errors")
                assert within(found, *(f"quintic.{a}" for a in allowed)), name
            assert not within_any(imports(MODULES[name]), "torch.distributed"), name


def test_the_processes_know_nothing_of_what_they_run() -> None:
    for name in MODULES:
        if within(name, "quintic.distributed"):
            for found in own_imports(name):
                allowed = ("distributed", "errors", "cores")
                assert within(found, *(f"quintic.{a}" for a in allowed)), (name, found)


def test_the_kernels_know_nothing_of_what_uses_them() -> None:
    for name in MODULES:
        if within(name, "quintic.kernels"):
            for found in own_imports(name):
                assert within(found, "quintic.kernels", "quintic.errors"), name


def test_triton_is_imported_by_kernels_alone() -> None:
    """And they only where one is asked for, so that quintic needs no triton."""
    users = {name for name, path in MODULES.items() if within_any(imports(path), "triton")}
    kernels = ("cross_entropy", "gram", "transpose")
    assert users == {f"quintic.kernels.{name}" for name in kernels}
    for path in MODULES.values():
        assert not imports(path, lazy=False) & users, path


def test_the_source_that_goes_out_with_a_model_needs_nothing_of_quintic() -> None:
    """And quintic needs it only where transformers is there."""
    name = "quintic.export.modeling_quintic"
    assert not own_imports(name)
    users = {
        n for n, path in MODULES.items() if within_any(imports(path, lazy=False), "transformers")
    }
    assert users == {name}
    for path in MODULES.values():
        assert name not in imports(path, lazy=False), path


def test_the_data_knows_nothing_of_models_optimizers_or_training() -> None:
    running = ("setup", "trained", "train", "checkpoint", "generate", "evaluate", "report")
    above = ("model", "optim", *running)
    for name in MODULES:
        if within(name, "quintic.data"):
            for found in own_imports(name):
                assert not within(found, *(f"quintic.{a}" for a in (*above, "cli"))), name


def test_the_optimizers_know_nothing_of_data_or_training() -> None:
    allowed = ("optim", "model", "kernels", "config", "errors")
    communicate = [f"quintic.optim.{name}" for name in ("step", "zero1", "fsdp", "whole")]
    for name in MODULES:
        if within(name, "quintic.optim"):
            own = [*allowed, "distributed"] if name in communicate else allowed
            for found in own_imports(name):
                assert within(found, *(f"quintic.{a}" for a in own)), (name, found)


def test_the_mathematics_of_the_optimizers_communicates_with_nobody() -> None:
    for name in (
        "muon",
        "newton_schulz",
        "newton_schulz_cpu",
        "schedule",
        "param_groups",
        "bucket_plan",
    ):
        found = imports(MODULES[f"quintic.optim.{name}"])
        assert not [i for i in found if within(i, "torch.distributed", "quintic.distributed.world")]


def test_the_config_knows_neither_tensors_nor_files() -> None:
    names = [n for n in MODULES if within(n, "quintic.config", "quintic.recipes")]
    assert len(names) > 2
    for name in names:
        outside = {found.split(".")[0] for found in imports(MODULES[name])} - {"quintic"}
        assert outside <= set(sys.stdlib_module_names), name
        reads = {"pathlib"} if name == "quintic.recipes" else set()  # a config in a file
        assert not outside & {"os", "pathlib", "io"} - reads, name


def test_imports_have_no_cycle() -> None:
    # Those of functions are left out: they put off a slow library, and cannot fail for a cycle.
    graph = {name: own_imports(name, lazy=False) - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for found in graph.get(name, ()):
                visit(found, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_there_is_no_utils_file() -> None:
    assert not [name for name in MODULES if name.rsplit(".", 1)[-1] in ("utils", "util", "helpers")]


def test_no_assert_does_anything() -> None:
    """`python -O` leaves them out, so they compare and never act; nor does code depend on them."""
    harmless = {"isinstance", "len", "all", "is_contiguous", "element_size", "stride"}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                assert node.id not in ("__debug__", "AssertionError"), path
            for inner in ast.walk(node.test) if isinstance(node, ast.Assert) else ():
                assert not isinstance(inner, ast.NamedExpr | ast.Await | ast.Yield), path
                if isinstance(inner, ast.Call):
                    called = ast.unparse(inner.func).rpartition(".")[2]
                    assert called in harmless, f"{path}: assert {ast.unparse(node)}"
