//! Layers of other tools with the names and layouts of tch, which are those of PyTorch.

use super::pattern::Pattern;
use super::transform::{Expr, Transform};
use std::fmt;

/// A kind of layer whose variables have other names or another layout in tch.
///
/// The outputs are equal only if the layers have the same options: the epsilon of `BatchNormalization` and
/// `LayerNormalization` defaults to 1e-3 in Keras and to 1e-5 in torch.
///
/// ```
/// use tch_checkpoint::map::{NameMap, Preset};
/// let map = NameMap::new().layer("model/encoder.gru", Preset::KerasGru, "encoder/rnn");
/// assert_eq!(map.to_string(), "map 1\nmodel/encoder.gru = keras.gru(encoder/rnn)\n");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// Any module of PyTorch without a preset of its own: linear, convolutions, normalizations, embeddings, LSTM, GRU,
    /// and modules of these. All keep their names and layouts; `num_batches_tracked`, which tch does not have, is left
    /// out.
    TorchModule,
    /// `torch.nn.MultiheadAttention` as four linear layers: `q_proj`, `k_proj`, `v_proj` and `out_proj`.
    TorchMultiheadAttention,
    /// Keras' `Dense` as a linear layer.
    KerasDense,
    /// Keras' `Embedding`.
    KerasEmbedding,
    /// Keras' `Conv1D` to `Conv3D`, and `Conv1DTranspose` to `Conv3DTranspose` as transposed convolutions.
    KerasConv,
    /// Keras' `DepthwiseConv1D` and `DepthwiseConv2D` as convolutions with one group per input channel.
    KerasDepthwiseConv,
    /// Keras' `BatchNormalization`.
    KerasBatchNorm,
    /// Keras' `LayerNormalization` and `GroupNormalization`.
    KerasLayerNorm,
    /// Keras' `GRU` with `reset_after=True`, its default; the other kind has no equivalent.
    KerasGru,
    /// Keras' `LSTM`. Its one bias becomes `bias_ih`, and `bias_hh` zeros.
    KerasLstm,
    /// Keras' `Bidirectional` of a `GRU` or `LSTM` whose outputs are concatenated, as one bidirectional layer.
    KerasBidirectional,
    /// Keras' `MultiHeadAttention` with the names of `torch.nn.MultiheadAttention`.
    KerasMultiHeadAttention,
}

impl Preset {
    /// All presets.
    pub const ALL: &'static [Preset] = &[
        Preset::TorchModule,
        Preset::TorchMultiheadAttention,
        Preset::KerasDense,
        Preset::KerasEmbedding,
        Preset::KerasConv,
        Preset::KerasDepthwiseConv,
        Preset::KerasBatchNorm,
        Preset::KerasLayerNorm,
        Preset::KerasGru,
        Preset::KerasLstm,
        Preset::KerasBidirectional,
        Preset::KerasMultiHeadAttention,
    ];

    /// Returns the name in texts, such as `keras.gru`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Preset::TorchModule => "torch.module",
            Preset::TorchMultiheadAttention => "torch.multihead_attention",
            Preset::KerasDense => "keras.dense",
            Preset::KerasEmbedding => "keras.embedding",
            Preset::KerasConv => "keras.conv",
            Preset::KerasDepthwiseConv => "keras.depthwise_conv",
            Preset::KerasBatchNorm => "keras.batch_norm",
            Preset::KerasLayerNorm => "keras.layer_norm",
            Preset::KerasGru => "keras.gru",
            Preset::KerasLstm => "keras.lstm",
            Preset::KerasBidirectional => "keras.bidirectional",
            Preset::KerasMultiHeadAttention => "keras.multi_head_attention",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The part of a source that a preset can access.
pub(super) trait Layer {
    /// Returns the key of a variable: by its name, or by its number in a `vars` group of Keras. `part` is a prefix of
    /// one of the names on the way. `None` if there is none.
    ///
    /// # Errors
    /// The reason, if there are several.
    fn find(&self, part: &str, name: &str, number: usize) -> Result<Option<String>, String>;

    /// Returns the shape of a variable.
    fn shape(&self, key: &str) -> Vec<u64>;

