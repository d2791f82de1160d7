"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "CONTRIBUTING.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda text: text.rpartition("/")[2])
def test_a_test_that_contributing_names_exists(file: str, name: str) -> None:
    source = (ROOT / file).read_text()
    assert not name or f"\ndef {name}(" in source


def test_each_property_names_a_test() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    properties = re.split(r"^\d+\. \*\*", text.split("\n## ")[3], flags=re.MULTILINE)[1:]
    assert len(properties) == 13
    assert all("`tests/" in each for each in properties)
