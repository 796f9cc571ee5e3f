//! A signature to be exported: a closure over the live model, and examples.

use super::examples::{Example, same_bits};
use super::{lengths, probes};
use crate::error::{Error, Result};
use crate::format::{Length, Signature, TensorInfo, is_identifier};
use crate::torch::program::{Program, ProgramVariable};
use crate::torch::tensor::examine;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Tensor;

/// The live model's closure.
type Closure<'a> = Box<dyn FnMut(&[Tensor]) -> Vec<Tensor> + 'a>;

/// A method of a program to be exported: a closure over the live model, the names of its inputs and outputs, and at
/// least two examples of inputs.
///
/// The closure must run in evaluation mode: pass `train = false` to dropout and to other layers that have this
/// parameter. Lengths in which the examples differ (the batch, the length of a sentence) are free in the program; all
/// others are fixed, and inputs of other lengths are errors. Free lengths that are equal in all examples must be equal
/// in all inputs. Therefore, give examples that differ in all sizes that are to be free, each in its own way.
///
/// The export also calls the closure with inputs of other sizes, derived from the examples, and fails if the closure
/// behaves differently there. The closure may panic for such sizes, which are then ignored. (In a program that aborts
/// on a panic this is not done, and more examples are required.)
///
/// ```no_run
/// use tch::{Device, Kind, Tensor, nn, nn::Module};
/// use tch_checkpoint::SignatureDef;
///
/// let vs = nn::VarStore::new(Device::Cpu);
/// let encoder = nn::linear(vs.root() / "encoder", 8, 4, Default::default());
/// let batch = |n| [Tensor::rand([n, 8], (Kind::Float, Device::Cpu))];
/// let encode = SignatureDef::new("encode", |x| vec![encoder.forward(&x[0]).tanh()])
///     .inputs(["features"])
///     .outputs(["state"])
///     .example(batch(2))
///     .example(batch(5));
/// # let _ = encode;
/// ```
pub struct SignatureDef<'a> {
    pub(super) name: String,
    closure: Closure<'a>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    pub(super) examples: Vec<Vec<Tensor>>,
}

impl fmt::Debug for SignatureDef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SignatureDef { name, inputs, outputs, examples, .. } = self;
        let mut debug = f.debug_struct("SignatureDef");
        debug.field("name", name).field("inputs", inputs).field("outputs", outputs);
        debug.field("examples", &examples.len()).finish_non_exhaustive()
    }
}

