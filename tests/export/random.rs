//! Random closures over random variables, with random examples: each is refused, or the program returns what the live
//! model returns for 20 inputs of sizes that were not in the examples. `EXPORT_CASES` sets their number; by default as
//! many as are possible in some seconds.

use super::{FLOAT, bits};
use crate::common::turn;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tch::nn::{self, Module, RNN, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{SavedModel, SignatureDef};

/// SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % n as u64) as usize
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

const WIDTH: i64 = 4;

/// The layers that a closure may use.
struct Layers {
    vs: VarStore,
    linear: nn::Linear,
    norm: nn::LayerNorm,
    gru: nn::GRU,
    conv: nn::Conv1D,
    embedding: nn::Embedding,
    frozen: Tensor,
    table: Tensor,
    view: Tensor,
}

impl Layers {
    fn new() -> Layers {
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let frozen = root.var("frozen", &[WIDTH, WIDTH], nn::Init::Randn { mean: 0.0, stdev: 0.5 });
        Layers {
            linear: nn::linear(&root / "linear", WIDTH, WIDTH, Default::default()),
            norm: nn::layer_norm(&root / "norm", vec![WIDTH], Default::default()),
            gru: nn::gru(&root / "gru", WIDTH, WIDTH, Default::default()),
            conv: nn::conv1d(&root / "conv", WIDTH, WIDTH, 2, nn::ConvConfig { padding: 1, ..Default::default() }),
            embedding: nn::embedding(&root / "embedding", 9, WIDTH, Default::default()),
            view: tch::no_grad(|| frozen.tr()),
            frozen,
            table: (Tensor::arange(64 * WIDTH, FLOAT) * 0.7).cos().view([64, WIDTH]),
            vs,
        }
    }
}

/// A number that Rust computes from sizes.
#[derive(Debug, Clone)]
enum Number {
    Constant(i64),
    Size(usize, i64),
    Add(Box<Number>, Box<Number>),
    Subtract(Box<Number>, Box<Number>),
    Multiply(Box<Number>, Box<Number>),
    Divide(Box<Number>, i64),
    DivideUp(Box<Number>, i64),
    Remainder(Box<Number>, i64),
    AtMost(Box<Number>, i64),
    Root(Box<Number>),
    /// Read out of a tensor: its longest, or through memory.
    Largest,
    Copied,
}

impl Number {
    fn random(random: &mut Random, depth: usize) -> Number {
        let below = |random: &mut Random| Box::new(Number::random(random, depth.saturating_sub(1)));
        if depth == 0 || random.below(5) < 2 {
            return match random.below(12) {
                0 => Number::Constant(random.between(1, 7)),
                n => [Number::Size(0, 0), Number::Size(0, 1), Number::Size(1, 1)][n % 3].clone(),
            };
        }
        match random.below(24) {
            0..=4 => Number::Add(below(random), Box::new(Number::Constant(random.between(1, 5)))),
            5..=6 => Number::Add(below(random), below(random)),
            7..=8 => Number::Subtract(below(random), Box::new(Number::Constant(random.between(1, 3)))),
            9 => Number::Subtract(below(random), below(random)),
            10..=12 => Number::Multiply(below(random), Box::new(Number::Constant(random.between(2, 4)))),
            13..=14 => Number::Multiply(below(random), below(random)),
            15..=17 => Number::Divide(below(random), random.between(2, 5)),
            18 => Number::DivideUp(below(random), random.between(2, 4)),
            19 => Number::Remainder(below(random), random.between(2, 4)),
            20 => Number::AtMost(below(random), random.between(3, 9)),
            21 => Number::Root(below(random)),
            22 => Number::Largest,
            _ => Number::Copied,
        }
    }

    fn value(&self, x: &[Tensor]) -> i64 {
        match self {
            Number::Constant(n) => *n,
            Number::Size(input, dim) => x[*input].size()[*dim as usize],
            Number::Add(a, b) => a.value(x) + b.value(x),
            Number::Subtract(a, b) => a.value(x) - b.value(x),
            Number::Multiply(a, b) => a.value(x) * b.value(x),
            Number::Divide(a, n) => a.value(x) / n,
            Number::DivideUp(a, n) => (a.value(x) + n - 1) / n,
            Number::Remainder(a, n) => a.value(x) % n,
            Number::AtMost(a, n) => a.value(x).min(*n),
            Number::Root(a) => (a.value(x).unsigned_abs() as f64).sqrt() as i64,
            Number::Largest => x[2].max().int64_value(&[]),
            Number::Copied => Vec::<i64>::try_from(&x[2]).unwrap().into_iter().max().unwrap(),
        }
    }
}

/// A step of a closure: from a tensor `[batch, length, width]` to another one of that rank and width.
#[derive(Debug, Clone)]
enum Step {
    Linear,
    Norm,
    Gru,
    Conv,
    Frozen,
    Outside,
    Activate(usize),
    DivideBy(Number),
    AddNumber(Number),
    MultiplyRoot(Number),
    Narrow(i64, Number, Number),
    Flatten,
    FlattenAll,
    MergeWithNumber(Number),
    CatSecond,
    CatItself(i64),
    AddMeanOf(i64),
    Pad(Number, Number),
    CausalMask,
    Positions,
    PositionsOfNumber(Number),
    Attend,
    ZerosCat(Number),
    Expand,
    Embed,
    Branch(Number, i64),
    Split(i64),
    Chunk(i64),
    Repeat(Number),
    Roll(Number),
    TopK(Number),
    OneHot,
    InPlace(Number),
    InputInPlace,
    ListOfNumbers(Number),
    Flip,
    Cumulative,
    MaskByLengths,
    Normalize,
    Squeeze,
}

impl Step {
    fn random(random: &mut Random) -> Step {
        let number = |random: &mut Random| Number::random(random, 2);
        match random.below(46) {
            0 => Step::Linear,
            1 => Step::Norm,
            2 => Step::Gru,
            3 => Step::Conv,
            4 => Step::Frozen,
            5 => {
                if random.one_in(4) {
                    Step::Outside
                } else {
                    Step::Attend
                }
            }
            6 => Step::Activate(random.below(4)),
            7..=9 => Step::DivideBy(number(random)),
            10..=11 => Step::AddNumber(number(random)),
            12 => Step::MultiplyRoot(number(random)),
            13..=15 => {
                let start = if random.one_in(2) { Number::Constant(0) } else { number(random) };
                Step::Narrow(random.between(0, 1), start, number(random))
            }
            16 => Step::Flatten,
            17 => Step::FlattenAll,
            18..=19 => Step::MergeWithNumber(number(random)),
            20..=21 => Step::CatSecond,
            22 => Step::CatItself(random.between(0, 1)),
            23 => Step::AddMeanOf(random.between(0, 1)),
            24..=25 => Step::Pad(number(random), number(random)),
            26 => Step::CausalMask,
            27 => Step::Positions,
            28 => Step::PositionsOfNumber(number(random)),
            29 => Step::Attend,
            30 => Step::ZerosCat(number(random)),
            31 => Step::Expand,
            32 => Step::Embed,
            33 => Step::Branch(number(random), random.between(3, 12)),
            34 => {
                if random.one_in(2) {
                    Step::Split(random.between(0, 2))
                } else {
                    Step::Chunk(random.between(0, 2))
                }
            }
            35 => Step::Repeat(number(random)),
            36 => Step::Roll(number(random)),
            37 => Step::TopK(number(random)),
            38 => Step::OneHot,
            39 => {
                if random.one_in(2) {
                    Step::InPlace(number(random))
                } else {
                    Step::InputInPlace
                }
            }
            40 => {
                if random.one_in(3) {
                    Step::ListOfNumbers(number(random))
                } else {
                    Step::Flip
                }
            }
            41 => Step::Cumulative,
            42 => Step::MaskByLengths,
            43 => Step::Normalize,
            44 => Step::Squeeze,
            _ => Step::Activate(random.below(4)),
        }
    }

    fn apply(&self, y: &Tensor, x: &[Tensor], layers: &Layers) -> Tensor {
        let size = y.size();
        let (batch, length) = (size[0], size[1]);
        let long = (Kind::Int64, Device::Cpu);
        match self {
            Step::Linear => layers.linear.forward(y),
            Step::Norm => layers.norm.forward(y),
            Step::Gru => layers.gru.seq(y).0,
            Step::Conv => layers.conv.forward(&y.transpose(1, 2)).transpose(1, 2),
            Step::Frozen => y.matmul(&layers.frozen),
            Step::Outside => y.matmul(&layers.view),
            Step::Activate(0) => y.relu(),
            Step::Activate(1) => y.tanh(),
            Step::Activate(2) => y.sigmoid(),
            Step::Activate(_) => y.softmax(1, Kind::Float),
            Step::DivideBy(n) => y / n.value(x),
            Step::AddNumber(n) => y + n.value(x),
            Step::MultiplyRoot(n) => y * (n.value(x).unsigned_abs() as f64).sqrt(),
            Step::Narrow(dim, start, n) => y.narrow(*dim, start.value(x), n.value(x)),
            Step::Flatten => y.reshape([batch, length * WIDTH]).view([batch, -1, WIDTH]),
            Step::FlattenAll => y.reshape([batch * length, WIDTH]).tanh().view([batch, length, WIDTH]),
            Step::MergeWithNumber(n) => y.reshape([1, n.value(x), WIDTH]),
            Step::CatSecond => Tensor::cat(&[y, &x[1]], 1),
            Step::CatItself(dim) => Tensor::cat(&[y, &(y * 0.5)], *dim),
            Step::AddMeanOf(dim) => y + y.mean_dim(*dim, true, Kind::Float),
            Step::Pad(a, b) => y.constant_pad_nd([0, 0, a.value(x), b.value(x)]),
            Step::CausalMask => {
                let mask = Tensor::ones([length, length], FLOAT).tril(0).unsqueeze(0);
                (y.bmm(&y.transpose(1, 2)) * mask).bmm(y).tanh()
            }
            Step::Positions => y + layers.table.narrow(0, 0, length),
            Step::PositionsOfNumber(n) => y + Tensor::arange(n.value(x), FLOAT).sum(Kind::Float),
            Step::Attend => {
                let weights = y.bmm(&x[1].transpose(1, 2)).softmax(-1, Kind::Float);
                weights.bmm(&x[1])
            }
            Step::ZerosCat(n) => Tensor::cat(&[y, &Tensor::zeros([batch, n.value(x), WIDTH], FLOAT)], 1),
            Step::Expand => y + Tensor::ones([1, 1, WIDTH], FLOAT).expand([batch, length, WIDTH], false),
            Step::Embed => {
                let words = Tensor::arange(length, long).remainder(9);
                y + layers.embedding.forward(&words)
            }
            Step::Branch(n, limit) => {
                if n.value(x) > *limit {
                    y.relu()
                } else {
                    y.tanh()
                }
            }
            Step::Split(dim) => Tensor::cat(&y.split(2, *dim), *dim),
            Step::Chunk(dim) => Tensor::cat(&y.chunk(2, *dim)[..1], *dim),
            Step::Repeat(n) => y.repeat([1, n.value(x), 1]),
            Step::Roll(n) => y.roll([n.value(x)], [1]),
            Step::TopK(n) => y.topk(n.value(x), 1, true, true).0,
            Step::OneHot => y + x[2].remainder(4).one_hot(WIDTH).to_kind(Kind::Float).unsqueeze(1),
            Step::InPlace(n) => {
                let copy = y.copy();
                let _ = copy.narrow(1, 0, n.value(x)).fill_(0.5);
                copy
            }
            Step::InputInPlace => {
                let mut second = x[1].shallow_clone();
                let _ = second.g_mul_scalar_(0.5);
                y + second.mean(Kind::Float)
            }
            Step::ListOfNumbers(n) => y + Tensor::from_slice(&[n.value(x) as f32, 0.0, 0.0, 1.0]),
            Step::Flip => y.flip([1]),
            Step::Cumulative => y.cumsum(1, Kind::Float),
            Step::MaskByLengths => {
                let mask = Tensor::arange(length, long).unsqueeze(0).lt_tensor(&x[2].unsqueeze(1));
                y * mask.unsqueeze(2)
            }
            Step::Normalize => y.instance_norm(
                None::<&Tensor>,
                None::<&Tensor>,
                None::<&Tensor>,
                None::<&Tensor>,
                true,
                0.1,
                1e-5,
                false,
            ),
            Step::Squeeze => (y.squeeze().sum(Kind::Float) + y) * 0.1,
        }
    }
}

/// Inputs: `[batch, length, width]`, `[batch, other length, width]`, and numbers `[batch]` up to the length.
fn inputs(random: &mut Random, batch: i64, length: i64, other: i64) -> Vec<Tensor> {
    let mut tensor = |shape: &[i64]| {
        let seed = random.below(1000) as f64;
        (Tensor::arange(shape.iter().product::<i64>(), FLOAT) * 0.731 + seed).sin().view(shape)
    };
    let (first, second) = (tensor(&[batch, length, WIDTH]), tensor(&[batch, other, WIDTH]));
    // Often the longest fills the batch.
    let mut lengths: Vec<i64> = (0..batch).map(|_| random.between(1, length)).collect();
    if random.below(3) > 0 {
        lengths[0] = length;
    }
    vec![first, second, Tensor::from_slice(&lengths)]
}

/// What the live model returns; `None` if it refuses the inputs.
fn live(steps: &[Step], layers: &Layers, inputs: &[Tensor]) -> Option<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(Tensor::copy).collect();
    let run =
        || tch::no_grad(|| steps.iter().fold(inputs[0].shallow_clone(), |y, step| step.apply(&y, &inputs, layers)));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).ok()
}

