"""Fields of a config on a benchmark's command line; works without the command-line library."""

from __future__ import annotations

import argparse
import json
from typing import Any


def parse_changes(text: str) -> dict[str, Any]:
    """FIELD=VALUE,FIELD=VALUE as what `Config.override` takes; values as in JSON, else text."""
    changes: dict[str, Any] = {}
    for part in text.split(","):
        field, equals, value = part.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r} is not FIELD=VALUE")
        try:
            changes[field.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            changes[field.strip().replace("-", "_")] = value
    return changes
