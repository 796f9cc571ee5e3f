//! Restores of another tool's files into tensors of libtorch that exist.

use crate::{Outcome, resident};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{Checkpoint, Dtype, Node, RestoreOptions, Trackable, Verify, interop, name};

/// How a file is restored.
pub struct Restores<'a> {
    pub path: &'a Path,
    /// The number of rounds, after a first one that is not counted and brings the file into the page cache.
    pub reps: usize,
    pub is_verified: bool,
    pub threads: Option<usize>,
}

/// Objects by name.
#[derive(Default)]
struct Tree {
    tensor: Option<Tensor>,
    children: BTreeMap<String, Tree>,
}

impl Trackable for Tree {
    fn node(&self) -> Node {
        match &self.tensor {
            Some(tensor) => tensor.node(),
            None => Node::group(self.children.iter().map(|(name, tree)| (name, tree.node()))),
        }
    }
}

impl Restores<'_> {
    /// Prints the seconds of each restore, the bytes of the tensors, and the peak of resident memory above them.
    pub fn print(&self) -> Outcome<()> {
        let (mut root, mut bytes) = (Tree::default(), 0);
        let source = interop::open(self.path)?;
        for (key, spec) in source.tensors().iter().filter(|(key, _)| source.first_alias(key) == key.as_str()) {
            let kind = match spec.dtype {
                Dtype::F32 => Kind::Float,
                Dtype::I64 => Kind::Int64,
                other => return Err(format!("{key} is {other}; F32 and I64 are measured").into()),
            };
            let shape: Vec<i64> = spec.shape.iter().map(|length| *length as i64).collect();
            let path = name::path(key).ok_or("no path")?;
            let place = path.into_iter().fold(&mut root, |at, name| at.children.entry(name).or_default());
            place.tensor = Some(Tensor::ones(shape.as_slice(), (kind, Device::Cpu)));
            bytes += spec.bytes().unwrap_or_default();
        }
        drop(source);
        // The checkpoint has a counter of this name itself.
        root.children.remove("save_counter");
        let before = resident("VmRSS:");
        let mut checkpoint = Checkpoint::new();
        for (name, tree) in &root.children {
            checkpoint.track_mut(name, tree)?;
        }
        let mut options = RestoreOptions::new();
        if !self.is_verified {
            options = options.verify(Verify::Never);
        }
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        checkpoint.restore_with(self.path, &options)?.assert_existing_objects_matched()?;
        let mut seconds = Vec::new();
        for _ in 0..self.reps {
            let began = Instant::now();
            checkpoint.restore_with(self.path, &options)?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        let extra = resident("VmHWM:").saturating_sub(before);
        println!("{{\"seconds\":{seconds:?},\"bytes\":{bytes},\"rss_extra\":{extra}}}");
        Ok(())
    }
}
