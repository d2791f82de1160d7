"""Whether a config and a dataset would have led to what was trained: only then does a run continue,
or count as what its folder says."""

from __future__ import annotations

from pathlib import Path

from quintic import run_dir
from quintic.checkpoint import STATE, WholeCheckpoint
from quintic.config import Config, differing_fields, field_facts, flatten, without_effect
from quintic.data.dataset import Dataset
from quintic.errors import QuinticError
from quintic.optim.schedule import steps_alike


def check_same_data(dataset: Dataset, found: WholeCheckpoint, way_out: str) -> None:
    """Raise `QuinticError` where a checkpoint was trained on other data."""
    trained_on = found.state["fingerprint"]
    if trained_on != dataset.fingerprint:
        raise QuinticError(
            f"{dataset.path} is not the data that {found.path} was trained on (fingerprint "
            f"{dataset.fingerprint[:12]}, not {trained_on[:12]}): {way_out}"
        )


def check_same_config(config: Config, found: WholeCheckpoint) -> None:
    """Raise `QuinticError` where the config of a run would not have led to a checkpoint in its
    folder: one of the two was put there, or edited.

    A checkpoint of quintic 0.1 does not say what it was trained with, and is believed.
    """
    if "config" not in found.state:
        return
    try:
        trained = Config.from_dict(found.state["config"])
    except QuinticError as error:
        raise QuinticError(f"{found.path / STATE}: {error}") from error
    if changed := _changed(trained, config, found.state["step"]):
        was, now = flatten(trained), flatten(config)
        fields = ", ".join(f"{name} {was[name]!r}, not {now[name]!r}" for name in sorted(changed))
        raise QuinticError(
            f"{found.path} was trained with {fields} as the {run_dir.CONFIG} of its run says: put "
            f"the run's own {run_dir.CONFIG} or checkpoint back"
        )


def check_continues(folder: Path, saved: Config, config: Config, done: int) -> None:
    """Raise `QuinticError` where `config` would not have led to the checkpoint, of `done` steps."""
    if changed := _changed(saved, config, done):
        why = (
            f"the {done} steps done were trained otherwise; "
            if done
            else f"{folder} was begun otherwise; remove it, of which no step is saved, or "
        )
        raise QuinticError(
            f"--resume cannot change {', '.join(sorted(changed))}: {why}start a new run with "
            "another --out"
        )


def _changed(saved: Config, config: Config, done: int) -> set[str]:
    """Return the fields in which `config` would have trained the steps already done otherwise."""
    changed, schedule = changed_fields(saved, config), changed_schedule(saved, config)
    alike = schedule and done <= config.train.steps and done <= steps_alike(saved, config)
    return changed - schedule if alike else changed


def changed_fields(saved: Config, config: Config) -> set[str]:
    """Return the fields in which two configs differ and which matter to what is computed."""
    facts = field_facts(Config)
    changed = {f for f in differing_fields(saved, config) if facts[f].resume != "free"}
    # What has no effect any more goes with the field that took it away.
    return changed - set(without_effect(Config, flatten(config)))


def changed_schedule(saved: Config, config: Config) -> set[str]:
    """Return those of the changed fields that may change as long as the schedules of the steps
    already done are as they were: a trapezoid can be prolonged until its cooldown begins."""
    facts = field_facts(Config)
    return {f for f in changed_fields(saved, config) if facts[f].resume == "schedule"}
