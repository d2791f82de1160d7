"""New runs that begin with a checkpoint of another: with more steps, on other data, or with nothing
but its weights.

The other run stays as it is. The new one is a run of its own from its first moment on: its folder
appears whole, with a first checkpoint, so it needs the other no more; `continued_from` and
`init_from` in its config say where it began.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from quintic import run_dir
from quintic.checkpoint import STATE, WholeCheckpoint, load_state, load_weights
from quintic.checkpoint_writer import CheckpointWriter
from quintic.config import Config, ContinuedFrom, InitFrom, differing_fields, field_facts, flatten
from quintic.config.schema import require
from quintic.console import Console
from quintic.continuity import changed_fields, changed_schedule, check_same_config, check_same_data
from quintic.data.dataset import Dataset
from quintic.data.load_tokenizer import tokenizer_info
from quintic.diagnostics.record import DIAGNOSTICS
from quintic.distributed.world import ALONE, World
from quintic.errors import QuinticError, reason, system_error, way_out
from quintic.files import file_sha256, fsync_path
from quintic.metrics_file import METRICS, truncate_metrics
from quintic.optim.param_groups import param_groups_table
from quintic.optim.schedule import scheduled, steps_alike
from quintic.resuming import (
    check_trained_here,
    end_of,
    held_unless_finished,
    note_lost_records,
)
from quintic.run import Run
from quintic.run_checkpoints import (
    check_none_lost,
    checkpoints,
    chosen_checkpoint,
    has_step,
    newest_whole,
    no_checkpoint,
)
from quintic.run_dir import CHECKPOINTS, SAMPLES
from quintic.setup import open_data, set_up

OTHER_DATA = {"data.embedded_vocab", "data.order", "train.eval_tokens"}
"""Fields that go with the data, besides those that any resume may change."""

SHOWN_DIGITS = 12
"""Digits of a digest that a table shows."""


def continued_folder(folder: Path, steps: int) -> Path:
    """Return the folder beside a run's in which it goes on to so many steps: m-to-200 for m."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-to-{steps}")


def needs_new_folder(folder: Path, config: Config) -> bool:
    """Return whether a resume with `config` goes on from another checkpoint than the newest, or
    prolongs a run that is finished."""
    saved = run_dir.read_config(folder)
    if not changed_schedule(saved, config):
        return False
    found = newest_whole(folder / CHECKPOINTS)
    alike = steps_alike(saved, config)
    finished = has_step(folder, end_of(folder, saved)[0])
    return finished or (found is not None and found.state["step"] > alike)


def continue_run(
    folder: Path,
    config: Config,
    out: Path,
    console: Console,
    world: World = ALONE,
    *,
    force_data: bool = False,
    fresh_cooldown: bool = False,
) -> Run:
    """Set up a run in the new folder `out` that goes on from a checkpoint of the run in `folder`.

    `config` is that run's with what the user replaced: the number of steps, the schedule, and with
    `force_data` the data. The checkpoint is the newest that a run of `config` would have too, so
    the new run is that run, bit for bit, and begins with the metrics up to there. With
    `fresh_cooldown` it is the newest of all, and the schedule is that of `config` from there on.
    On other data the metrics begin anew, since no curve has losses on two texts.

    Raises `QuinticError` where there is no such checkpoint, where anything else would change what
    was already computed, where the data is another (unless forced), and as `set_up` does.
    """
    saved: Config = world.on_main(lambda: run_dir.read_config(folder))
    check_trained_here(folder, saved)
    world.on_main(lambda: run_dir.check_free(out))
    allowed = changed_schedule(saved, config) | (OTHER_DATA if force_data else set())
    origins = {f for f in field_facts(Config) if f.startswith(("continued_from.", "init_from."))}
    if changed := changed_fields(saved, config) - allowed - origins:
        raise QuinticError(
            f"--resume cannot change {', '.join(sorted(changed))}: the steps done were trained "
            "otherwise; start a new run with another --out"
        )
    require(
        force_data or bool(changed_schedule(saved, config)),
        f"{folder} goes on in its own folder with --resume {folder}; a new one is for more steps "
        "or other data: give --train.steps, or --force-data and --data.path",
    )
    with held_unless_finished(folder, saved, world):
        found, fresh = world.on_main(lambda: _continuable(folder, saved, config, fresh_cooldown))
        check_same_config(saved, found)
        run = set_up(
            replace(
                config,
                continued_from=_continued_from(folder, saved, found, force_data or fresh),
                init_from=saved.init_from,
            ),
            out,
            console,
            world,
        )
        if not force_data:
            check_same_data(
                run.dataset,
                found,
                "name the folder where that data lies now, or train on this one: --force-data",
            )
        require(
            not force_data or run.dataset.fingerprint != found.state["fingerprint"],
            f"{run.dataset.path} is the data that {folder} was trained on: leave --force-data out, "
            "or name other data with --data.path",
        )
        load_state(found, run.state, world)
        if force_data:
            run.state.val_loss = None
        _create(run, world, curve_of=None if force_data else folder)
    for problem in found.damaged:
        console.line(f"skipped: {problem}")
    step, steps = run.state.step, run.config.train.steps
    how = f"the newest checkpoint that a run of {steps} steps has too"
    if fresh:
        factor = scheduled(run.config, step).lr_factor
        how = f"with the learning rate at {factor:.3g} of its peak again, to 0 at step {steps}"
    console.line(f"continuing {folder} in {out} from step {step}: {how}")
    if not force_data:
        note_lost_records(folder, saved, run, console)
    if force_data:
        console.line(
            f"on other data, {run.dataset.path}: its losses are not those of {folder}, so the "
            f"curve begins anew at step {step}"
        )
    return run


