//! Plans a save: which tensor goes to which file. Writes nothing. Objects that cannot be saved are reported here, by
//! name.

use super::chunk::{self, Span};
use super::lazy::Lazy;
use super::options::{Layout, SaveOptions};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::TensorRecord;
use crate::format::safetensors::layout;
use crate::graph::{
    Area, Asked, Collection, Exclusive, Gate, Gated, Guarded, Identity, Leaf, LeafObject, Moment, Node, Seen, Survey,
    TensorLeaf, Torn, ValueLeaf, walk,
};
use crate::name;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The plan of a save.
#[derive(Default)]
pub(crate) struct Plan {
    /// What is saved.
    objects: Vec<(String, Node)>,
    pub files: Vec<PlannedFile>,
    pub tensors: Vec<PlannedTensor>,
    /// Keys with the same memory as a planned tensor: (key, its place in `tensors`).
    pub aliases: Vec<(String, usize)>,
    pub values: Vec<(String, Arc<dyn ValueLeaf>)>,
    /// What shows whether a step on another thread has changed tensors.
    gated: Gated,
    /// The moment whose state the plan has, if that was recorded.
    moment: Option<Moment>,
    /// How the bytes are divided.
    layout: Layout,
    /// The bytes of the files, divided among threads.
    pub spans: Vec<Span>,
    /// The gates that tensors are behind.
    pub gates: Vec<Gate>,
    /// The tensors, then those of the aliases.
    survey: Survey,
    /// Their generations when the plan was made, in the same order.
    generations: Vec<Option<u64>>,
    /// The collections, with their generations.
    collections: Vec<(Arc<dyn Collection>, Option<u64>)>,
    pub(super) lazy: Mutex<Option<Arc<Lazy>>>,
}

/// A safetensors file.
#[derive(Clone)]
pub(crate) struct PlannedFile {
    pub name: String,
    pub header: Arc<[u8]>,
    pub bytes: u64,
    /// Its tensors, by place in `Plan::tensors`, in file order.
    pub tensors: Vec<usize>,
}

/// A tensor and its place.
#[derive(Clone)]
pub(crate) struct PlannedTensor {
    pub key: String,
    pub name_in_file: String,
    pub spec: TensorSpec,
    pub leaf: Arc<dyn TensorLeaf>,
    /// Its range in the file.
    pub range: Range<u64>,
    /// The address of its first element, if it has a unique one.
    pub address: Option<usize>,
    /// The memory that its elements are in.
    pub area: Option<Area>,
    /// Whether it changes only behind one of the plan's gates.
    pub guarded: bool,
    /// The access of its writer, if only that has a handle to it.
    pub exclusive: Option<Arc<Exclusive>>,
}

impl Plan {
    /// Returns what the tensors report now, followed by those of the aliases.
    pub(crate) fn look(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.survey.look_alone(&mut seen);
        self.survey.look_together(&[], &mut seen);
        seen
    }

    /// Returns the survey of the tensors.
    pub(crate) fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Returns `true` if a new plan of the same objects would be the same, as far as the collections report. A
    /// collection that does not know makes a new plan necessary.
    pub(crate) fn fits_collections(&self) -> bool {
        self.collections.iter().all(|(collection, then)| then.is_some() && *then == collection.generation())
    }

    /// Returns `true` if a new plan would be the same, as far as the tensors reported in [`seen`](Plan::look).
    pub(crate) fn fits(&self, seen: &[Seen]) -> bool {
        self.generations.iter().zip(seen).all(|(then, now)| then.is_some() && *then == now.generation())
    }

    /// Returns `true` if the writers that had exclusive access to tensors have it still, to the same memory, as far as
    /// reported in [`seen`](Plan::look). Both are asked: another thread may have ended the access after the plan
    /// took it over, but before it took over the generation.
    pub(super) fn fits_writers(&self, seen: &[Seen]) -> bool {
        let fits = |(writer, places): &(Arc<Exclusive>, Vec<usize>)| {
            let is_same = places.first().is_none_or(|&place| self.generations[place] == seen[place].generation());
            is_same && !writer.is_shared()
        };
        self.survey.writers().iter().all(fits)
    }

