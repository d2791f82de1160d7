#!/usr/bin/env bash
# litdata 0.2.76: index.json calls the items of a chunk "no_header_numpy:5" (uint16 without a header)
# with TokensLoader and without it, but only with it an item is the ids alone: without it (PyTreeLoader,
# the default) each item begins with its size in bytes, as uint32, which nothing but the line
# "item_loader" says. Who reads the ids by the data_format finds two more of them before each document,
# 16 and 0 for 8 ids, and of int32 one: nothing looks damaged, since the sizes fit. Seen on 2026-11-28
# with torch 2.13.0 and numpy 2.4.6.
# Whoever reads chunks without litdata should look at "item_loader" before "data_format".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# Without torchvision, which the writer does not use.
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 boto3 requests tqdm filelock \
  lightning_utilities
"$folder/venv/bin/pip" install -q --no-deps litdata==0.2.76
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import importlib.metadata
import json
from pathlib import Path

import numpy as np
from litdata import TokensLoader
from litdata.streaming.writer import BinaryWriter

print("litdata", importlib.metadata.version("litdata"))
ids = np.arange(100, 108, dtype=np.uint16)
found = {}
for name, loader in (("with", {"item_loader": TokensLoader()}), ("without", {})):
    writer = BinaryWriter(name, chunk_bytes=4096, **loader)
    writer[0] = ids
    writer.done()
    writer.merge()
    index = json.loads(Path(name, "index.json").read_text())
    chunk = Path(name, index["chunks"][0]["filename"]).read_bytes()
    begin, end = np.frombuffer(chunk, "<u4", 2, 4)
    found[name] = np.frombuffer(chunk[begin:end], "<u2").tolist()
    print(name, "TokensLoader:", index["config"]["data_format"], found[name])
    assert index["config"]["data_format"] == ["no_header_numpy:5"]
assert found["with"] == ids.tolist()
assert found["without"] == [16, 0, *ids.tolist()]
PY
