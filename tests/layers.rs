//! Layers of PyTorch and Keras under tch's modules: the outputs that the other tool recorded, not only its shapes.

#[path = "common/sources.rs"]
mod sources;

use sources::{fixture, keras_layers};
use std::path::Path;
use tch::nn::{self, Module, ModuleT, RNN};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::map::{NameMap, Preset};
use tch_checkpoint::{Checkpoint, Error, RestoreOptions, Variables};

/// The recorded tensors, by name.
struct Recorded(Vec<(String, Tensor)>);

impl Recorded {
    fn open(name: &str) -> Recorded {
        Recorded(Tensor::read_npz(fixture("layers").join(name)).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}")).1.shallow_clone()
    }

    /// Within a relative 1e-5, where values are about 1.
    fn check(&self, name: &str, output: &Tensor) {
        let wanted = self.get(&format!("{name}.output"));
        assert_eq!(output.size(), wanted.size(), "{name}");
        let difference = f64::try_from((output - &wanted).abs().max()).unwrap();
        let scale = f64::try_from(wanted.abs().max()).unwrap();
        assert!(difference <= 1e-5 * scale, "{name}: {difference} of {scale}");
    }
}

fn rnn(bidirectional: bool, num_layers: i64) -> nn::RNNConfig {
    nn::RNNConfig { bidirectional, num_layers, ..Default::default() }
}

fn restore(vs: &nn::VarStore, path: &Path, map: &NameMap) -> Result<(), Error> {
    let mut checkpoint = Checkpoint::new().track("model", Variables::of(vs))?;
    let status = checkpoint.restore_with(path, &RestoreOptions::new().map(map.clone()))?;
    status.assert_existing_objects_matched()?;
    Ok(())
}

/// Attention by the names of `torch.nn.MultiheadAttention`, as PyTorch's documentation defines it.
fn attention(x: &Tensor, project: &Tensor, bias: &Tensor, out: &nn::Linear, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().unwrap();
    let parts = x.linear(project, Some(bias)).chunk(3, -1);
    let split = |x: &Tensor| x.view([batch, length, heads, width / heads]).transpose(1, 2);
    let (q, k, v) = (split(&parts[0]), split(&parts[1]), split(&parts[2]));
    let scores = q.matmul(&k.transpose(-2, -1)) / ((width / heads) as f64).sqrt();
    let mixed = scores.softmax(-1, Kind::Float).matmul(&v).transpose(1, 2).reshape([batch, length, width]);
    out.forward(&mixed)
}

#[test]
fn layers_of_pytorch_give_the_same_outputs() {
    let recorded = Recorded::open("torch_outputs.npz");
    let vs = nn::VarStore::new(Device::Cpu);
    let root = vs.root();
    let input = |name: &str| recorded.get(&format!("{name}.input"));
    let linear = nn::linear(&root / "linear", 3, 4, Default::default());
    let embedding = nn::embedding(&root / "embedding", 7, 3, Default::default());
    let conv1d = nn::conv1d(&root / "conv1d", 3, 4, 2, Default::default());
    let conv2d = nn::conv2d(&root / "conv2d", 2, 3, 2, Default::default());
    let batch_norm = nn::batch_norm1d(&root / "batch_norm", 3, Default::default());
    let layer_norm = nn::layer_norm(&root / "layer_norm", vec![3], Default::default());
    let gru = nn::gru(&root / "gru", 3, 2, rnn(true, 2));
    let lstm = nn::lstm(&root / "lstm", 3, 2, rnn(true, 2));
    let projections: Vec<nn::Linear> = ["q_proj", "k_proj", "v_proj", "out_proj"]
        .map(|name| nn::linear(&root / "attention" / name, 4, 4, Default::default()))
        .into();
    let layers = ["linear", "embedding", "conv1d", "conv2d", "batch_norm", "layer_norm", "gru", "lstm"];
    let map = layers
        .into_iter()
        .fold(NameMap::new().layer("model/attention", Preset::TorchMultiheadAttention, "attention"), |map, layer| {
            map.layer(&format!("model/{layer}"), Preset::TorchModule, layer)
        });
    restore(&vs, &fixture("layers/torch_layers.pt"), &map).unwrap_or_else(|e| panic!("{e}"));
    recorded.check("linear", &linear.forward(&input("linear")));
    recorded.check("embedding", &embedding.forward(&input("embedding")));
    recorded.check("conv1d", &conv1d.forward(&input("conv1d")));
    recorded.check("conv2d", &conv2d.forward(&input("conv2d")));
    recorded.check("batch_norm", &batch_norm.forward_t(&input("batch_norm"), false));
    recorded.check("layer_norm", &layer_norm.forward(&input("layer_norm")));
    recorded.check("gru", &gru.seq(&input("gru")).0);
    recorded.check("lstm", &lstm.seq(&input("lstm")).0);
    let [q, k, v, out] = projections.as_slice() else { panic!() };
    let weights = Tensor::cat(&[&q.ws, &k.ws, &v.ws], 0);
    let biases = Tensor::cat(&[q.bs.as_ref().unwrap(), k.bs.as_ref().unwrap(), v.bs.as_ref().unwrap()], 0);
    recorded.check("attention", &attention(&input("attention"), &weights, &biases, out, 2));
}

