//! Trainings of PyTorch, Keras and TensorFlow, continued: one more step gives the variables that the other tool
//! recorded. `tests/fixtures/training` has the programs that recorded them.

#[path = "common/sources.rs"]
mod sources;

use sources::{fixture, read};
use tch::nn::{self, Module, RNN};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::interop::{KerasOptimizer, keras, pytorch, tensorflow};
use tch_checkpoint::map::{Merged, NameMap, Preset};
use tch_checkpoint::{Checkpoint, Dtype, Error, RestoreOptions, TensorSource, Variables, interop, optim};

fn tensor(source: &dyn TensorSource, key: &str) -> Tensor {
    let spec = source.tensors().get(key).unwrap_or_else(|| panic!("{key}"));
    let kind = match spec.dtype {
        Dtype::F32 => Kind::Float,
        Dtype::I64 => Kind::Int64,
        other => panic!("{key} is {other}"),
    };
    let shape: Vec<i64> = spec.shape.iter().map(|length| *length as i64).collect();
    Tensor::from_data_size(&read(source, key), &shape, kind)
}

/// The largest difference of two tensors.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).abs().max()).unwrap()
}

/// Restores a `VarStore` and its optimizer; everything must match.
fn restore(vs: &nn::VarStore, optimizer: &optim::Optimizer, weights: &dyn TensorSource, state: &dyn TensorSource) {
    let mut checkpoint =
        Checkpoint::new().track("model", Variables::of(vs)).unwrap().track("optimizer", optimizer).unwrap();
    let both = Merged::new([weights, state]).unwrap();
    let status = checkpoint.restore_source(&both, &RestoreOptions::new()).unwrap_or_else(|e| panic!("{e}"));
    status.assert_consumed().unwrap_or_else(|e| panic!("{e}"));
}

/// Makes a step with these gradients.
fn step(optimizer: &mut optim::Optimizer, gradients: &[(&Tensor, Tensor)]) {
    let loss: Tensor = gradients.iter().map(|(variable, gradient)| (*variable * gradient).sum(Kind::Float)).sum();
    optimizer.backward_step(&loss);
}

/// A linear layer with its bias in a second group.
fn two_groups() -> (nn::VarStore, Tensor, Tensor) {
    let vs = nn::VarStore::new(Device::Cpu);
    let weight = vs.root().zeros("weight", &[2, 3]);
    let bias = vs.root().set_group(1).zeros("bias", &[2]);
    (vs, weight, bias)
}

#[test]
fn optimizers_of_pytorch_continue() {
    let file = interop::open(fixture("training/torch_optimizers.pt")).unwrap();
    // Options that differ from all of those recorded.
    type Build = fn(&nn::VarStore) -> Result<optim::Optimizer, Error>;
    let builds: [(&str, Build); 4] = [
        ("adam", |vs| optim::Adam::default().build(vs, 0.5)),
        ("adamw", |vs| optim::AdamW::default().build(vs, 0.5)),
        ("sgd", |vs| optim::Sgd::default().build(vs, 0.5)),
        ("rmsprop", |vs| optim::RmsProp::default().build(vs, 0.5)),
    ];
    for (name, build) in builds {
        let (vs, weight, bias) = two_groups();
        let mut optimizer = build(&vs).unwrap();
        let map = NameMap::new().only([format!("{name}/model")]).remove_prefix(&format!("{name}/"));
        let weights = map.apply(&*file).unwrap();
        let options = pytorch::OptimizerOptions::in_order(["weight", "bias"]);
        let state = pytorch::optimizer_state(&*file, &format!("{name}/optimizer"), &options).unwrap();
        restore(&vs, &optimizer, &weights, &state);
        let recorded = |part: &str| tensor(&*file, &format!("{name}/{part}"));
        step(&mut optimizer, &[(&weight, recorded("gradients/weight")), (&bias, recorded("gradients/bias"))]);
        for (own, name) in [(&weight, "weight"), (&bias, "bias")] {
            let (before, after) = (recorded(&format!("model/{name}")), recorded(&format!("next/{name}")));
            assert!(difference(&before, &after) > 1e-3, "the step was recorded");
            assert!(difference(own, &after) <= 1e-6, "{name}: {} of {after}", difference(own, &after));
        }
    }
}

