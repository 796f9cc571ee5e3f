//! From live objects to files: which tensor goes where. Nothing is written, so whatever cannot be saved is
//! refused here, by name.

use super::SaveOptions;
use super::chunk::{self, Span};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::TensorRecord;
use crate::format::safetensors::layout;
use crate::graph::{Area, Collection, Gate, Identity, Leaf, LeafObject, Node, TensorLeaf, TensorPin, ValueLeaf, walk};
use crate::name;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What a save writes.
#[derive(Default)]
pub(crate) struct Plan {
    pub files: Vec<PlannedFile>,
    pub tensors: Vec<PlannedTensor>,
    /// Keys that show the same memory as a planned tensor: (key, its place in `tensors`).
    pub aliases: Vec<(String, usize)>,
    /// The tensors under those keys, in the same order.
    pub alias_leaves: Vec<Arc<dyn TensorLeaf>>,
    pub values: Vec<(String, Arc<dyn ValueLeaf>)>,
    /// The files' bytes, cut for the threads that write them.
    pub spans: Vec<Span>,
    /// The gates that tensors are behind.
    pub gates: Vec<Gate>,
    /// What it was made from; `None` when one does not tell whether it has changed.
    made_from: Option<MadeFrom>,
    /// The memory of small tensors, held from one save in the background to the next: while the plan is current it is the
    /// same, and taking hold of thousands of them is most of what the call costs.
    pub kept: Mutex<Vec<Option<Arc<dyn TensorPin>>>>,
}

/// Collections and tensors, and their generations when the plan was made.
#[derive(Default)]
struct MadeFrom {
    collections: Vec<(Arc<dyn Collection>, u64)>,
    leaves: Vec<(Arc<dyn TensorLeaf>, u64)>,
}

/// A safetensors file.
pub(crate) struct PlannedFile {
    pub name: String,
    pub header: Vec<u8>,
    pub bytes: u64,
    /// Its tensors, by place in `Plan::tensors`, in file order.
    pub tensors: Vec<usize>,
}

/// A tensor and its place.
pub(crate) struct PlannedTensor {
    pub key: String,
    pub name_in_file: String,
    pub spec: TensorSpec,
    pub leaf: Arc<dyn TensorLeaf>,
    /// In the file, from its beginning.
    pub range: Range<u64>,
    /// Of its first element, if it has one that tells it from others.
    pub address: Option<usize>,
    /// The memory that its elements are in.
    pub area: Option<Area>,
    /// Whether it changes only behind one of the plan's gates.
    pub guarded: bool,
}

impl Plan {
    /// Whether a new plan of the same objects would be the same: every collection and every tensor says so.
    pub(crate) fn is_current(&self) -> bool {
        let Some(MadeFrom { collections, leaves }) = &self.made_from else { return false };
        collections.iter().all(|(collection, generation)| collection.generation() == Some(*generation))
            && leaves.iter().all(|(leaf, generation)| leaf.generation() == Some(*generation))
    }

    /// The values, as they are now.
    pub(crate) fn values(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        let save = |(key, leaf): &(String, Arc<dyn ValueLeaf>)| {
            let value = leaf.save().map_err(|reason| Error::object(key, reason))?;
            Ok((key.clone(), value))
        };
        self.values.iter().map(save).collect()
    }

    /// Whether the variables require a gradient, as they are now: of the tensors, then of the aliases.
    pub(crate) fn trainable(&self) -> Vec<Option<bool>> {
        let leaves = self.tensors.iter().map(|tensor| &tensor.leaf).chain(&self.alias_leaves);
        leaves.map(|leaf| leaf.requires_grad()).collect()
    }

    /// Notes what [`trainable`](Plan::trainable) gave in the tensors' records.
    pub(crate) fn note_trainable(&self, trainable: &[Option<bool>], records: &mut BTreeMap<String, TensorRecord>) {
        let keys = self.tensors.iter().map(|tensor| &tensor.key).chain(self.aliases.iter().map(|(key, _)| key));
        for (key, requires_grad) in keys.zip(trainable) {
            if let Some(record) = records.get_mut(key).filter(|_| requires_grad.is_some()) {
                record.requires_grad = *requires_grad;
            }
        }
    }

