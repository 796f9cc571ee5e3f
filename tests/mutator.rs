//! Random programs that write to a model in every way there is, between saves in the background and blocking ones: each
//! save is the state of the call, or an error, and nothing is committed.
//!
//! `MUTATOR_SAVES=100000 cargo test --test mutator -- --nocapture` runs it in full and prints how often writes past the
//! version counter were noticed.

#[path = "common/bits.rs"]
mod bits;

use bits::bits;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tch::nn::{self, ModuleT, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor, no_grad};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Durability, Ema, RestoreOptions, SaveOptions, Swa,
    Variables, optim,
};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What is done after the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Writer {
    Nothing,
    // Those that wait, and what is copied at the call: never an error.
    OurStep,
    OurStepElsewhere,
    OurOtherStep,
    EmaUpdate,
    SwaUpdate,
    EmaReset,
    SwapIn,
    SwapInAndStep,
    SwaApply,
    RestoreAll,
    RestorePart,
    RestoreLater,
    Forward,
    FrozenByHand,
    // Other memory: never an error. The program ends after some of them.
    SetData,
    SetDataAndStep,
    Half,
    Double,
    DropAll,
    // Those that libtorch lets wait; without that, those that move a version counter.
    Resize,
    CopyOver,
    CopyElsewhere,
    Fill,
    FillSlots,
    TchAdam,
    FreezeAndFill,
    SetDataAndFill,
    SparseRows,
    // Past the version counter: everything.
    DataAll,
    TchSgd,
    // And less.
    DataElement,
    DataRow,
    Data1,
    Data10,
}

use Writer::*;

const WAITS: [Writer; 15] = [
    Nothing,
    OurStep,
    OurStepElsewhere,
    OurOtherStep,
    EmaUpdate,
    SwaUpdate,
    EmaReset,
    SwapIn,
    SwapInAndStep,
    SwaApply,
    RestoreAll,
    RestorePart,
    RestoreLater,
    Forward,
    FrozenByHand,
];
const EXCHANGES: [Writer; 5] = [SetData, SetDataAndStep, Half, Double, DropAll];
const COUNTS: [Writer; 9] =
    [Resize, CopyOver, CopyElsewhere, Fill, FillSlots, TchAdam, FreezeAndFill, SetDataAndFill, SparseRows];
const PAST: [Writer; 2] = [DataAll, TchSgd];
const PARTLY: [Writer; 4] = [DataElement, DataRow, Data1, Data10];

/// What a manager does about writers that do not wait of their own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    WaitAndAreWatched,
    Wait,
    AreWatched,
    Pass,
}

impl Writer {
    fn may_fail(self, others: Others) -> bool {
        // These write to memory that is not captured, of a tensor that is: only its version counter tells of it.
        if matches!(others, Others::WaitAndAreWatched | Others::Wait) {
            return matches!(self, Resize | SetDataAndFill);
        }
        COUNTS.contains(&self) || PAST.contains(&self) || PARTLY.contains(&self)
    }

    fn ends_the_program(self) -> bool {
        matches!(self, Half | Double | Resize | DropAll | SetDataAndFill | SetData | SetDataAndStep)
    }
}

/// A model with some of everything.
struct Program {
    vs: VarStore,
    embedding: nn::Embedding,
    layer: nn::Linear,
    norm: nn::BatchNorm,
    teacher: Tensor,
    /// Shows the layer's memory, until it is untied.
    alias: Tensor,
    /// Its gradients are sparse.
    sparse: bool,
    optimizer: optim::Optimizer,
    /// Others than the optimizer have handles to its slots, or had them.
    is_handed_out: bool,
    other: optim::Optimizer,
    ema: Ema,
    swa: Swa,
}

