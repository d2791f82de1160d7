"""What pages share: one palette, and templates that fill in nothing twice."""

import json
import re

import pytest

from quintic.figure import COLOURS, DASHES, MARKERS
from quintic.pages.fill import fill, script_json, shared_part


def test_lines_of_a_page_look_as_those_of_a_figure() -> None:
    light = shared_part("style.css").split("@media")[0]
    assert re.findall(r"--line-\d: (#\w+);", light) == list(COLOURS)
    script = shared_part("chart.js")
    dashes, markers = (re.search(rf"{n} = (\[.*\])[,;]", script) for n in ("DASHES", "MARKERS"))
    assert dashes is not None
    assert markers is not None
    assert json.loads(dashes[1]) == [list(lengths) for lengths in DASHES]
    assert json.loads(markers[1]) == list(MARKERS)
    assert f"COLOURS = {len(COLOURS)}," in script


def test_what_is_filled_in_is_never_filled_in_again_and_ends_no_script() -> None:
    page = fill("<p>{{A}}</p>{{B}}", {"A": "{{B}}", "B": script_json("</script>{{A}}")})
    assert page == '<p>{{B}}</p>"\\u003c/script>{{A}}"'
    assert fill("{{CHART}}", {}) == shared_part("chart.js")
    assert fill("{{HEATMAP}}", {}) == shared_part("heatmap.js")
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))
