"""quintic evaluate --tasks in several processes, as torchrun starts them."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from unittest import mock

from quintic.cli import evaluate
from quintic.cli.main import main
from quintic.distributed.world import World
from tests.multiprocess.worlds import run_world
from tests.tasks.material import write_task


def command(world: World, *arguments: str) -> tuple[object, str, str]:
    """The exit code and what a rank prints, which has met the others already."""
    out, err, code = io.StringIO(), io.StringIO(), None
    met = mock.patch.object(evaluate, "connect", return_value=world)
    with met, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["evaluate", *arguments])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def test_two_processes_share_the_items_and_one_prints_and_keeps_the_scores(
    text_run: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "piqa", 40)
    runs = [Path(shutil.copytree(text_run, tmp_path / name)) for name in ("one", "two")]
    options = ("--tasks", "piqa", "--task-data", str(tmp_path))
    main(["evaluate", str(runs[0]), *options])
    (_, said, _), second = run_world(2, command, str(runs[1]), *options)
    assert "kept, item by item, in" in said
    assert second == (None, "", "")
    kept = [(run / "scores/step-00000012/piqa.json").read_text() for run in runs]
    assert kept[0] == kept[1]
    found = run_world(2, command, str(runs[1]), "--text", str(tmp_path / "piqa.jsonl"))
    silent, refused = sorted(err for _, _, err in found)
    assert silent == ""
    assert "2 processes would do the same, since only --tasks is divided among them" in refused
    assert [code for code, _, _ in found] != [None, None]
