"""MLflow: the server or store that MLFLOW_TRACKING_URI names, else a database in the run's folder
`mlflow`; its experiment is MLFLOW_EXPERIMENT_NAME or `quintic`.

A run is found again by a tag with its id, and what it holds is read back first: it is given the
points that it lacks. So of a step that is trained twice it keeps the times of the first time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from quintic.trackers import TrackedRun, Tracker
from quintic.trackers.points import Point

RUN_ID = "quintic.run_id"
"""Tag of a run with its id."""
AT_ONCE = 1000
"""Metrics of one call, the most that MLflow takes; parameters are a tenth of that."""
OUTCOMES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """A run in MLflow, through its client: nothing global is set."""

    def __init__(self, run: TrackedRun) -> None:
        store = run.folder / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            store.mkdir(exist_ok=True)
            uri = f"sqlite:///{store / 'mlflow.db'}"
            self.where = f"look at it with mlflow ui --backend-store-uri {uri}"
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import
        # A server that does not answer is tried again here, and not inside of one call.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric: Any = Metric
        self._client = client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "quintic")
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # In a database of ours its files would go to the working directory.
            place = None if os.environ.get("MLFLOW_TRACKING_URI") else (store / "files").as_uri()
            experiment_id = client.create_experiment(name, artifact_location=place)
        else:
            experiment_id = experiment.experiment_id
        found = client.search_runs([experiment_id], f"tags.`{RUN_ID}` = '{run.id}'")
        if not found:
            made = client.create_run(experiment_id, run_name=run.name, tags={RUN_ID: run.id})
            found = [client.get_run(made.info.run_id)]
        self._id = found[0].info.run_id
        client.update_run(self._id, status="RUNNING")
        # One that is there already cannot change, and is what the run began with.
        params = (
            Param(name, str(value)[:6000])
            for name, value in run.flat_config.items()
            if name not in found[0].data.params
        )
        while some := [*islice(params, AT_ONCE // 10)]:
            client.log_batch(self._id, params=some)
        self._held = {
            (name, metric.step)
            for name in found[0].data.metrics
            for metric in client.get_metric_history(self._id, name)
        }

    def log(self, points: list[Point]) -> None:
        """Store what is lacking of points, a thousand numbers a call; and each text as a file."""
        metrics = self._lacking(points)
        while some := [*islice(metrics, AT_ONCE)]:
            self._client.log_batch(self._id, metrics=some)
            self._held |= {(metric.key, metric.step) for metric in some}
        for point in points:
            for name, text in point.texts.items():
                self._client.log_text(self._id, text, f"{name}/step-{point.step:08d}.txt")

    def _lacking(self, points: list[Point]) -> Iterator[Any]:
        now_ms = int(1000 * time.time())
        for point in points:
            for name, value in point.values.items():
                if (name, point.step) not in self._held:
                    # Its databases hold infinity as 1.797e308, which looks like a number.
                    kept = math.nan if math.isinf(value) else value
                    yield self._metric(name, kept, now_ms, point.step)

    def finish(self, outcome: str, figure: Path | None) -> None:
        """Store figure and outcome."""
        if figure is not None:
            self._client.log_artifact(self._id, str(figure))
        self._client.set_terminated(self._id, OUTCOMES[outcome])


open_run = MLflow
