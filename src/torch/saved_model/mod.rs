//! Saved models: a TorchScript program that runs without the model's code, together with a checkpoint from which
//! training can resume.

mod definition;
mod examples;
mod export;
mod lengths;
mod probes;
mod untouched;
mod weights;

pub use definition::SignatureDef;
pub use export::Export;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::format::{EXAMPLES_FILE, PROGRAM_FILE, SavedModelInfo, Signature};
use crate::location::Location;
use crate::reader::CheckpointReader;
use crate::restore::RestoreStatus;
use crate::save::SaveOptions;
use crate::torch::program::{Failure, Program};
use crate::torch::tensor::examine;
use definition::subject;
use examples::{Example, Examples, same_bits};
use std::fmt;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// A model that runs without the code that defined it: a directory with a TorchScript program, its signatures,
/// examples, and a complete checkpoint.
///
/// ```no_run
/// use tch::{Device, Kind, Tensor, nn, nn::Module};
/// use tch_checkpoint::{SavedModel, SignatureDef};
///
/// # fn main() -> tch_checkpoint::Result<()> {
/// let vs = nn::VarStore::new(Device::Cpu);
/// let model = nn::linear(&vs.root() / "out", 8, 4, Default::default());
/// let batch = |n| [Tensor::rand([n, 8], (Kind::Float, Device::Cpu))];
/// let forward = SignatureDef::new("forward", |x| vec![model.forward(&x[0])]).example(batch(2)).example(batch(5));
/// SavedModel::export("models/linear", &vs).signature(forward).write()?;
///
/// // In another program, which does not know `nn::linear`:
/// let model = SavedModel::load("models/linear", Device::Cpu)?;
/// let outputs = model.run("forward", &[&Tensor::rand([100, 8], (Kind::Float, Device::Cpu))])?;
/// # let _ = outputs;
/// # Ok(())
/// # }
/// ```
///
/// **TorchScript is code.** Loading or running a saved model from an untrusted source executes that code: digests show
/// that a file is what was written, not who wrote it.
pub struct SavedModel {
    path: Location,
    info: SavedModelInfo,
    program: Program,
    vs: VarStore,
}

impl fmt::Debug for SavedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signatures: Vec<&String> = self.info.signatures.keys().collect();
        f.debug_struct("SavedModel").field("path", &self.path).field("signatures", &signatures).finish_non_exhaustive()
    }
}

