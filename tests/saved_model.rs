//! Saved models: exported from a live model, loaded without its code.

#[path = "common/bits.rs"]
mod bits;
mod common;

use bits::bits;
use common::steps::Steps;
use common::{python, turn};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::nn::{self, Module, ModuleT, RNN, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::format::{AssetEntry, Digest};
use tch_checkpoint::{
    Checkpoint, CheckpointReader, Counter, Error, Location, Node, SavedModel, SignatureDef, Variables, optim,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An encoder and a decoder with attention that read the sizes of their inputs, as models do.
struct Seq2Seq {
    vs: VarStore,
    embedding: nn::Embedding,
    encoder: nn::GRU,
    decoder: nn::GRU,
    logits: nn::Linear,
}

const WORDS: i64 = 20;
const HIDDEN: i64 = 8;

impl Seq2Seq {
    fn new() -> Seq2Seq {
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        Seq2Seq {
            embedding: nn::embedding(&root / "embedding", WORDS, HIDDEN, Default::default()),
            encoder: nn::gru(&root / "encoder" / "gru", HIDDEN, HIDDEN, Default::default()),
            decoder: nn::gru(&root / "decoder" / "gru", HIDDEN, HIDDEN, Default::default()),
            logits: nn::linear(&root / "decoder" / "out", 2 * HIDDEN, WORDS, Default::default()),
            vs,
        }
    }

    /// From `[batch, length]` to what the decoder attends to, and its first state.
    fn encode(&self, words: &Tensor) -> (Tensor, Tensor) {
        let (memory, state) = self.encoder.seq(&self.embedding.forward(words));
        (memory.dropout(0.5, false), state.0)
    }

    fn decode(&self, words: &Tensor, memory: &Tensor, state: &Tensor) -> (Tensor, Tensor) {
        let (batch, length) = (words.size()[0], words.size()[1]);
        let (outputs, state) =
            self.decoder.seq_init(&self.embedding.forward(words), &nn::GRUState(state.shallow_clone()));
        let attention = outputs.bmm(&memory.transpose(1, 2)).softmax(2, Kind::Float);
        let found = Tensor::cat(&[attention.bmm(memory), outputs], 2).view([batch * length, 2 * HIDDEN]);
        (self.logits.forward(&found).view([batch, length, WORDS]), state.0)
    }

    fn whole(&self, source: &Tensor, target: &Tensor) -> Tensor {
        let (memory, state) = self.encode(source);
        self.decode(target, &memory, &state).0
    }

    fn definitions(&self) -> Vec<SignatureDef<'_>> {
        let (first, second) = ([words(3, 5), words(3, 7)], [words(4, 11), words(4, 2)]);
        let parts = |example: &[Tensor; 2]| {
            let (memory, state) = tch::no_grad(|| self.encode(&example[0]));
            [example[1].shallow_clone(), memory, state]
        };
        vec![
            SignatureDef::new("forward", |x| vec![self.whole(&x[0], &x[1])])
                .inputs(["source", "target"])
                .outputs(["logits"])
                .example(first.each_ref().map(Tensor::shallow_clone))
                .example(second.each_ref().map(Tensor::shallow_clone)),
            SignatureDef::new("encode", |x| {
                let (memory, state) = self.encode(&x[0]);
                vec![memory, state]
            })
            .inputs(["source"])
            .outputs(["memory", "state"])
            .example([first[0].shallow_clone()])
            .example([second[0].shallow_clone()]),
            SignatureDef::new("decode_step", |x| {
                let (logits, state) = self.decode(&x[0], &x[1], &x[2]);
                vec![logits, state]
            })
            .inputs(["target", "memory", "state"])
            .outputs(["logits", "next_state"])
            .example(parts(&first))
            .example(parts(&second)),
        ]
    }

    fn checkpoint(&self) -> Result<Checkpoint, Error> {
        ["embedding", "encoder", "decoder"]
            .into_iter()
            .try_fold(Checkpoint::new(), |all, part| all.track(part, Variables::of(&self.vs).under(part)))
    }

    fn loss(&self, step: i64) -> Tensor {
        let source = words_of(2, 4, step);
        self.whole(&source, &source).view([-1, WORDS]).cross_entropy_for_logits(&source.view(-1))
    }
}

fn words(batch: i64, length: i64) -> Tensor {
    words_of(batch, length, batch * 100 + length)
}

/// Words that depend on `seed` alone.
fn words_of(batch: i64, length: i64, seed: i64) -> Tensor {
    let numbers = Tensor::arange(batch * length, (Kind::Int64, Device::Cpu));
    (numbers * 7919 + seed * 104_729).remainder(9973).remainder(WORDS).view([batch, length])
}

fn all_bits(vs: &VarStore) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = vs.variables().into_iter().map(|(name, tensor)| (name, bits(&tensor))).collect();
    all.sort();
    all
}