    /// Returns the names below the layer, without the separator.
    fn names(&self) -> Vec<(String, String)>;
}

/// Returns the definitions of a layer's variables: the name below the layer, and its expression.
pub(super) fn definitions(preset: Preset, layer: &dyn Layer) -> Result<Vec<(String, Expr)>, String> {
    let mut all = Definitions { layer, made: Vec::new() };
    match preset {
        Preset::TorchModule => {
            for (name, key) in layer.names().into_iter().filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
                all.add(&name, own(&key));
            }
        }
        Preset::TorchMultiheadAttention => {
            for (name, kind) in [("in_proj_weight", "weight"), ("in_proj_bias", "bias")] {
                let Some(key) = all.one_of_torch(name) else { continue };
                for (block, projection) in (0..).zip(["q_proj", "k_proj", "v_proj"]) {
                    all.add(&format!("{projection}.{kind}"), own(&key).blocks(0, 3, [block]));
                }
            }
            for name in ["out_proj.weight", "out_proj.bias"] {
                if let Some(key) = all.one_of_torch(name) {
                    all.add(name, own(&key));
                }
            }
        }
        Preset::KerasDense => {
            let kernel = all.need("", "kernel", 0)?;
            all.add("weight", own(&kernel).transpose());
            all.keep("", "bias", 1, "bias")?;
        }
        Preset::KerasEmbedding => {
            let table = all.need("", "embeddings", 0)?;
            all.add("weight", own(&table));
        }
        Preset::KerasConv => {
            let kernel = all.need("", "kernel", 0)?;
            let spatial = all.spatial(&kernel)?;
            let axes: Vec<i64> = [spatial + 1, spatial].into_iter().chain(0..spatial).collect();
            all.add("weight", own(&kernel).permute(axes));
            all.keep("", "bias", 1, "bias")?;
        }
        Preset::KerasDepthwiseConv => {
            let kernel = match layer.find("", "depthwise_kernel", 0)? {
                Some(key) => key,
                None => all.need("", "kernel", 0)?,
            };
            let spatial = all.spatial(&kernel)?;
            let mut shape: Vec<Option<u64>> = layer.shape(&kernel).into_iter().map(Some).collect();
            shape.truncate(spatial as usize);
            shape.splice(0..0, [None, Some(1)]);
            let axes: Vec<i64> = [spatial, spatial + 1].into_iter().chain(0..spatial).collect();
            all.add("weight", own(&kernel).permute(axes).reshape(shape));
            all.keep("", "bias", 1, "bias")?;
        }
        Preset::KerasBatchNorm => {
            let (mean, variance) = (all.need("", "moving_mean", 2)?, all.need("", "moving_variance", 3)?);
            all.keep("", "gamma", 0, "weight")?;
            all.keep("", "beta", 1, "bias")?;
            all.add("running_mean", own(&mean));
            all.add("running_var", own(&variance));
        }
        Preset::KerasLayerNorm => {
            all.keep("", "gamma", 0, "weight")?;
            all.keep("", "beta", 1, "bias")?;
        }
        Preset::KerasGru => all.recurrent("", "", 3)?,
        Preset::KerasLstm => all.recurrent("", "", 4)?,
        Preset::KerasBidirectional => {
            let recurrent = all.need("forward", "recurrent_kernel", 1)?;
            let gates = match layer.shape(&recurrent).as_slice() {
                [units, all] if *all == 3 * units => 3,
                [units, all] if *all == 4 * units => 4,
                shape => return Err(format!("{shape:?} is the recurrent kernel of no GRU and no LSTM")),
            };
            all.recurrent("forward", "", gates)?;
            all.recurrent("backward", "_reverse", gates)?;
        }
        Preset::KerasMultiHeadAttention => all.attention()?,
    }
    match all.made.is_empty() {
        true => Err(format!("it has no variables that {preset} knows")),
        false => Ok(all.made),
    }
}

/// Returns a transform of a name in which `*` is an ordinary character.
fn own(key: &str) -> Transform {
    Transform(Expr::Source(Pattern::from_parts(vec![key.to_string()])))
}