def _continuable(
    folder: Path, saved: Config, config: Config, fresh_cooldown: bool
) -> tuple[WholeCheckpoint, bool]:
    """Return the checkpoint to go on from, and whether the schedule is another from there on.

    Raises `QuinticError` where there is none.
    """
    root, steps, alike = folder / CHECKPOINTS, config.train.steps, steps_alike(saved, config)
    newest = newest_whole(root)
    if newest is None:
        check_none_lost(root, saved)
        raise QuinticError(f"{folder} has no checkpoint yet: continue it with --resume {folder}")
    done: int = newest.state["step"]
    if fresh_cooldown and done > alike:
        require(
            done < steps,
            f"--fresh-cooldown goes on from the newest checkpoint, of step {done}, and train.steps "
            f"is {steps}: give more",
        )
        for step in range(saved.continued_from.anew, done):
            was, now = (scheduled(c, step)._replace(lr_factor=0.0) for c in (saved, config))
            require(
                was == now,
                "--fresh-cooldown begins the learning rate anew, and train.batch_stages, "
                "train.mtp_tokens or model.window_start would go back with it: begin a new run "
                f"with its weights, --init-from {folder}",
            )
        return newest, True
    require(
        done < steps or alike < steps,
        f"{folder} has done {done} steps, and train.steps is {steps}: give more, --train.steps",
    )
    found = newest if done <= alike else newest_whole(root, alike)
    if found is not None:
        return found, False
    oldest = checkpoints(root)[0].name
    way_out = (
        "add --fresh-cooldown to take the learning rate up again from the newest and down to the "
        "new end"
        if done < steps
        else f"give more than the {done} steps that it has done"
    )
    raise QuinticError(
        f"{folder} cannot go on to {steps} steps as it is: {_first_difference(saved, config)}, and "
        f"its oldest checkpoint is {oldest}; {way_out}, begin a new run with its weights, "
        f"--init-from {folder}, or one of {steps} steps from the start"
    )


def _first_difference(saved: Config, config: Config) -> str:
    """Return in words from which step on two runs are trained otherwise, and in what."""
    alike = steps_alike(saved, config)
    was, now = scheduled(saved, alike), scheduled(config, alike)
    names = {"lr_factor": "learning rate", "batch_sequences": "batch", "token_weights": "loss"}
    what = next(name for name in was._fields if getattr(was, name) != getattr(now, name))
    return f"the {names.get(what, what)} of such a run is another from step {alike} on"