#[test]
fn optimizers_of_keras_and_tensorflow_continue() {
    let recorded = interop::open(fixture("training/keras_optimizers.npz")).unwrap();
    type Build = fn(&nn::VarStore) -> Result<optim::Optimizer, Error>;
    let adam: Build = |vs| optim::Adam::default().build(vs, 0.5);
    let adamw: Build = |vs| optim::AdamW::default().build(vs, 0.5);
    let sgd: Build = |vs| optim::Sgd::default().build(vs, 0.5);
    let cases = [
        ("keras3_adamw", KerasOptimizer::adamw().weight_decay(0.1), adamw),
        ("keras3_sgd", KerasOptimizer::sgd().momentum(0.9).nesterov(true), sgd),
        ("keras3_amsgrad", KerasOptimizer::adam().betas(0.8, 0.999), adam),
        ("keras2_adam", KerasOptimizer::adam(), adam),
        // These record more of their hyperparameters, and TensorFlow 1 none.
        ("keras2_legacy_adam", KerasOptimizer::adam(), adam),
        ("keras2_legacy_sgd", KerasOptimizer::sgd(), sgd),
        ("tf1_adam", KerasOptimizer::adam().learning_rate(0.01).epsilon(1e-8), adam),
        ("tf1_momentum", KerasOptimizer::sgd().learning_rate(0.05).momentum(0.9), sgd),
    ];
    let map = NameMap::new().layer("model/dense", Preset::KerasDense, "dense").only(["model"]);
    for (name, options, build) in cases {
        let vs = nn::VarStore::new(Device::Cpu);
        let dense = nn::linear(vs.root() / "dense", 3, 2, Default::default());
        let mut optimizer = build(&vs).unwrap();
        if name == "keras3_amsgrad" {
            let file = keras::Weights::open(fixture("training/keras3_amsgrad.weights.h5")).unwrap();
            let state = keras::optimizer_state(&file, &["dense/kernel", "dense/bias"], &options).unwrap();
            let state = map.apply_to_optimizer(&file, &state, "model").unwrap();
            restore(&vs, &optimizer, &map.apply(&file).unwrap(), &state);
        } else {
            let bundle = tensorflow::Bundle::open(fixture("training").join(name)).unwrap();
            let state = tensorflow::optimizer_state(&bundle, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            let state = map.apply_to_optimizer(&bundle, &state, "model").unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(state.left_out().is_empty());
            restore(&vs, &optimizer, &map.apply(&bundle).unwrap(), &state);
        }
        let of = |part: &str| tensor(&*recorded, &format!("{name}.{part}"));
        let bias = dense.bs.as_ref().unwrap();
        step(&mut optimizer, &[(&dense.ws, of("gradient.kernel").tr()), (bias, of("gradient.bias"))]);
        for (own, after) in [(&dense.ws, of("next.kernel").tr()), (bias, of("next.bias"))] {
            assert!(difference(own, &after) <= 1e-6, "{name}: {}", difference(own, &after));
        }
    }
}

#[test]
fn an_optimizer_without_an_equal_is_refused_with_the_reason() {
    let refused = |name: &str, options: KerasOptimizer| {
        let bundle = tensorflow::Bundle::open(fixture("training").join(name)).unwrap();
        tensorflow::optimizer_state(&bundle, &options).unwrap_err().to_string()
    };
    for (name, options, reason) in [
        ("keras3_rmsprop", KerasOptimizer::adam(), "epsilon inside of the square root"),
        ("keras3_adamw", KerasOptimizer::sgd(), "it is not the state of SGD"),
        ("keras3_sgd", KerasOptimizer::adam(), "it is not the state of Adam"),
        ("keras3_sgd", KerasOptimizer::sgd(), "set `momentum`"),
        ("keras3_sgd", KerasOptimizer::sgd().momentum(0.9).weight_decay(0.1), "decouples"),
        ("keras3_sgd", KerasOptimizer::sgd().momentum(0.9).learning_rate(0.0), "learning rate is 0"),
        ("tf1_adam", KerasOptimizer::adam(), "set `learning_rate`"),
        ("keras3_adamw", KerasOptimizer::adam().key("opt"), "set `KerasOptimizer::key`"),
    ] {
        let error = refused(name, options);
        assert!(error.contains(reason), "{name}: {error}");
    }
}

struct Seq2Seq {
    vs: nn::VarStore,
    source: nn::Embedding,
    encoder: nn::GRU,
    target: nn::Embedding,
    decoder: nn::GRU,
    logits: nn::Linear,
}

impl Seq2Seq {
    fn new() -> Seq2Seq {
        let vs = nn::VarStore::new(Device::Cpu);
        let (encoder, decoder) = (vs.root() / "encoder", vs.root() / "decoder");
        Seq2Seq {
            source: nn::embedding(&encoder / "embedding", 7, 3, Default::default()),
            encoder: nn::gru(&encoder / "rnn", 3, 4, Default::default()),
            target: nn::embedding(&decoder / "embedding", 5, 3, Default::default()),
            decoder: nn::gru(&decoder / "rnn", 3, 4, Default::default()),
            logits: nn::linear(&decoder / "logits", 4, 5, Default::default()),
            vs,
        }
    }

    fn forward(&self, source: &Tensor, target: &Tensor) -> Tensor {
        let (_, state) = self.encoder.seq(&self.source.forward(source));
        self.logits.forward(&self.decoder.seq_init(&self.target.forward(target), &state).0)
    }

    /// The outputs and the variables after a step, compared with those of `recorded`.
    fn check(&self, optimizer: &mut optim::Optimizer, recorded: &dyn TensorSource, next: &dyn TensorSource) {
        let (source, target) = (tensor(recorded, "source"), tensor(recorded, "target"));
        let output = self.forward(&source, &target.slice(1, 0, -1, 1));
        let wanted = tensor(recorded, "output");
        let scale = f64::try_from(wanted.abs().max()).unwrap();
        assert!(difference(&output, &wanted) <= 1e-5 * scale, "{} of {scale}", difference(&output, &wanted));
        let target = target.slice(1, 1, None, 1).reshape([-1]);
        optimizer.backward_step(&output.flatten(0, 1).cross_entropy_for_logits(&target));
        let variables = self.vs.variables();
        assert_eq!(variables.len(), 12);
        for (name, variable) in variables {
            let after = tensor(next, &format!("model/{name}"));
            assert!(difference(&variable, &after) <= 1e-5, "{name}: {}", difference(&variable, &after));
        }
    }
}

#[test]
fn an_encoder_decoder_of_pytorch_continues() {
    let file = interop::open(fixture("training/torch_seq2seq.pt")).unwrap();
    let model = Seq2Seq::new();
    let mut optimizer = optim::Adam::default().build(&model.vs, 0.5).unwrap();
    let map = |from: &str| {
        ["encoder.embedding", "encoder.rnn", "decoder.embedding", "decoder.rnn", "decoder.logits"]
            .into_iter()
            .fold(NameMap::new(), |map, layer| {
                map.layer(&format!("model/{layer}"), Preset::TorchModule, &format!("{from}/{layer}"))
            })
            .only(["model"])
    };
    // The names of the variables are in the order of `model.parameters()`, which is that of the `state_dict`.
    let order: Vec<String> =
        file.order().iter().filter(|key| key.starts_with("model/")).map(|key| key.to_string()).collect();
    let state = pytorch::optimizer_state(&*file, "optimizer", &pytorch::OptimizerOptions::in_order(order)).unwrap();
    let rename = NameMap::new().only(["model"]);
    let state = rename.apply_to_optimizer(&*file, &state, "model").unwrap();
    let next = NameMap::new().exclude(["model/*"]).then(map("next"));
    let without_next = NameMap::new().exclude(["next/*"]).then(map("model"));
    restore(&model.vs, &optimizer, &without_next.apply(&*file).unwrap(), &state);
    model.check(&mut optimizer, &*file, &next.apply(&*file).unwrap());
}

/// The same model as an HDF5 file, which numbers what the optimizer keeps, and as a bundle, which has it in a graph.
#[test]
fn an_encoder_decoder_of_keras_continues() {
    let recorded = interop::open(fixture("training/keras_seq2seq.npz")).unwrap();
    let map = NameMap::new()
        .layer("model/encoder.embedding", Preset::KerasEmbedding, "source_embedding")
        .layer("model/encoder.rnn", Preset::KerasGru, "encoder")
        .layer("model/decoder.embedding", Preset::KerasEmbedding, "target_embedding")
        .layer("model/decoder.rnn", Preset::KerasGru, "decoder")
        .layer("model/decoder.logits", Preset::KerasDense, "logits")
        .only(["model"]);
    let next = tensorflow::Bundle::open(fixture("training/keras_seq2seq_next")).unwrap();
    let next = map.apply(&next).unwrap();
    let options = KerasOptimizer::adam();

    let model = Seq2Seq::new();
    let mut optimizer = optim::Adam::default().build(&model.vs, 0.5).unwrap();
    let file = keras::Weights::open(fixture("training/keras_seq2seq.weights.h5")).unwrap();
    let trainable = [
        "source_embedding/embeddings",
        "target_embedding/embeddings",
        "encoder/gru_cell/kernel",
        "encoder/gru_cell/recurrent_kernel",
        "encoder/gru_cell/bias",
        "decoder/gru_cell/kernel",
        "decoder/gru_cell/recurrent_kernel",
        "decoder/gru_cell/bias",
        "logits/kernel",
        "logits/bias",
    ];
    let state = keras::optimizer_state(&file, &trainable, &options).unwrap();
    let state = map.apply_to_optimizer(&file, &state, "model").unwrap();
    restore(&model.vs, &optimizer, &map.apply(&file).unwrap(), &state);
    model.check(&mut optimizer, &*recorded, &next);

    let model = Seq2Seq::new();
    let mut optimizer = optim::Adam::default().build(&model.vs, 0.5).unwrap();
    let bundle = tensorflow::Bundle::open(fixture("training/keras_seq2seq")).unwrap();
    let state = tensorflow::optimizer_state(&bundle, &options).unwrap();
    let state = map.apply_to_optimizer(&bundle, &state, "model").unwrap();
    restore(&model.vs, &optimizer, &map.apply(&bundle).unwrap(), &state);
    model.check(&mut optimizer, &*recorded, &next);
}
