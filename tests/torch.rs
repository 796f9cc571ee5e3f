//! A model of tch, from the user's side: saved, restored in place, read by others.

mod common;

use common::{python, turn};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Counter, Error, Node, RestoreOptions, Rng, Trackable,
    Trainable, Variables, Verify, optim,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn linear(vs: &VarStore, name: &str, inputs: i64, outputs: i64) -> nn::Linear {
    nn::linear(vs.root() / name, inputs, outputs, Default::default())
}

/// Encoder and decoder with the decoder's weight tied to the encoder's.
struct Model {
    vs: VarStore,
    encoder: nn::Linear,
    decoder: nn::Linear,
}

impl Model {
    fn new() -> Model {
        let vs = VarStore::new(Device::Cpu);
        let (encoder, decoder) = (linear(&vs, "encoder", 4, 3), linear(&vs, "decoder", 3, 2));
        Model { vs, encoder, decoder }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.decoder.forward(&self.encoder.forward(x).relu())
    }

    fn train(&self, optimizer: &mut optim::Optimizer, steps: usize) {
        for _ in 0..steps {
            let x = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
            let loss = self.forward(&x.dropout(0.5, true)).square().mean(Kind::Float);
            optimizer.backward_step(&loss);
        }
    }

    fn checkpoint(&self) -> Result<Checkpoint, Error> {
        Checkpoint::new()
            .track("encoder", Variables::of(&self.vs).under("encoder"))?
            .track("decoder", Variables::of(&self.vs).under("decoder"))
    }

    fn bits(&self) -> Vec<(String, Vec<u8>)> {
        bits(&self.vs)
    }
}

fn bits(vs: &VarStore) -> Vec<(String, Vec<u8>)> {
    let bytes = |tensor: &Tensor| {
        let tensor = tensor.detach().contiguous();
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        let count = tensor.numel();
        tensor.copy_data_u8(&mut bytes, count);
        bytes
    };
    let mut all: Vec<_> = vs.variables().into_iter().map(|(name, tensor)| (name, bytes(&tensor))).collect();
    all.sort();
    all
}

#[test]
fn training_goes_on_exactly_in_the_background_or_not() -> Outcome {
    let _turn = turn();
    for background in [false, true] {
        let dir = tempfile::tempdir()?;
        let open = |model: &Model, optimizer: &optim::Optimizer| -> Result<CheckpointManager, Error> {
            let checkpoint = model.checkpoint()?.track("optimizer", optimizer)?.track("rng", Rng::global())?;
            let builder = CheckpointManager::builder(checkpoint, dir.path());
            if background { builder.background(Background::new()).open() } else { builder.open() }
        };
        tch::manual_seed(5);
        let model = Model::new();
        let mut optimizer = optim::AdamW::default().build(&model.vs, 1e-2)?;
        let mut manager = open(&model, &optimizer)?;
        model.train(&mut optimizer, 10);
        manager.save_at(10)?;
        model.train(&mut optimizer, 10); // the step right after the call must not be in the checkpoint
        manager.close()?;
        let expected = model.bits();

        tch::manual_seed(99);
        let again = Model::new();
        let mut optimizer = optim::AdamW::default().build(&again.vs, 1e-2)?;
        let mut manager = open(&again, &optimizer)?;
        manager.restore_or_initialize()?.restored.ok_or("nothing restored")?.assert_consumed()?;
        again.train(&mut optimizer, 10);
        assert_eq!(again.bits(), expected);
    }
    Ok(())
}

#[test]
fn restoring_is_in_place_and_all_or_nothing() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let saved = Model::new();
    let path = saved.checkpoint()?.write(dir.path().join("c"))?;

    let live = Model::new();
    let (address, alias) = (live.encoder.ws.data_ptr(), live.encoder.ws.shallow_clone());
    live.checkpoint()?.restore(&path)?.assert_consumed()?;
    assert_eq!(live.bits(), saved.bits());
    assert_eq!(live.encoder.ws.data_ptr(), address);
    assert!(alias.equal(&saved.encoder.ws) && live.encoder.ws.requires_grad() && live.encoder.ws.is_leaf());

    // tch's own load broadcasts a [1] into a [3, 4], and changes the dtype; a damaged file half-loads.
    let other = Model::new();
    let before = other.bits();
    let wrong = VarStore::new(Device::Cpu);
    let _ = wrong.root().sub("encoder").zeros("weight", &[1]);
    let _ = wrong.root().sub("encoder").zeros("bias", &[3]);
    let refused = Checkpoint::new().track("encoder", Variables::of(&wrong))?.write(dir.path().join("wrong"))?;
    assert!(matches!(other.checkpoint()?.restore(&refused), Err(Error::Mismatch { .. })));
    let file = path.join("decoder.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    assert!(matches!(other.checkpoint()?.restore(&path), Err(Error::Damaged { .. })));
    assert_eq!(other.bits(), before);
    Ok(())
}

