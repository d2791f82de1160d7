"""Optimizer state of `modded` under each optimizer: `python -m bench.optimizer_memory`.

Counted, not measured: the model and its optimizers are built at their real shapes on the meta
device, where tensors have a size and no content. Expected: Muon holds one number for each of a
matrix's where AdamW holds two, 34% less over the whole model, whose tied embedding is AdamW's under
either; Shampoo and SOAP, which hold square matrices beside them, several times as much.
"""

from __future__ import annotations

import argparse
import typing
from dataclasses import replace

import torch

from bench.results import print_table, write_result
from quintic.config import MatrixOptimizer, OptimConfig
from quintic.model.base import LanguageModel
from quintic.model.build import meta_model
from quintic.optim.memory import state_bytes
from quintic.optim.param_groups import assign_parameters, build_optimizers
from quintic.recipes import get_recipe


def count(model: LanguageModel, config: OptimConfig) -> dict[str, float]:
    """Bytes of state of the block matrices and of all parameters, and for each parameter."""
    specs = assign_parameters(model, config)
    optimizers = build_optimizers(model, specs, config, device=torch.device("meta"))
    held = state_bytes(optimizers)
    matrices = {name for name, p in model.named_parameters() if name.startswith("layers.")}
    in_matrices = sum(held[name] for name in matrices)
    return {
        "matrices_bytes": in_matrices,
        "matrices_bytes_per_parameter": round(in_matrices / model.blocks_parameter_count(), 3),
        "all_bytes": sum(held.values()),
        "all_bytes_per_parameter": round(sum(held.values()) / model.parameter_count(), 3),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    config = get_recipe("modded")
    model = meta_model(config.model)
    counted = {
        name: count(model, replace(config.optim, matrices=name))
        for name in typing.get_args(MatrixOptimizer)
    }
    for figures in counted.values():
        figures["times_adamw"] = round(figures["all_bytes"] / counted["adamw"]["all_bytes"], 3)
    print_table(
        ("matrices' optimizer", "bytes a parameter", "MiB in all", "bytes a parameter", "x AdamW"),
        [
            (
                name,
                f"{figures['matrices_bytes_per_parameter']:.2f}",
                f"{figures['all_bytes'] / 2**20:,.0f}",
                f"{figures['all_bytes_per_parameter']:.2f}",
                f"{figures['times_adamw']:.2f}",
            )
            for name, figures in counted.items()
        ],
    )
    result = {
        "recipe": "modded",
        "block_matrix_parameters": model.blocks_parameter_count(),
        "parameters": model.parameter_count(),
        "optimizers": counted,
    }
    path = write_result(
        "optimizer-memory", result, torch.device("cpu"), module="bench.optimizer_memory"
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
