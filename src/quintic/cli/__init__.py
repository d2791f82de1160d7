"""The `quintic` command: parse, call, print. The only package that knows the command-line library.

options.py   the commands and their options, as dataclasses
parsing.py   the command line as one of them
errors.py    what the command-line library objects to, in one line
runs.py      train, evaluate, generate, recipes
sweeps.py    sweep
compare.py   compare
datasets.py  data fetch, build, push, info, check
main.py      all of it, and the exit code
"""