struct Definitions<'a> {
    layer: &'a dyn Layer,
    made: Vec<(String, Expr)>,
}

impl Definitions<'_> {
    fn add(&mut self, name: &str, transform: Transform) {
        self.made.push((name.to_string(), transform.0));
    }

    /// Returns the key of a variable that the layer must have.
    fn need(&self, part: &str, name: &str, number: usize) -> Result<String, String> {
        self.layer.find(part, name, number)?.ok_or_else(|| {
            let part = if part.is_empty() { String::new() } else { format!(" of its part {part}…") };
            format!("it has no variable {name}{part}")
        })
    }

    /// Keeps a variable that the layer may have, unchanged.
    fn keep(&mut self, part: &str, name: &str, number: usize, to: &str) -> Result<(), String> {
        if let Some(key) = self.layer.find(part, name, number)? {
            self.add(to, own(&key));
        }
        Ok(())
    }

    fn one_of_torch(&self, name: &str) -> Option<String> {
        self.layer.names().into_iter().find(|(known, _)| known == name).map(|(_, key)| key)
    }

    /// Returns the number of spatial dimensions of a kernel.
    fn spatial(&self, kernel: &str) -> Result<i64, String> {
        let rank = self.layer.shape(kernel).len() as i64;
        if rank < 3 {
            Err(format!("{rank} dimensions are too few for the kernel of a convolution"))
        } else {
            Ok(rank - 2)
        }
    }

    /// Returns the variables of a GRU (3 gates: Keras has z, r, h, torch r, z, n) or an LSTM (4, in the same order).
    fn recurrent(&mut self, part: &str, suffix: &str, gates: u64) -> Result<(), String> {
        let in_order = |from: Transform, dim: i64| if gates == 3 { from.blocks(dim, 3, [1, 0, 2]) } else { from };
        for (name, number, to) in [("kernel", 0, "weight_ih_l0"), ("recurrent_kernel", 1, "weight_hh_l0")] {
            let key = self.need(part, name, number)?;
            self.add(&format!("{to}{suffix}"), in_order(own(&key), 1).transpose());
        }
        let Some(bias) = self.layer.find(part, "bias", 2)? else { return Ok(()) };
        let (first, second) = match (gates, self.layer.shape(&bias).as_slice()) {
            (3, [2, _]) => {
                let row = |at: u64| in_order(own(&bias).slice(0, at, at + 1).flatten(0, 1), 0);
                (row(0), row(1))
            }
            (3, _) => {
                let reason =
                    "it is a GRU with `reset_after=False`, whose reset gate acts before the product: torch has none";
                return Err(reason.to_string());
            }
            _ => (own(&bias), own(&bias).zeros()),
        };
        self.add(&format!("bias_ih_l0{suffix}"), first);
        self.add(&format!("bias_hh_l0{suffix}"), second);
        Ok(())
    }

    fn attention(&mut self) -> Result<(), String> {
        let parts = ["query", "key", "value"];
        // [embedding, heads, width] to [heads · width, embedding].
        let kernels = parts.map(|part| self.need(part, "kernel", 0));
        let kernels = kernels.into_iter().map(|key| key.map(|key| own(&key).flatten(1, 2).transpose()));
        self.add("in_proj_weight", Transform::concat(0, kernels.collect::<Result<Vec<_>, _>>()?));
        let biases = parts.map(|part| self.layer.find(part, "bias", 1));
        let biases = biases.into_iter().collect::<Result<Option<Vec<_>>, _>>()?;
        if let Some(biases) = biases {
            self.add("in_proj_bias", Transform::concat(0, biases.iter().map(|key| own(key).flatten(0, 1))));
        }
        let output = self.need("output", "kernel", 0).or_else(|_| self.need("attention_output", "kernel", 0))?;
        self.add("out_proj.weight", own(&output).flatten(0, 1).transpose());
        let bias = self.layer.find("output", "bias", 1)?;
        let bias = if bias.is_some() { bias } else { self.layer.find("attention_output", "bias", 1)? };
        if let Some(bias) = bias {
            self.add("out_proj.bias", own(&bias));
        }
        Ok(())
    }
}
