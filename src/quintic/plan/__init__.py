"""`quintic plan`: what a training will take before it is started: memory, time, disk.

`memory` counts what a step has alive, `devices` says what a GPU has and how fast it should train,
from what was measured (`rates`); `plan` puts them together, and `text` says it.
"""
