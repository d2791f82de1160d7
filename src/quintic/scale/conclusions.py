"""Plain sentences on what a fitted law supports, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator

from quintic.compare.statistics import CONFIDENCE
from quintic.console import short_count
from quintic.scale.fit import FAR, Fit, far_runs, far_words, untold_words
from quintic.scale.forecast import Prediction, growth
from quintic.scale.law import LETTERS, TWO_TERMS, formula
from quintic.scale.observations import COUNTS, Count
from quintic.scale.scaling import Scaling
from quintic.scale.table import between, sized

UNBOUNDED = 0.1
"""E over the lowest loss under which its interval does not bound it."""
RARE = 0.01
"""Share of draws up to which what is odd about them goes unsaid."""
ROUGH_COST = 0.1
"""Deviation of FLOPs per token from a power of N from which on a sentence says so."""


def conclusions(scaling: Scaling) -> Iterator[str]:
    """Yield a sentence or two for each claim that one could make of these fits."""
    for found in scaling.fits:
        yield _fitted(found)
        if found.untold:
            yield _untold(found)
    chosen = scaling.fits[0]
    yield from _warnings(chosen)
    if chosen.form == TWO_TERMS and not chosen.untold:
        yield _growth(chosen)
    elif chosen.form != TWO_TERMS:
        yield (
            f"D follows N in all of these runs, so the law is one in {LETTERS[chosen.form[0]]}: it "
            "holds for runs on the same line, and says nothing of the best size for a budget."
        )
    for prediction in scaling.predictions:
        where = _reach(prediction.beyond, prediction.carried)
        yield (
            f"{prediction.label}{_counting(prediction.count)}: {prediction.law.estimate:.4f}, "
            f"{CONFIDENCE:.0%} interval of the mean {between(prediction.law)}, of one run "
            f"{between(prediction.run)}. {where}{_flops(prediction)}"
        )
    for best in scaling.optima:
        (n, n_range), (d, d_range) = sized(best.parameters), sized(best.tokens)
        yield (
            f"For {best.flops:.3g} FLOPs the best N{_counting(best.count)} is {n} ({n_range}) with "
            f"D = {d} ({d_range}), {best.tokens.estimate / best.parameters.estimate:.3g} tokens "
            f"a parameter: loss {best.loss.estimate:.4f} ({between(best.loss)}). "
            f"{_reach(best.beyond)}"
        )
    if (helpful := scaling.helpful) is not None:
        place = helpful.place
        yield (
            f"Of runs no dearer than the dearest of these, one of N = "
            f"{short_count(place['parameters'])} on D = "
            f"{short_count(place['tokens'])} ({place['flops']:.3g} FLOPs) would narrow most "
            f"the interval of {helpful.of}: to about {helpful.width:.0%} of its width."
        )


def _flops(prediction: Prediction) -> str:
    """Return where the FLOPs of a prediction are from, which were not given."""
    if prediction.flops_from is None:
        return ""
    return (
        f" Its {prediction.place['flops']:.3g} FLOPs are taken as {prediction.flops_from} a token, "
        "as those of the runs; N,D,C gives others."
    )


def _counting(count: Count) -> str:
    """Return what N counts, where that is not as a file gives it."""
    return "" if count == "given" else f" (N counts {COUNTS[count]})"


def _fitted(found: Fit) -> str:
    runs, parameters = found.observations, found.parameters()
    numbers = [f"{value.estimate:.4g}" for value in parameters.values()]
    seeds = f" in {runs.groups} groups of seeds" if runs.groups < len(runs) else ""
    return (
        f"{formula(found.form, numbers)}{_counting(found.count)}, fitted to {len(runs)} "
        f"runs{seeds}; of {found.starts} starts the {found.followed} best were followed, and "
        f"{found.at_best} come to it. Its residuals have a standard "
        f"deviation of {found.noise.std():.2%} of the loss."
    )


def _untold(found: Fit) -> str:
    falls = [LETTERS[name] for name, e in zip(found.form, "ab", strict=False) if e in found.untold]
    size = ", nor a claim on the best size for a budget" if found.form == TWO_TERMS else ""
    return (
        f"Of this law {untold_words(found.untold)}: the runs do not tell how the loss falls with "
        f"{' or '.join(falls)}, or whether it does, so the fit carries no prediction beyond them"
        f"{size}. Train sizes, or numbers of tokens, further apart, or more of them."
    )


def _warnings(found: Fit) -> Iterator[str]:
    draws = len(found.draws.log_e_K)
    e = found.parameters()["E"]
    if e.low < UNBOUNDED * found.observations.loss_R.min():
        yield (
            f"The runs hardly bound E from below (at most {e.high:.3g}): what the law says "
            "far beyond them is open, for which larger runs would help."
        )
    if found.degenerate > RARE * draws:
        yield (
            f"In {found.degenerate:,} of {draws:,} draws of the runs a term of the law "
            "vanishes: they hardly tell its terms apart."
        )
    if far := far_runs(found.observations, found.residual_R):
        yield (
            f"Far from the law, by more than {FAR:g} times the deviation of most runs, "
            f"{'lie' if len(far) > 1 else 'lies'} {far_words(far)}: check the loss; the fit gives "
            "such runs little weight, and the interval of one run has them in it."
        )
    if found.cost.deviation > ROUGH_COST:
        yield (
            f"FLOPs per token are taken as {found.cost.factor:.3g} N^{found.cost.exponent:.3f}, "
            f"from which runs differ by up to {found.cost.deviation:.0%}: best sizes are as rough."
        )


def _growth(found: Fit) -> str:
    exponent = growth(found)
    opening = (
        f"The best N grows with C^{exponent.estimate:.3f} ({CONFIDENCE:.0%} interval "
        f"{exponent.low:.3f} to {exponent.high:.3f})"
    )
    s = found.cost.exponent
    even = 1 / (1 + s)
    if exponent.low <= even <= exponent.high:
        return (
            f"{opening}: the evidence does not support that parameters should grow faster or "
            f"slower than tokens (both alike: {even:.3f})."
        )
    faster = "parameters" if exponent.low > even else "tokens"
    slower = "tokens" if exponent.low > even else "parameters"
    return f"{opening}: the evidence supports that {faster} should grow faster than {slower}."


def _reach(beyond: tuple[str, ...], carried: bool = True) -> str:
    if not beyond:
        return "That is among the runs, in N, D and C."
    refused = "" if carried else " This fit does not carry it."
    return f"That is extrapolation: {', '.join(beyond)}.{refused}"
