"""Several runs side by side: table, figure, page, and what the evidence supports.

record.py      the record of a run, wherever it comes from
runs.py        run folders as such records
logs.py        the text logs of modded-nanogpt and llm.c as such records
groups.py      runs that differ only in the seed belong together; which losses compare at all
statistics.py  the tests, on plain numbers
matched_loss.py  which length of run ends where another run ends
comparison.py  all results of a comparison
conclusions.py the results in plain sentences
table.py       the results as tables
figure.py      the results as a picture
page.py        the results as one interactive page, with page.html
"""