impl Program {
    fn new(random: &mut Random) -> Program {
        let vs = VarStore::new(Device::Cpu);
        let width = random.one_of(&[8, 64, 256]);
        let words = random.one_of(&[10, 300, 1500]);
        let sparse = random.below(3) == 0;
        let config = nn::EmbeddingConfig { sparse, ..Default::default() };
        let embedding = nn::embedding(vs.root() / "words", words, width, config);
        let layer = nn::linear(vs.root() / "layer", width, width, Default::default());
        let norm = nn::batch_norm1d(vs.root() / "norm", width, Default::default());
        let teacher = (vs.root() / "teacher").var("w", &[width, width], nn::Init::Const(1.0));
        let _ = teacher.set_requires_grad(false);
        let optimizer = match (sparse, random.below(3)) {
            (false, 0) => optim::Adam::default().build(&vs, 1e-2),
            (false, 1) => optim::Sgd { momentum: 0.9, ..Default::default() }.build(&vs, 1e-2),
            _ => optim::Sgd::default().build(&vs, 1e-2),
        };
        let other = optim::Sgd::default().build(&vs, 1e-2).unwrap();
        let alias = layer.ws.detach();
        let optimizer = optimizer.unwrap();
        let ema = Ema::new(&vs, 0.5).unwrap().warm_up().every(1 + random.below(2));
        let swa = Swa::new(Variables::of(&vs).under("layer")).unwrap();
        let swa = if random.below(2) == 0 { swa.average_buffers() } else { swa };
        let is_handed_out = random.below(2) == 0;
        Program { vs, embedding, layer, norm, teacher, alias, sparse, optimizer, is_handed_out, other, ema, swa }
    }

    fn checkpoint(&self) -> Checkpoint {
        let all = || Checkpoint::new().track("model", Variables::of(&self.vs))?.track("alias", &self.alias);
        let all = all().and_then(|all| all.track("optimizer", &self.optimizer)?.track("ema", &self.ema));
        all.and_then(|all| all.track("swa", &self.swa)).unwrap()
    }

    fn forward(&self, random: &mut Random) -> Tensor {
        let rows = self.embedding.ws.size()[0];
        let words = Tensor::from_slice(&[random.below(rows as u64) as i64, 0, rows - 1, 1]);
        let x = self.embedding.forward_t(&words, true);
        let kept = self.layer.forward_t(&x, true).matmul(&self.teacher);
        self.norm.forward_t(&kept, true).square().mean(Kind::Float) + self.norm.forward_t(&x, true).sum(Kind::Float)
    }

    fn gradients(&self, random: &mut Random) {
        self.forward(random).backward();
    }

    /// The variables that require a gradient.
    fn trained(&self) -> Vec<Tensor> {
        let variables = self.vs.variables();
        let mut names: Vec<_> = variables.keys().collect();
        names.sort();
        names.into_iter().map(|name| variables[name].shallow_clone()).filter(Tensor::requires_grad).collect()
    }

    /// Every tracked tensor's bytes, by key, and the gradients.
    fn state(&self) -> BTreeMap<String, Vec<u8>> {
        let mut state = BTreeMap::from([("alias".to_string(), bits(&self.alias))]);
        for (name, tensor) in self.vs.variables() {
            state.insert(format!("model/{name}"), bits(&tensor));
            let gradient = tensor.grad();
            if gradient.defined() && !gradient.is_sparse() {
                state.insert(format!("optimizer/state/{name}/grad"), bits(&gradient));
            }
            let slots = self.is_handed_out.then(|| self.optimizer.state(&name)).flatten();
            for (slot, tensor) in slots.unwrap_or_default() {
                state.insert(format!("optimizer/state/{name}/{slot}"), bits(&tensor));
            }
        }
        if !self.is_handed_out {
            state.extend(self.slots());
        }
        for (name, average) in self.ema.averages() {
            state.insert(format!("ema/{name}"), bits(&average));
        }
        for (name, average) in self.swa.averages() {
            state.insert(format!("swa/{name}"), bits(&average));
        }
        state
    }