fn export(
    model: &Seq2Seq,
    dir: &std::path::Path,
    checkpoint: &mut Checkpoint,
) -> Result<tch_checkpoint::Location, Error> {
    let export = SavedModel::export(dir, &model.vs).checkpoint(checkpoint).metadata("language", "en");
    model.definitions().into_iter().fold(export, |export, definition| export.signature(definition)).write()
}

#[test]
fn the_program_gives_the_live_models_bits() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Seq2Seq::new();
    let path = export(&model, &dir.path().join("model"), &mut model.checkpoint()?)?;
    let saved = SavedModel::load(&path, Device::Cpu)?;
    saved.check(0.0)?;
    assert_eq!(saved.info().metadata["language"], "en");
    for round in 0..100 {
        let (batch, source, target) = (1 + round % 7, 1 + (round * 5) % 13, 1 + (round * 3) % 11);
        let (source, target) = (words_of(batch, source, round), words_of(batch, target, -round));
        let live = model.whole(&source, &target);
        let whole = saved.run("forward", &[&source, &target])?;
        assert_eq!((whole[0].size(), bits(&whole[0])), (live.size(), bits(&live)), "round {round}");
        // In parts: the decoder takes what the encoder gave.
        let encoded = saved.run("encode", &[&source])?;
        let parts = saved.run("decode_step", &[&target, &encoded[0], &encoded[1]])?;
        assert_eq!(bits(&parts[0]), bits(&live), "round {round}");
        assert_eq!(bits(&encoded[1]), bits(&model.encode(&source).1));
    }
    Ok(())
}

#[test]
fn exporting_leaves_the_live_model_as_it_was() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let mut model = Seq2Seq::new();
    model.loss(1).backward();
    let before = all_bits(&model.vs);
    let gradient = bits(&model.logits.ws.grad());
    let drawn = || bits(&Tensor::rand([8], (Kind::Float, Device::Cpu)));
    tch::manual_seed(3);
    let expected = drawn();
    tch::manual_seed(3);
    export(&model, &dir.path().join("model"), &mut model.checkpoint()?)?;
    assert_eq!(drawn(), expected);
    assert_eq!((all_bits(&model.vs), bits(&model.logits.ws.grad())), (before, gradient));
    assert!(model.vs.variables().values().all(|variable| variable.requires_grad() && variable.is_leaf()));
    // A frozen model stays frozen, in the program too.
    model.vs.freeze();
    let path = export(&model, &dir.path().join("frozen"), &mut model.checkpoint()?)?;
    assert!(!model.logits.ws.requires_grad());
    let saved = SavedModel::load(path, Device::Cpu)?;
    assert!(saved.parameters().len() == 11 && saved.parameters().iter().all(|(_, tensor)| !tensor.requires_grad()));
    Ok(())
}

/// A layer with everything that differs between training and evaluation.
fn batch_norm_model(vs: &VarStore) -> (nn::Linear, nn::BatchNorm) {
    let linear = nn::linear(vs.root() / "linear", 4, 3, Default::default());
    (linear, nn::batch_norm1d(vs.root() / "norm", 3, Default::default()))
}

fn batch(n: i64, width: i64) -> Tensor {
    (Tensor::arange(n * width, (Kind::Float, Device::Cpu)).view([n, width]) * 0.37 + n).sin()
}

