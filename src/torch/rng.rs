//! The state of libtorch's random number generators.

use super::shim::{self, GeneratorDevice};
use super::tensor::{bytes_of, examine};
use crate::dtype::TensorSpec;
use crate::error::BoxError;
use crate::graph::{Child, Collection, Node, TensorBytes, TensorLeaf, TensorTarget, Trackable};
use tch::Tensor;

/// The states of libtorch's default generators, from which initialization, dropout and sampling draw: that of the CPU
/// (`cpu`) and those of the GPUs (`cuda:0` and so on, `mps:0`). They are saved and restored, so that a resumed run
/// draws the same numbers as an uninterrupted one; a seed alone would start over.
///
/// A checkpoint of a machine with fewer GPUs can be restored: missing generators stay unchanged.
///
/// ```no_run
/// use tch_checkpoint::{Rng, Trackable};
/// tch::manual_seed(7);
/// let node = Rng::global().node();
/// # let _ = node;
/// ```
#[derive(Debug, Clone)]
pub struct Rng(());

impl Rng {
    /// Returns the default generators, which all of libtorch shares.
    #[must_use]
    pub fn global() -> Rng {
        Rng(())
    }
}

impl Trackable for Rng {
    fn node(&self) -> Node {
        Node::collection(self.clone())
    }
}

impl Collection for Rng {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        let mut children = vec![Child::new("cpu", Node::tensor(Generator { device: GeneratorDevice::Cpu, index: 0 }))];
        for (device, name) in [(GeneratorDevice::Cuda, "cuda"), (GeneratorDevice::Mps, "mps")] {
            for index in 0..shim::count_generators(device)? {
                children.push(Child::new(format!("{name}:{index}"), Node::tensor(Generator { device, index })));
            }
        }
        Ok(children)
    }

    fn generation(&self) -> Option<u64> {
        // The devices of a process do not change.
        Some(0)
    }
}

/// The default generator of a device.
#[derive(Debug, Clone, Copy)]
struct Generator {
    device: GeneratorDevice,
    index: i32,
}

/// The addresses of its elements, which no tensor object has, tell generators apart.
static GENERATORS: [[u8; 128]; 3] = [[0; 128]; 3];

impl TensorLeaf for Generator {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        Ok(examine(&self.state()?)?.0)
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        Ok(bytes_of(&self.state()?)?)
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        let state = self.state()?;
        let bytes = vec![0; examine(&state)?.2.bytes];
        Ok(Box::new(NewState { generator: *self, state, bytes }))
    }

    fn variable(&self) -> Option<usize> {
        let row = match self.device {
            GeneratorDevice::Cpu => 0,
            GeneratorDevice::Cuda => 1,
            GeneratorDevice::Mps => 2,
        };
        Some(std::ptr::from_ref(GENERATORS.get(row)?.get(usize::try_from(self.index).ok()?)?) as usize)
    }

    fn has_rules(&self) -> bool {
        true
    }

    fn check(&self, saved: &[u8]) -> Result<(), BoxError> {
        let state = self.state()?;
        shim::fill(&state, &mut saved.to_vec())?;
        Ok(shim::check_generator_state(self.device, self.index, &state)
            .map_err(|reason| format!("libtorch refuses this state: {reason}"))?)
    }

    fn is_optional(&self) -> bool {
        self.device != GeneratorDevice::Cpu
    }
}

impl Generator {
    fn state(&self) -> Result<Tensor, String> {
        shim::generator_state(self.device, self.index)
    }
}

/// A state that is being read. The generator is set once it is complete.
struct NewState {
    generator: Generator,
    state: Tensor,
    bytes: Vec<u8>,
}

impl TensorTarget for NewState {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn finish(mut self: Box<Self>) -> Result<(), BoxError> {
        shim::fill(&self.state, &mut self.bytes)?;
        Ok(shim::set_generator_state(self.generator.device, self.generator.index, &self.state)
            .map_err(|reason| format!("libtorch refuses this state, and its generator is unchanged: {reason}"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::graph::{Mark, Torn, mark_torn, mark_whole};
    use std::sync::Arc;

    fn cpu() -> Generator {
        Generator { device: GeneratorDevice::Cpu, index: 0 }
    }

    #[test]
    fn a_bad_state_is_refused_and_the_generator_stays() {
        let stays = || {
            let before = cpu().bytes().unwrap().as_slice().to_vec();
            cpu().check(&before).unwrap();
            let refusal = cpu().check(&vec![0xff; before.len()]).unwrap_err().to_string();
            assert!(refusal.contains("refuses this state"), "{refusal}");
            let mut target = cpu().target().unwrap();
            target.as_mut_slice().fill(0xff);
            let refusal = target.finish().unwrap_err().to_string();
            assert!(refusal.contains("is unchanged"), "{refusal}");
            let state = shim::zeros(0, &[3]).unwrap();
            assert!(shim::set_generator_state(GeneratorDevice::Cpu, 0, &state).unwrap_err().contains("size"));
            cpu().bytes().unwrap().as_slice() == before
        };
        // There is one generator, from which other tests may draw meanwhile.
        assert!((0..100).any(|_| stays()));
    }

    #[test]
    fn a_mark_is_of_the_generator_whoever_asks() {
        let leaf = |generator| Arc::new(generator) as Arc<dyn TensorLeaf>;
        let is_marked = |generator| Torn::now().is_some_and(|torn| torn.has(&leaf(generator), "rng", &[]));
        let other = Generator { device: GeneratorDevice::Cuda, index: 127 };
        let all = [cpu(), other, Generator { device: GeneratorDevice::Mps, index: 0 }];
        assert!(all.iter().enumerate().all(|(at, one)| all[..at].iter().all(|two| two.variable() != one.variable())));
        // Not that of the CPU, which other tests save.
        mark_torn([Mark::new(leaf(other))].into_iter());
        assert!(is_marked(other) && !is_marked(cpu()));
        mark_whole([Mark::new(leaf(other))].into_iter());
        assert!(!is_marked(other));
    }

    #[test]
    fn every_device_has_its_name() {
        let names: Vec<String> = Rng::global().children().unwrap().into_iter().map(|child| child.name).collect();
        assert_eq!(names[0], "cpu");
        assert_eq!(names.len() as i64, 1 + tch::Cuda::device_count());
        let spec = cpu().spec().unwrap();
        assert_eq!((spec.dtype, spec.shape.len()), (Dtype::U8, 1));
        assert!(!cpu().is_optional() && Generator { device: GeneratorDevice::Cuda, index: 0 }.is_optional());
        // A GPU that is not there is an error, not a crash.
        let missing = Generator { device: GeneratorDevice::Cuda, index: 99 };
        assert!(missing.spec().is_err());
    }
}
