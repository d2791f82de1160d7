"""Models that other tools trained, as folders of runs: all is checked, and no pickle executed.

source.py           which format a folder or a file has
hub.py              the files of a repository
hf_folder.py        config.json and safetensors, as transformers writes them
gpt2_linear.py      GPT-2 with the matrices of nn.Linear, as nanoGPT and llm.c have it
llmc.py             llm.c's .bin
torch_file.py       what torch.save wrote, tensors and plain values alone
nanogpt.py          nanoGPT's ckpt.pt
modded_nanogpt.py   the state dicts of modded-nanogpt's records of 2024-10-14 to 2024-11-03
foreign.py          what each of them gives
run_folder.py       that as the folder of a run
"""