#[test]
fn batch_norm_and_dropout_evaluate() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let (linear, norm) = batch_norm_model(&vs);
    for n in 3..6 {
        let _ = norm.forward_t(&linear.forward(&batch(n, 4)), true);
    }
    let forward = |train: bool| {
        let (linear, norm) = (&linear, &norm);
        SignatureDef::new("forward", move |x| vec![norm.forward_t(&linear.forward(&x[0]), train).dropout(0.3, train)])
            .example([batch(2, 4)])
            .example([batch(5, 4)])
    };
    let path = SavedModel::export(dir.path().join("eval"), &vs).signature(forward(false)).write()?;
    let saved = SavedModel::load(&path, Device::Cpu)?;
    let live = norm.forward_t(&linear.forward(&batch(7, 4)), false);
    assert_eq!(bits(&saved.run("forward", &[&batch(7, 4)])?[0]), bits(&live));
    // Running statistics are buffers: they are saved, and not trained.
    let names: Vec<String> = saved.parameters().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["linear.bias", "linear.weight", "norm.bias", "norm.weight"]);
    assert_eq!(all_bits(saved.var_store()), all_bits(&vs));

    // In training mode they would be changed: this is refused, and they are reset.
    let before = all_bits(&vs);
    let error = SavedModel::export(dir.path().join("train"), &vs).signature(forward(true)).write().unwrap_err();
    assert!(error.to_string().contains("train = false"), "{error}");
    assert_eq!(all_bits(&vs), before);
    let dropout = SignatureDef::new("forward", |x| vec![x[0].dropout(0.5, true).apply(&linear)]);
    let dropout = dropout.example([batch(2, 4)]).example([batch(5, 4)]);
    let error = SavedModel::export(dir.path().join("train"), &vs).signature(dropout).write().unwrap_err();
    assert!(error.to_string().contains("random numbers (aten::dropout)"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path())?.filter(|entry| !is_lock(entry)).count(), 1);
    Ok(())
}

fn is_lock(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name() == ".lock")
}

#[test]
fn what_a_trace_cannot_hold_is_refused_with_the_reason() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let linear = nn::linear(vs.root() / "linear", 4, 4, Default::default());
    let stray = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    type Case<'a> = (&'a str, Box<dyn FnMut(&[Tensor]) -> Vec<Tensor> + 'a>, &'a str);
    fn case<'a>(name: &'a str, body: impl FnMut(&[Tensor]) -> Vec<Tensor> + 'a, reason: &'a str) -> Case<'a> {
        (name, Box::new(body), reason)
    }
    let branch = |x: &[Tensor]| {
        let positive = x[0].sum(Kind::Float).double_value(&[]) > 0.0;
        let activated = if positive { x[0].relu() } else { x[0].tanh() };
        vec![activated.apply(&linear)]
    };
    let rounds = |x: &[Tensor]| vec![(0..x[0].size()[0]).fold(x[0].shallow_clone(), |y, _| y.apply(&linear).tanh())];
    let in_place = |x: &[Tensor]| {
        let changed = tch::no_grad(|| linear.ws.shallow_clone().g_add_(&(&linear.ws * 0.0)));
        vec![x[0].matmul(&changed)]
    };
    let refusals = [
        case("branch", branch, "does different things for different examples"),
        case("rounds", rounds, "an `if`, or a loop"),
        case("number", |x| vec![&x[0] * x[0].sum(Kind::Float).double_value(&[])], "differs between the examples"),
        case(
            "copied",
            |x| vec![&x[0] + Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0])],
            "gives something else than the closure",
        ),
        case("stray", |x| vec![&x[0] * &stray], "trainable tensor that is not exported"),
        case("in_place", in_place, "changes it"),
        case("nothing", |_| vec![], "gave no output"),
        case("import", |x| vec![x[0].relu()], "its name is none in Python"),
    ];
    let before = all_bits(&vs);
    for (name, body, reason) in refusals {
        let definition = SignatureDef::new(name, body).example([batch(3, 4).abs()]).example([batch(5, 4).abs() * -1.0]);
        let error = SavedModel::export(dir.path().join("model"), &vs).signature(definition).write().unwrap_err();
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
    let lonely = SignatureDef::new("forward", |x| vec![x[0].apply(&linear)]).example([batch(3, 4)]);
    let error = SavedModel::export(dir.path().join("model"), &vs).signature(lonely).write().unwrap_err();
    assert!(error.to_string().contains("second example"), "{error}");
    // Two sizes with the same difference in all examples: it is not clear which of them counts.
    let ambiguous = SignatureDef::new("forward", |x| vec![x[0].narrow(0, 0, 1) + (x[1].size()[0] + 1)])
        .example([batch(3, 4), batch(4, 4)])
        .example([batch(5, 4), batch(6, 4)]);
    let error = SavedModel::export(dir.path().join("model"), &vs).signature(ambiguous).write().unwrap_err();
    assert!(error.to_string().contains("one more example"), "{error}");
    assert_eq!(all_bits(&vs), before);
    let _ = vs.root().sub("in").zeros("w", &[1]);
    let word = SignatureDef::new("forward", |x| vec![x[0].relu()]).example([batch(3, 4)]).example([batch(4, 4)]);
    let error = SavedModel::export(dir.path().join("model"), &vs).signature(word).write().unwrap_err();
    assert!(error.to_string().contains("in.w: `in` is a word of TorchScript"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path())?.filter(|entry| !is_lock(entry)).count(), 0);
    Ok(())
}