#[derive(Default, Debug)]
struct Counts {
    exported: usize,
    refused: usize,
    compared: usize,
    reasons: BTreeMap<String, usize>,
}

/// One closure. `None` if it refuses its own examples.
fn case(seed: u64, layers: &Layers, counts: &mut Counts) -> Option<()> {
    let mut random = Random(seed.wrapping_mul(0x5851_F42D_4C95_7F2D));
    let steps: Vec<Step> = (0..random.between(1, 4)).map(|_| Step::random(&mut random)).collect();
    let count = random.between(2, 4);
    let same = random.one_in(6);
    let examples: Vec<Vec<Tensor>> = (0..count)
        .map(|_| {
            let length = random.between(1, 9);
            let (batch, other) = (random.between(1, 6), if same { length } else { random.between(1, 9) });
            inputs(&mut random, batch, length, other)
        })
        .collect();
    if examples.iter().any(|example| live(&steps, layers, example).is_none()) {
        return None;
    }
    let body = |x: &[Tensor]| vec![steps.iter().fold(x[0].shallow_clone(), |y, step| step.apply(&y, x, layers))];
    let copies = examples.iter().map(|example| example.iter().map(Tensor::copy).collect::<Vec<_>>());
    let definition = copies.fold(SignatureDef::new("forward", body), SignatureDef::example);
    let dir = tempfile::tempdir().unwrap();
    let export = SavedModel::export(dir.path().join("model"), &layers.vs).signature(definition);
    let path = match export.write() {
        Ok(path) => path,
        Err(error) => {
            counts.refused += 1;
            let text = error.to_string();
            let known = [
                "one more example",
                "reads a number",
                "different things",
                "pieces",
                "inside of the closure",
                "no simple function",
                "outside of tensors",
                "gives something else",
                "second example",
            ];
            let reason = known.iter().find(|reason| text.contains(**reason));
            *counts.reasons.entry(reason.map_or(text.clone(), ToString::to_string)).or_default() += 1;
            return Some(());
        }
    };
    counts.exported += 1;
    let saved = SavedModel::load(path, Device::Cpu).unwrap();
    for _ in 0..20 {
        let (batch, length, other) = (random.between(1, 12), random.between(1, 20), random.between(1, 20));
        let inputs = inputs(&mut random, batch, length, other);
        let Some(expected) = live(&steps, layers, &inputs) else { continue };
        let got = saved.run("forward", &inputs.iter().collect::<Vec<_>>());
        let shapes = || inputs.iter().map(|input| format!("{:?}", input.size())).collect::<Vec<_>>().join(" ");
        let example_shapes = || {
            examples.iter().map(|one| format!("{:?} {:?}", one[0].size(), one[1].size())).collect::<Vec<_>>().join("; ")
        };
        match got {
            // Lengths that are fixed, or must be the same.
            Err(tch_checkpoint::Error::InvalidArgument(_)) => {}
            Err(error) => {
                panic!("seed {seed}: {steps:?}, exported with {}, for {}: {error}", example_shapes(), shapes())
            }
            Ok(got) => {
                counts.compared += 1;
                assert!(
                    got[0].size() == expected.size() && bits(&got[0]) == bits(&expected),
                    "seed {seed}: {steps:?}, exported with {}, differs for {}",
                    example_shapes(),
                    shapes()
                );
            }
        }
    }
    Some(())
}

