"""The runs that a tracker's own store holds, read back: for each its points, by name and step.

Run with the tracker's name and store as a program, since the tools keep what they read of their
environment when they are imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = list[tuple[str, int, float]]
"""Name, step and value of each, as often as the store has it."""


def tensorboard(folder: Path) -> Iterator[Points]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    yield [(tag, event.step, event.value) for tag in tags for event in found.Scalars(tag)]


def trackio(folder: Path) -> Iterator[Points]:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    for run in trackio.Api().runs("quintic"):
        rows = SQLiteStorage.get_logs("quintic", run.name, run_id=run.id)
        yield [(name, row["step"], v) for row in rows for name, v in row.items() if is_value(v)]


def mlflow(folder: Path) -> Iterator[Points]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments):
        history = (client.get_metric_history(run.info.run_id, key) for key in run.data.metrics)
        yield [(point.key, point.step, point.value) for points in history for point in points]


def wandb(folder: Path) -> Iterator[Points]:
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        points: Points = []
        for data in wandb_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {
                i.key or ".".join(i.nested_key): json.loads(i.value_json)
                for i in record.history.item
            }
            points += [(name, row["_step"], v) for name, v in row.items() if is_value(v)]
        yield points


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    block, header, at, parts = 32768, 7, 7, b""
    while at + header <= len(data):
        left = block - at % block
        if left < header:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def is_value(value: Any) -> bool:
    return isinstance(value, int | float)


if __name__ == "__main__":
    reader = {"tensorboard": tensorboard, "trackio": trackio, "mlflow": mlflow, "wandb": wandb}
    print(json.dumps([*reader[sys.argv[1]](Path(sys.argv[2]))]))
