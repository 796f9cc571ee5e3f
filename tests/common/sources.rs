//! Files of other tools that are part of the repository, and the bytes of sources of tensors.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use tch_checkpoint::TensorSource;
use tch_checkpoint::map::{NameMap, Preset};

/// The path of a file in `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// The bytes of a tensor.
pub fn read(source: &dyn TensorSource, key: &str) -> Vec<u8> {
    let mut bytes = vec![0; source.tensors()[key].bytes().unwrap() as usize];
    source.read(key, &mut bytes).unwrap_or_else(|e| panic!("{key}: {e}"));
    bytes
}

/// The layers in `layers/keras_layers`, and the preset for each.
pub const KERAS_LAYERS: [(&str, Preset); 13] = [
    ("dense", Preset::KerasDense),
    ("embedding", Preset::KerasEmbedding),
    ("conv1d", Preset::KerasConv),
    ("conv2d", Preset::KerasConv),
    ("conv2d_transpose", Preset::KerasConv),
    ("depthwise", Preset::KerasDepthwiseConv),
    ("batch_norm", Preset::KerasBatchNorm),
    ("layer_norm", Preset::KerasLayerNorm),
    ("gru", Preset::KerasGru),
    ("lstm", Preset::KerasLstm),
    ("both_gru", Preset::KerasBidirectional),
    ("both_lstm", Preset::KerasBidirectional),
    ("attention", Preset::KerasMultiHeadAttention),
];

/// Maps every layer in `layers/keras_layers` from `{theirs}LAYER` to `{ours}/LAYER`.
pub fn keras_layers(ours: &str, theirs: &str) -> NameMap {
    KERAS_LAYERS.into_iter().fold(NameMap::new(), |map, (layer, preset)| {
        map.layer(&format!("{ours}/{layer}"), preset, &format!("{theirs}{layer}"))
    })
}
