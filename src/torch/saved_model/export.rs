//! Export: trace, compare with the live model, and only then write.

use super::definition::{SignatureDef, subject};
use super::examples::{self, Example, Examples, same_bits};
use super::untouched::Untouched;
use super::weights;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::format::{EXAMPLES_FILE, PROGRAM_FILE, SAVED_MODEL_FILE, SavedModelInfo, Signature, unexportable};
use crate::location::Location;
use crate::save::{AssetStream, SaveOptions};
use crate::torch::program::{Failure, Program, ProgramVariable};
use crate::torch::variables::Variables;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use tch::Tensor;
use tch::nn::VarStore;

/// An export in preparation, returned by [`SavedModel::export`](super::SavedModel::export).
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// # let encoder = tch::nn::linear(&vs.root() / "encoder", 3, 2, Default::default());
/// use tch::{Device, Kind, Tensor};
/// use tch_checkpoint::{SavedModel, SignatureDef};
/// let example = |batch| [Tensor::randn([batch, 3], (Kind::Float, Device::Cpu))];
/// let encode = SignatureDef::new("encode", |x| vec![x[0].apply(&encoder)]).example(example(2)).example(example(5));
/// SavedModel::export("models/encoder", &vs).under("encoder").metadata("language", "en").signature(encode).write()?;
/// # Ok(())
/// # }
/// ```
pub struct Export<'a> {
    dir: Location,
    vs: &'a VarStore,
    prefixes: Vec<String>,
    signatures: Vec<SignatureDef<'a>>,
    checkpoint: Option<&'a mut Checkpoint>,
    step: Option<u64>,
    options: SaveOptions,
    metadata: BTreeMap<String, serde_json::Value>,
}

impl fmt::Debug for Export<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("dir", &self.dir).field("signatures", &self.signatures).finish_non_exhaustive()
    }
}