impl SavedModel {
    /// Starts an export of the model whose variables are in `vs` to the directory `dir`, which must not exist.
    pub fn export(dir: impl Into<Location>, vs: &VarStore) -> Export<'_> {
        Export::new(dir.into(), vs)
    }

    /// Loads the saved model in the directory `dir` onto a device. Every byte of the program is verified before
    /// libtorch parses it. The program is in evaluation mode: it does not contain the training behaviour of dropout or
    /// batch normalization.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, or for a checkpoint without a program; [`Error::Damaged`],
    /// [`Error::Unsupported`], [`Error::Io`].
    pub fn load(dir: impl Into<Location>, device: Device) -> Result<SavedModel> {
        let (info, reader) = open(&dir.into())?;
        let path = reader.path().clone();
        let file = path.join(PROGRAM_FILE);
        let damaged = |reason: String| Error::damaged(&file, reason);
        reader.verify_asset(PROGRAM_FILE)?;
        let size = reader.manifest().assets.get(PROGRAM_FILE).map_or(0, |entry| entry.bytes);
        let size = usize::try_from(size).map_err(|e| damaged(e.to_string()))?;
        let read = |offset, buffer: &mut [u8]| reader.read_asset_at(PROGRAM_FILE, offset, buffer);
        let program = Program::read(size, &info.device, &weights::device_name(device), read);
        let program = program.map_err(|failure| match failure {
            Failure::Callback(error) => error,
            Failure::Torch(reason) => damaged(format!("libtorch cannot read it: {reason}")),
        })?;
        for (name, signature) in &info.signatures {
            let (has, described) = (program.inputs(name).map_err(damaged)?, signature.inputs.len());
            if has != described {
                return Err(damaged(format!("its method `{name}` has {has} inputs, its signature {described}")));
            }
        }
        let variables = program.variables().map_err(damaged)?;
        let vs = weights::into_store(variables, &info.variables, device).map_err(damaged)?;
        Ok(SavedModel { path, info, program, vs })
    }

    /// Returns signatures, variables and metadata.
    #[must_use]
    pub fn info(&self) -> &SavedModelInfo {
        &self.info
    }

    /// Returns the directory it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Location {
        &self.path
    }

    /// Runs a signature. Gradients reach the parameters, except inside `tch::no_grad`. The inputs are not changed, even
    /// if the exported closure changes its inputs in place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for inputs that do not match the signature: another type or shape, or different
    /// lengths where all examples have equal ones; [`Error::Object`] if libtorch refuses them.
    pub fn run(&self, signature: &str, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let asked = self.signature(signature)?;
        if asked.inputs.len() != inputs.len() {
            let (is, given) = (asked.inputs.len(), inputs.len());
            return Err(Error::InvalidArgument(format!("`{signature}` has {is} inputs, {given} were given")));
        }
        for (info, input) in asked.inputs.iter().zip(inputs) {
            let kind = shape_and_type(input)?;
            if let Some(reason) = info.refuses(kind.dtype, &kind.shape) {
                return Err(Error::InvalidArgument(format!("`{signature}`: {reason}")));
            }
        }
        if let Some(reason) = lengths::refused(&self.info, signature, inputs) {
            return Err(Error::InvalidArgument(format!("`{signature}`: {reason}")));
        }
        self.run_unchecked(signature, inputs)
    }

    fn run_unchecked(&self, signature: &str, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.program.run(signature, inputs).map_err(|reason| Error::object(subject(signature), reason))
    }

    fn signature(&self, name: &str) -> Result<&Signature> {
        self.info.signatures.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.info.signatures.keys().map(String::as_str).collect();
            Error::InvalidArgument(format!("the saved model has no signature `{name}`; it has {}", known.join(", ")))
        })
    }

    /// Runs every signature on its stored examples and compares the outputs with those of the live model. No element
    /// may differ by more than `tolerance` times 1 plus its magnitude. 0 requires equal bits, which the same libtorch
    /// on the same kind of processor produces.
    ///
    /// # Errors
    /// [`Error::Assertion`] with every output that differs by more; the errors of [`run`](SavedModel::run).
    pub fn check(&self, tolerance: f64) -> Result<()> {
        let mut off = Vec::new();
        for (name, examples) in &self.examples()? {
            let infos = &self.signature(name)?.outputs;
            for (place, example) in examples.iter().enumerate() {
                let got = self.outputs(name, &example.inputs)?;
                for ((info, got), expected) in infos.iter().zip(&got).zip(&example.outputs) {
                    let got = got.to_device(Device::Cpu);
                    if !is_near(&got, expected, tolerance).map_err(|reason| Error::object(subject(name), reason))? {
                        off.push(format!("`{}` of `{name}` for example {place}", info.name));
                    }
                }
            }
        }
        if off.is_empty() {
            return Ok(());
        }
        let path = self.path.display();
        Err(Error::Assertion(format!("{path} gives other outputs than the exported model: {}", off.join(", "))))
    }

    /// Returns the outputs of the program for an example.
    fn outputs(&self, name: &str, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.to_device(self.vs.device()).copy()).collect();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let _no_grad = tch::no_grad_guard();
        self.run_unchecked(name, &inputs)
    }

    fn examples(&self) -> Result<Examples> {
        let reader = CheckpointReader::open(&self.path)?;
        examples::read(&self.path, &reader.asset(EXAMPLES_FILE)?, &self.info.signatures)
    }

    /// Returns the variables, under the names of the exported store. They are the program's own: an optimizer of this
    /// store trains the program, and a restore into it changes the program's weights.
    #[must_use]
    pub fn var_store(&self) -> &VarStore {
        &self.vs
    }

    /// Returns the trainable variables, by name.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let all = self.vs.variables();
        let trainable = self.info.variables.iter().filter(|(_, variable)| variable.trainable);
        trainable.filter_map(|(name, _)| Some((name.clone(), all.get(name)?.shallow_clone()))).collect()
    }

    /// Returns a checkpoint that tracks the program's variables under the names of the exported checkpoint. Track an
    /// optimizer and counters as well and restore it from [`path`](SavedModel::path) to resume training. The live model
    /// can restore what is saved here.
    ///
    /// ```no_run
    /// # use tch::{Device, Kind, Tensor};
    /// # use tch_checkpoint::{Counter, SavedModel, optim};
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// let model = SavedModel::load("models/pronounce", Device::Cpu)?;
    /// let mut optimizer = optim::Adam::default().build(model.var_store(), 1e-3)?;
    /// let step = Counter::new(0);
    /// let mut checkpoint = model.checkpoint()?.track("optimizer", &optimizer)?.track("step", &step)?;
    /// checkpoint.restore(model.path())?.assert_existing_objects_matched()?;
    /// # let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    /// let loss = model.run("forward", &[&x])?[0].square().mean(Kind::Float);
    /// optimizer.backward_step(&loss);
    /// model.save("models/tuned", &mut checkpoint)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidName`] for names that a checkpoint cannot have.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let objects = weights::objects(&self.vs, &self.info);
        objects.into_iter().try_fold(Checkpoint::new(), |checkpoint, (name, node)| checkpoint.track(&name, node))
    }

    /// Restores the weights of the checkpoint at `path`, of the same training run or of any other with the same names,
    /// types and shapes. All-or-nothing.
    ///
    /// # Errors
    /// As for [`Checkpoint::restore`].
    pub fn restore_weights(&mut self, path: impl Into<Location>) -> Result<RestoreStatus> {
        let status = self.checkpoint()?.read(path)?;
        status.expect_partial();
        Ok(status)
    }

    /// Saves the program with its current weights to the directory `dir`, together with everything that `checkpoint`
    /// tracks. Use a checkpoint from [`checkpoint`](SavedModel::checkpoint), which may track more. The outputs of the
    /// examples are recomputed.
    ///
    /// # Errors
    /// As for [`Export::write`].
    pub fn save(&self, dir: impl Into<Location>, checkpoint: &mut Checkpoint) -> Result<Location> {
        // A step after this belongs neither to the examples nor to the program.
        let moment = checkpoint.moment()?;
        let variables = weights::of_store(&self.vs)?;
        let mut info = self.info.clone();
        info.device = weights::device_name(self.vs.device());
        weights::note_keys(&self.vs, &variables, checkpoint, &mut info)?;
        let examples = self.examples_now()?;
        let assets = export::assets(&self.program, &info, &examples)?;
        checkpoint.write_stamped(&dir.into(), &SaveOptions::new(), assets, Some(moment), |_| ())
    }

    /// Converts a checkpoint to a saved model without the model's code: saves this program with the weights of the
    /// checkpoint at `from` to the directory `dir`, together with everything else in that checkpoint (optimizer, step,
    /// values). Afterwards this model has the checkpoint's weights.
    ///
    /// The reverse needs no conversion: a saved model is a checkpoint, and [`Checkpoint::restore`] accepts its path.
    ///
    /// # Errors
    /// As for [`restore_weights`](SavedModel::restore_weights) and [`Export::write`].
    pub fn save_from(&mut self, from: impl Into<Location>, dir: impl Into<Location>) -> Result<Location> {
        let from = CheckpointReader::open(from)?;
        self.checkpoint()?.read_open(&from.source)?;
        let mut info = self.info.clone();
        info.device = weights::device_name(self.vs.device());
        let examples = self.examples_now()?;
        from.copy_to(dir, &SaveOptions::new(), export::assets(&self.program, &info, &examples)?)
    }

    /// Returns the inputs of the examples, with the outputs for the present weights.
    fn examples_now(&self) -> Result<Examples> {
        let mut examples = self.examples()?;
        for (name, examples) in &mut examples {
            for Example { inputs, outputs } in examples {
                *outputs = self.outputs(name, inputs)?;
            }
        }
        Ok(examples)
    }
}

