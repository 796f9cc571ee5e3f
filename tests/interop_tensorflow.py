"""Restores the checkpoint in the directory argv[1] into objects of its names, prints what they hold, and saves them again."""

import hashlib
import sys

import tensorflow as tf

directory = sys.argv[1]
prefix = tf.train.latest_checkpoint(directory)
variables = dict(tf.train.list_variables(prefix))
reader = tf.train.load_checkpoint(prefix)
types = reader.get_variable_to_dtype_map()


def variable(key):
    """A variable of the shape and type of the checkpoint's, with nothing in it."""
    dtype = types[key]
    value = tf.zeros(variables[key], tf.int32) if dtype != tf.string else tf.fill(variables[key], "")
    return tf.Variable(value if dtype == tf.string else tf.cast(value, dtype))


SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
named = {
    f"types/{name}": variable(f"types/{name}{SUFFIX}")
    for name in "f32 f64 f16 bf16 i8 i32 i64 u8 u16 u32 u64 bool c64".split()
}
types_of = {key.split("/")[1]: value for key, value in named.items()}
gru = variable(f"model/encoder..gru/w.Sih{SUFFIX}")
embedding = variable(f"model/embedding{SUFFIX}")
layers = [variable(f"model/layers/{i}{SUFFIX}") for i in range(2)]
model = {"encoder.gru": {"w/ih": gru}, "embedding": embedding, "logits": embedding, "layers": layers}
step, loss, run = (variable(name + SUFFIX) for name in ("step", "loss", "run"))
checkpoint = tf.train.Checkpoint(types=types_of, model=model, step=step, loss=loss, run=run)
checkpoint.restore(prefix).assert_consumed().assert_existing_objects_matched()

named["model/encoder.gru/w%2Fih"] = gru
named["model/embedding"] = named["model/logits"] = embedding
named.update({f"model/layers/{i}": layer for i, layer in enumerate(layers)})
for key, value in named.items():
    print(key, hashlib.sha256(value.numpy().tobytes()).hexdigest())
assert loss.numpy() == 0.125 and run.numpy().decode() == "née"
print("step", step.numpy())
print("save_counter", checkpoint.save_counter.numpy())
checkpoint.save(f"{directory}/ckpt")
