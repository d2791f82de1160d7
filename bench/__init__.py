"""Benchmarks: each module is a command (`python -m bench.step`) that writes to `docs/results/`.

They import quintic from the installed package or, without installation, from `src/`.
"""

import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
if str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))
