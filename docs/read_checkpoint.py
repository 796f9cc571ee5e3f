"""Reads a checkpoint of tch-checkpoint; needs safetensors and numpy.

    tensors, values = load("checkpoints/ckpt-1500")
    tensors["encoder/gru.weight"], values["step"]       # a numpy array, plain JSON

Numpy has no bfloat16 (`import ml_dtypes` first adds it) and no float8: for torch's tensors, which have both, write
framework="pt" for "np" and torch.cat for numpy.concatenate. Digests are not compared: `ckpt verify` does that.
"""
import json
import sys
import numpy
from safetensors import safe_open


def load(folder):
    with open(f"{folder}/manifest.json", encoding="utf-8") as file:
        manifest = json.load(file)
    if manifest["format"] != "tch-checkpoint" or manifest["version"] not in (1, 2, 3, 4):
        raise ValueError(f"{folder} is not a checkpoint of version 1, 2, 3 or 4")
    files = {name: safe_open(f"{folder}/{name}", framework="np") for name in manifest["files"]}
    tensors = {}
    for key, record in manifest["tensors"].items():
        pieces = [files[piece["file"]].get_tensor(piece["name"]) for piece in record["pieces"]]
        tensors[key] = pieces[0] if len(pieces) == 1 else numpy.concatenate(pieces)
    return tensors, manifest["values"]


if __name__ == "__main__":
    for key, tensor in load(sys.argv[1])[0].items():
        print(key, tensor.dtype, list(tensor.shape))