/// Opens a saved model: its description, and its files.
fn open(dir: &Location) -> Result<(SavedModelInfo, CheckpointReader)> {
    let reader = CheckpointReader::open(dir)?;
    let reason = "it is a checkpoint without a program; `SavedModel::export` makes one from the live model, and \
                  `SavedModel::save_from` from another saved model of the same program";
    let info = reader.saved_model()?;
    let info = info.ok_or_else(|| Error::not_found(dir, reason.to_string()))?;
    Ok((info, reader))
}

fn shape_and_type(tensor: &Tensor) -> Result<crate::dtype::TensorSpec> {
    // A view, such as an expanded tensor, is a valid input.
    let shown = if tensor.is_contiguous() { tensor.shallow_clone() } else { tensor.contiguous() };
    examine(&shown).map(|(spec, ..)| spec).map_err(|reason| Error::InvalidArgument(format!("an input: {reason}")))
}

fn is_near(got: &Tensor, expected: &Tensor, tolerance: f64) -> Result<bool, String> {
    if same_bits(got, expected)? {
        return Ok(true);
    }
    if tolerance <= 0.0 || got.size() != expected.size() || got.kind() != expected.kind() {
        return Ok(false);
    }
    // Both parts of complex numbers are compared.
    let parts = |tensor: &Tensor| if tensor.is_complex() { tensor.view_as_real() } else { tensor.shallow_clone() };
    let (got, expected) = (parts(got).to_kind(Kind::Double), parts(expected).to_kind(Kind::Double));
    Ok(got.allclose(&expected, tolerance, tolerance, true))
}
