"""quintic pretrains GPT-2-class language models with the Muon optimizer.

Importing the package imports nothing else: `import quintic` is instant and touches neither the
network nor a device. Start reading at `quintic.train`; `docs/dataflow.md` is the map.
"""

__version__ = "0.1.0"
