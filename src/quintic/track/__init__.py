"""The laptop track: a fixed target on the embedded corpus, and the time to it on a CPU.

`docs/track.md` has the rules. An attempt trains a recipe and the reference in turn (`execute`),
scores every byte of the held-out files (`score`), says by the rules what came out (`verdict`) and
writes a record (`record`).
"""
