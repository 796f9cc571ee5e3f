//! Exporting leaves the live model as it was: random state, buffers, parameters.

use crate::torch::program::ProgramVariable;
use crate::torch::shim::{self, GeneratorDevice};
use tch::Tensor;

/// What a closure may change while it is traced, as it was before. Put back when dropped.
pub(super) struct Untouched<'a> {
    variables: Vec<&'a ProgramVariable>,
    /// How often each was changed before.
    versions: Vec<Option<u64>>,
    /// Copies of the buffers, which layers in training change.
    buffers: Vec<Option<Tensor>>,
    generators: Vec<(GeneratorDevice, i32, Tensor)>,
}

impl<'a> Untouched<'a> {
    pub(super) fn note(variables: Vec<&'a ProgramVariable>) -> Result<Untouched<'a>, String> {
        let mut generators = vec![];
        for device in [GeneratorDevice::Cpu, GeneratorDevice::Cuda, GeneratorDevice::Mps] {
            for index in 0..shim::count_generators(device)? {
                generators.push((device, index, shim::generator_state(device, index)?));
            }
        }
        let copy = |variable: &&ProgramVariable| (!variable.is_parameter).then(|| variable.tensor.detach().copy());
        let (versions, buffers) = (versions(&variables), variables.iter().map(copy).collect());
        Ok(Untouched { variables, versions, buffers, generators })
    }

    /// The variables that were changed.
    pub(super) fn changed(&self) -> Vec<&'a ProgramVariable> {
        let before = self.versions.iter().zip(versions(&self.variables));
        let changed = self.variables.iter().zip(before).filter(|(_, (before, now))| **before != *now);
        changed.map(|(variable, _)| *variable).collect()
    }
}

fn versions(variables: &[&ProgramVariable]) -> Vec<Option<u64>> {
    variables.iter().map(|variable| shim::version(&variable.tensor)).collect()
}

impl Drop for Untouched<'_> {
    fn drop(&mut self) {
        for (device, index, state) in &self.generators {
            if let Err(reason) = shim::set_generator_state(*device, *index, state) {
                log::error!("the random state could not be set back after exporting: {reason}");
            }
        }
        let now = versions(&self.variables);
        for (place, variable) in self.variables.iter().enumerate() {
            if let Some(before) = self.buffers[place].as_ref().filter(|_| now[place] != self.versions[place]) {
                tch::no_grad(|| variable.tensor.shallow_clone().copy_(before));
            }
        }
    }
}
