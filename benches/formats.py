#!/usr/bin/env python3
"""Restores of other tools' files, by this crate and by the tool itself, of the same files in the same run.

    python3 benches/formats.py --ours target/release/bench --dir DIR --tf-python PYTHON [--size medium] [--rounds 7]

Needs torch and safetensors in the Python that runs it, TensorFlow in the one of --tf-python. The files are written to DIR
first: a `.pt` by torch.save, a directory of safetensors shards with its index, a TensorFlow bundle, each of the state that
`bench --print-shapes SIZE` prints (medium: 402 MB). Then each round restores every file once by each, in processes of their
own, one after the other: into tensors that exist, the file warm, the median of five after one that is not counted.

    pt           torch.load(mmap=True), and a copy of every tensor
    safetensors  safe_open of every shard, and a copy of every tensor
    tensorflow   tf.train.Checkpoint.read

Ours verifies what has a checksum (zip's CRC-32, TensorFlow's CRC-32C) before anything changes, which torch does not; "not
verified" is `Verify::Never`. Printed are medians over the rounds, the median of the ratios of pairs (ours to the peer in the
same round), and the largest peak of resident memory above the tensors.
"""
import argparse, json, os, statistics, subprocess, sys, time

SHARDS, REPS = 5, 5


def specs(ours, size):
    out = subprocess.run([ours, "--print-shapes", size], check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        name, rest = line.split(" ", 1)
        shape, slots = rest.split("]")
        shape = [int(n) for n in shape.strip("[").split(",")]
        for kind in ["parameter", "exp_avg", "exp_avg_sq"] if slots else ["parameter"]:
            yield f"{kind}.{name}", shape


def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


class Pt:
    def __init__(self, path, specs):
        import torch

        self.torch, self.path = torch, path
        torch.manual_seed(7)
        self.tensors = {name: torch.randn(shape) for name, shape in specs}

    def write(self):
        self.torch.save(self.tensors, self.path)

    def restore(self):
        for name, tensor in self.torch.load(self.path, mmap=True).items():
            self.tensors[name].copy_(tensor)


class Safetensors(Pt):
    def write(self):
        from safetensors.torch import save_file

        os.makedirs(self.path, exist_ok=True)
        names, weight_map = list(self.tensors), {}
        for i in range(SHARDS):
            file = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
            shard = {name: self.tensors[name] for name in names[i::SHARDS]}
            save_file(shard, f"{self.path}/{file}")
            weight_map.update(dict.fromkeys(shard, file))
        with open(f"{self.path}/model.safetensors.index.json", "w") as index:
            json.dump({"metadata": {}, "weight_map": weight_map}, index)

    def restore(self):
        from safetensors import safe_open

        with open(f"{self.path}/model.safetensors.index.json") as index:
            files = sorted(set(json.load(index)["weight_map"].values()))
        for file in files:
            with safe_open(f"{self.path}/{file}", "pt") as shard:
                for name in shard.keys():
                    self.tensors[name].copy_(shard.get_tensor(name))


class Tf:
    def __init__(self, path, specs):
        os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
        import tensorflow as tf

        self.path = path
        module = tf.Module()
        module.variables_ = {name: tf.Variable(tf.random.normal(shape)) for name, shape in specs}
        self.checkpoint = tf.train.Checkpoint(module=module)

    def write(self):
        self.checkpoint.write(self.path)

    def restore(self):
        self.checkpoint.read(self.path).assert_existing_objects_matched()


PEERS = {"pt": (Pt, "state.pt"), "safetensors": (Safetensors, "sharded"), "tensorflow": (Tf, "bundle")}


def one(a):
    """In a process of its own: writes the file, or restores it."""
    make, file = PEERS[a.one]
    peer = make(f"{a.dir}/{file}", list(specs(a.ours, a.size)))
    if a.write:
        peer.write()
        return
    before = resident("VmRSS:")
    seconds = []
    for _ in range(REPS + 1):
        began = time.perf_counter()
        peer.restore()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[1:], "rss_extra": resident("VmHWM:") - before}), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ours", required=True, help="the program `bench`")
    p.add_argument("--dir", required=True, help="a directory on the disk to be measured; the files stay in it")
    p.add_argument("--size", default="medium")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--formats", default="pt,safetensors,tensorflow")
    p.add_argument("--tf-python", default=sys.executable)
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        one(a)
        # Without waiting for the threads of the peer.
        sys.stdout.flush()
        os._exit(0)

    def peer(name, *more):
        python = a.tf_python if name == "tensorflow" else sys.executable
        command = [python, os.path.abspath(__file__), *sys.argv[1:], "--one", name, *more]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def ours(path, *more):
        command = [a.ours, "--restore", path, "--reps", str(REPS), *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    os.makedirs(a.dir, exist_ok=True)
    for name in a.formats.split(","):
        path = f"{a.dir}/{PEERS[name][1]}"
        if not os.path.exists(path) and not os.path.exists(f"{path}.index"):
            peer(name, "--write")
        runs = {
            "ours": lambda: ours(path),
            "ours, not verified": lambda: ours(path, "--unverified", "yes"),
            "peer": lambda: peer(name),
        }
        seen = {who: [] for who in runs}
        memory = dict.fromkeys(runs, 0)
        for _ in range(a.rounds):
            for who, run in runs.items():
                found = json.loads(run().splitlines()[-1])
                seen[who].append(statistics.median(found["seconds"]))
                memory[who] = max(memory[who], found["rss_extra"])
        for who, seconds in seen.items():
            pairs = statistics.median(own / other for own, other in zip(seconds, seen["peer"]))
            ms = 1e3 * statistics.median(seconds)
            print(f"{name:12} {who:20} {ms:8.1f} ms  {pairs:5.2f} of the peer  {memory[who] / 2**20:6.0f} MiB above", flush=True)


if __name__ == "__main__":
    main()
