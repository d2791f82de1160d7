"""Run folders as observations: what each trained, on how much, and where its loss ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quintic.compare.groups import check_once, check_same_data, differing_settings, group_runs
from quintic.compare.record import RunRecord
from quintic.compare.runs import read_run
from quintic.config import Config
from quintic.errors import QuinticError, counted
from quintic.model.build import meta_model
from quintic.run_dir import read_config
from quintic.scale.observations import Count, Observation, Observations, check_numbers


def read_folders(paths: Sequence[Path]) -> tuple[Observations, list[str]]:
    """Return the runs in some folders, and what a reader must know of them.

    Raises `QuinticError` where one has no final loss, where their losses do not compare, and where
    a run or a seed is there twice.
    """
    runs = [_finished(read_run(path)) for path in paths]
    check_once(runs)
    check_same_data(runs, forcible=False)
    groups = group_runs(runs)
    found: list[Observation] = []
    notes: list[str] = []
    for number, group in enumerate(groups):
        if group.repeated:
            run = group.repeated[0]
            other = next(r for r in group.counted if r.seed == run.seed or r == group.original(run))
            raise QuinticError(
                f"{run.path} repeats {other.path}, of the same config and seed: leave one out, "
                "since a copy is no further evidence"
            )
        for run in group.counted:
            counts, flops_per_token = count_parameters(read_config(run.path))
            tokens, loss = run.validations[-1].tokens, run.final_loss
            assert tokens is not None and loss is not None, "_finished has seen to it"
            found.append(
                check_numbers(
                    Observation(
                        label=str(run.path),
                        parameters=counts,
                        tokens=tokens,
                        flops=flops_per_token * tokens,
                        loss=loss,
                        group=number,
                        seed=run.seed,
                    )
                )
            )
    by_place: dict[tuple[object, ...], list[int]] = {}
    for one in found:
        at = by_place.setdefault((tuple(one.parameters.items()), one.tokens), [])
        if one.group not in at:
            at.append(one.group)
    for same in by_place.values():
        if len(same) > 1:
            alike = [groups[number] for number in same]
            fields = ", ".join(differing_settings(alike)) or "their config"
            notes.append(
                f"{' and '.join(group.label for group in alike)} are of one size and as many "
                f"tokens, and differ in {fields}: the law goes through the middle of them; for "
                "the law of the best name the best alone"
            )
    return Observations(found, counted(len(found), "run")), notes


def _finished(run: RunRecord) -> RunRecord:
    """Return a run that has a final loss of its own; raises `QuinticError` for any other."""
    if run.diverged_at is not None:
        raise QuinticError(
            f"{run.path} diverged at step {run.diverged_at:,} and has no final loss: leave it out"
        )
    if not run.finished:
        raise QuinticError(
            f"{run.path} is unfinished, {run.steps_done:,} of {run.steps_planned:,} steps, and its "
            f"loss would still fall: train it further with --resume {run.path}, or leave it out"
        )
    if run.stopped_at is not None:
        raise QuinticError(
            f"{run.path} stopped early, at step {run.stopped_at:,} of {run.steps_planned:,}, with "
            "a learning rate that had not come down: leave it out"
        )
    if run.settings.get("init_from.run") is not None:
        raise QuinticError(
            f"{run.path} began with the weights of {run.settings['init_from.run']}, whose tokens "
            "it has seen as well: leave it out"
        )
    return run


def count_parameters(config: Config) -> tuple[dict[Count, float], float]:
    """Return the parameters of a config's model by each way of counting, and the FLOPs to train it
    on a token, of `LanguageModel.flops_per_token`."""
    model = meta_model(config.model)
    counts: dict[Count, float] = {
        "all": float(model.parameter_count()),
        "blocks": float(model.blocks_parameter_count()),
    }
    return counts, model.flops_per_token()