#[test]
fn a_panic_in_a_closure_is_the_callers() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let vs = VarStore::new(Device::Cpu);
    let _ = vs.root().zeros("w", &[1]);
    let calls = std::cell::Cell::new(0);
    let body = |x: &[Tensor]| {
        calls.set(calls.get() + 1);
        assert!(calls.get() < 3, "the third call");
        vec![x[0].shallow_clone()]
    };
    let definition = SignatureDef::new("forward", body).example([batch(2, 4)]).example([batch(5, 4)]);
    let export = SavedModel::export(dir.path().join("model"), &vs).signature(definition);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| export.write())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the third call"));
    // Nothing is being traced any more.
    assert_eq!(bits(&(batch(2, 4) + 1.0).relu()).len(), 32);
}

#[test]
fn tied_weights_are_one_parameter() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let embedding = nn::embedding(vs.root() / "embedding", WORDS, 1000, Default::default());
    let tied = (vs.root() / "out").add("weight", embedding.ws.shallow_clone(), false);
    let forward = |x: &Tensor| embedding.forward(x).mean_dim(1i64, false, Kind::Float).matmul(&tied.tr());
    let definition = SignatureDef::new("forward", |x| vec![forward(&x[0])]);
    let path = SavedModel::export(dir.path().join("model"), &vs)
        .signature(definition.example([words(2, 3)]).example([words(4, 5)]))
        .write()?;
    assert!(std::fs::metadata(path.join("program.pt"))?.len() < 2 * 4 * 1000 * WORDS as u64, "stored twice");
    let saved = SavedModel::load(&path, Device::Cpu)?;
    let all = saved.var_store().variables();
    assert_eq!(all["embedding.weight"].data_ptr(), all["out.weight"].data_ptr());
    // One step of both models: the gradients of both uses reach the one parameter.
    let mut live = optim::Sgd::default().build(&vs, 0.1)?;
    let mut loaded = optim::Sgd::default().build(saved.var_store(), 0.1)?;
    live.backward_step(&forward(&words(3, 3)).square().mean(Kind::Float));
    loaded.backward_step(&saved.run("forward", &[&words(3, 3)])?[0].square().mean(Kind::Float));
    assert_eq!(all_bits(saved.var_store()), all_bits(&vs));
    Ok(())
}

