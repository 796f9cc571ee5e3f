//! Restores the live model after an export: random state, buffers, parameters.

use super::examples::same_bits;
use crate::torch::program::ProgramVariable;
use crate::torch::shim::{self, GeneratorDevice};
use tch::Tensor;

/// The state that a closure may change while it is traced. Restored on drop.
pub(super) struct Untouched<'a> {
    variables: Vec<&'a ProgramVariable>,
    /// The version counter of each variable before the trace.
    versions: Vec<Option<u64>>,
    /// Copies of the buffers, which layers in training mode change.
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

    /// Returns the variables that were changed. Buffers are compared by their bits, because batch normalization changes
    /// them without a change of the version counter.
    pub(super) fn changed(&self) -> Vec<&'a ProgramVariable> {
        let now = versions(&self.variables);
        let places = 0..self.variables.len();
        let differs = |place: &usize| match &self.buffers[*place] {
            Some(before) => !same_bits(&self.variables[*place].tensor, before).unwrap_or(false),
            None => self.versions[*place] != now[*place],
        };
        places.filter(differs).map(|place| self.variables[place]).collect()
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
        for (variable, before) in self.variables.iter().zip(&self.buffers) {
            if let Some(before) = before.as_ref().filter(|before| !same_bits(&variable.tensor, before).unwrap_or(false))
            {
                let _no_grad = tch::no_grad_guard();
                variable.tensor.shallow_clone().copy_(before);
            }
        }
    }
}