#[test]
fn the_encoder_of_one_checkpoint_goes_into_another_model() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let saved = Model::new();
    let path = saved.checkpoint()?.write(dir.path().join("c"))?;
    // Another model, in which it is under another prefix.
    let vs = VarStore::new(Device::Cpu);
    let encoder = nn::linear(vs.root() / "student" / "front", 4, 3, Default::default());
    let head = linear(&vs, "head", 3, 7);
    let before = head.ws.copy();
    Checkpoint::new().track("encoder", Variables::of(&vs).under("student.front"))?.restore(&path)?.expect_partial();
    assert!(encoder.ws.equal(&saved.encoder.ws) && head.ws.equal(&before));
    Ok(())
}

#[test]
fn tch_reads_a_component_file() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let saved = Model::new();
    let path = saved.checkpoint()?.write(dir.path().join("c"))?;
    let mut vs = VarStore::new(Device::Cpu);
    let encoder = linear(&vs, "encoder", 4, 3);
    vs.load(path.join("encoder.safetensors"))?;
    assert!(encoder.ws.equal(&saved.encoder.ws));

    let whole = Checkpoint::new().track("model", Variables::of(&saved.vs))?.write(dir.path().join("whole"))?;
    let mut again = Model::new();
    again.vs.load(whole.join("model.safetensors"))?;
    assert_eq!(again.bits(), saved.bits());

    // Names that are escaped in keys.
    let mut vs = VarStore::new(Device::Cpu);
    let w = (vs.root() / "layer").ones("x/y%", &[2]);
    let path = Checkpoint::new().track("model", Variables::of(&vs))?.write(dir.path().join("odd"))?;
    tch::no_grad(|| drop(w.shallow_clone().zero_()));
    vs.load(path.join("model.safetensors"))?;
    assert_eq!(w.double_value(&[1]), 1.0);
    Ok(())
}

#[test]
fn python_reads_a_component_file() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let saved = Model::new();
    let path = saved.checkpoint()?.write(dir.path().join("c"))?;
    let sum = saved.encoder.ws.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
    for module in ["numpy", "torch"] {
        let Some(python) = python::python(&format!("safetensors.{module}")) else { continue };
        let program = format!(
            "import sys; from safetensors.{module} import load_file; t = load_file(sys.argv[1])\n\
             assert sorted(t) == ['encoder.bias', 'encoder.weight'], sorted(t)\n\
             w = t['encoder.weight']; assert tuple(w.shape) == (3, 4)\n\
             assert abs(sum(float(x) for row in w for x in row) - float(sys.argv[2])) < 1e-5"
        );
        let file = path.join("encoder.safetensors");
        python::output(python::command(python).args(["-c", &program]).arg(file).arg(sum.to_string()));
    }
    Ok(())
}

#[test]
fn a_thousand_flipped_bits_are_all_refused_and_change_nothing() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let mut optimizer = optim::Adam::default().build(&model.vs, 1e-2)?;
    model.train(&mut optimizer, 3);
    let step = Counter::new(3);
    let build = |model: &Model, optimizer: &optim::Optimizer, step: &Counter| -> Result<Checkpoint, Error> {
        model.checkpoint()?.track("optimizer", optimizer)?.track("step", step)
    };
    let path = build(&model, &optimizer, &step)?.write(dir.path().join("c"))?;

    let live = Model::new();
    let other = optim::Adam::default().build(&live.vs, 5e-2)?;
    let count = Counter::new(77);
    let mut checkpoint = build(&live, &other, &count)?;
    let before = live.bits();
    let files: Vec<_> = fs::read_dir(&path)?.map(|entry| entry.unwrap().path()).collect();
    let total: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    let mut random = 1u64;
    for _ in 0..1000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bit = (random >> 11) % (total * 8);
        let length = |file: &&std::path::PathBuf| fs::metadata(file).unwrap().len();
        let file = files
            .iter()
            .find(|file| {
                let here = bit < length(file) * 8;
                bit -= if here { 0 } else { length(file) * 8 };
                here
            })
            .ok_or("past the end")?;
        flip(file, bit)?;
        let found = CheckpointReader::open(&path).map_or(true, |reader| !reader.verify().is_intact());
        assert!(found, "verify missed bit {bit} of {}", file.display());
        assert!(checkpoint.restore(&path).is_err(), "restore took bit {bit} of {}", file.display());
        flip(file, bit)?;
    }
    assert!(live.bits() == before && count.get() == 77 && other.lr() == 5e-2);
    checkpoint.restore(&path)?.assert_consumed()?;
    assert_eq!(live.bits(), model.bits());
    Ok(())
}