    /// Returns `true` if a save with these options divides its bytes in the same way.
    pub(crate) fn fits_options(&self, options: &SaveOptions) -> bool {
        self.layout == options.layout()
    }

    /// Returns `true` if it was captured before.
    pub(crate) fn was_captured(&self) -> bool {
        self.lazy.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Returns the key of a tensor that a restore which stopped half-way may have left partly overwritten.
    pub(crate) fn torn(&self) -> Option<&str> {
        let torn = Torn::now()?;
        let mut tensors = self.tensors.iter();
        tensors.find(|tensor| torn.has(&tensor.leaf, &tensor.key, &self.objects)).map(|tensor| tensor.key.as_str())
    }

    /// Returns the keys of tensors that [are lost](TensorLeaf::is_lost), as reported in [`seen`](Plan::look).
    pub(crate) fn lost<'a>(&'a self, seen: &'a [Seen]) -> impl Iterator<Item = &'a str> {
        self.keys().zip(seen).filter(|(_, seen)| seen.is_lost()).map(|(key, _)| key.as_str())
    }

    /// Returns the present values.
    pub(crate) fn values(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        self.values.iter().map(saved).collect()
    }

    /// Returns the moment whose state is saved: the present one, unless the plan has a recorded state.
    pub(crate) fn moment(&self) -> Result<Moment> {
        self.moment.clone().map_or_else(|| self.gated.now(), Ok)
    }

    /// Returns the key of an object, or of its value, that a writer on another thread has changed since that moment,
    /// together with tensors.
    pub(crate) fn changed_since(&self, moment: &Moment) -> Result<Option<String>> {
        self.gated.changed_since(moment)
    }

    /// Replaces what shows that tensors have changed, for a plan of only some of the tracked objects.
    pub(crate) fn with_gated(mut self, gated: Gated) -> Plan {
        self.gated = gated;
        self
    }

    /// Returns the same plan for the state of a `moment`, with other leaves for some of the tensors, by their places, and
    /// for the values, by their keys.
    pub(super) fn with_leaves(
        &self,
        moment: Moment,
        mut tensors: BTreeMap<usize, Arc<dyn TensorLeaf>>,
        mut values: BTreeMap<String, Arc<dyn ValueLeaf>>,
    ) -> Plan {
        let tensor = |(place, tensor): (usize, &PlannedTensor)| match tensors.remove(&place) {
            Some(leaf) => {
                PlannedTensor { leaf, address: None, area: None, guarded: false, exclusive: None, ..tensor.clone() }
            }
            None => tensor.clone(),
        };
        let value = |(key, leaf): &(String, Arc<dyn ValueLeaf>)| {
            (key.clone(), values.remove(key).unwrap_or_else(|| leaf.clone()))
        };
        Plan {
            tensors: self.tensors.iter().enumerate().map(tensor).collect(),
            values: self.values.iter().map(value).collect(),
            files: self.files.clone(),
            aliases: self.aliases.clone(),
            spans: self.spans.clone(),
            gates: self.gates.clone(),
            gated: self.gated.clone(),
            moment: Some(moment),
            ..Plan::default()
        }
    }

    /// Returns the keys, in the order in which the tensors are [seen](Plan::look).
    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        self.tensors.iter().map(|tensor| &tensor.key).chain(self.aliases.iter().map(|(key, _)| key))
    }

    /// Records whether tensors require a gradient.
    pub(super) fn note_trainable(&self, seen: &[Seen], records: &mut BTreeMap<String, TensorRecord>) {
        let said = self.keys().zip(seen).filter_map(|(key, seen)| Some((key, seen.requires_grad()?)));
        for (key, requires_grad) in said {
            if let Some(record) = records.get_mut(key) {
                record.requires_grad = Some(requires_grad);
            }
        }
    }

