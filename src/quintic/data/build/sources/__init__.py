"""Readers of the kinds of files that hold documents, one module for each."""