fn flip(file: &Path, bit: u64) -> std::io::Result<()> {
    let mut bytes = fs::read(file)?;
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(file, bytes)
}

#[test]
fn a_variable_that_tch_renamed_is_refused_by_name() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let _ = vs.root().zeros("w", &[2]);
    let _ = vs.root().zeros("w", &[2]);
    let error = Checkpoint::new().track("model", Variables::of(&vs)).unwrap_err();
    assert!(error.to_string().contains("may have been created as"), "{error}");
    Ok(())
}

#[test]
fn contents_are_shown_before_they_are_saved_and_parts_are_found_by_name() -> Outcome {
    let temp = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let encoder = linear(&vs, "encoder", 4, 3);
    let _tied = (vs.root() / "decoder").add("weight", encoder.ws.shallow_clone(), true);
    let frozen = (vs.root() / "decoder").var("bias", &[1000], nn::Init::Const(0.0));
    let _ = frozen.set_requires_grad(false);
    let step = Counter::new(5);
    let mut checkpoint = Checkpoint::new()
        .track("encoder", Variables::of(&vs).under("encoder"))?
        .track("decoder", Variables::of(&vs).under("decoder"))?
        .track("step", &step)?;
    let contents = checkpoint.contents()?;
    assert_eq!(
        contents.to_string(),
        "4 tensors (4.1 kB), 1 value\n\
         ├── decoder: 2 tensors (4.0 kB), 0 values\n\
         │   ├── bias: F32 [1000], 4.0 kB, frozen\n\
         │   └── weight: F32 [3, 4], the same as encoder/weight\n\
         ├── encoder: 2 tensors (60 B), 0 values\n\
         │   ├── bias: F32 [3], 12 B\n\
         │   └── weight: F32 [3, 4], 48 B\n\
         └── step: 5"
    );
    // The bytes of the view are those that are saved.
    let path = checkpoint.write(temp.path().join("all"))?;
    let reader = CheckpointReader::open(&path)?;
    let manifest = reader.manifest();
    let saved: Vec<&String> = manifest.tensors.keys().chain(manifest.values.keys()).collect();
    let mut shown: Vec<&String> = contents.entries().iter().map(|entry| &entry.key).collect();
    shown.retain(|key| saved.contains(key));
    assert_eq!(shown.len(), contents.entries().len());

    // A part: live tensors, and saved and restored alone.
    let part = checkpoint.get("encoder").ok_or("it is tracked")?;
    assert!(checkpoint.get("coder").is_none());
    let tensors = part.tensors()?;
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    let _ = tch::no_grad(|| tensors["weight"].shallow_clone().fill_(7.0));
    assert_eq!(encoder.ws.double_value(&[0, 0]), 7.0);
    assert_eq!(part.contents()?.bytes(), 60);
    step.set(6);
    part.restore(&path)?;
    assert!(encoder.ws.double_value(&[0, 0]) != 7.0 && step.get() == 6);
    let alone = CheckpointReader::open(part.write(temp.path().join("alone"))?)?;
    assert_eq!(alone.manifest().tensors.len(), 2);
    let mut other = Checkpoint::new().track("encoder", &part)?;
    other.restore(&path)?;
    Ok(())
}

#[test]
fn a_store_is_tracked_as_it_is() -> Outcome {
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let path = Checkpoint::new().track("model", &model.vs)?.write(dir.path().join("store"))?;
    let other = Checkpoint::new().track("model", Variables::of(&model.vs))?.write(dir.path().join("variables"))?;
    let (reader, other) = (CheckpointReader::open(&path)?, CheckpointReader::open(other)?);
    assert!(reader.keys().len() == 4 && reader.tensors().eq(&other));
    let saved = model.bits();
    for mut variable in model.vs.variables().into_values() {
        let _ = tch::no_grad(|| variable.fill_(0.5));
    }
    Checkpoint::new().track("model", &model.vs)?.restore(&path)?;
    assert_eq!(model.bits(), saved);
    Ok(())
}