/// The same layers from an HDF5 file, which numbers variables, and from a TensorFlow checkpoint, which names them.
#[test]
fn layers_of_keras_give_the_same_outputs() {
    let recorded = Recorded::open("keras_outputs.npz");
    let input = |name: &str| recorded.get(&format!("{name}.input"));
    let map = keras_layers("model", "");
    for (file, prefix) in [("keras_layers.weights.h5", ""), ("keras_layers", "model/")] {
        let map = if prefix.is_empty() {
            map.clone()
        } else {
            NameMap::new().only(["model"]).remove_prefix(prefix).then(map.clone())
        };
        let vs = nn::VarStore::new(Device::Cpu);
        let root = vs.root();
        let dense = nn::linear(&root / "dense", 3, 4, Default::default());
        let embedding = nn::embedding(&root / "embedding", 7, 3, Default::default());
        let conv1d = nn::conv1d(&root / "conv1d", 3, 4, 2, Default::default());
        let conv2d = nn::conv2d(&root / "conv2d", 2, 3, 2, Default::default());
        let transposed = nn::conv_transpose2d(&root / "conv2d_transpose", 2, 3, 2, Default::default());
        let config = nn::ConvConfig { groups: 2, ..Default::default() };
        let depthwise = nn::conv2d(&root / "depthwise", 2, 4, 2, config);
        let config = nn::BatchNormConfig { eps: 1e-3, ..Default::default() };
        let batch_norm = nn::batch_norm1d(&root / "batch_norm", 3, config);
        let config = nn::LayerNormConfig { eps: 1e-3, ..Default::default() };
        let layer_norm = nn::layer_norm(&root / "layer_norm", vec![3], config);
        let (gru, lstm) = (nn::gru(&root / "gru", 3, 2, rnn(false, 1)), nn::lstm(&root / "lstm", 3, 2, rnn(false, 1)));
        let both_gru = nn::gru(&root / "both_gru", 3, 2, rnn(true, 1));
        let both_lstm = nn::lstm(&root / "both_lstm", 3, 2, rnn(true, 1));
        let project = (&root / "attention").zeros("in_proj_weight", &[12, 4]);
        let bias = (&root / "attention").zeros("in_proj_bias", &[12]);
        let out = nn::linear(&root / "attention" / "out_proj", 4, 4, Default::default());
        restore(&vs, &fixture("layers").join(file), &map).unwrap_or_else(|e| panic!("{e}"));
        recorded.check("dense", &dense.forward(&input("dense")));
        recorded.check("embedding", &embedding.forward(&input("embedding")));
        // Keras has channels last.
        let first = |x: Tensor| x.movedim_int(-1, 1);
        let last = |x: Tensor| x.movedim_int(1, -1).contiguous();
        recorded.check("conv1d", &last(conv1d.forward(&first(input("conv1d")))));
        recorded.check("conv2d", &last(conv2d.forward(&first(input("conv2d")))));
        recorded.check("conv2d_transpose", &last(transposed.forward(&first(input("conv2d_transpose")))));
        recorded.check("depthwise", &last(depthwise.forward(&first(input("depthwise")))));
        recorded.check("batch_norm", &batch_norm.forward_t(&input("batch_norm"), false));
        recorded.check("layer_norm", &layer_norm.forward(&input("layer_norm")));
        recorded.check("gru", &gru.seq(&input("gru")).0);
        recorded.check("lstm", &lstm.seq(&input("lstm")).0);
        recorded.check("both_gru", &both_gru.seq(&input("both_gru")).0);
        recorded.check("both_lstm", &both_lstm.seq(&input("both_lstm")).0);
        recorded.check("attention", &attention(&input("attention"), &project, &bias, &out, 2));
    }
}
