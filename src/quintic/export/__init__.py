"""Trained models in the formats of other tools: a run folder goes in, theirs comes out, verified.

source.py  the model and the tokenizer that leave, in float32
export.py  the table of targets, and the folder that is there whole or not at all
verify.py  logits and token ids against quintic's own
hf.py      transformers
"""