#[test]
fn random_closures_are_right_or_refused() {
    let _turn = turn();
    let (cases, limit) = match std::env::var("EXPORT_CASES") {
        Ok(cases) => (cases.parse().unwrap(), Duration::MAX),
        Err(_) => (300, Duration::from_secs(12)),
    };
    let first: u64 = std::env::var("EXPORT_SEED").map_or(0, |seed| seed.parse().unwrap());
    // For tensors this small, threads mostly wait for each other.
    tch::set_num_threads(1);
    let (layers, begin) = (Layers::new(), Instant::now());
    // Sizes that a closure cannot take are panics of tch, by the thousand.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    let mut tried = 0;
    for seed in first.. {
        if counts.exported + counts.refused >= cases || begin.elapsed() > limit || failures.len() > 20 {
            break;
        }
        tried += 1;
        let run = || case(seed, &layers, &mut counts);
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            failures.push(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| format!("seed {seed}")));
        }
    }
    std::panic::set_hook(hook);
    let all = counts.exported + counts.refused;
    println!(
        "{all} closures of {tried} that take their examples: {} exported, {} refused ({:.1} %), {} outputs compared, {:.0} s",
        counts.exported,
        counts.refused,
        100.0 * counts.refused as f64 / all.max(1) as f64,
        counts.compared,
        begin.elapsed().as_secs_f64()
    );
    for (reason, count) in &counts.reasons {
        println!("{count:6} {}", reason.split('\n').next().unwrap_or_default());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert!(counts.exported * 5 > all || all < 20, "too much is refused");
}
