"""`quintic watch`: a page of all runs under some folders, whoever writes them.

`discover` finds the runs, `metrics_tail` follows the file of each, `run` knows what state each is
in, `watcher` looks at all of them again and again, `curves` makes what a chart needs, and `server`
hands that to the page. All of it only reads, and none of it imports PyTorch.
"""