    /// The slots, while only the optimizer has handles to them: as a blocking save has them.
    fn slots(&self) -> BTreeMap<String, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let mut checkpoint = Checkpoint::new().track("optimizer", &self.optimizer).unwrap();
        let options = SaveOptions::new().durability(Durability::ProcessCrash).threads(1);
        let reader =
            CheckpointReader::open(checkpoint.write_with(dir.path().join("slots"), &options).unwrap()).unwrap();
        let keys = reader.manifest().tensors.keys().filter(|key| !key.ends_with("/grad"));
        keys.map(|key| (key.clone(), reader.tensor(key).unwrap())).collect()
    }

    /// Between saves every change is allowed.
    fn train(&mut self, random: &mut Random, step: u64) {
        for _ in 0..=random.below(2) {
            match random.below(11) {
                0..4 => {
                    self.gradients(random);
                    self.optimizer.step();
                    if random.below(2) == 0 {
                        self.optimizer.zero_grad();
                    }
                }
                4 => self.gradients(random),
                5 => {
                    let w = random.below(2) == 0;
                    let w = if w { &self.teacher } else { &self.layer.ws };
                    let _ = no_grad(|| w.shallow_clone().fill_(step as f64 / 16.0));
                }
                6 => {
                    let _ = self.embedding.ws.set_requires_grad(random.below(2) == 0);
                }
                7 => drop(self.norm.running_mean.data().fill_(step as f64)),
                8 => self.ema.update().unwrap(),
                9 => self.swa.update().unwrap(),
                _ => {
                    let other = Tensor::randn(self.layer.ws.size(), FLOAT);
                    let tied = random.below(2) == 0;
                    self.alias.set_data(if tied { &self.layer.ws } else { &other });
                }
            }
        }
    }

    #[allow(clippy::too_many_lines, reason = "one arm per writer")]
    fn write(&mut self, writer: Writer, random: &mut Random, older: &Path) {
        let trained = self.trained();
        let fill = |tensor: &Tensor| drop(no_grad(|| tensor.shallow_clone().fill_(77.0)));
        let allow = RestoreOptions::new().allow_missing("*");
        match writer {
            Nothing => {}
            OurStep => self.optimizer.step(),
            OurStepElsewhere => {
                let optimizer = &mut self.optimizer;
                std::thread::scope(|scope| drop(scope.spawn(move || optimizer.step()).join()));
            }
            OurOtherStep => self.other.step(),
            EmaUpdate => self.ema.update().unwrap(),
            SwaUpdate => self.swa.update().unwrap(),
            EmaReset => self.ema.reset().unwrap(),
            SwapIn => self.ema.with_averaged(|| ()).unwrap(),
            SwapInAndStep => {
                let optimizer = &mut self.optimizer;
                self.swa.with_averaged(|| optimizer.step()).unwrap();
            }
            SwaApply => self.swa.apply().unwrap(),
            RestoreAll => drop(self.checkpoint().restore_with(older, &allow).unwrap()),
            RestorePart => {
                let part = Checkpoint::new().track("model", Variables::of(&self.vs));
                part.unwrap().restore_with(older, &allow).unwrap();
            }
            RestoreLater => {
                let mut later = Checkpoint::new();
                later.restore(older).unwrap();
                later.track_mut("model", Variables::of(&self.vs)).unwrap();
            }
            Forward => drop(self.forward(random)),
            FrozenByHand => {
                fill(&self.teacher);
                let _ = self.teacher.data().g_add_scalar_(1.0);
            }
            SetData => {
                for mut tensor in trained {
                    tensor.set_data(&tensor.ones_like());
                }
            }
            SetDataAndStep => {
                for mut tensor in trained {
                    tensor.set_data(&tensor.detach().ones_like());
                }
                self.optimizer.zero_grad();
                self.gradients(random);
                self.optimizer.step();
            }
            Half => self.vs.half(),
            Double => self.vs.double(),
            Resize => {
                for (name, _) in self.vs.variables() {
                    for (_, mut slot) in self.optimizer.state(&name).unwrap_or_default() {
                        let _ = slot.resize_([slot.numel() as i64 * 3]);
                    }
                }
            }
            DropAll => {
                drop(trained);
                *self = Program::new(random);
            }
            CopyOver => no_grad(|| trained.iter().for_each(|w| w.shallow_clone().copy_(&(w * 2.0 + 1.0)))),
            CopyElsewhere => {
                let copy = move || no_grad(|| trained.into_iter().for_each(|mut w| drop(w.fill_(77.0))));
                std::thread::scope(|scope| drop(scope.spawn(copy)));
            }
            Fill => fill(&trained[random.below(trained.len() as u64) as usize]),
            FillSlots => {
                for (name, _) in self.vs.variables() {
                    let slots = self.optimizer.state(&name).unwrap_or_default();
                    self.is_handed_out |= !slots.is_empty();
                    slots.values().for_each(fill);
                }
            }
            // It refuses sparse gradients.
            TchAdam if self.sparse => trained.iter().for_each(fill),
            TchAdam => nn::Adam::default().build(&self.vs, 0.1).unwrap().step(),
            FreezeAndFill => {
                for tensor in trained {
                    let _ = tensor.set_requires_grad(false);
                    fill(&tensor);
                    let _ = tensor.set_requires_grad(true);
                }
            }
            SetDataAndFill => {
                for mut tensor in trained {
                    tensor.set_data(&tensor.detach().ones_like());
                    fill(&tensor);
                }
            }
            SparseRows => {
                let rows = Tensor::from_slice(&[0i64, 2]);
                no_grad(|| drop(self.embedding.ws.shallow_clone().index_fill_(0, &rows, 77.0)));
            }
            DataAll => trained.iter().for_each(|w| drop(w.data().g_add_scalar_(1.0))),
            // Of a sparse gradient it changes a few rows only, which is less than everything.
            TchSgd if self.sparse => trained.iter().for_each(|w| drop(w.data().g_add_scalar_(1.0))),
            TchSgd => nn::Sgd::default().build(&self.vs, 10.0).unwrap().step(),
            DataElement | DataRow | Data1 | Data10 => {
                let w = self.layer.ws.data().flatten(0, -1);
                let (all, width) = (w.size()[0], self.layer.ws.size()[1]);
                let count = match writer {
                    DataElement => 1,
                    DataRow => width,
                    Data1 => (all / 100).max(1),
                    _ => (all / 10).max(1),
                };
                let begin = random.below((all - count + 1) as u64) as i64;
                let _ = w.narrow(0, begin, count).g_add_scalar_(1.0);
            }
        }
    }
}

