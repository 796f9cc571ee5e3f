#!/usr/bin/env python3
"""What training pays, and processor time, for this crate and its peers on the same state.

    python3 benches/peers.py training --size medium --ours target/release/bench --dir DIR
    python3 benches/peers.py cpu      --size medium --ours target/release/bench --dir DIR

Needs torch and safetensors in the Python that runs it; TensorFlow in the one named by --tf-python (another, since the
two do not share an environment well). Each peer runs in a process of its own, one after the other, --reps times round.

training: a loop whose step (matrix products, then an update of every tensor in place) takes about ten times as long as
copying the state; 20 steps without saving, 20 saving at every 10th, 20 saving at every step, three times round; the median
of each, as seconds a step. Ours saves durably in the background; torch.save and safetensors save where they are called,
DCP and TensorFlow asynchronously (TensorFlow, torch.save and safetensors sync nothing, DCP its files).

cpu: processor time of all threads for a save and a warm restore, as each peer does them by default; ours synced, with
digests and the search for values that are not finite, and a restore that verifies first. In addition, ours without that
search (ours-off), and with statistics of every tensor (ours-statistics).
"""
import argparse, json, os, shutil, statistics, subprocess, sys, time

STEPS, ROUNDS = 20, 3


def shapes(ours, size):
    """The state, as `bench --print-shapes` prints it."""
    out = subprocess.run([ours, "--print-shapes", size], check=True, capture_output=True, text=True).stdout
    found = []
    for line in out.splitlines():
        name, rest = line.split(" ", 1)
        shape, slots = rest.split("]")
        found.append((name, [int(n) for n in shape.strip("[").split(",")], bool(slots)))
    return found


class Torch:
    """Blocking torch.save."""

    def __init__(self, specs):
        import torch

        self.torch = torch
        torch.manual_seed(7)
        self.tensors = {}
        for name, shape, slots in specs:
            for kind in ["parameter", "exp_avg", "exp_avg_sq"] if slots else ["parameter"]:
                self.tensors[f"{kind}.{name}"] = torch.randn(shape)
        self.copies = {k: t.clone() for k, t in self.tensors.items()}
        self.a = torch.randn(1024, 1024)

    def copy(self):
        for k, t in self.tensors.items():
            self.copies[k].copy_(t)

    def product(self):
        self.a @ self.a

    def update(self):
        for t in self.tensors.values():
            t.add_(1e-3)

    def save(self, path):
        os.makedirs(path)
        self.torch.save(self.tensors, f"{path}/state.pt")

    begin = save

    def restore(self, path):
        for k, t in self.torch.load(f"{path}/state.pt", mmap=True).items():
            self.tensors[k].copy_(t)

    def wait(self):
        pass


class Safetensors(Torch):
    def save(self, path):
        from safetensors.torch import save_file

        os.makedirs(path)
        save_file(self.tensors, f"{path}/state.safetensors")

    begin = save

    def restore(self, path):
        from safetensors.torch import load_file

        for k, t in load_file(f"{path}/state.safetensors").items():
            self.tensors[k].copy_(t)


class Dcp(Torch):
    """async_save with a stager that keeps its memory."""

    def __init__(self, specs):
        super().__init__(specs)
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.dcp, self.pending = dcp, None
        self.stager = DefaultStager(StagingOptions(False, False, False, False))

    def save(self, path):
        self.dcp.save(self.tensors, checkpoint_id=path)

    def begin(self, path):
        self.wait()
        self.pending = self.dcp.async_save(self.tensors, checkpoint_id=path, async_stager=self.stager)

    def wait(self):
        if self.pending is not None:
            getattr(self.pending, "upload_completion", self.pending).result()
            self.pending = None

    def restore(self, path):
        self.dcp.load(self.tensors, checkpoint_id=path)


class Tf:
    """CheckpointManager with enable_async."""

    def __init__(self, specs):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        self.tf, self.module = tf, tf.Module()
        self.module.variables_ = []
        for _, shape, slots in specs:
            self.module.variables_ += [tf.Variable(tf.random.normal(shape)) for _ in range(3 if slots else 1)]
        self.copies = [tf.Variable(v) for v in self.module.variables_]
        self.deltas = {tuple(v.shape): tf.fill(v.shape, 1e-3) for v in self.module.variables_}
        self.a = tf.random.normal([1024, 1024])
        self.checkpoint = tf.train.Checkpoint(module=self.module)
        self.options = tf.train.CheckpointOptions(enable_async=True)

    def copy(self):
        for copy, v in zip(self.copies, self.module.variables_):
            copy.assign(v)
        self.copies[-1].numpy()

    def product(self):
        self.tf.matmul(self.a, self.a).numpy()

    def update(self):
        for v in self.module.variables_:
            v.assign_add(self.deltas[tuple(v.shape)])

    def save(self, path):
        os.makedirs(path)
        self.checkpoint.write(f"{path}/ckpt")

    def begin(self, path):
        os.makedirs(path)
        self.checkpoint.save(f"{path}/ckpt", options=self.options)

    def wait(self):
        self.checkpoint.sync()

    def restore(self, path):
        self.checkpoint.read(f"{path}/ckpt").assert_existing_objects_matched()