/// They show the same memory until one of them is written.
#[test]
fn copy_on_write_clones_are_two_tensors() -> Outcome {
    let dir = tempfile::tempdir()?;
    let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor).unwrap();
    let both = |a: &Tensor, b: &Tensor| Checkpoint::new().track("a", a)?.track("b", b);
    let one = Tensor::from_slice(&[1f32, 2.0]);
    for (name, other) in [("equal", one.copy()), ("different", &one + 6.0)] {
        let path = both(&one, &other)?.write(dir.path().join(name))?;
        let a = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let b = a.internal_lazy_clone();
        both(&a, &b)?.restore(&path)?.assert_consumed()?;
        assert_eq!((values(&a), values(&b)), (values(&one), values(&other)));
    }
    Ok(())
}

#[test]
fn a_part_of_a_tensor_under_another_name_gets_one_value() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let make = || Tensor::randn([3 * 400_000, 4], (Kind::Float, Device::Cpu));
    let track = |qkv: &Tensor, q: &Tensor, columns: &Tensor| {
        Checkpoint::new().track("qkv", qkv)?.track("q", q)?.track("columns", columns)
    };
    let qkv = make();
    let (q, columns) = (qkv.narrow(0, 0, 400_000), qkv.narrow(1, 1, 2));
    let path = track(&qkv, &q, &columns)?.write(dir.path().join("one"))?;
    let saved = qkv.copy();
    let _ = qkv.shallow_clone().zero_();
    track(&qkv, &q, &columns)?.restore(&path)?.assert_consumed()?;
    assert!(qkv.equal(&saved));
    // Of a model in which they were separate.
    let path = track(&make(), &q.copy(), &columns.copy())?.write(dir.path().join("separate"))?;
    let error = track(&qkv, &q, &columns)?.restore(&path).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains("a part of its memory"), "{error}");
    assert!(qkv.equal(&saved));
    Ok(())
}

