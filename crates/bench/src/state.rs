//! The state that is saved: the parameters of an embedding, an encoder and a decoder, with Adam's two slots each, in
//! float32, and a step.

use std::error::Error;
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{Checkpoint, Child, Collection, Counter, Gate, Guarded, Node, Trackable};

/// Name, shape, and whether it has slots.
pub type Spec = (String, Vec<i64>, bool);

pub struct State {
    gate: Gate,
    /// Name and tensor of parameters, `exp_avg` and `exp_avg_sq`.
    groups: [Vec<(String, Tensor)>; 3],
    step: Counter,
}

impl State {
    pub fn new(size: &str) -> Result<State, Box<dyn Error>> {
        tch::manual_seed(7);
        let specs = specs(size)?;
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let group = |slots: bool| -> Vec<(String, Tensor)> {
            let specs = specs.iter().filter(|(_, _, has_slots)| *has_slots || !slots);
            specs.map(|(name, shape, _)| (name.clone(), random(shape))).collect()
        };
        Ok(State { gate: Gate::new(), groups: [group(false), group(true), group(true)], step: Counter::new(7) })
    }

    pub fn bytes(&self) -> u64 {
        self.groups.iter().flatten().map(|(_, tensor)| 4 * tensor.numel() as u64).sum()
    }

    /// Changes every element in place, as an optimizer would.
    pub fn update(&self) {
        self.gate.pass();
        tch::no_grad(|| {
            for (_, tensor) in self.groups.iter().flatten() {
                let _ = tensor.shallow_clone().g_add_scalar_(1e-3);
            }
        });
    }

    /// Changes every element of the decoder's parameters.
    pub fn update_decoder(&self) {
        self.gate.pass();
        tch::no_grad(|| {
            for (_, tensor) in self.groups[0].iter().filter(|(name, _)| name.starts_with("decoder")) {
                let _ = tensor.shallow_clone().g_add_scalar_(1e-3);
            }
        });
    }

    /// Returns the minimum time, in seconds, to copy the state into warm memory with all processors.
    pub fn copy(&self) -> Result<f64, Box<dyn Error>> {
        let tensors: Vec<&Tensor> = self.groups.iter().flatten().map(|(_, tensor)| tensor).collect();
        let mut copies: Vec<Tensor> = tensors.iter().map(|tensor| tensor.copy()).collect();
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let began = std::time::Instant::now();
            for (copy, tensor) in copies.iter_mut().zip(&tensors) {
                copy.f_copy_(tensor)?;
            }
            best = best.min(began.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    pub fn checkpoint(&self) -> Result<Checkpoint, tch_checkpoint::Error> {
        let mut checkpoint = Checkpoint::new();
        for part in ["embedding", "encoder", "decoder"] {
            checkpoint.track_mut(part, self.part(0, part))?;
        }
        let slots = Node::group([("exp_avg", self.part(1, "")), ("exp_avg_sq", self.part(2, ""))]);
        checkpoint.track_mut("optimizer", slots)?;
        checkpoint.track_mut("step", &self.step)?;
        Ok(checkpoint)
    }

    /// The tensors of a group whose names start with `prefix`.
    fn part(&self, group: usize, prefix: &str) -> Node {
        let tensors = self.groups[group].iter().filter(|(name, _)| name.starts_with(prefix));
        let tensors = tensors.map(|(name, tensor)| (name.clone(), tensor.node(), tensor.data_ptr() as usize)).collect();
        Node::collection(Part { gate: self.gate.clone(), tensors })
    }
}

/// Tensors that only `State::update` changes.
struct Part {
    gate: Gate,
    tensors: Vec<(String, Node, usize)>,
}

impl Collection for Part {
    fn children(&self) -> Result<Vec<Child>, tch_checkpoint::BoxError> {
        Ok(self.tensors.iter().map(|(name, node, _)| Child::new(name.clone(), node.clone())).collect())
    }

    fn guarded(&self) -> Option<Guarded> {
        let addresses = self.tensors.iter().map(|(_, _, address)| *address);
        Some(Guarded::new(self.gate.clone(), addresses))
    }

    fn generation(&self) -> Option<u64> {
        Some(0)
    }
}

/// The composition of the state of a size.
pub fn specs(size: &str) -> Result<Vec<Spec>, Box<dyn Error>> {
    let mut specs: Vec<Spec> = Vec::new();
    let mut add = |name: String, shape: &[i64]| specs.push((name, shape.to_vec(), true));
    match size {
        "many" => {
            for i in 0..3333 {
                let part = if i < 333 {
                    "embedding"
                } else if i < 1833 {
                    "encoder"
                } else {
                    "decoder"
                };
                add(format!("{part}.w{i}"), &[32, 32]);
            }
            specs.push(("encoder.positions".into(), vec![32, 32], false));
        }
        "small" => {
            add("embedding.weight".into(), &[700, 128]);
            for part in ["encoder", "decoder"] {
                for i in 0..2 {
                    add(format!("{part}.layer{i}.ff1.weight"), &[256, 128]);
                    add(format!("{part}.layer{i}.ff1.bias"), &[256]);
                    add(format!("{part}.layer{i}.ff2.weight"), &[128, 256]);
                    add(format!("{part}.layer{i}.ff2.bias"), &[128]);
                }
                add(format!("{part}.norm.weight"), &[128]);
            }
            add("decoder.out.bias".into(), &[128]);
        }
        "medium" => transformer(512, 8000, &mut add),
        "large" => transformer(1024, 16000, &mut add),
        _ => {
            let (tensors, bytes) = size.split_once('x').ok_or(format!("unknown size {size}"))?;
            let (tensors, bytes): (usize, i64) = (tensors.parse()?, bytes.parse()?);
            for i in 0..tensors {
                specs.push((format!("encoder.w{i}"), vec![bytes / 4], false));
            }
        }
    }
    Ok(specs)
}

fn transformer(d: i64, vocabulary: i64, add: &mut impl FnMut(String, &[i64])) {
    add("embedding.weight".into(), &[vocabulary, d]);
    for part in ["encoder", "decoder"] {
        for i in 0..4 {
            let p = format!("{part}.layer{i}");
            let attentions: &[&str] = if part == "decoder" { &["self", "cross"] } else { &["self"] };
            for attention in attentions {
                for q in ["q", "k", "v", "o"] {
                    add(format!("{p}.{attention}.{q}.weight"), &[d, d]);
                    add(format!("{p}.{attention}.{q}.bias"), &[d]);
                }
            }
            add(format!("{p}.ff1.weight"), &[4 * d, d]);
            add(format!("{p}.ff1.bias"), &[4 * d]);
            add(format!("{p}.ff2.weight"), &[d, 4 * d]);
            add(format!("{p}.ff2.bias"), &[d]);
            for n in 0..if part == "decoder" { 3 } else { 2 } {
                add(format!("{p}.norm{n}.weight"), &[d]);
                add(format!("{p}.norm{n}.bias"), &[d]);
            }
        }
    }
    add("decoder.norm.weight".into(), &[d]);
    add("decoder.norm.bias".into(), &[d]);
}

/// Returns the parameters of a size, one per line.
pub fn print_shapes(size: &str) -> Result<(), Box<dyn Error>> {
    for (name, shape, has_slots) in specs(size)? {
        println!("{name} {shape:?}{}", if has_slots { " with exp_avg and exp_avg_sq" } else { "" });
    }
    Ok(())
}