PEERS = {"torch": Torch, "safetensors": Safetensors, "dcp": Dcp, "tf": Tf}


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def training(peer, directory):
    copying = min(timed(peer.copy) for _ in range(5))
    del peer.copies
    product = min(timed(peer.product) for _ in range(6))
    products = max(1, -(-10 * copying // product))
    count = 0

    def block(interval):
        nonlocal count
        kept = []
        for i in range(STEPS):
            for _ in range(int(products)):
                peer.product()
            peer.update()
            if interval and i % interval == interval // 2:
                count += 1
                kept.append(f"{directory}/{count}")
                peer.begin(kept[-1])
                # As a manager that keeps one: the one before last is complete.
                if len(kept) > 2:
                    shutil.rmtree(kept.pop(0))
        peer.wait()
        for path in kept:
            shutil.rmtree(path)

    block(1)
    times = {"plain": [], "every_10": [], "every_1": []}
    for _ in range(ROUNDS):
        for (name, seen), interval in zip(times.items(), [0, 10, 1]):
            seen.append(timed(lambda: block(interval)) / STEPS)
    return {name: statistics.median(seen) for name, seen in times.items()}


def cpu(peer, directory):
    del peer.copies
    result = {}
    for name, work in [("cpu_save", peer.save), ("cpu_restore", peer.restore)]:
        seen = []
        for i in range(4):
            path = f"{directory}/{i}"
            os.sync()
            time.sleep(0.2)
            began = time.process_time()
            work(path)
            time.sleep(0.2)
            seen.append(time.process_time() - began)
        # The first one allocates.
        result[name] = statistics.median(seen[1:])
    return result


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["training", "cpu"])
    p.add_argument("--size", default="medium")
    p.add_argument("--ours", required=True, help="the program `bench`")
    p.add_argument("--dir", required=True, help="an empty directory on the disk to be measured")
    p.add_argument("--peers", default="torch,safetensors,dcp,tf")
    p.add_argument("--tf-python", default=sys.executable)
    p.add_argument("--reps", type=int, default=3)
    p.add_argument("--one", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        directory = f"{a.dir}/{a.one}"
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        peer = PEERS[a.one](shapes(a.ours, a.size))
        print(json.dumps({"training": training, "cpu": cpu}[a.what](peer, directory)), flush=True)
        shutil.rmtree(directory)
        os._exit(0)
    seen = {}
    for _ in range(a.reps):
        levels = ["ours-off", "ours-statistics"] if a.what == "cpu" else []
        for name in ["ours", *levels, *a.peers.split(",")]:
            if name.startswith("ours"):
                measures = ["training"] if a.what == "training" else ["cpu_save", "cpu_save_durable", "cpu_restore"]
                health = ["--health", name[5:]] if name[5:] else []
                found = {}
                for m in measures:
                    ours = [a.ours, "--measure", m, "--size", a.size, "--dir", a.dir, *health]
                    out = subprocess.run(ours, check=True, capture_output=True, text=True)
                    record = json.loads(out.stdout)
                    found |= record if a.what == "training" else {m: record["seconds"]}
            else:
                python = a.tf_python if name == "tf" else sys.executable
                again = [python, os.path.abspath(__file__), *sys.argv[1:], "--one", name]
                out = subprocess.run(again, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                found = json.loads(out.stdout.splitlines()[-1])
            for key, value in found.items():
                if isinstance(value, float):
                    seen.setdefault(name, {}).setdefault(key, []).append(value)
            print(name, found, file=sys.stderr, flush=True)
    for name, figures in seen.items():
        line = {key: statistics.median(values) for key, values in figures.items()}
        text = "  ".join(f"{key} {1e3 * value:.1f} ms" for key, value in line.items())
        if a.what == "training":
            ratio = lambda key: 100 * statistics.median([v / b - 1 for v, b in zip(figures[key], figures["plain"])])
            text += f"  longer: {ratio('every_10'):.1f} % at every 10th, {ratio('every_1'):.1f} % at every step"
        print(f"{name:12} {text}")


if __name__ == "__main__":
    main()
