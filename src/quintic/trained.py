"""A trained model, out of the folder of its run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from quintic import run_dir
from quintic.checkpoint import WholeCheckpoint, load_tensors
from quintic.config import EMBEDDED, Config
from quintic.console import Console
from quintic.continuity import check_same_config, check_same_data
from quintic.data.bpe_tokenizer import TOKENIZER_FILE
from quintic.data.dataset import Dataset, open_dataset
from quintic.data.load_tokenizer import load_tokenizer, tokenizer_info
from quintic.data.manifest import Split
from quintic.data.tokenizer import Tokenizer, TokenizerInfo
from quintic.device import choose_device, compute_dtype
from quintic.errors import QuinticError
from quintic.model.base import LanguageModel
from quintic.model.build import build_model
from quintic.optim.schedule import scheduled
from quintic.run_checkpoints import checkpoints, chosen_checkpoint, no_checkpoint
from quintic.setup import open_data


@dataclass
class Trained:
    """Holds a model out of a run folder, with what is needed to compute with it."""

    folder: Path
    config: Config
    device: torch.device
    model: LanguageModel
    checkpoint: WholeCheckpoint

    def open_data(
        self, console: Console, *, path: str | None = None, tokenizer: str | None = None
    ) -> Dataset:
        """Open the dataset of the run, at `path` if it moved, with its tokenizer named if need be.

        Raises `QuinticError` if it is another dataset or a tokenizer with more ids than the model,
        and where the model was imported, whose data nobody knows.
        """
        if self.config.is_imported:
            raise QuinticError(
                f"{self.folder} was imported from {self.config.imported.source}, and its data is "
                "not known here: evaluate a dataset with --data or files with --text; its "
                "tokenizer is in its folder, and needs no option"
            )
        named = {"data.path": path, "data.tokenizer": tokenizer}
        config = self.config.override({k: v for k, v in named.items() if v is not None})
        dataset = open_data(config, console)
        way_out = "name the folder where that data lies now with --data"
        if config.data.path == EMBEDDED:
            first = next(iter(run_dir.read_environments(self.folder)), {})
            way_out = (
                f"it is the standard library of Python {first.get('python', 'of another version')};"
                f" use that Python, or copy the dataset from its cache and {way_out}"
            )
        check_same_data(dataset, self.checkpoint, way_out)
        if dataset.tokenizer_spec is not None:
            self._check_vocabulary(tokenizer_info(dataset.tokenizer_spec), dataset.tokenizer_spec)
        return dataset.for_model(self._vocab_size)

    @property
    def _vocab_size(self) -> int:
        assert self.config.model.vocab_size is not None, "training has filled it in"
        return self.config.model.vocab_size

    def _check_vocabulary(self, info: TokenizerInfo, spec: str) -> None:
        if info.vocab_size > self._vocab_size:
            raise QuinticError(
                f"the tokenizer {spec} has {info.vocab_size} tokens and the model of {self.folder} "
                f"knows {self._vocab_size}: name the one it was trained with, with --tokenizer"
            )

    def load_tokenizer(
        self, console: Console, *, path: str | None = None, tokenizer: str | None = None
    ) -> Tokenizer:
        """Load the tokenizer that the run's folder keeps; where it keeps none, or `path` or
        `tokenizer` names another place, that of the dataset.

        Raises `QuinticError` as `open_data` and `load_tokenizer` do.
        """
        kept = run_dir.kept_tokenizer(self.folder)
        if kept is not None and path is None and tokenizer is None:
            return load_tokenizer(kept)
        return self.open_data(console, path=path, tokenizer=tokenizer).load_tokenizer()

    def tokenizer_spec(self, console: Console, named: str | None = None) -> str:
        """Return the run's tokenizer as `load_tokenizer` takes it: that which its folder keeps, or
        its dataset's; where neither says which, the one named.

        Raises `QuinticError` where nobody says which, where another one is named, and where it has
        more ids than the model.
        """
        own = run_dir.kept_tokenizer(self.folder)
        if own is None:
            with suppress(QuinticError):  # the data is gone, and with it what it says
                own = self.open_data(console).tokenizer_spec
        spec = own or named
        if spec is None:
            raise QuinticError(
                f"{self.folder} does not say which tokenizer it was trained with: name it, gpt2 or "
                f"a {TOKENIZER_FILE}, with --tokenizer"
            )
        info = tokenizer_info(spec)
        if named is not None and tokenizer_info(named).fingerprint != info.fingerprint:
            raise QuinticError(
                f"{self.folder} was trained with the tokenizer {spec} and not with {named}: leave "
                "--tokenizer out"
            )
        self._check_vocabulary(info, spec)
        return spec

    def open_other_data(
        self, path: Path, split: Split, console: Console, tokenizer: str | None = None
    ) -> Dataset:
        """Open any dataset that has a split and was made with the run's tokenizer.

        Raises `QuinticError` as `open_dataset` and `tokenizer_spec` do, and where the dataset was
        made with another tokenizer or does not say with which.
        """
        dataset = open_dataset(path, tokenizer, splits=[split])
        if self.trained_on(dataset):
            return self.open_data(console, path=str(path), tokenizer=tokenizer)
        own = self.tokenizer_spec(console, tokenizer)
        if dataset.tokenizer_spec is None:
            raise QuinticError(
                f"dataset {path} does not say which tokenizer made it: if it was that of "
                f"{self.folder}, name that, gpt2 or a {TOKENIZER_FILE}, with --tokenizer"
            )
        made_with, known = (tokenizer_info(s).fingerprint for s in (dataset.tokenizer_spec, own))
        if made_with != known:
            raise QuinticError(
                f"dataset {path} was made with another tokenizer than that of {self.folder}: build "
                f"it with quintic data build --tokenizer {own}, or evaluate its text with --text"
            )
        return dataset.for_model(self._vocab_size)

    def trained_on(self, dataset: Dataset) -> bool:
        """Return whether it is the dataset of the run."""
        return bool(self.checkpoint.state["fingerprint"] == dataset.fingerprint)


def load_trained(folder: Path, *, which: str = "newest", device: str = "auto") -> Trained:
    """Load the model of a run, from its newest whole checkpoint or the best by validation loss.

    Raises `QuinticError` where the folder holds no run or no such checkpoint, and as
    `check_same_config` does.
    """
    while True:
        before = checkpoints(folder / run_dir.CHECKPOINTS)
        try:
            return _load_trained(folder, which, device)
        except QuinticError:
            if checkpoints(folder / run_dir.CHECKPOINTS) == before:
                raise
            # A process that trains there took away what was picked, and has saved a newer one.


def _load_trained(folder: Path, which: str, device: str) -> Trained:
    config = run_dir.read_config(folder)
    root = folder / run_dir.CHECKPOINTS
    found = chosen_checkpoint(root, which)
    if found is None:
        raise QuinticError(no_checkpoint(folder, config, "to load"))
    check_same_config(config, found)
    chosen = choose_device(device)
    # The CPU computes in float32 what a GPU trained in bfloat16.
    precision = config.train.precision
    if precision == "bfloat16" and chosen.type != "cuda":
        precision = "float32"
    model = build_model(config.model, compute_dtype=compute_dtype(precision, chosen))
    load_tensors(found.path, {f"model.{n}": p.detach() for n, p in model.named_parameters()})
    model.set_window(scheduled(config, found.state["step"]).window)
    return Trained(folder, config, chosen, model.to(chosen), found)
