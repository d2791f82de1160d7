#!/usr/bin/env bash
# What 11 public implementations of Muon do, and their variants: docs/muons.md has it as a table.
# Two of them by one name and one learning rate seldom make the same update, for example:
#   heavyball 3.2.1 weighs the newest gradient .55 where the others weigh it .10;
#   timm 1.0.31 has no Nesterov, and calls "quintic" another polynomial than Jordan's;
#   keras 3.15.1 with rms_rate=None has no scale, not Jordan's;
#   mlx 0.32.4 adds weight decay to the gradient, where the orthogonalisation swallows it;
#   optax 0.2.8 corrects its average's bias, and gives attention kernels Adam and their biases Muon;
#   pytorch_optimizer 4.1.0 takes a vector as a matrix;
#   deepspeed 0.19.8 decays a weight that has no gradient;
#   muon-fsdp2 0.3.0 raises NameError on one process.
# The record is src/quintic/optim/muons.json; this says what has changed, and exits 1 if anything has.
# Seen on 2026-11-28, Python 3.11, a CPU. OUT=FOLDER keeps the measurements.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
out=${OUT:-$folder}
mkdir -p "$out"
export OMP_NUM_THREADS=1 KERAS_BACKEND=jax TORCHDYNAMO_DISABLE=1

python3 -m venv "$folder/torch"
# PyTorch first and by itself, so that the others keep its build; again, since timm's torchvision
# would bring a newer one.
"$folder/torch/bin/pip" install -q torch==2.13.0 numpy==2.4.6 setuptools
"$folder/torch/bin/pip" install -q torch==2.13.0 muon-optimizer==0.1.0 heavyball==3.2.1 \
  pytorch_optimizer==4.1.0 timm==1.0.31 echomuon==0.3.0 muon-fsdp2==0.3.0 deepspeed==0.19.8
"$folder/torch/bin/python" muons.py measure torch torch:match_rms_adamw muon-optimizer heavyball \
  pytorch_optimizer pytorch_optimizer:use_adjusted_lr timm timm:nesterov timm:original \
  timm:rms_to_rms echomuon deepspeed deepspeed:standard muon-fsdp2 > "$out/torch.json"

python3 -m venv "$folder/others"
"$folder/others/bin/pip" install -q optax==0.2.8 keras==3.15.1 'mlx[cpu]==0.32.4'
"$folder/others/bin/python" muons.py measure optax optax:consistent_rms keras keras:no_rms_rate mlx \
  > "$out/others.json"

"$folder/others/bin/python" muons.py compare "$out/torch.json" "$out/others.json"