    /// Bytes the component files take together.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Plans a save of these objects.
pub(crate) fn plan(objects: &[(String, Node)], options: &SaveOptions) -> Result<Plan> {
    let walked = walk(objects)?;
    // Before anything else is asked of them: what changes meanwhile makes the plan stale, never wrongly current.
    let of_collection = |collection: &Arc<dyn Collection>| Some((collection.clone(), collection.generation()?));
    let of_leaf = |leaf: &Leaf| match &leaf.object {
        _ if leaf.is_covered => None,
        LeafObject::Tensor(tensor) => Some(tensor.generation().map(|generation| (tensor.clone(), generation))),
        LeafObject::Value(_) => None,
    };
    let collections: Option<Vec<_>> = walked.collections.iter().map(of_collection).collect();
    let leaves: Option<Vec<_>> = walked.leaves.iter().filter_map(of_leaf).collect();
    let made_from = collections.zip(leaves).map(|(collections, leaves)| MadeFrom { collections, leaves });
    let mut planner = Planner { made_from, ..Planner::default() };
    for guarded in walked.collections.iter().filter_map(|collection| collection.guarded()) {
        planner.gates.push(guarded.gate);
        planner.guarded.extend(guarded.addresses);
    }
    for leaf in walked.leaves {
        planner.add(leaf)?;
    }
    planner.finish(options)
}

#[derive(Default)]
struct Planner {
    tensors: Vec<PlannedTensor>,
    /// Of every component that has tensors, their places; in the order the components were tracked.
    components: Vec<(String, Vec<usize>)>,
    seen: HashMap<Identity, usize>,
    aliases: Vec<(String, usize)>,
    alias_leaves: Vec<Arc<dyn TensorLeaf>>,
    values: Vec<(String, Arc<dyn ValueLeaf>)>,
    gates: Vec<Gate>,
    guarded: HashSet<usize>,
    made_from: Option<MadeFrom>,
}

impl Planner {
    fn add(&mut self, leaf: Leaf) -> Result<()> {
        match leaf.object {
            LeafObject::Value(value) => self.values.push((leaf.key, value)),
            LeafObject::Tensor(tensor) => {
                let spec = tensor.spec().map_err(|reason| Error::object(&leaf.key, reason))?;
                let place = self.tensors.len();
                let identity = tensor.identity();
                let address = identity.as_ref().map(|identity| identity.address);
                let area = identity.as_ref().map(Area::of);
                let guarded = address.is_some_and(|address| self.guarded.contains(&address));
                if let Some(identity) = identity {
                    let first = *self.seen.entry(identity).or_insert(place);
                    if first != place {
                        self.aliases.push((leaf.key, first));
                        self.alias_leaves.push(tensor);
                        return Ok(());
                    }
                }
                match self.components.last_mut() {
                    Some((component, places)) if *component == leaf.component => places.push(place),
                    _ => self.components.push((leaf.component, vec![place])),
                }
                let (key, name_in_file) = (leaf.key, leaf.name_in_file);
                self.tensors.push(PlannedTensor {
                    key,
                    name_in_file,
                    spec,
                    leaf: tensor,
                    range: 0..0,
                    address,
                    area,
                    guarded,
                });
            }
        }
        Ok(())
    }

    fn finish(mut self, options: &SaveOptions) -> Result<Plan> {
        let mut files = Vec::new();
        for (component, places) in std::mem::take(&mut self.components) {
            let parts = self.split(places, options.max_file_bytes);
            let stem = name::file_stem(&component);
            let count = parts.len();
            for (i, part) in parts.into_iter().enumerate() {
                let part_name = if count == 1 { stem.clone() } else { format!("{stem}-{:05}-of-{count:05}", i + 1) };
                files.push(self.file(format!("{part_name}{}", name::COMPONENT_EXTENSION), part)?);
            }
        }
        let mut names = HashSet::new();
        if let Some(file) = files.iter().find(|file| !names.insert(file.name.to_lowercase())) {
            return Err(Error::name(
                &file.name,
                "two components would be saved in files of this name; rename one of them",
            ));
        }
        let spans = |(place, file)| chunk::spans(place, file, &self.tensors, options);
        let spans = files.iter().enumerate().flat_map(spans).collect();
        Ok(Plan {
            files,
            tensors: self.tensors,
            aliases: self.aliases,
            alias_leaves: self.alias_leaves,
            values: self.values,
            spans,
            gates: self.gates,
            made_from: self.made_from,
            kept: Mutex::default(),
        })
    }

    /// Cuts a component's tensors into parts of at most `max_file_bytes`, in order of name; a larger tensor is alone.
    fn split(&self, mut places: Vec<usize>, max_file_bytes: u64) -> Vec<Vec<usize>> {
        let bytes = |place: usize| self.tensors[place].spec.bytes().unwrap_or(u64::MAX);
        let total = places.iter().fold(0u64, |sum, &place| sum.saturating_add(bytes(place)));
        if total <= max_file_bytes {
            return vec![places];
        }
        places.sort_by(|&a, &b| self.tensors[a].name_in_file.cmp(&self.tensors[b].name_in_file));
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for place in places {
            match parts.last_mut() {
                Some(part) if bytes(place) <= room => part.push(place),
                _ => {
                    parts.push(vec![place]);
                    room = max_file_bytes;
                }
            }
            room = room.saturating_sub(bytes(place));
        }
        parts
    }

    fn file(&mut self, name: String, places: Vec<usize>) -> Result<PlannedFile> {
        let named = places.iter().map(|&place| {
            let tensor = &self.tensors[place];
            (tensor.name_in_file.clone(), tensor.spec.clone())
        });
        let layout = layout(named.collect())?;
        let mut tensors = Vec::with_capacity(places.len());
        for placed in &layout.tensors {
            let place = places[placed.index];
            self.tensors[place].range = placed.begin..placed.end;
            tensors.push(place);
        }
        Ok(PlannedFile { name, header: layout.header, bytes: layout.file_bytes, tensors })
    }
}
