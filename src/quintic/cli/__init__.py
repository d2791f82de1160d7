"""The `quintic` command: parse, call, print. The only package that knows the command-line library.

main.py      the entry point, and the exit code
options.py   the commands and their options, as dataclasses
parsing.py   the command line as one of them, or one line that says what is wrong
grid.py      the values of --vary
interrupt.py Ctrl-C while something is imported

Each command has a file with its name: train.py, evaluate.py, generate.py, export.py,
import_.py, recipes.py, compare.py, sweep.py, data.py, muon.py.
"""