/// Whether a checkpoint has this state. It has a gradient only where no step has used it.
fn is_state(path: &Path, state: &BTreeMap<String, Vec<u8>>) -> bool {
    let reader = CheckpointReader::open(path).unwrap();
    let saved = &reader.manifest().tensors;
    saved.keys().all(|key| state.get(key) == Some(&reader.tensor(key).unwrap()))
        && state.keys().all(|key| saved.contains_key(key) || key.ends_with("/grad"))
}

/// What became of the saves before a writer.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    right: u64,
    failed: u64,
    wrong: u64,
    /// Torn by a write that changed less than it is meant to.
    partial: u64,
}

/// Returns `true` if some variable differs, and not in all of its numbers.
fn changes_a_part(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> bool {
    let numbers = |bytes: &[u8]| bytes.chunks(4).map(<[u8]>::to_vec).collect::<Vec<_>>();
    before.iter().filter(|(key, _)| key.starts_with("model/")).any(|(key, then)| {
        let now = after.get(key).map(|now| numbers(now)).unwrap_or_default();
        let same = numbers(then).iter().zip(&now).filter(|(then, now)| then == now).count();
        (1..now.len()).contains(&same)
    })
}

type Report = BTreeMap<Writer, Counts>;

/// Runs programs until there have been so many saves, or the time is over.
fn run(writers: &[Writer], saves: u64, limit: Duration, seed: u64, others: Others) -> Report {
    let (mut random, mut report, began) = (Random(seed), Report::new(), Instant::now());
    let mut done = 0;
    while done < saves && began.elapsed() < limit {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Program::new(&mut random);
        let older = program.checkpoint().write(dir.path().join("older")).unwrap();
        let mut background = Background::new();
        if matches!(others, Others::Wait | Others::Pass) {
            background = background.without_detection();
        }
        if matches!(others, Others::AreWatched | Others::Pass) {
            background = background.without_hooks();
        }
        let options = SaveOptions::new().durability(Durability::ProcessCrash);
        let options = options.threads(1 + random.below(2) as usize);
        let builder = CheckpointManager::builder(program.checkpoint(), dir.path().join("run")).max_to_keep(1);
        let builder = builder.save_options(options.clone());
        let mut manager = builder.background(background).open().unwrap();
        let mut blocking = program.checkpoint();
        for step in 1..=24 {
            program.train(&mut random, step);
            let writer = random.one_of(writers);
            // Sparse gradients that no step has used cannot be saved.
            if program.sparse {
                program.optimizer.zero_grad();
            } else if writer != RestoreAll {
                program.gradients(&mut random);
            }
            let state = program.state();
            if random.below(8) == 0 {
                let path = blocking.write_with(dir.path().join(format!("blocking-{step}")), &options).unwrap();
                assert!(is_state(&path, &state), "a blocking save, seed {seed}");
                std::fs::remove_dir_all(path).unwrap();
            }
            let path = manager.save_at(step).unwrap();
            if program.sparse && writer != RestoreAll {
                program.gradients(&mut random);
            }
            program.write(writer, &mut random, &older);
            let result = manager.wait();
            done += 1;
            let counts = report.entry(writer).or_default();
            match &result {
                Ok(()) if is_state(&path, &state) => counts.right += 1,
                // Where a gradient is zero, or too small for the parameter, it changes nothing.
                Ok(()) if writer == TchSgd && !program.sparse && changes_a_part(&state, &program.state()) => {
                    counts.partial += 1;
                }
                Ok(()) => counts.wrong += 1,
                Err(error) => {
                    counts.failed += 1;
                    assert!(writer.may_fail(others), "{writer:?}, seed {seed}: {error}");
                    assert!(!path.exists() && error.to_string().contains("copy_at_call"), "{error}");
                }
            }
            // From now on a component would be copied at the call.
            if result.is_err() || writer.ends_the_program() {
                break;
            }
        }
    }
    report
}

fn tell(title: &str, report: &Report) {
    println!("{title}");
    for (writer, Counts { right, failed, wrong, partial }) in report {
        println!(
            "  {writer:?}: {right} the state of the call, {failed} refused, {wrong} wrong, {partial} by a partial write"
        );
    }
}

/// How many saves, and how long at most.
fn length(share: u64) -> (u64, Duration) {
    match std::env::var("MUTATOR_SAVES").ok().and_then(|saves| saves.parse::<u64>().ok()) {
        Some(saves) => (saves * share / 100, Duration::MAX),
        None => (u64::MAX, Duration::from_millis(80 * share)),
    }
}

fn seed() -> u64 {
    std::env::var("MUTATOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126)
}

#[test]
fn every_save_is_the_state_of_the_call_or_an_error() {
    tch::manual_seed(1);
    tch::set_num_threads(1);
    let everyone = [&WAITS[..], &EXCHANGES, &COUNTS, &PAST, &PARTLY].concat();
    let (saves, limit) = length(30);
    let held = run(&everyone, saves, limit, seed(), Others::WaitAndAreWatched);
    tell("every writer", &held);
    assert!(held.values().all(|counts| counts.wrong == 0));

    // The same without detection: libtorch makes writers wait, so that they never write too early.
    let (saves, limit) = length(20);
    let unwatched = run(&everyone, saves, limit, seed() + 4, Others::Wait);
    tell("every writer, without detection", &unwatched);
    assert!(unwatched.values().all(|counts| counts.wrong == 0 && counts.failed == 0));

    let (saves, limit) = length(30);
    let noticed = run(&[&WAITS[..], &EXCHANGES, &COUNTS, &PAST].concat(), saves, limit, seed() + 1, Others::AreWatched);
    tell("writers that nobody lets wait", &noticed);
    assert!(noticed.values().all(|counts| counts.wrong == 0));

    let (saves, limit) = length(10);
    let partly = run(&PARTLY, saves, limit, seed() + 2, Others::AreWatched);
    tell("parts of a tensor, past the version counter", &partly);
    for (writer, Counts { failed, wrong, .. }) in &partly {
        println!("  {writer:?}: {} of {} torn saves were noticed", failed, failed + wrong);
    }

    let (saves, limit) = length(10);
    let blind = run(&[&COUNTS[..], &PAST].concat(), saves, limit, seed() + 3, Others::Pass);
    tell("without any of it", &blind);
    assert!(blind.values().map(|counts| counts.wrong).sum::<u64>() > 0, "this test finds nothing");
}
