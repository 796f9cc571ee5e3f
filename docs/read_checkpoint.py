"""Reads a checkpoint of tch-checkpoint; needs safetensors and numpy.

    tensors, values = load("checkpoints/ckpt-1500")
    tensors["encoder/gru.weight"], values["step"]       # a numpy array, plain JSON

Numpy has no bfloat16 (`import ml_dtypes` first adds it) and no float8: for torch's tensors, which have both, write
framework="pt" for "np" and torch.cat for numpy.concatenate. Digests are not compared: `ckpt verify` does that.
"""
import glob
import json
import sys
from urllib.parse import unquote
import numpy
from safetensors import safe_open


def load(directory):
    with open(f"{directory}/manifest.json", encoding="utf-8") as file:
        manifest = json.load(file)
    if manifest["format"] != "tch-checkpoint" or manifest["version"] not in (1, 2, 3, 4, 5, 6):
        raise ValueError(f"{directory} is not a checkpoint of version 1 to 6")
    marks = [json.load(open(path, encoding="utf-8")) for path in glob.glob(f"{glob.escape(directory)}/mark-thinned-*.json")]
    removed = {mark["mark"]["thinned"]["component"] for mark in marks}
    keys, values = ([key for key in manifest[of] if unquote(key.split("/")[0]) not in removed] for of in ("tensors", "values"))
    names = {piece["file"] for key in keys for piece in manifest["tensors"][key]["pieces"]}
    files = {name: safe_open(f"{directory}/{name}", framework="np") for name in names}
    tensors = {}
    for key in keys:
        record = manifest["tensors"][key]
        pieces = [files[piece["file"]].get_tensor(piece["name"]) for piece in record["pieces"]]
        tensors[key] = pieces[0] if len(pieces) == 1 else numpy.concatenate(pieces)
    return tensors, {key: manifest["values"][key] for key in values}


if __name__ == "__main__":
    for key, tensor in load(sys.argv[1])[0].items():
        print(key, tensor.dtype, list(tensor.shape))