#[test]
fn low_precision_weights_and_integer_inputs_come_out_right() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    for kind in [Kind::Half, Kind::BFloat16, Kind::Double] {
        let mut vs = VarStore::new(Device::Cpu);
        let embedding = nn::embedding(vs.root() / "embedding", WORDS, 6, Default::default());
        let linear = nn::linear(vs.root() / "0", 6, 3, Default::default());
        vs.set_kind(kind);
        let forward = |x: &Tensor| embedding.forward(x).apply(&linear);
        let definition = SignatureDef::new("forward", |x| vec![forward(&x[0]), x[0].gt(3)]);
        let path = SavedModel::export(dir.path().join(format!("{kind:?}")), &vs)
            .signature(definition.example([words(2, 3)]).example([words(4, 5)]))
            .write()?;
        let saved = SavedModel::load(&path, Device::Cpu)?;
        let outputs = saved.run("forward", &[&words(6, 2)])?;
        assert_eq!((outputs[0].kind(), outputs[1].kind()), (kind, Kind::Bool));
        assert_eq!(bits(&outputs[0]), bits(&forward(&words(6, 2))));
        assert_eq!(all_bits(saved.var_store()), all_bits(&vs));
        let error = saved.run("forward", &[&words(6, 2).to_kind(Kind::Float)]).unwrap_err();
        assert!(error.to_string().contains("`input_0: I64 [?, ?]` is asked for, F32 [6, 2] was given"), "{error}");
    }
    Ok(())
}

#[test]
fn training_goes_on_where_it_was() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Seq2Seq::new();
    let mut optimizer = optim::Adam::default().build(&model.vs, 1e-2)?;
    let step = Counter::new(0);
    let train = |optimizer: &mut optim::Optimizer, loss: &dyn Fn(i64) -> Tensor| {
        for _ in 0..5 {
            optimizer.backward_step(&loss(step.increment() as i64));
        }
    };
    train(&mut optimizer, &|step| model.loss(step));
    let mut checkpoint = model.checkpoint()?.track("optimizer", &optimizer)?.track("step", &step)?;
    let path = export(&model, &dir.path().join("model"), &mut checkpoint)?;
    let ckpt = checkpoint.write(dir.path().join("ckpt-5"))?;
    train(&mut optimizer, &|step| model.loss(step));
    let expected = all_bits(&model.vs);

    let saved = SavedModel::load(&path, Device::Cpu)?;
    let mut optimizer = optim::Adam::default().build(saved.var_store(), 1e-3)?;
    let mut checkpoint = saved.checkpoint()?.track("optimizer", &optimizer)?.track("step", &step)?;
    checkpoint.restore(&path)?.assert_consumed()?;
    assert_eq!((step.get(), optimizer.steps(), optimizer.lr()), (5, 5, 1e-2));
    let loss = |step| {
        let source = words_of(2, 4, step);
        let logits = saved.run("forward", &[&source, &source]).unwrap();
        logits[0].view([-1, WORDS]).cross_entropy_for_logits(&source.view(-1))
    };
    train(&mut optimizer, &loss);
    assert_eq!(all_bits(saved.var_store()), expected);

    // What was trained without the code goes back into the live model, as a saved model or as a checkpoint.
    let tuned = saved.save(dir.path().join("tuned"), &mut checkpoint)?;
    SavedModel::load(&tuned, Device::Cpu)?.check(0.0)?;
    let plain = checkpoint.write(dir.path().join("ckpt-10"))?;
    for path in [&tuned, &plain] {
        let other = Seq2Seq::new();
        let optimizer = optim::Adam::default().build(&other.vs, 1e-3)?;
        let mut checkpoint = other.checkpoint()?.track("optimizer", &optimizer)?.track("step", &step)?;
        checkpoint.restore(path)?.assert_consumed()?;
        assert_eq!(all_bits(&other.vs), expected);
    }

    // From `ckpt-5` to a saved model, without the model: everything that the checkpoint has is there.
    let mut program = SavedModel::load(&tuned, Device::Cpu)?;
    let back = program.save_from(&ckpt, dir.path().join("back"))?;
    let back = SavedModel::load(&back, Device::Cpu)?;
    back.check(0.0)?;
    assert_eq!(all_bits(back.var_store()), all_bits(SavedModel::load(&path, Device::Cpu)?.var_store()));
    let state = |path: &std::path::Path| -> Result<_, Error> {
        let manifest = CheckpointReader::open(path)?.manifest().clone();
        Ok((manifest.files, manifest.tensors, manifest.values, manifest.step))
    };
    assert_eq!(state(back.path())?, state(&ckpt)?);
    assert_eq!(tch_checkpoint::verify_checkpoint(back.path()).problems.len(), 0);
    // Program and tensors are of one checkpoint, whatever the path leads to meanwhile.
    let (latest, ends) = (dir.path().join("latest"), AtomicBool::new(false));
    let lead_to = |checkpoint: &Location| {
        let next = dir.path().join("next");
        std::os::unix::fs::symlink(checkpoint, &next).and_then(|()| std::fs::rename(&next, &latest))
    };
    lead_to(&ckpt)?;
    std::thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            while !ends.load(Ordering::SeqCst) {
                let _ = lead_to(&plain).and_then(|()| lead_to(&ckpt));
            }
        });
        let saved = (0..10).try_for_each(|i| -> Outcome {
            let path = program.save_from(&latest, dir.path().join(format!("of-latest-{i}")))?;
            let other = Seq2Seq::new();
            other.checkpoint()?.restore(&path)?;
            assert_eq!(all_bits(SavedModel::load(&path, Device::Cpu)?.var_store()), all_bits(&other.vs));
            Ok(())
        });
        ends.store(true, Ordering::SeqCst);
        saved
    })?;
    // A checkpoint of another model is refused, and nothing changes.
    let before = all_bits(back.var_store());
    let other = Checkpoint::new().track("step", &step)?.write(dir.path().join("other"))?;
    let mut back = back;
    assert!(matches!(back.restore_weights(&other), Err(Error::Mismatch { .. })));
    assert!(matches!(SavedModel::load(&other, Device::Cpu), Err(Error::NotFound { .. })));
    assert_eq!(all_bits(back.var_store()), before);
    Ok(())
}

