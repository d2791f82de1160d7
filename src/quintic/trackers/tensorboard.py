"""TensorBoard's event files, in the run's folder `tensorboard`.

Each start writes them anew from the first point: the file begins with a mark that makes TensorBoard
forget what it has read before of the run, and the older ones are removed once it holds as much.
"""

from __future__ import annotations

import json
import math
import struct
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from quintic.run_dir import TENSORBOARD
from quintic.trackers import TrackedRun, Tracker
from quintic.trackers.points import Point

LEFT_OUT = ("tokens",)
"""Values that its float32 would round: it holds whole numbers to 16,777,216."""

OURS = ".quintic"
"""End of the files' names: others that somebody has put there stay."""


class TensorBoard(Tracker):
    """A run as event files, without PyTorch's writer, which would load PyTorch."""

    def __init__(self, run: TrackedRun) -> None:
        folder = run.folder / TENSORBOARD
        self._older = [*folder.glob(f"events.out.tfevents.*{OURS}")]
        self._events = EventFileWriter(str(folder), filename_suffix=OURS)
        self._last = 0
        self._add(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        lines = (f"    {line}" for line in json.dumps(run.config, indent=1).splitlines())
        self._add(_text(0, "config", "\n".join(lines)))  # indented: Markdown's code

    def log(self, points: list[Point]) -> None:
        """Write points, and remove the older files once they are on disk."""
        for point in points:
            values = [
                Summary.Value(tag=name, simple_value=_float32(value))
                for name, value in point.values.items()
                if name not in LEFT_OUT
            ]
            self._add(Event(step=point.step, summary=Summary(value=values)))
            for name, text in point.texts.items():
                self._add(_text(point.step, name, text))
            self._last = point.step
        self._events.flush()
        while self._older:
            self._older.pop().unlink(missing_ok=True)

    def finish(self, outcome: str, figure: Path | None) -> None:
        """Write the figure and close the file; there is no place for the outcome."""
        if figure is not None:
            png = figure.read_bytes()
            width, height = struct.unpack(">II", png[16:24])  # PNG's header
            image = Summary.Image(height=height, width=width, encoded_image_string=png)
            value = Summary.Value(tag="loss", image=image)
            self._add(Event(step=self._last, summary=Summary(value=[value])))
        self._events.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.add_event(event)


def _float32(value: float) -> float:
    """Return a value as float32 can hold it, which is inf where it is larger."""
    return value if not abs(value) > 3.4e38 else math.copysign(math.inf, value)


def _text(step: int, name: str, text: str) -> Event:
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    value = Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
    return Event(step=step, summary=Summary(value=[value]))


open_run = TensorBoard
