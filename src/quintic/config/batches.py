"""How many sequences each step of a run trains on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Sequences of the global batch of every step, a pure function of the step.

    The steps are cut into `stages` parts, as equal as whole steps allow; a step of part i of n
    trains on i/n of `sequences`. Source: the speedrun's record 2025-11-29_BatchSizeSchedule
    (https://github.com/KellerJordan/modded-nanogpt), which has three.
    """

    sequences: int
    """Of the last stage; a multiple of `stages`."""
    stages: int = 1
    steps: int = 1
    """Of the whole run; what would come after them is as the last stage."""

    @property
    def smallest(self) -> int:
        """Sequences of a step of the first stage."""
        return self.sequences // self.stages

    def at(self, step: int) -> int:
        """Sequences of a step."""
        stage = min(step * self.stages // self.steps, self.stages - 1)
        return self.smallest * (stage + 1)

    def before(self, step: int) -> int:
        """Sequences of all steps before this one: its first sequence is the one of this number."""
        # Every stage adds its share to all steps from its own first one on.
        firsts = (-(-stage * self.steps // self.stages) for stage in range(self.stages))
        return self.smallest * sum(max(0, step - first) for first in firsts)
