"""Trained models in the formats of other tools: a run folder goes in, theirs comes out, verified.

source.py     the model and the tokenizer that leave, in float32
export.py     the table of targets, and the folder that is there whole or not at all
score.py      its loss on the run's validation tokens
verify.py     logits and token ids against quintic's own
tokenizer.py  a vocabulary in Hugging Face's files
parts.py      another tool's tensors, made of quintic's, and back
hf.py         which class of transformers holds a model; its config and tensors, there and back
tensors.py    the tensors of a file against those that its config makes, on the way back
hf_folder.py  the folder that transformers loads
gguf.py       which architecture of llama.cpp holds a model; its keys and tensors, there and back
gguf_file.py  the file that llama.cpp loads
in_llama_cpp.py  that file in llama.cpp
onnx.py       the graph that onnxruntime loads
card.py       their README: what the model is, how it was trained, what it scores
remote_code.py, modeling_quintic.py  the class, and its source, where transformers has none
"""