impl<'a> SignatureDef<'a> {
    /// Creates the method `name` from a closure from tensors to tensors. In Python, calling the module runs the method
    /// `forward`.
    pub fn new(name: impl Into<String>, closure: impl FnMut(&[Tensor]) -> Vec<Tensor> + 'a) -> SignatureDef<'a> {
        let closure = Box::new(closure);
        SignatureDef { name: name.into(), closure, inputs: vec![], outputs: vec![], examples: vec![] }
    }

    /// Sets the names of the inputs. Defaults to `input_0`, `input_1` and so on.
    #[must_use]
    pub fn inputs<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.inputs = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the names of the outputs. Defaults to `output_0`, `output_1` and so on.
    #[must_use]
    pub fn outputs<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.outputs = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an example of all inputs, which is copied and saved with the model.
    #[must_use]
    pub fn example(mut self, inputs: impl IntoIterator<Item = Tensor>) -> Self {
        self.examples.push(inputs.into_iter().map(|input| input.detach().copy()).collect());
        self
    }

    /// Returns the outputs of the live model for an example.
    pub(super) fn call(&mut self, example: &[Tensor]) -> Vec<Tensor> {
        // The closure may change its inputs in place.
        let inputs: Vec<Tensor> = example.iter().map(Tensor::copy).collect();
        // A guard, so that a panic of the closure drops it as well.
        let _no_grad = tch::no_grad_guard();
        (self.closure)(&inputs)
    }

    /// Returns inputs of other sizes that the closure accepts, with the outputs of the live model.
    pub(super) fn probes(&mut self) -> Vec<Example> {
        let mut failures = 0;
        let mut probes = Vec::new();
        for inputs in probes::of(&self.examples) {
            // A model may not support some sizes, which are skipped.
            match catch_unwind(AssertUnwindSafe(|| self.call(&inputs))) {
                Ok(outputs) => probes.push(Example { inputs, outputs }),
                Err(_) => failures += 1,
            }
        }
        if failures > 0 {
            log::info!("{}: the closure panics for some sizes that no example has", subject(&self.name));
        }
        probes
    }

    /// Adds the method to a program, which must not have `others` in it.
    pub(super) fn trace(
        &mut self,
        program: &mut Program,
        others: &[ProgramVariable],
        probes: &[Example],
    ) -> Result<(), String> {
        let copy = |example: &Vec<Tensor>| example.iter().map(Tensor::copy).collect();
        let all = self.examples.iter().chain(probes.iter().map(|probe| &probe.inputs));
        let copies: Vec<Vec<Tensor>> = all.map(copy).collect();
        program.trace(&self.name, &self.inputs, &copies, self.examples.len(), others, &mut *self.closure)
    }

    /// Returns the free lengths that are equal in all examples.
    pub(super) fn same_lengths(&self) -> Vec<Vec<Length>> {
        let classes = lengths::free(&self.examples);
        let several = classes.into_iter().filter(|class| class.len() > 1);
        let name = |(input, dim): (usize, usize)| Length { input: self.inputs[input].clone(), dim: dim as u64 };
        several.map(|class| class.into_iter().map(name).collect()).collect()
    }

    /// Checks the definition before anything runs. Sets default names of the inputs.
    pub(super) fn check(&mut self) -> Result<()> {
        let refuse = |reason: String| Err(Error::object(subject(&self.name), reason));
        if !is_identifier(&self.name) {
            return refuse("its name is none in Python; use letters, digits and `_`, and no reserved word".into());
        }
        let [first, others @ ..] = self.examples.as_slice() else { return refuse("it has no example".into()) };
        if first.is_empty() {
            return refuse("its first example has no input; a program needs at least one".into());
        }
        if self.inputs.is_empty() {
            self.inputs = (0..first.len()).map(|i| format!("input_{i}")).collect();
        }
        if let Some(example) = self.examples.iter().find(|example| example.len() != self.inputs.len()) {
            let (has, names) = (example.len(), self.inputs.len());
            return refuse(format!("an example has {has} inputs, and there are {names} names for them"));
        }
        let mut differs = false;
        for other in others {
            for (i, (a, b)) in first.iter().zip(other).enumerate() {
                let what =
                    |reason| Error::object(subject(&self.name), format!("the input `{}`: {reason}", self.inputs[i]));
                let (one, two) = (examine(a).map_err(what)?.0, examine(b).map_err(what)?.0);
                if one.dtype != two.dtype || one.shape.len() != two.shape.len() {
                    let name = &self.inputs[i];
                    return refuse(format!("the input `{name}` is {one} in one example and {two} in another"));
                }
                differs |= !same_bits(a, b).map_err(what)?;
            }
        }
        if !differs {
            return refuse(
                "it needs a second example, with other values and sizes: only that shows what depends on them".into(),
            );
        }
        Ok(())
    }

    /// Returns types and shapes over all examples; `outputs` are the outputs of every example.
    pub(super) fn signature(&self, outputs: &[Vec<Tensor>]) -> Result<Signature> {
        let failed = |reason: String| Error::object(subject(&self.name), reason);
        let count = outputs.first().map_or(0, Vec::len);
        let names: Vec<String> = match self.outputs.len() {
            0 => (0..count).map(|i| format!("output_{i}")).collect(),
            n if n == count => self.outputs.clone(),
            n => return Err(failed(format!("the closure gives {count} outputs, and there are {n} names for them"))),
        };
        let inputs = infos(&self.inputs, &self.examples).map_err(failed)?;
        let outputs = infos(&names, outputs).map_err(failed)?;
        Ok(Signature { inputs, outputs, examples: self.examples.len() as u64 })
    }
}

/// Returns the name of a signature in errors.
pub(super) fn subject(signature: &str) -> String {
    format!("the signature `{signature}`")
}

/// Returns the type and shape of every tensor. A length that differs between the examples is free.
fn infos(names: &[String], examples: &[Vec<Tensor>]) -> Result<Vec<TensorInfo>, String> {
    let mut infos: Vec<TensorInfo> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        if !is_identifier(name) || names[..i].contains(name) {
            return Err(format!("{name:?} is not a valid name for an input or output, or appears twice"));
        }
        for example in examples {
            let tensor = example.get(i).ok_or("the closure gives different numbers of outputs")?;
            let spec = examine(&tensor.contiguous()).map_err(|reason| format!("`{name}`: {reason}"))?.0;
            match infos.get_mut(i) {
                None => {
                    let shape = spec.shape.into_iter().map(Some).collect();
                    infos.push(TensorInfo { name: name.clone(), dtype: spec.dtype, shape });
                }
                Some(info) if info.dtype == spec.dtype && info.shape.len() == spec.shape.len() => {
                    for (known, length) in info.shape.iter_mut().zip(spec.shape) {
                        *known = known.filter(|known| *known == length);
                    }
                }
                Some(info) => return Err(format!("`{info}` is {spec} for another example")),
            }
        }
    }
    Ok(infos)
}
