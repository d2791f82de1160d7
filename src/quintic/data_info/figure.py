"""A described dataset as a picture: lengths, sources, bytes per token, frequent tokens, long
documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quintic.data.description import DatasetSummary
from quintic.data.manifest import Split
from quintic.figure import COLOURS, TRAIN_COLOUR, VALIDATION_COLOUR, finish_axes, save_figure

SPLIT_COLOURS: dict[Split, str] = {"train": TRAIN_COLOUR, "val": VALIDATION_COLOUR}
_BARS, _FEWEST_PLACES, _NAME_CHARACTERS = 12, 5, 34


def draw_description(summary: DatasetSummary, path: Path) -> None:
    """Draw the counts of a dataset; the file is replaced whole."""
    from matplotlib.figure import Figure  # slow to import, so only where it is used

    figure = Figure(figsize=(10, 10.5), dpi=130, layout="constrained")
    axes = figure.subplot_mosaic([["lengths"] * 2, ["sources", "bytes"], ["frequent", "longest"]])
    shown = summary.splits[summary.sampled]
    tokens = sum(split.tokens for split in summary.splits.values())
    figure.suptitle(f"{summary.path.absolute().name}: {tokens:,} tokens", parse_math=False)
    _draw_lengths(axes["lengths"], summary)
    sources = summary.sources[:_BARS]
    _draw_bars(
        axes["sources"],
        [f"{source.name} ({source.split})" for source in sources],
        [source.tokens for source in sources],
        [SPLIT_COLOURS[source.split] for source in sources],
        title="tokens by source, as the shards are named",
    )
    _draw_token_bytes(axes["bytes"], summary)
    frequent = shown.frequent[:_BARS]
    _draw_bars(
        axes["frequent"],
        [token.name for token in frequent],
        [token.count for token in frequent],
        COLOURS[2],
        title=f"most frequent of {shown.read_tokens:,} {summary.sampled} tokens",
    )
    _draw_bars(
        axes["longest"],
        [" ".join(document.text.split()) for document in shown.longest],
        [document.tokens for document in shown.longest],
        COLOURS[3],
        title=f"longest {summary.sampled} documents, tokens",
    )
    save_figure(figure, path)


def _draw_lengths(axes: Any, summary: DatasetSummary) -> None:
    """Draw the share of documents by length, and that of the tokens that are in them."""
    width = 0.8 / len(summary.splits)
    for number, (name, split) in enumerate(summary.splits.items()):
        offset = (number - (len(summary.splits) - 1) / 2) * width
        for of, filled in (("documents", True), ("tokens", False)):
            values = [getattr(group, of) for group in split.lengths]
            colour = SPLIT_COLOURS[name]
            axes.bar(
                [group.shortest.bit_length() - 1 + offset for group in split.lengths],
                [100 * value / max(1, sum(values)) for value in values],
                width,
                label=f"{name}, documents" if filled else f"{name}, tokens (outline)",
                **({"color": colour} if filled else {"fill": False, "edgecolor": "#444444"}),
            )
    groups = [group for split in summary.splits.values() for group in split.lengths]
    places = sorted({group.shortest.bit_length() - 1 for group in groups})
    axes.set_xticks(places, [f"{1 << place:,}" for place in places], fontsize=8)
    axes.set(
        xlabel="tokens of a document with its end of text, from this number to below the next",
        ylabel="share (%)",
    )
    axes.set_title("lengths of documents" + ("" if groups else ": not known"), fontsize=10)
    if groups:
        _legend_above(axes, columns=2 * len(summary.splits))
    finish_axes(axes)


def _draw_token_bytes(axes: Any, summary: DatasetSummary) -> None:
    """Draw how many of the tokens have how many bytes of text; the last bar is of all longer."""
    width = 0.8 / len(summary.splits)
    for number, (name, split) in enumerate(summary.splits.items()):
        counts = [*split.token_bytes[:_BARS], sum(split.token_bytes[_BARS:])]
        if split.bytes_per_token is not None:
            axes.bar(
                [place + number * width for place in range(len(counts))],
                [100 * count / split.read_tokens for count in counts],
                width,
                align="edge",
                color=SPLIT_COLOURS[name],
                label=f"{name}, mean {split.bytes_per_token:.3f}",
            )
    names = [*(str(bytes_) for bytes_ in range(_BARS)), f"{_BARS}+"]
    axes.set_xticks([place + 0.4 for place in range(len(names))], names, fontsize=8)
    known = any(split.token_bytes for split in summary.splits.values())
    if known:
        _legend_above(axes, columns=len(summary.splits))
    axes.set(xlabel="bytes of text of a token", ylabel="share of the tokens (%)")
    axes.set_title("bytes per token" + ("" if known else ": not known"), fontsize=10)
    finish_axes(axes)


def _legend_above(axes: Any, columns: int) -> None:
    """Show the legend above the bars, however high they are."""
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])
    axes.legend(frameon=False, loc="upper right", ncols=columns, fontsize=9)


def _draw_bars(
    axes: Any, names: Sequence[str], values: Sequence[int], colour: Any, *, title: str
) -> None:
    """Draw bars that lie, the first on top, each with its number."""
    places = range(len(names))
    bars = axes.barh(places, values, color=colour)
    axes.bar_label(bars, [f" {value:,}" for value in values], fontsize=8)
    axes.set_yticks(places, [_drawable(name) for name in names], fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(names), _FEWEST_PLACES) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * max(values, default=1))
    axes.xaxis.set_visible(False)
    axes.set_title(title if names else f"{title}: not known", fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _drawable(name: str) -> str:
    """Return a name without what matplotlib's font has no sign for, of most scripts beyond
    Cyrillic; not longer than there is room for."""
    drawable = "".join(
        c if c < "\u0530" or c in "\u2423\u21b5\u21e5" else f"\\u{ord(c):04x}" for c in name
    )
    cut = f"{drawable[:_NAME_CHARACTERS]}\u2026"
    return cut if len(drawable) > _NAME_CHARACTERS else drawable