    /// Returns the number of bytes of all component files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Returns a present value with its key.
fn saved((key, leaf): &(String, Arc<dyn ValueLeaf>)) -> Result<(String, serde_json::Value)> {
    let value = leaf.save().map_err(|reason| Error::object(key, reason))?;
    Ok((key.clone(), value))
}

/// The suffix of the file with a component's frozen parameters, if it has others as well.
const FROZEN: &str = "-frozen";

/// Plans a save of these objects.
pub(crate) fn plan(objects: &[(String, Node)], options: &SaveOptions) -> Result<Plan> {
    let walked = walk(objects)?;
    // Read first, so that a change meanwhile makes the plan stale, never wrongly current.
    let asked = walked.collections.iter().zip(&walked.covered).filter(|(_, is_covered)| !**is_covered);
    let collections = asked.map(|(collection, _)| (collection.clone(), collection.generation())).collect();
    let generation = |leaf: &Leaf| match &leaf.object {
        LeafObject::Tensor(tensor) => match tensor.exclusive() {
            Some(exclusive) => (Some(exclusive.generation()), Some(exclusive)),
            None => (tensor.generation(), None),
        },
        LeafObject::Value(_) => (None, None),
    };
    let generations: Vec<(Option<u64>, Option<Arc<Exclusive>>)> = walked.leaves.iter().map(generation).collect();
    let mut planner = Planner { objects: objects.to_vec(), collections, ..Planner::default() };
    let guarded = walked.guarded();
    planner.gated = Gated::among(&guarded, &walked.leaves);
    for (_, guarded) in guarded {
        planner.gates.push(guarded.gate.clone());
        planner.guarded.push(guarded);
    }
    for (leaf, (generation, exclusive)) in walked.leaves.into_iter().zip(generations) {
        planner.add(leaf, generation, exclusive)?;
    }
    planner.finish(options.layout())
}

#[derive(Default)]
struct Planner {
    objects: Vec<(String, Node)>,
    tensors: Vec<PlannedTensor>,
    /// The places of the tensors per component, in the order the components were tracked.
    components: Vec<(String, Vec<usize>)>,
    /// The places of parameters that are not trained at present.
    frozen: HashSet<usize>,
    seen: HashMap<Identity, usize>,
    aliases: Vec<(String, usize)>,
    alias_leaves: Vec<Asked>,
    /// Generations of the tensors and of the aliases.
    generations: [Vec<Option<u64>>; 2],
    collections: Vec<(Arc<dyn Collection>, Option<u64>)>,
    values: Vec<(String, Arc<dyn ValueLeaf>)>,
    gates: Vec<Gate>,
    guarded: Vec<Guarded>,
    gated: Gated,
}

impl Planner {
    fn add(&mut self, leaf: Leaf, generation: Option<u64>, exclusive: Option<Arc<Exclusive>>) -> Result<()> {
        match leaf.object {
            LeafObject::Value(value) => self.values.push((leaf.key, value)),
            LeafObject::Tensor(tensor) => {
                let spec = tensor.spec().map_err(|reason| Error::object(&leaf.key, reason))?;
                let place = self.tensors.len();
                let identity = tensor.identity();
                let address = identity.as_ref().map(|identity| identity.address);
                let area = identity.as_ref().map(Area::of);
                let is_one = |address| self.guarded.iter().any(|guarded| guarded.has(address, tensor.variable()));
                let guarded = address.is_some_and(is_one);
                if let Some(identity) = identity {
                    let first = *self.seen.entry(identity).or_insert(place);
                    if first != place {
                        self.aliases.push((leaf.key, first));
                        self.alias_leaves.push((tensor, exclusive));
                        self.generations[1].push(generation);
                        return Ok(());
                    }
                }
                match self.components.last_mut() {
                    Some((component, places)) if *component == leaf.component => places.push(place),
                    _ => self.components.push((leaf.component, vec![place])),
                }
                if leaf.is_frozen {
                    self.frozen.insert(place);
                }
                let (key, name_in_file) = (leaf.key, leaf.name_in_file);
                self.generations[0].push(generation);
                self.tensors.push(PlannedTensor {
                    key,
                    name_in_file,
                    spec,
                    leaf: tensor,
                    range: 0..0,
                    address,
                    area,
                    guarded,
                    exclusive,
                });
            }
        }
        Ok(())
    }

