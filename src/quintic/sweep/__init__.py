"""`quintic sweep`: one recipe with many values of some fields, each with several seeds.

plan.py     the runs: the grid, or random draws
run.py      a sweep from its first run to its figure and its best
record.py   sweep.json, and whose sweep a folder holds
execute.py  the runs as processes, several at once
summary.py  means over seeds, the best, whether it lies on an edge
figure.py   sweep.png
"""