def _continued_from(
    folder: Path, saved: Config, found: WholeCheckpoint, otherwise: bool
) -> ContinuedFrom:
    """Return the record of a checkpoint that a run goes on from; `otherwise` says that it goes on
    in another way than the steps so far were trained."""
    step, data = found.state["step"], found.state["fingerprint"]
    record = replace(
        saved.continued_from,
        run=folder.resolve().name,
        at_step=step,
        config_sha256=_sha256(saved.to_dict()),
        fingerprint=data,
    )
    if not otherwise:
        return record
    facts = field_facts(Config)
    own = {"train.seed", "data.path"}  # seeds of one config are a group, and data has a fingerprint
    told = {
        name: value
        for name, value in flatten(saved).items()
        if facts[name].compare == "shown" and name not in own
    }
    return replace(record, anew=step, before=_sha256([told, data])[:SHOWN_DIGITS])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def start_from(
    origin: Path,
    config: Config,
    folder: Path,
    console: Console,
    world: World = ALONE,
    *,
    which: str = "newest",
) -> Run:
    """Set up a new run that begins with the weights of the run in `origin`, at step 0, with a new
    optimizer's state, and create its folder.

    The weights are those of the newest whole checkpoint or the `best`. `config` says all but the
    model, which must be that of `origin`.

    Raises `QuinticError` where it is not, where `origin` has no checkpoint, and where the data was
    made with another tokenizer.
    """
    saved: Config = world.on_main(lambda: run_dir.read_config(origin))
    world.on_main(lambda: run_dir.check_free(folder))
    if changed := sorted(differing_fields(saved.model, config.model)):
        was, now = flatten(saved.model), flatten(config.model)
        fields = ", ".join(f"model.{f} {was[f]!r}, not {now[f]!r}" for f in changed)
        raise QuinticError(
            f"the weights of {origin} are of a model with {fields}: leave the option out, since "
            "the model is that of --init-from"
        )
    with world.first_on_each_node():
        _check_vocabulary(open_data(config, console), origin, saved)
    with held_unless_finished(origin, saved, world):
        found = world.on_main(lambda: chosen_checkpoint(origin / CHECKPOINTS, which))
        if found is None:
            raise QuinticError(no_checkpoint(origin, saved, "to begin with"))
        check_same_config(saved, found)
        digest = world.on_main(lambda: file_sha256(found.path / STATE))
        init_from = InitFrom(origin.resolve().name, found.state["step"], digest[:SHOWN_DIGITS])
        config = replace(config, continued_from=ContinuedFrom(), init_from=init_from)
        run = set_up(config, folder, console, world)
        load_weights(found, run.state, world)
        _create(run, world)
    for problem in found.damaged:
        console.line(f"skipped: {problem}")
    console.line(f"beginning {folder} with the weights of {found.path}")
    return run


def _check_vocabulary(dataset: Dataset, origin: Path, saved: Config) -> None:
    """Raise `QuinticError` where the tokens of the data are not those that the model knows."""
    kept, own = run_dir.kept_tokenizer(origin), dataset.tokenizer_spec
    require(
        kept is None
        or own is None
        or tokenizer_info(kept).fingerprint == tokenizer_info(own).fingerprint,
        f"{dataset.path} was made with another tokenizer than the data of {origin}, so its ids "
        f"mean other text to the weights: build it with --tokenizer {kept}",
    )
    assert saved.model.vocab_size is not None, "set_up resolved it"
    require(
        (dataset.vocab_size or 0) <= saved.model.vocab_size,
        f"the tokenizer of {dataset.path} has {dataset.vocab_size} tokens and the model of "
        f"{origin} {saved.model.vocab_size}: use data made with the tokenizer of {origin}",
    )


def _create(run: Run, world: World, *, curve_of: Path | None = None) -> None:
    """Create the folder of a run with its first checkpoint and the metrics of another run up to
    there, whole or not at all.

    Raises `QuinticError` where the disk refuses; nothing is left behind then.
    """
    folder = run.folder.resolve()
    aside = folder.with_name(f".{folder.name}.new")

    def refused(error: BaseException) -> QuinticError:
        return QuinticError(
            f"{run.folder} could not be created: {reason(error)}: {way_out(error)}, or choose "
            "another --out"
        )

    def hold() -> None:
        try:
            aside.mkdir(parents=True, exist_ok=True)
            held.callback(run_dir.lock(aside).release)
        except OSError as error:
            raise refused(error) from error
        except QuinticError:
            raise QuinticError(
                f"{run.folder} is being created by another process: choose another --out"
            ) from None

    def prepare() -> None:
        for path in aside.iterdir():  # of a process that was killed
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != run_dir.LOCK:
                path.unlink()
        run_dir.create(aside, run.config, param_groups_table(run.specs))
        if curve_of is not None:
            for name in (METRICS, SAMPLES, DIAGNOSTICS):
                truncate_metrics(curve_of / name, run.state.step, to=aside / name)

    def publish() -> None:
        run_dir.check_free(folder)
        shutil.rmtree(folder, ignore_errors=True)  # empty, or what a killed start left
        aside.rename(folder)
        fsync_path(folder.parent)

    with ExitStack() as held:
        world.on_main(hold)
        try:
            world.on_main(prepare)
            with closing(CheckpointWriter(aside / CHECKPOINTS, run.config, world)) as writer:
                writer.save(run.state)
            world.on_main(publish)
        except BaseException as error:
            if world.is_main:
                shutil.rmtree(aside, ignore_errors=True)
            if system_error(error) is None:
                raise
            raise refused(error) from error
