"""What Muon does to the weights, measured every so many steps.

`matrices.py` measures the matrices of the blocks, `activations.py` what flows through the layers;
`in_training.py` does both within the loop, and `record.py` knows the file. `docs/diagnostics.md`
says what each number means.
"""
