"""A record of diagnostics that nobody measured, of two matrices in two layers of two heads."""

from typing import Any


def diagnostics_record(step: int) -> dict[str, Any]:
    """A record whose momentum's median is 1/2 and 1/4 of its greatest value at step 10, half of
    that at step 20 and later; at step 0 there is none."""
    median = 0.0 if step == 0 else 0.5 if step == 10 else 0.25
    return {
        "step": step,
        "tokens": 64 * step,
        "band": [0.6821, 1.2024],
        "matrices": {
            f"layers.{layer}.up.weight": {
                "momentum": [0.0, 0.0, median / (1 + layer), 0.5, 1.0 if step else 0.0],
                "update": [0.001, 0.7, 0.8 + step / 1000, 1.1, 1.2],
                "below_band": 0.125 * layer,
                "polynomial_error": 1e-6,
                "weight_stable_rank": 30.0,
                "gradient_stable_rank": None if step == 0 else 2.5,
                "update_to_weight": 0.01 / (1 + step),
            }
            for layer in range(2)
        },
        "layers": [
            {
                "attention_logit_max": [1.0 + layer, 2.0 + step],
                "residual_rms": 0.5,
                "dead_units": 0.25 * layer,
            }
            for layer in range(2)
        ],
        "seconds": 0.1,
    }
