//! Copies the bytes of tensors into chunks.

use super::chunk::{Chunk, Source, Span};
use super::lazy::Lazy;
use super::plan::Plan;
use super::samples::Pinned;
use crate::error::{BoxError, Error, Result};
use crate::graph::{TensorBytes, TensorPin, bytes_as};
use std::sync::Arc;

/// The pinned memory that tensors of a plan had at the call.
#[derive(Default)]
pub(super) struct Pins {
    /// Pins that are held from save to save.
    pub lazy: Option<Arc<Lazy>>,
    /// Pins for this save, by place in `Plan::tensors`; empty if there are none.
    pub fresh: Vec<Option<Box<dyn TensorPin>>>,
}

impl Pinned for Pins {
    fn get(&self, place: usize) -> Option<&dyn TensorPin> {
        let fresh = self.fresh.get(place).and_then(Option::as_deref);
        fresh.or_else(|| self.lazy.as_ref()?.kept(place))
    }
}

/// Copies the bytes of tensors into chunks. Keeps the last tensor open, since a large one fills many chunks. Pinned
/// tensors are read from the memory that they had at the call.
pub(super) struct Gatherer<'a> {
    plan: &'a Plan,
    pins: &'a Pins,
    open: Option<(usize, Box<dyn TensorBytes + 'a>)>,
}

impl<'a> Gatherer<'a> {
    pub(super) fn new(plan: &'a Plan, pins: &'a Pins) -> Self {
        Gatherer { plan, pins, open: None }
    }

    /// Fills the parts of a chunk that `wanted` names; `buffer` has the chunk's length.
    pub(super) fn gather(
        &mut self,
        span: &Span,
        chunk: &Chunk,
        buffer: &mut [u8],
        wanted: impl Fn(Source) -> bool,
    ) -> Result<()> {
        for part in chunk.parts.iter().filter(|part| wanted(part.source)) {
            let target = &mut buffer[part.at.clone()];
            match part.source {
                Source::Header => {
                    let header = &self.plan.files[span.file].header;
                    target.copy_from_slice(&header[part.from..part.from + target.len()]);
                }
                Source::Tensor(place) => {
                    let tensor = &self.plan.tensors[place];
                    let is_whole = target.len() as u64 == tensor.range.end - tensor.range.start;
                    let is_live = self.pins.get(place).is_none();
                    let failed = |reason| Error::object(&tensor.key, reason);
                    if is_whole && is_live {
                        tensor.leaf.copy_to(&tensor.spec, target).map_err(failed)?;
                    } else if is_live
                        && tensor.leaf.copy_range(&tensor.spec, part.from as u64, target).map_err(failed)?
                    {
                        // A tensor that is not in memory, and need not be.
                    } else {
                        let bytes = self.tensor(place)?;
                        target.copy_from_slice(&bytes[part.from..part.from + target.len()]);
                    }
                }
            }
        }
        Ok(())
    }

    fn tensor(&mut self, place: usize) -> Result<&[u8]> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != place) {
            self.open = None;
            let tensor = &self.plan.tensors[place];
            let failed = |reason: BoxError| Error::object(&tensor.key, reason);
            let bytes = match self.pins.get(place) {
                Some(pin) => pin.bytes().map_err(failed)?,
                None => bytes_as(&*tensor.leaf, &tensor.spec).map_err(failed)?,
            };
            if bytes.as_slice().len() as u64 != tensor.range.end - tensor.range.start {
                return Err(failed("its size changed while it was being saved".into()));
            }
            self.open = Some((place, bytes));
        }
        Ok(self.open.as_ref().map_or(&[], |(_, bytes)| bytes.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{Dtype, TensorSpec};
    use crate::graph::{TensorLeaf, TensorTarget};
    use crate::repository::PAGE;
    use crate::save::chunk::{CHUNK, spans};
    use crate::save::options::Layout;
    use crate::save::plan::{PlannedFile, PlannedTensor};
    use proptest::prelude::*;

    struct Numbered(usize, usize);

    impl TensorLeaf for Numbered {
        fn spec(&self) -> Result<TensorSpec, BoxError> {
            Ok(TensorSpec::new(Dtype::U8, [self.1 as u64]))
        }
        fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
            let mut bytes = vec![(self.0 * 7) as u8; self.1];
            bytes.chunks_mut(1000).enumerate().for_each(|(i, row)| row[0] = i as u8);
            Ok(Box::new(bytes))
        }
        fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
            Err("read only".into())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn chunks_are_the_file(lengths in prop::collection::vec(prop_oneof![0usize..10_000, 1_000_000usize..9_000_000], 0..12), threads in 1usize..5, pages in prop::option::of(1usize..2000)) {
            let header = vec![0xAB; 4096];
            let mut tensors = Vec::new();
            let mut expected = header.clone();
            for (i, &length) in lengths.iter().enumerate() {
                let leaf: Arc<dyn TensorLeaf> = Arc::new(Numbered(i, length));
                let range = expected.len() as u64..(expected.len() + length) as u64;
                expected.extend_from_slice(leaf.bytes().unwrap().as_slice());
                let spec = leaf.spec().unwrap();
                tensors.push(PlannedTensor { key: i.to_string(), name_in_file: i.to_string(), spec, leaf, range, area: None, address: None, exclusive: None, guarded: false });
            }
            let file = PlannedFile { name: "f".into(), header: header.into(), bytes: expected.len() as u64, tensors: (0..lengths.len()).collect() };
            let chunk_bytes = pages.map(|pages| pages * PAGE);
            let in_file = file.tensors.iter().map(|&tensor| (tensor, tensors[tensor].range.clone()));
            let spans = spans(0, file.bytes, file.header.len(), in_file, &Layout { threads, chunk_bytes, ..Layout::default() });
            let mut plan = Plan::default();
            plan.files.push(file);
            plan.tensors = tensors;
            let mut written = vec![0; expected.len()];
            let mut bytes = 0;
            for span in &spans {
                let inner = span.chunks.len().saturating_sub(1);
                for (i, chunk) in span.chunks.iter().enumerate() {
                    prop_assert!(chunk.length <= chunk_bytes.unwrap_or(CHUNK) && (i == 0 || chunk.offset % PAGE as u64 == 0));
                    prop_assert!(i == inner || (chunk.offset as usize + chunk.length).is_multiple_of(PAGE));
                    let pins = Pins::default();
                    let mut gatherer = Gatherer::new(&plan, &pins);
                    let mut buffer = vec![0; chunk.length];
                    gatherer.gather(span, chunk, &mut buffer, |_| true).unwrap();
                    written[chunk.offset as usize..][..chunk.length].copy_from_slice(&buffer);
                    bytes += chunk.length;
                }
            }
            prop_assert_eq!(bytes, expected.len());
            prop_assert!(written == expected);
        }
    }
}