    fn finish(mut self, layout: Layout) -> Result<Plan> {
        let mut files = Vec::new();
        for (component, places) in std::mem::take(&mut self.components) {
            let stem = name::file_stem(&component);
            // Frozen parameters are not written again with the trained ones.
            let (frozen, others): (Vec<usize>, Vec<usize>) =
                places.into_iter().partition(|place| self.frozen.contains(place));
            let groups = match others.is_empty() {
                true => vec![(stem, frozen)],
                false => vec![(stem.clone(), others), (format!("{stem}{FROZEN}"), frozen)],
            };
            for (stem, places) in groups.into_iter().filter(|(_, places)| !places.is_empty()) {
                let parts = self.split(places, layout.max_file_bytes);
                let count = parts.len();
                for (i, part) in parts.into_iter().enumerate() {
                    let part_name =
                        if count == 1 { stem.clone() } else { format!("{stem}-{:05}-of-{count:05}", i + 1) };
                    files.push(self.file(format!("{part_name}{}", name::COMPONENT_EXTENSION), part)?);
                }
            }
        }
        let mut names = HashSet::new();
        if let Some(file) = files.iter().find(|file| !names.insert(file.name.to_lowercase())) {
            return Err(Error::name(
                &file.name,
                "two components would be saved in files of this name; rename one of them",
            ));
        }
        let spans = |(place, file): (usize, &PlannedFile)| {
            let tensors = file.tensors.iter().map(|&tensor| (tensor, self.tensors[tensor].range.clone()));
            chunk::spans(place, file.bytes, file.header.len(), tensors, &layout)
        };
        let spans = files.iter().enumerate().flat_map(spans).collect();
        let asked = self.tensors.iter().map(|tensor| (tensor.leaf.clone(), tensor.exclusive.clone()));
        let survey = Survey::new(asked.chain(self.alias_leaves).collect());
        Ok(Plan {
            objects: self.objects,
            files,
            layout,
            survey,
            generations: self.generations.concat(),
            collections: self.collections,
            tensors: self.tensors,
            aliases: self.aliases,
            values: self.values,
            gated: self.gated,
            moment: None,
            spans,
            gates: self.gates,
            lazy: Mutex::default(),
        })
    }

    /// Divides a component's tensors into parts of at most `max_file_bytes`, sorted by name. A larger tensor is alone.
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
        Ok(PlannedFile { name, header: layout.header.into(), bytes: layout.file_bytes, tensors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{Dtype, TensorSpec};
    use crate::error::BoxError;
    use crate::graph::{TensorBytes, TensorTarget};

    /// A slot to which another thread asks for a handle right after the plan has asked whether anybody has one.
    #[derive(Debug)]
    struct SharedMeanwhile(Arc<Exclusive>);

    impl TensorLeaf for SharedMeanwhile {
        fn spec(&self) -> std::result::Result<TensorSpec, BoxError> {
            Ok(TensorSpec::new(Dtype::U8, [3]))
        }
        fn bytes(&self) -> std::result::Result<Box<dyn TensorBytes>, BoxError> {
            Ok(Box::new(vec![1, 2, 3]))
        }
        fn target(&self) -> std::result::Result<Box<dyn TensorTarget>, BoxError> {
            Err("read only".into())
        }
        fn exclusive(&self) -> Option<Arc<Exclusive>> {
            let exclusive = (!self.0.is_shared()).then(|| self.0.clone());
            self.0.share();
            exclusive
        }
    }

    #[test]
    fn a_slot_that_is_shared_while_it_is_planned_is_not_taken_for_exclusive() {
        let slot = SharedMeanwhile(Exclusive::new(Gate::new()));
        let objects = [("optimizer".to_string(), Node::tensor(slot))];
        let first = plan(&objects, &SaveOptions::default()).unwrap();
        assert!(first.fits(&first.look()) && !first.fits_writers(&first.look()));
        // Planned once more, it is a tensor like any other.
        let second = plan(&objects, &SaveOptions::default()).unwrap();
        assert!(second.survey().writers().is_empty() && second.fits_writers(&second.look()));
    }
}
