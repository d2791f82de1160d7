"""What a training will take before it is started: memory, time, disk.

`rates` has how fast training was measured to be, and where.
"""
