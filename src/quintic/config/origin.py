"""Where a run began, if not with weights drawn from its seed at step 0."""

from __future__ import annotations

from dataclasses import dataclass

from quintic.config.schema import NonNegativeInt, Section, setting

RECORDED = "it says where a run began, and is no setting"
"""Why fields that quintic fills in are not swept."""


@dataclass(frozen=True)
class ContinuedFrom(Section, name="continued_from"):
    """The run whose checkpoint this one goes on from (`quintic.continuation`)."""

    run: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """Name of its folder; None: this run began at step 0."""
    at_step: NonNegativeInt = setting(0, compare="ignored", not_swept=RECORDED)
    """Step of the checkpoint."""
    config_sha256: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """SHA-256 of its config."""
    fingerprint: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """Fingerprint of the data that it was trained on."""
    anew: NonNegativeInt = setting(0, not_swept=RECORDED)
    """Steps that were trained otherwise than this config says, on other data or at other learning
    rates; 0: none, so that the run equals one of its config that began at step 0."""
    before: str | None = setting(None, not_swept=RECORDED)
    """What tells apart how those were trained: a digest of config, but for the seed, and data."""


@dataclass(frozen=True)
class InitFrom(Section, name="init_from"):
    """The run whose weights this one began with (`quintic.continuation`)."""

    run: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """Name of its folder; None: the weights were drawn."""
    at_step: NonNegativeInt = setting(0, not_swept=RECORDED)
    """Step of the checkpoint."""
    checkpoint: str | None = setting(None, not_swept=RECORDED)
    """What tells apart the checkpoint: a digest of its state.json, which has those of its files."""


@dataclass(frozen=True)
class Imported(Section, name="imported"):
    """The model of another tool that this folder keeps (`quintic.imports`); it was not trained
    here, and the rest of the config says nothing of how it was."""

    source: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """Its repository, or the name of its folder or file; None: it is a run of ours."""
    revision: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """Commit of the repository."""
    kind: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """Its format, in words."""
    sha256: str | None = setting(None, compare="ignored", not_swept=RECORDED)
    """SHA-256 of the file of the weights; of several, of theirs."""
