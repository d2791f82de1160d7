"""A plan as tables and sentences, each figure with what it is: a prediction, or measured where."""

from __future__ import annotations

from collections.abc import Iterator

from quintic.console import Table, hours_text, short_count
from quintic.errors import counted
from quintic.plan.devices import CPU
from quintic.plan.memory import KEPT_LEAST, KEPT_MOST, Setting
from quintic.plan.plan import Plan

GIB = 2**30
COUNTED = "counted from the config"
PREDICTION = "prediction"


def heading(plan: Plan) -> str:
    """Return what is planned, in a line."""
    c, parameters = plan.config, short_count(plan.parameters)
    return (
        f"{c.recipe}: {parameters} parameters, {short_count(plan.blocks)} of them in the blocks; "
        f"vocabulary {c.model.vocab_size:,} (from {plan.vocabulary_from}); "
        f"{short_count(c.tokens)} tokens in {counted(c.train.steps, 'step')} of "
        f"{c.train.batch_tokens:,}"
    )


def memory_title(plan: Plan) -> str:
    """Return what the table of settings shows."""
    each = f"each {plan.device.name}" if plan.count > 1 else plan.device.name
    return f"most memory at once, GiB of {_gib(plan.device.memory_bytes)} on {each} [{PREDICTION}]:"


def memory_table(plan: Plan) -> Table:
    """Return the peak of every setting and what of it are activations, a row for each
    micro-batch."""
    rows: dict[int, dict[str, str]] = {}
    for planned in plan.settings:
        setting, memory = planned.setting, planned.memory
        row = rows.setdefault(setting.micro_batch, {"micro-batch": f"{setting.micro_batch}"})
        row["activations" + ", checkpointing" * setting.checkpointing] = _gib(memory.activations)
        row[_way(plan, setting)] = _gib(memory.peak) + ("" if planned.fits else ", too much")
    return Table(list(next(iter(rows.values()))), [list(row.values()) for row in rows.values()])


def _way(plan: Plan, setting: Setting) -> str:
    again = ["checkpointing"] if setting.checkpointing else []
    return ", ".join([setting.sharding] * (plan.count > 1) + again) or "peak"


def figures(plan: Plan) -> Iterator[str]:
    """Return lines with memory, operations, speed, time and disk, each with what it is."""
    if plan.chosen is not None:
        memory = plan.chosen.memory
        parts = ("weights", "gradients", "optimizer", "gathered", "activations", "update")
        sizes = (f"{part} {_gib(size)}" for part in parts if (size := getattr(memory, part)))
        yield f"memory of it, GiB: {', '.join(sizes)} [{PREDICTION}]"
        if (resident := plan.resident_bytes) is not None:
            low, high = map(_gib, resident)
            yield (
                f"resident at most, GiB: {low} to {high}, since the process keeps what it frees "
                f"[{PREDICTION}: {KEPT_LEAST} to {KEPT_MOST} times the most at once, as "
                "measured (docs/plan.md)]"
            )
    yield f"operations a token: {plan.flops_per_token / 1e9:,.4g} GFLOP [{COUNTED}]"
    yield f"operations in all: {plan.flops:.3g} FLOP [{COUNTED}]"
    if plan.floor_tokens_per_s is not None:
        peak = f"{(plan.device.peak_flops or 0) / 1e12:,.0f} TFLOP/s each, NVIDIA's data sheet"
        yield f"tokens/s at most: {plan.floor_tokens_per_s:,.0f} [{PREDICTION}: {peak}]"
    label = plan.device.rate_label
    if plan.count > 1:
        label += "; communication is not counted"
    if plan.chosen is not None and plan.chosen.setting.checkpointing:
        label += "; a quarter of it computes activations again"
    if plan.chosen is not None and plan.busy < 1:
        label += f"; {1 - plan.busy:.0%} of the devices' passes have no sequences"
    yield f"tokens/s: {plan.tokens_per_s:,.0f} [{label}]"
    yield f"time: {hours_text(3600 * plan.hours)} [{PREDICTION}: tokens over tokens/s]"
    yield (
        f"disk: {_size(plan.checkpoint_bytes)} a checkpoint, at most {plan.checkpoints} kept; "
        f"{_size(plan.shard_bytes)} of token shards, each token once [{COUNTED}]"
    )


def conclusions(plan: Plan) -> Iterator[str]:
    """Return in sentences which setting fits, and what fits into the hours asked for."""
    if plan.chosen is None:
        least = min(planned.memory.peak for planned in plan.settings)
        yield (
            f"no setting fits: the smallest takes {_gib(least)} GiB, and a device has "
            f"{_gib(plan.device.memory_bytes)}; use more devices, larger ones, or a smaller model"
        )
    else:
        passes = counted(plan.passes, "pass", "passes")
        yield f"fits: {_options(plan, plan.chosen.setting)}, {passes} a step on each device"
    if plan.device.name == CPU:
        yield (
            "MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 in the environment gives "
            "back what is freed, for some of the speed: then no more is resident than the most at "
            "once, within a tenth"
        )
    if plan.hours_asked is not None:
        time = hours_text(3600 * plan.hours_asked)
        steps, whole = plan.steps_in_hours or 0, plan.config.train.steps
        yield f"in {time}: {counted(steps, 'step')} of this config, of {whole:,} [{PREDICTION}]"
        rung = f"the deepest rung is {plan.rung}" if plan.rung else "no rung of the ladder"
        yield f"in {time}: {rung}, at the same rate [{PREDICTION}]"


def _options(plan: Plan, setting: Setting) -> str:
    options = f"--train.micro-batch {setting.micro_batch}"
    if plan.count > 1:
        options += f" --train.sharding {setting.sharding}"
    return options + (" --train.activation-checkpointing" if setting.checkpointing else "")


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"


def _size(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"
