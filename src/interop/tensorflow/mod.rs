//! TensorFlow's checkpoints: bundles of version 2, as `tf.train.Checkpoint`, `tf.train.Saver`, `model.save_weights` and
//! SavedModel write them.
//!
//! A checkpoint with the prefix `ckpt-5` is the files `ckpt-5.index` and `ckpt-5.data-00000-of-00001` (or more of
//! these). [`Bundle::open`] takes the prefix, the `.index` file, a directory with a state file `checkpoint`, or a
//! SavedModel's directory.
//!
//! # Names
//!
//! The objects of a checkpoint form a graph, in which one variable is usually reached by several paths. A bundle offers
//! every path, up to 64 for a variable; [`first_alias`](crate::TensorSource::first_alias) returns which are the same
//! variable. TensorFlow's own key, such as `model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE`, becomes the path
//! `model/layer/kernel`. A name-based checkpoint (TensorFlow 1) keeps its names. An empty name is written as `.`.
//!
//! The slots of optimizers are offered under the path of the optimizer, that of the variable, and PyTorch's name for
//! the slot if there is one: `optimizer/encoder/embedding/_embeddings/exp_avg`. See [`Bundle::slots`], and
//! [`optimizer_state`] for the layout of `optim`.
//!
//! # Types
//!
//! Strings are [`values`](crate::TensorSource::values). Types that safetensors files cannot hold are
//! [`unreadable`](crate::TensorSource::unreadable): `complex128`, `float8_e4m3b11fnuz`, and the types below 8 bits;
//! [`Bundle::read_raw`] has their bytes. Quantized types (`qint8` and the like) are read as integers.
//!
//! # Written
//!
//! [`write()`] writes any source as a bundle that `tf.train.Checkpoint(…).restore(…).assert_consumed()` accepts for
//! objects of the same names. [`Bundle::copy_to`] copies a bundle byte for byte.
//!
//! # Verified
//!
//! The index, the object graph and all strings when the bundle is opened; every tensor (CRC-32C) when it is read.

mod bundle;
mod checksum;
mod copy;
mod detect;
mod graph;
mod messages;
mod names;
mod optimizer;
mod ordered;
mod place;
mod slices;
mod state;
mod stored;
mod strings;
mod table;
mod types;
mod value;
mod wire;
mod write;

pub use super::optimizer::OptimizerState;
pub use bundle::Bundle;
pub(crate) use detect::detect;
pub use optimizer::optimizer_state;
pub use state::CheckpointState;
pub use write::{WriteOptions, write};

/// An index whose entries are `bytes`, under right checksums: for fuzzing.
pub(crate) fn table_of(bytes: &[u8]) -> Vec<u8> {
    table::of_entries(bytes)
}

/// Reads `bytes` as each of the small formats that a bundle is made of: for fuzzing.
pub(crate) fn read_any(bytes: &[u8]) {
    let _ = (table::parse(bytes), table::parse(&table::of_entries(bytes)));
    let _ = messages::Header::parse(bytes);
    let _ = messages::Entry::parse(bytes);
    let _ = ordered::parse_slice_key(bytes);
    let _ = String::from_utf8(bytes.to_vec()).map(|text| text.parse::<CheckpointState>());
    if let Ok(objects) = messages::parse_graph(bytes) {
        let _ = (graph::paths(&objects, |_| true), graph::kept(&objects));
    }
    if let Some((count, bytes)) = bytes.split_first() {
        let _ = strings::decode(bytes, u64::from(*count), 0);
    }
}