#[test]
fn a_partly_overwritten_model_is_not_saved_by_another_checkpoint() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let model = Model::new();
    let track = || Checkpoint::new().track("model", Variables::of(&model.vs));
    let good = track()?.write(dir.path().join("good"))?;
    let bad = track()?.write(dir.path().join("bad"))?;
    let file = bad.join("model.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    let once = RestoreOptions::new().verify(Verify::WhileReading);
    assert!(matches!(track()?.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    let view = model.encoder.ws.view([-1]);
    for mut checkpoint in [track()?, Checkpoint::new().track("view", &view)?] {
        let error = checkpoint.write(dir.path().join("torn")).unwrap_err().to_string();
        assert!(error.contains("half-way"), "{error}");
    }
    let other = Model::new();
    other.checkpoint()?.write(dir.path().join("other"))?;
    track()?.restore(&good)?;
    Checkpoint::new().track("view", &view)?.write(dir.path().join("view"))?;

    // Marks of what is gone do not stay.
    let gone = Model::new();
    let mut checkpoint = Checkpoint::new().track("model", Variables::of(&gone.vs))?;
    assert!(matches!(checkpoint.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    let address = gone.encoder.ws.data_ptr() as usize;
    drop((checkpoint, gone));
    let fresh: Vec<Model> = (0..10).map(|_| Model::new()).collect();
    for (i, model) in fresh.iter().enumerate() {
        model.checkpoint()?.write(dir.path().join(format!("fresh-{i}"))).map_err(|e| format!("{address}: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_column_between_restored_ones_stays_partly_overwritten() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let table = Tensor::randn([400_000, 3], (Kind::Float, Device::Cpu));
    let [left, middle, right] = [0, 1, 2].map(|column| table.narrow(1, column, 1));
    let outer = || Checkpoint::new().track("left", &left)?.track("right", &right);
    let inner = || Checkpoint::new().track("middle", &middle);
    let around = outer()?.write(dir.path().join("around"))?;
    let (good, bad) = (inner()?.write(dir.path().join("good"))?, inner()?.write(dir.path().join("bad"))?);
    let file = bad.join("middle.safetensors");
    let mut bytes = fs::read(&file)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    fs::write(&file, bytes)?;
    let once = RestoreOptions::new().verify(Verify::WhileReading);
    assert!(matches!(inner()?.restore_with(&bad, &once), Err(Error::PartlyRestored { .. })));
    // Their memory reaches from the first element of the table to the last one.
    outer()?.restore(&around)?;
    let error = inner()?.write(dir.path().join("torn")).unwrap_err().to_string();
    assert!(error.contains("half-way"), "{error}");
    inner()?.restore(&good)?;
    inner()?.write(dir.path().join("whole"))?;
    Ok(())
}

#[test]
fn what_is_left_out_for_its_memory_is_unchanged_in_every_way() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let make = |rows: i64| Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
    let track = |qkv: &Tensor, q: &Tensor, again: &Tensor| {
        Checkpoint::new().track("qkv", qkv)?.track("q", q)?.track("again", again)
    };
    let separate = make(2);
    let path = track(&make(6), &separate, &separate)?.write(dir.path().join("separate"))?;
    let qkv = make(6);
    let q = qkv.narrow(0, 0, 2).set_requires_grad(true);
    let mut checkpoint = track(&qkv, &q, &q.shallow_clone())?;
    let error = checkpoint.restore(&path).unwrap_err();
    let Error::Mismatch { report, .. } = &error else { return Err(error.into()) };
    let mismatched: Vec<&str> = report.mismatched.iter().map(|mismatch| mismatch.key.as_str()).collect();
    assert_eq!(mismatched, ["q", "again"]);
    let options = RestoreOptions::new().allow_mismatch("q").allow_mismatch("again").trainable(Trainable::Saved);
    let report = checkpoint.restore_with(&path, &options)?.report();
    assert!(q.requires_grad() && report.trainable.is_empty(), "{report:?}");
    assert_eq!(report.matched, ["qkv"]);
    Ok(())
}

#[test]
fn a_random_state_that_libtorch_refuses_changes_nothing() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let length = |path| -> Result<i64, Box<dyn std::error::Error>> {
        let reader = CheckpointReader::open(path)?;
        Ok(i64::try_from(reader.manifest().tensors["rng/cpu"].spec.shape[0])?)
    };
    let length = length(Checkpoint::new().track("rng", Rng::global())?.write(dir.path().join("good"))?)?;
    let state = Tensor::full([length], 255, (Kind::Uint8, Device::Cpu));
    let weights = Tensor::zeros([1000], (Kind::Float, Device::Cpu));
    let rng = Node::group([("cpu", state.node())]);
    let path = Checkpoint::new().track("a", &weights)?.track("rng", rng)?.write(dir.path().join("bad"))?;
    let _ = weights.shallow_clone().fill_(3.0);
    for verify in [Verify::Before, Verify::WhileReading, Verify::Never] {
        let mut checkpoint = Checkpoint::new().track("a", &weights)?.track("rng", Rng::global())?;
        let error = checkpoint.restore_with(&path, &RestoreOptions::new().verify(verify)).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains("refuses this state"), "{error}");
        assert_eq!(weights.mean(Kind::Float).double_value(&[]), 3.0);
    }
    Ok(())
}

#[test]
fn a_tensor_that_its_object_no_longer_has_is_an_error() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let make = || Tensor::randn([30], (Kind::Float, Device::Cpu));
    let path = Checkpoint::new().track("norm", Node::group([("mean", make().node())]))?.write(dir.path().join("c"))?;
    for background in [false, true] {
        let mut mean = make();
        let checkpoint = Checkpoint::new().track("norm", Node::group([("mean", mean.node())]))?;
        let builder = CheckpointManager::builder(checkpoint, dir.path().join(format!("run-{background}")));
        let builder = if background { builder.background(Background::new()) } else { builder };
        let mut manager = builder.open()?;
        manager.save()?;
        mean.copy_(&(&mean * 0.9 + 1.0));
        manager.save()?;
        mean = &mean * 0.9 + 1.0;
        for _ in 0..2 {
            let error = manager.save().unwrap_err().to_string();
            assert!(error.starts_with("norm/mean") && error.contains("copy_"), "{error}");
        }
        assert!(manager.checkpoint_mut().untrack("norm"));
        manager.checkpoint_mut().track_mut("norm", Node::group([("mean", mean.node())]))?;
        manager.save()?;
        drop(mean);
    }
    // Nothing is restored into it either.
    let mut mean = make();
    let mut checkpoint = Checkpoint::new().track("norm", Node::group([("mean", mean.node())]))?;
    mean = &mean + 1.0;
    let error = checkpoint.restore(&path).unwrap_err().to_string();
    assert!(error.starts_with("norm/mean") && error.contains("copy_"), "{error}");
    drop(mean);

    // The handle of the last save's plan is not an object's.
    for case in ["snapshot", "restore", "another plan"] {
        let (mut mean, other) = (make(), make());
        let checkpoint = Checkpoint::new().track("norm", Node::group([("mean", mean.node())]))?;
        let mut checkpoint = checkpoint.track("other", &other)?;
        checkpoint.write(dir.path().join(format!("before {case}")))?;
        let _ = checkpoint.snapshot()?;
        mean = &mean + 1.0;
        let result = match case {
            "snapshot" => checkpoint.snapshot().map(drop),
            "restore" => checkpoint.restore_with(&path, &RestoreOptions::new().allow_missing("other")).map(drop),
            _ => {
                other.shallow_clone().set_data(&Tensor::zeros([7], (Kind::Float, Device::Cpu)));
                checkpoint.write(dir.path().join("lost")).map(drop)
            }
        };
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("norm/mean") && error.contains("copy_"), "{case}: {error}");
        assert!(checkpoint.snapshot().is_err(), "{case}");
        drop(mean);
    }

    // Nor are those of another checkpoint, of another name, and of what a guard has noted.
    for case in ["another checkpoint", "another name", "guard"] {
        let mut mean = make();
        let node = |mean: &Tensor| Node::group([("mean", mean.node())]);
        let checkpoint = Checkpoint::new().track("norm", node(&mean))?;
        let checkpoint = if case == "another name" { checkpoint.track("again", node(&mean))? } else { checkpoint };
        let other = Checkpoint::new().track("norm", node(&mean))?;
        if case != "another checkpoint" {
            drop(other);
        }
        let builder = CheckpointManager::builder(checkpoint, dir.path().join(case)).background(Background::new());
        let mut manager = builder.open()?;
        let first = manager.save_at(1)?;
        let lost = manager.guard(|manager| -> Outcome {
            manager.save_at(2)?;
            mean = &mean + 1.0;
            let errors = [
                manager.checkpoint().snapshot().map(drop),
                manager.restore_with(&first, &RestoreOptions::new()).map(drop),
                manager.save_at(3).map(drop),
            ];
            for error in errors.into_iter().map(|result| result.map_err(|error| error.to_string())) {
                assert!(matches!(&error, Err(text) if text.contains("copy_")), "{case}: {error:?}");
            }
            Ok(())
        });
        lost?;
        drop(mean);
    }

    // What is given by value is the checkpoint's own.
    let mut checkpoint = Checkpoint::new().track("norm", BTreeMap::from([("mean", make())]))?;
    checkpoint.restore(&path)?.assert_consumed()?;
    checkpoint.track_mut("own", make())?;
    checkpoint.write(dir.path().join("by-value"))?;
    // Another handle is enough.
    let first = make();
    checkpoint.track_mut("first", &first)?;
    let second = first.shallow_clone();
    drop(first);
    checkpoint.write(dir.path().join("handle"))?;
    drop(second);
    Ok(())
}

/// A manager that saves on a thread of its own: values are those of the step whose tensors were captured.
#[test]
fn the_steps_of_an_optimizer_are_those_of_its_variables() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().zeros("w", &[100_000]);
    let mut optimizer = optim::Sgd::default().build(&vs, 1.0)?;
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &optimizer)?;
    let builder = CheckpointManager::builder(checkpoint, dir.path()).max_to_keep(2);
    let mut manager = builder.background(Background::new()).open()?;
    let ends = AtomicBool::new(false);
    let saved = std::thread::scope(|scope| {
        let ends = &ends;
        let stepping = scope.spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                optimizer.backward_step(&-w.sum(Kind::Float));
            }
        });
        let mut saves = || -> Result<u64, Box<dyn std::error::Error>> {
            let mut saved = 0;
            for _ in 0..100 {
                match manager.save().and_then(|path| manager.wait().map(|()| path)) {
                    Ok(path) => {
                        let reader = CheckpointReader::open(path)?;
                        let steps = reader.manifest().values["optimizer/steps"].as_u64().ok_or("no number")?;
                        let bytes = reader.tensor("model/w")?;
                        let first = f32::from_le_bytes(*bytes.as_chunks::<4>().0.first().ok_or("empty")?);
                        assert_eq!(first as u64, steps);
                        saved += 1;
                    }
                    Err(error) => assert!(error.to_string().contains("on another thread"), "{error}"),
                }
            }
            Ok(saved)
        };
        let saved = saves();
        ends.store(true, Ordering::SeqCst);
        drop(stepping.join());
        saved
    })?;
    assert!(saved > 0);
    Ok(())
}