#[test]
fn a_step_that_ends_while_a_model_is_traced_makes_the_export_fail() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let layer = nn::linear(vs.root() / "layer", 3, 2, Default::default());
    let steps = Steps::default();
    let mut checkpoint = Checkpoint::new().track("model", &vs)?.track("optimizer", Node::collection(steps.clone()))?;
    for ends in [true, false] {
        let path = dir.path().join(ends.to_string());
        // As if on another thread: the outputs of the examples may be those before it.
        let forward = |x: &[Tensor]| {
            steps.0.fetch_add(u64::from(ends), Ordering::SeqCst);
            vec![layer.forward(&x[0])]
        };
        let forward = SignatureDef::new("forward", forward).example([batch(2, 3)]).example([batch(5, 3)]);
        match SavedModel::export(&path, &vs).checkpoint(&mut checkpoint).signature(forward).write() {
            Err(Error::Object { name, .. }) => assert!(ends && name == "optimizer/steps", "{name}"),
            written => assert!(!ends && written.is_ok()),
        }
        assert_eq!(path.exists(), !ends);
    }
    Ok(())
}

#[test]
fn parts_are_exported_alone() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Seq2Seq::new();
    let encoder = || {
        let encode = |x: &[Tensor]| vec![model.encoder.seq(&x[0]).0];
        SignatureDef::new("forward", encode)
            .example([batch(6, 8).view([2, 3, 8])])
            .example([batch(20, 8).view([4, 5, 8])])
    };
    let part = |prefix: &str, definition| {
        SavedModel::export(dir.path().join(prefix), &model.vs).under(prefix).signature(definition)
    };
    let path = part("encoder", encoder()).write()?;
    let embed = SignatureDef::new("forward", |x| vec![model.embedding.forward(&x[0])]);
    let embedding = part("embedding", embed.example([words(2, 3)]).example([words(4, 5)])).write()?;
    let (encoder_alone, embedding) = (SavedModel::load(path, Device::Cpu)?, SavedModel::load(embedding, Device::Cpu)?);
    assert!(encoder_alone.parameters().len() == 4 && embedding.parameters().len() == 1);
    let embedded = embedding.run("forward", &[&words(3, 9)])?;
    let memory = encoder_alone.run("forward", &[&embedded[0]])?;
    assert_eq!(bits(&memory[0]), bits(&model.encode(&words(3, 9)).0));
    // The embedding does not become a nameless constant of the encoder.
    let whole =
        SignatureDef::new("forward", |x| vec![model.encode(&x[0]).0]).example([words(2, 3)]).example([words(4, 5)]);
    let error =
        SavedModel::export(dir.path().join("x"), &model.vs).under("encoder").signature(whole).write().unwrap_err();
    assert!(error.to_string().contains("Export::under"), "{error}");
    Ok(())
}

