"""Laws of the loss across sizes: fitted to finished runs, with what they foresee.

observations.py  finished runs as sizes, tokens, FLOPs and losses
runs.py          run folders as such
csv_file.py      a CSV as such
design.py        which law runs can carry, and what to train where they cannot
law.py           the laws themselves
solver.py        many fits at once, by Newton's method
fit.py           the best of many starts, and the same for draws of the runs
forecast.py      the loss of a run, the best size for a budget, the run that would help most
scaling.py       all results
conclusions.py   the results in plain sentences
table.py         the results as tables
figure.py        the results as a picture
page.py          the results as one interactive page, with page.html
"""
