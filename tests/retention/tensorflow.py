"""Records which checkpoints tf.train.CheckpointManager keeps, with its clock replaced: the trace that tensorflow.rs reads.

usage: python tensorflow.py > tensorflow.json      (TensorFlow 2.21)
"""
import glob
import json
import os
import random
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from tensorflow.python.checkpoint import checkpoint_management

START = 1_700_000_000.0
now = START


class Clock:
    @staticmethod
    def time():
        return now


checkpoint_management.time = Clock


def run(seed):
    global now
    rng = random.Random(seed)
    keep, every = rng.choice([1, 2, 3, 5]), rng.choice([15, 60, 120])
    now = START
    saves = []
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = tf.train.Checkpoint(step=tf.Variable(0))
        manager = checkpoint_management.CheckpointManager(
            checkpoint, directory, max_to_keep=keep, keep_checkpoint_every_n_hours=every / 60)
        for number in range(1, 41):
            now += 60 * rng.choice([0, 1, 5, 15, 20, 20, 21, 60, 150])
            manager.save(checkpoint_number=number)
            files = glob.glob(directory + "/ckpt-*.index")
            saves.append([int(now - START) // 60, sorted(int(file.split("-")[-1][:-6]) for file in files)])
    return {"seed": seed, "max_to_keep": keep, "every_minutes": every, "saves": saves}


print(json.dumps({"tensorflow": tf.__version__, "runs": [run(seed) for seed in range(12)]}, separators=(",", ":")))