#[test]
fn damage_is_refused_before_libtorch_sees_it() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Seq2Seq::new();
    let path = export(&model, &dir.path().join("model"), &mut model.checkpoint()?)?;
    assert!(tch_checkpoint::verify_checkpoint(&path).is_intact());
    for name in ["program.pt", "saved_model.json", "examples.st"] {
        let file = path.join(name);
        let whole = std::fs::read(&file)?;
        for place in [0, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            std::fs::write(&file, damaged)?;
            let refused = SavedModel::load(&path, Device::Cpu).and_then(|saved| saved.check(0.0)).unwrap_err();
            assert!(refused.to_string().contains("is not what was written"), "{name}: {refused}");
            assert_eq!(tch_checkpoint::verify_checkpoint(&path).problems.len(), 1);
        }
        std::fs::write(&file, &whole[..whole.len() - 1])?;
        assert!(matches!(SavedModel::load(&path, Device::Cpu), Err(Error::Damaged { .. })));
        std::fs::write(&file, &whole)?;
    }
    // Hostile: the manifest has the digest of a program that is not one, or is another one.
    let manifest = CheckpointReader::open(&path)?.manifest().clone();
    let program = std::fs::read(path.join("program.pt"))?;
    for bytes in
        [b"PK\x03\x04 no program".to_vec(), vec![], program[..program.len() / 2].to_vec(), program[100..].to_vec()]
    {
        let entry = AssetEntry::new(bytes.len() as u64, Digest::of(&bytes));
        let mut forged = manifest.clone();
        forged.assets.insert("program.pt".to_string(), entry);
        std::fs::write(path.join("manifest.json"), forged.to_bytes()?)?;
        std::fs::write(path.join("program.pt"), bytes)?;
        let refused = SavedModel::load(&path, Device::Cpu).unwrap_err();
        assert!(refused.to_string().contains("libtorch cannot read it"), "{refused}");
    }
    Ok(())
}

#[test]
fn tch_loads_the_program() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Seq2Seq::new();
    let path = export(&model, &dir.path().join("model"), &mut model.checkpoint()?)?;
    let module = tch::CModule::load(path.join("program.pt"))?;
    let (source, target) = (words(5, 6), words(5, 3));
    let logits = module.forward_ts(&[&source, &target])?;
    assert!(logits.allclose(&model.whole(&source, &target), 1e-6, 1e-6, false));
    let named: HashMap<String, Tensor> = module.named_parameters()?.into_iter().collect();
    assert_eq!(named.len(), model.vs.variables().len());
    assert!(model.vs.variables().iter().all(|(name, tensor)| bits(&named[name]) == bits(tensor)));
    Ok(())
}

#[test]
fn python_loads_runs_and_trains_the_program() -> Outcome {
    let _turn = turn();
    let Some(python) = python::python("torch") else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let model = Seq2Seq::new();
    let path = export(&model, &dir.path().join("model"), &mut model.checkpoint()?)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/saved_model.py");
    let (source, target) = (words(5, 6), words(5, 3));
    let sum = model.whole(&source, &target).to_kind(Kind::Double).abs().sum(Kind::Double).double_value(&[]);
    let mut names: Vec<String> = model.vs.variables().into_keys().collect();
    names.sort();
    let mut command = python::command(python);
    command.arg(script).arg(path.join("program.pt"));
    let list = |tensor: &Tensor| Vec::<i64>::try_from(tensor.view(-1)).map(|numbers| format!("{numbers:?}"));
    python::output(command.args([list(&source)?, list(&target)?, sum.to_string(), names.join(",")]));
    Ok(())
}
