"""Tables on terminals of several widths, and where there is none."""

import io
import re

import pytest
import torch
from rich.console import Console as RichConsole

from quintic import console as console_module
from quintic.console import Console, EvaluationProgress, Table

RESULTS = Table(
    [
        *("", "runs", "final loss", "tokens to 3.28", "steps to 3.28", "seconds to 3.28"),
        *("tokens/s", "peak memory", "optimizer share"),
    ],
    [
        [
            *(f"group-{n}", "3", "3.2763 ± 0.0004", "2.674B (1.02×)", "5,100 (1.02×)", "never"),
            *("123,456", "27.42 GiB", "2.73%"),
        ]
        for n in (1, 2)
    ],
)
SWEEP = Table(
    [*(f"optim.muon.a_long_name_{n}" for n in range(5)), "final loss", "outcome"],
    [["0.01", str(n), "a", "b", "c", f"3.{n}", "best"] for n in (1, 2)],
)
LONG = Table(["", "x"], [["a name of many words " * 5, "a value of many words " * 9]])


def printed(table: Table, width: int, *, terminal: bool) -> str:
    console, out = Console(), io.StringIO()
    console.rich = RichConsole(
        file=out, force_terminal=terminal, width=width, soft_wrap=True, color_system=None
    )
    console.table(table, "a title")
    return out.getvalue()


@pytest.mark.parametrize("table", [RESULTS, SWEEP, LONG], ids=["results", "sweep", "long"])
@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_of_a_table_is_cut_or_wider_than_the_terminal(table: Table, width: int) -> None:
    text = printed(table, width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    words = re.sub(r"\s+", " ", text)
    for cell in (*table.header, *(cell for row in table.rows for cell in row)):
        for word in cell.split():
            assert word in words
    if table is not LONG:  # whose cells are wider than any of them
        for heading in table.header:
            assert heading in text, "headings are whole"
    assert text.count("a title") == 1


def test_columns_that_do_not_fit_follow_beside_the_names_of_their_rows() -> None:
    lines = printed(RESULTS, 80, terminal=True).splitlines()
    (share,) = (number for number, line in enumerate(lines) if "optimizer share" in line)
    assert [line.split()[0] for line in lines[share + 2 : share + 4]] == ["group-1", "group-2"]
    assert [line.split()[-1] for line in lines[share + 2 : share + 4]] == ["2.73%", "2.73%"]
    lines = printed(SWEEP, 80, terminal=True).splitlines()
    (outcome,) = (number for number, line in enumerate(lines) if "outcome" in line)
    assert [line.split()[0] for line in lines[outcome + 2 : outcome + 4]] == ["1", "2"], (
        "rows that their first cells do not tell apart are numbered"
    )


def test_a_file_gets_the_whole_width() -> None:
    text = printed(RESULTS, 80, terminal=False)
    assert text.count("group-1") == 1
    assert all(heading in text.splitlines()[2] for heading in RESULTS.header)


def test_an_evaluation_shows_the_tokens_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "PLAIN_LINE_EVERY_S", 0.0)
    console, out = Console(), io.StringIO()
    console.rich = RichConsole(file=out, width=80)
    batches = [(torch.zeros(2, 4, dtype=torch.int64),) * 2, (torch.zeros(1, 4), -torch.ones(1, 4))]
    with EvaluationProgress(console, 8) as bar:
        assert list(bar.counting(batches)) == batches
    assert out.getvalue().splitlines() == ["evaluated 8 of 8 tokens"] * 2  # padding is no token