impl<'a> Export<'a> {
    pub(super) fn new(dir: Location, vs: &'a VarStore) -> Export<'a> {
        Export {
            dir,
            vs,
            prefixes: vec![],
            signatures: vec![],
            checkpoint: None,
            step: None,
            options: SaveOptions::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Exports only the variables below `prefix`, such as `encoder`. Further calls add further prefixes. Variables keep
    /// their full names. Without this, all variables of the store are exported.
    #[must_use]
    pub fn under(mut self, prefix: impl Into<String>) -> Self {
        self.prefixes.push(prefix.into());
        self
    }

    /// Adds a method. A program needs at least one.
    #[must_use]
    pub fn signature(mut self, signature: SignatureDef<'a>) -> Self {
        self.signatures.push(signature);
        self
    }

    /// Saves everything that `checkpoint` tracks together with the program, so that training can resume from it. It
    /// must track all exported variables. Without a checkpoint, only these are saved, under their prefixes or under
    /// `model`.
    #[must_use]
    pub fn checkpoint(mut self, checkpoint: &'a mut Checkpoint) -> Self {
        self.checkpoint = Some(checkpoint);
        self
    }

    /// Sets the training step for the manifest.
    #[must_use]
    pub fn step(mut self, step: u64) -> Self {
        self.step = Some(step);
        self
    }

    /// Sets the options of the save. Defaults to [`SaveOptions::new`].
    #[must_use]
    pub fn save_options(mut self, options: SaveOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds metadata, such as a vocabulary, a licence, or how the inputs are computed.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Traces the closures, compares the program with them on every example, bit for bit, and saves everything
    /// atomically and durably. Returns the path.
    ///
    /// The live model is unchanged afterwards: variables, `requires_grad`, random state.
    ///
    /// # Errors
    /// [`Error::Object`] for what a program cannot express, with the reason and the remedy: an `if` or a loop that
    /// depends on the inputs, random numbers, a closure that changes variables, a trained tensor that is not in the
    /// `VarStore`. Otherwise the errors of [`Checkpoint::write`]. After an error, nothing is left at the path.
    pub fn write(mut self) -> Result<Location> {
        let all = weights::of_store(self.vs)?;
        let is_below = |one: &ProgramVariable| self.prefixes.iter().any(|prefix| is_below(&one.name, prefix));
        let (variables, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|variable| self.prefixes.is_empty() || is_below(variable));
        for ProgramVariable { name, .. } in &variables {
            if let Some(reason) = unexportable(name) {
                return Err(Error::object(name, reason));
            }
        }
        let mut own;
        let checkpoint = match self.checkpoint.take() {
            Some(checkpoint) => checkpoint,
            None => {
                own = self.own_checkpoint()?;
                &mut own
            }
        };
        // A step after this belongs neither to the examples nor to the program.
        let moment = checkpoint.moment()?;
        let mut info = SavedModelInfo::new(weights::device_name(self.vs.device()));
        weights::note_keys(self.vs, &variables, checkpoint, &mut info)?;
        info.metadata = std::mem::take(&mut self.metadata);
        if self.signatures.is_empty() {
            return Err(Error::InvalidArgument(
                "a saved model needs a signature; add one with `Export::signature`".to_string(),
            ));
        }
        let live: Vec<&ProgramVariable> = variables.iter().chain(&others).collect();
        let before = Untouched::note(live).map_err(|reason| Error::object("saved model", reason))?;
        let traced = self.trace(&variables, &others, &mut info);
        let changed: Vec<&str> = before.changed().iter().map(|variable| variable.name.as_str()).collect();
        if !changed.is_empty() && traced.is_ok() {
            return Err(Error::object(
                changed.join(", "),
                "a closure changes it: an exported program only evaluates. Give `train = false` to its layers. (Buffers \
                 were put back; a parameter is as the closure left it)",
            ));
        }
        drop(before);
        let (program, examples) = traced?;
        let (step, assets) = (self.step, assets(&program, &info, &examples)?);
        checkpoint.write_stamped(&self.dir, &self.options, assets, Some(moment), |stamp| stamp.step = step)
    }

    /// Returns a checkpoint of the exported variables only.
    fn own_checkpoint(&self) -> Result<Checkpoint> {
        let variables = Variables::of(self.vs);
        if self.prefixes.is_empty() {
            return Checkpoint::new().track("model", variables);
        }
        let track = |all: Checkpoint, prefix: &String| all.track(prefix, variables.clone().under(prefix));
        self.prefixes.iter().try_fold(Checkpoint::new(), track)
    }

    /// Returns the program with all signatures, and the outputs of the live model for the examples.
    fn trace(
        &mut self,
        variables: &[ProgramVariable],
        others: &[ProgramVariable],
        info: &mut SavedModelInfo,
    ) -> Result<(Program, Examples)> {
        let mut program = Program::new(variables).map_err(|(name, reason)| Error::object(name, reason))?;
        let mut examples = Examples::new();
        let mut all_probes = Examples::new();
        for definition in &mut self.signatures {
            definition.check()?;
            let name = definition.name.clone();
            let failed = |reason: String| Error::object(subject(&name), reason);
            let inputs = definition.examples.iter().map(|one| one.iter().map(Tensor::shallow_clone).collect());
            let inputs: Vec<Vec<Tensor>> = inputs.collect();
            let outputs: Vec<Vec<Tensor>> = inputs.iter().map(|example| definition.call(example)).collect();
            let probes = definition.probes();
            definition.trace(&mut program, others, &probes).map_err(explained).map_err(failed)?;
            info.signatures.insert(name.clone(), definition.signature(&outputs)?);
            let same = definition.same_lengths();
            if !same.is_empty() {
                info.same_lengths.insert(name.clone(), same);
            }
            all_probes.insert(name.clone(), probes);
            let both = inputs.into_iter().zip(outputs).map(|(inputs, outputs)| Example { inputs, outputs });
            examples.insert(name, both.collect());
        }
        let program = program.reread().map_err(|reason| Error::object("saved model", reason))?;
        for (name, example) in
            examples.iter().chain(&all_probes).flat_map(|(name, all)| all.iter().map(move |one| (name, one)))
        {
            compare(&program, name, example, &info.signatures[name])
                .map_err(|reason| Error::object(subject(name), reason))?;
        }
        Ok((program, examples))
    }
}

/// Returns `true` if a variable is the prefix itself or below it. A prefix consists of whole components.
fn is_below(variable: &str, prefix: &str) -> bool {
    variable.strip_prefix(prefix.trim_end_matches('.')).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Adds a remedy to libtorch's reason.
fn explained(reason: String) -> String {
    if reason.contains("requires grad as a constant") {
        return "the closure uses a trainable tensor that is not exported: the program would have it as a constant, without a \
                name. Create it in the `VarStore` that is exported; if it is, export it too (`Export::under`)"
            .to_string();
    }
    reason
}

/// Runs the program on an example and compares the outputs with those of the live model.
fn compare(program: &Program, name: &str, example: &Example, signature: &Signature) -> Result<(), String> {
    let inputs: Vec<Tensor> = example.inputs.iter().map(Tensor::copy).collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let shapes = || example.inputs.iter().map(|input| format!("{:?}", input.size())).collect::<Vec<_>>().join(", ");
    let _no_grad = tch::no_grad_guard();
    let got = program.run(name, &inputs).map_err(|reason| {
        let shapes = shapes();
        format!("the traced program fails for inputs of shapes {shapes}, where the closure does not: {reason}")
    })?;
    for ((got, expected), info) in got.iter().zip(&example.outputs).zip(&signature.outputs) {
        if !same_bits(got, expected)? {
            return Err(format!(
                "the traced program gives something else than the closure for `{}`, for inputs of shapes {}. A trace holds \
                 operations on tensors only: a tensor made from numbers of the program (`Tensor::from_slice`, \
                 `Tensor::from`) inside of the closure, numbers read out of a tensor, and random numbers are not held. Make \
                 such tensors before, or take them as inputs. On a GPU, some operations give other bits every time: export \
                 on the CPU",
                info.name,
                shapes()
            ));
        }
    }
    Ok(())
}

/// Returns the files that make a checkpoint a saved model.
pub(super) fn assets<'a>(
    program: &'a Program,
    info: &'a SavedModelInfo,
    examples: &'a Examples,
) -> Result<Vec<AssetStream<'a>>> {
    let description = info.to_bytes()?;
    let bytes = program.bytes().map_err(|reason| Error::object("saved model", reason))?;
    let write_program = |out: &mut dyn Write| {
        program.write(|bytes| out.write_all(bytes)).map_err(|failure| match failure {
            Failure::Callback(error) => error,
            Failure::Torch(reason) => io::Error::other(Error::object(PROGRAM_FILE, reason)),
        })
    };
    Ok(vec![
        AssetStream::new(PROGRAM_FILE, bytes, write_program),
        AssetStream::new(EXAMPLES_FILE, examples::bytes(examples), |out| {
            examples::write(out, &info.signatures, examples)
        }),
        AssetStream::new(SAVED_MODEL_FILE, description.len() as u64, move |out| out.write_all(&description)),
    ])
}
