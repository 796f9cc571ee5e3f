//! Files of Keras that are open for reading.

use super::hdf5::{Dataset, File, SIGNATURE};
use super::layers;
use super::sharded::{Index, MAX_BYTES};
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::interop::blob::Blob;
use crate::interop::input::Input;
use crate::interop::probe::Probe;
use crate::interop::room::Room;
use crate::interop::slot::torch_slot;
use crate::interop::zip::Archive;
use crate::interop::{ReadOptions, Slot};
use crate::location::Location;
use crate::name;
use crate::source::{TensorSource, VerifiedBy, check_range};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The weights in a `.keras` archive.
const MEMBER: &str = "model.weights.h5";
/// Values that take more memory than this have one name only.
const MAX_REPEATED: usize = 1 << 12;
/// The longest member that is not stored as it is, and is read into memory.
const MAX_MEMBER: u64 = 1 << 30;

/// Weights of Keras that are open for reading.
///
/// ```no_run
/// use tch_checkpoint::TensorSource;
/// use tch_checkpoint::interop::keras::Weights;
///
/// # fn main() -> tch_checkpoint::Result<()> {
/// let weights = Weights::open("tagger.keras")?;
/// let spec = &weights.tensors()["encoder/forward_gru/gru_cell/kernel"];
/// let mut kernel = vec![0; spec.bytes().unwrap_or(0) as usize];
/// weights.read("encoder/forward_gru/gru_cell/kernel", &mut kernel)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Weights {
    path: Location,
    format: &'static str,
    files: Vec<File>,
    /// The record of an archive that the file is, with its checksum.
    member: Option<Arc<Blob>>,
    /// File and dataset of every key.
    by_key: BTreeMap<String, (usize, usize)>,
    /// The first key of every dataset.
    first: BTreeMap<(usize, usize), String>,
    tensors: BTreeMap<String, TensorSpec>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
    slots: Vec<Slot>,
}

impl Weights {
    /// Opens an HDF5 file, a `.keras` archive, or the index of sharded weights, which it recognizes by content.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`]; [`Error::Unsupported`] where the file needs what this crate does not
    /// read, leads into another file, or expands beyond [`ReadOptions::max_expansion`]; [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        Weights::open_with(path, &ReadOptions::default())
    }

    /// Like [`open`](Weights::open), with options.
    ///
    /// # Errors
    /// As for [`open`](Weights::open).
    pub fn open_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Weights> {
        let path = path.as_ref();
        let input = Input::open(path)?;
        let start = input.read_vec(0..input.len().min(8), 8)?;
        if start.starts_with(b"PK") {
            let (file, member) = member(input, options)?;
            let weights = Weights::build(path, "Keras (.keras)", vec![file], options)?;
            return Ok(Weights { member: Some(member), ..weights });
        }
        if start == SIGNATURE || !start.trim_ascii_start().starts_with(b"{") {
            let file = File::open(input)?;
            let format = format(&file);
            return Weights::build(path, format, vec![file], options);
        }
        let text = input.read_vec(0..input.len(), MAX_BYTES)?;
        let index = Index::parse(&text).ok_or_else(|| input.damaged("it is not an index of sharded weights"))?;
        let mut files = BTreeMap::new();
        for name in index.files().map_err(|reason| input.damaged(reason))? {
            files.insert(name, File::open(Input::open(&path.with_file_name(name))?)?);
        }
        for (group, parts) in &index.weight_map {
            let group: Vec<String> = group.split('/').filter(|name| !name.is_empty()).map(str::to_string).collect();
            for part in parts.names() {
                let held = files.get(part.as_str()).is_some_and(|file| file.groups.contains_key(&group));
                if !held {
                    return Err(
                        input.damaged(format!("{part} does not hold {:?}, as the index states", group.join("/")))
                    );
                }
            }
        }
        let files = files.into_values().collect();
        Weights::build(path, "Keras (sharded)", files, options)
    }

    /// An HDF5 file in memory: for fuzzing.
    pub(crate) fn of_bytes(bytes: &[u8], options: &ReadOptions) -> Result<Weights> {
        let path = Path::new("fuzzed.h5");
        Weights::build(path, "HDF5", vec![File::open(Input::memory(path, bytes.to_vec()))?], options)
    }

    fn build(path: &Path, format: &'static str, files: Vec<File>, options: &ReadOptions) -> Result<Weights> {
        let mut weights = Weights {
            path: path.into(),
            format,
            files,
            member: None,
            by_key: BTreeMap::new(),
            first: BTreeMap::new(),
            tensors: BTreeMap::new(),
            values: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            slots: Vec::new(),
        };
        weights.check_expansion(options)?;
        weights.name_datasets()?;
        weights.name_layers()?;
        weights.name_slots();
        weights.list();
        Ok(weights)
    }

    /// Returns the optimizer's slots, if the file names them, as files of Keras 2 do.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns the optimizer's slots of `variables`, which are all trainable variables in the order of the model's
    /// `trainable_variables`. For files of Keras 3, including `.keras` files, in which only the order identifies them.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// # let weights = tch_checkpoint::interop::keras::Weights::open("m.keras")?;
    /// for slot in weights.slots_of(&["embed/embeddings", "logits/kernel", "logits/bias"])? {
    ///     println!("{} of {} is {}", slot.name, slot.variable, slot.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Object`] for an unknown variable, and where the number or the shapes of the optimizer's variables do
    /// not fit these.
    pub fn slots_of(&self, variables: &[&str]) -> Result<Vec<Slot>> {
        match self.numbered_slots(variables)? {
            (_, slots) if slots.is_empty() => Err(self.other_variables(variables)),
            (_, slots) => Ok(slots),
        }
    }

    /// Returns the number of the optimizer's variables before the first slot, and the slots.
    pub(super) fn numbered_slots(&self, variables: &[&str]) -> Result<(usize, Vec<Slot>)> {
        let key = |number: usize| format!("optimizer/vars/{number}");
        let count = self.optimizer_variables();
        let shape = |number: usize| self.tensors.get(&key(number)).map(|spec| &spec.shape);
        if let Some(unknown) = variables.iter().find(|variable| !self.tensors.contains_key(**variable)) {
            return Err(unknown_key(unknown));
        }
        // The names of the slots of variable `i` of `n`, with their numbers after the first. The third is made after
        // all of the others.
        let names = |each: usize| -> &'static [&'static str] {
            if each == 1 { &["momentum"] } else { &["momentum", "velocity", "velocity_hat"] }
        };
        let at = |each: usize, i: usize, j: usize| match each {
            1 => i,
            _ if j < 2 => 2 * i + j,
            _ => 2 * variables.len() + i,
        };
        // Keras 3 has the learning rate in second place, Keras 2 has none: a scalar, unlike the first variable's.
        let is_scalar = shape(1).is_some_and(Vec::is_empty);
        for first in if is_scalar { vec![2, 1] } else { vec![1] } {
            let each = count.saturating_sub(first).checked_div(variables.len()).unwrap_or(0);
            if first + each * variables.len() != count || each > 3 {
                continue;
            }
            let fits = variables.iter().enumerate().all(|(i, variable)| {
                let own = self.tensors.get(*variable).map(|spec| &spec.shape);
                (0..each).all(|j| shape(first + at(each, i, j)) == own)
            });
            if !fits {
                continue;
            }
            let mut slots = Vec::new();
            for (i, variable) in variables.iter().enumerate() {
                for (j, name) in names(each).iter().take(each).enumerate() {
                    slots.push(Slot {
                        optimizer: "optimizer".to_string(),
                        variable: variable.to_string(),
                        name: name.to_string(),
                        torch: torch_slot(name, |other| names(each)[..each].contains(&other)),
                        key: key(first + at(each, i, j)),
                    });
                }
            }
            return Ok((first, slots));
        }
        Err(self.other_variables(variables))
    }

    /// Returns how many variables the optimizer has, in files that number them.
    fn optimizer_variables(&self) -> usize {
        let is_there = |number: &usize| self.tensors.contains_key(&format!("optimizer/vars/{number}"));
        (0..=self.tensors.len()).take_while(is_there).count()
    }

    fn other_variables(&self, variables: &[&str]) -> Error {
        let reason = format!(
            "its {} variables do not fit {} variables of the model in this order, by number or shape",
            self.optimizer_variables(),
            variables.len()
        );
        Error::object("optimizer", reason)
    }

    /// Returns all keys of the same tensor, in order.
    pub fn aliases(&self, key: &str) -> impl Iterator<Item = &str> {
        let place = self.by_key.get(key).copied();
        self.by_key.iter().filter(move |(_, other)| Some(**other) == place).map(|(key, _)| key.as_str())
    }

    fn dataset(&self, key: &str) -> Option<(&File, &Dataset)> {
        let (file, dataset) = self.by_key.get(key)?;
        let file = self.files.get(*file)?;
        Some((file, file.datasets.get(*dataset)?))
    }

    fn check_expansion(&self, options: &ReadOptions) -> Result<()> {
        let datasets = self.files.iter().flat_map(|file| &file.datasets).filter(|dataset| dataset.spec().is_some());
        let bytes = datasets.map(Dataset::decoded_bytes).fold(0, u64::saturating_add);
        let held = self.held();
        let refused = |reason| Error::unsupported(&self.path, reason);
        options.check_expansion(bytes, held).map_err(refused)
    }

    /// Returns bytes of all files.
    fn held(&self) -> u64 {
        self.files.iter().map(|file| file.input.len()).fold(0, u64::saturating_add)
    }

    /// Names datasets by their paths in the files.
    fn name_datasets(&mut self) -> Result<()> {
        for (number, file) in self.files.iter().enumerate() {
            for (path, dataset) in &file.paths {
                let key = key(path);
                if self.by_key.insert(key.clone(), (number, *dataset)).is_some() {
                    return Err(Error::damaged(&self.path, format!("the tensor {key:?} is in two files")));
                }
            }
            let dangling = file.dangling.iter().map(|path| (key(path), "a soft link that leads nowhere".to_string()));
            self.unreadable.extend(dangling);
        }
        Ok(())
    }

    /// Names datasets by layers. Names that several datasets have are not used.
    fn name_layers(&mut self) -> Result<()> {
        let mut found: BTreeMap<String, BTreeSet<(usize, usize)>> = BTreeMap::new();
        let mut room = Room::of(self.held());
        for (number, file) in self.files.iter().enumerate() {
            let aliases = layers::aliases(file, &mut room);
            let aliases = aliases.ok_or_else(|| {
                file.input.unsupported("the names of its layers take many times the size of the file")
            })?;
            for (alias, dataset) in aliases {
                found.entry(key(&alias)).or_default().insert((number, dataset));
            }
        }
        for (alias, places) in found {
            if places.len() == 1 {
                self.by_key.entry(alias).or_insert_with(|| places.into_iter().next().unwrap_or_default());
            }
        }
        Ok(())
    }

    fn name_slots(&mut self) {
        let mut found = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            found.extend(layers::keras2_slots(file).into_iter().map(|slot| (number, slot)));
        }
        let names: BTreeSet<(String, String)> =
            found.iter().map(|(_, (variable, name, _))| (variable.clone(), name.clone())).collect();
        for (number, (variable, name, dataset)) in found {
            let torch = torch_slot(&name, |other| names.contains(&(variable.clone(), other.to_string())));
            let variable = key(&variable.split('/').map(str::to_string).collect::<Vec<_>>());
            let slot = format!("optimizer/{variable}/{}", torch.unwrap_or(&name));
            if *self.by_key.entry(slot.clone()).or_insert((number, dataset)) == (number, dataset) {
                self.slots.push(Slot { optimizer: "optimizer".to_string(), variable, name, torch, key: slot });
            }
        }
    }

    /// Fills the lists of the source.
    fn list(&mut self) {
        let mut room = Room::of(self.held());
        for (key, place) in &self.by_key {
            let is_first = self.first.entry(*place).or_insert_with(|| key.clone()) == key;
            let dataset = &self.files[place.0].datasets[place.1];
            match (&dataset.dtype, &dataset.texts) {
                (Ok(dtype), _) => {
                    let spec = TensorSpec { dtype: *dtype, shape: dataset.shape.clone() };
                    self.tensors.insert(key.clone(), spec);
                }
                (Err(_), Some(texts)) => {
                    let length = texts.iter().take(MAX_REPEATED / 32).map(|text| text.len() + 32).sum::<usize>();
                    if !is_first && (length >= MAX_REPEATED || !room.take(length)) {
                        continue;
                    }
                    let value = match (&texts[..], dataset.shape.is_empty()) {
                        ([text], true) => Value::from(text.as_str()),
                        (texts, _) => Value::from(texts),
                    };
                    self.values.insert(key.clone(), value);
                }
                (Err(reason), None) => drop(self.unreadable.insert(key.clone(), reason.clone())),
            }
        }
    }
}

/// Returns the weights of a `.keras` archive.
fn member(input: Input, options: &ReadOptions) -> Result<(File, Arc<Blob>)> {
    let archive = Archive::open(input)?;
    let input = archive.input();
    let Some(member) = archive.get(MEMBER) else {
        let reason = match archive.get("model.weights.npz") {
            Some(_) => "its weights are a NumPy archive of pickled objects, which this crate does not execute",
            None => "the archive has no `model.weights.h5`: it is not a Keras file",
        };
        return Err(input.unsupported(reason));
    };
    let file = match member.input() {
        Some(stored) => File::open(stored.clone())?,
        None => {
            let allowed = options.check_expansion(member.len(), input.len());
            allowed.map_err(|reason| input.unsupported(reason))?;
            File::open(Input::memory(input.path(), member.read_vec(MAX_MEMBER)?))?
        }
    };
    Ok((file, member.clone()))
}

/// Returns what an HDF5 file is called.
fn format(file: &File) -> &'static str {
    let has = |path: &[&str]| {
        let path: Vec<String> = path.iter().map(|name| name.to_string()).collect();
        file.groups.get(&path).is_some_and(|attributes| attributes.list("layer_names").is_some())
    };
    if has(&[]) || has(&["model_weights"]) {
        return "Keras 2 (HDF5)";
    }
    let vars = file.groups.keys().any(|path| path.last().is_some_and(|name| name == "vars"));
    if vars { "Keras (.weights.h5)" } else { "HDF5" }
}

/// Returns the key of a path of names.
fn key(path: &[String]) -> String {
    let names = path.iter().map(|name| if name.is_empty() { "." } else { name });
    let key = name::key(names);
    if key.is_empty() { ".".to_string() } else { key }
}

fn unknown_key(key: &str) -> Error {
    Error::object(key, "there is no such tensor in the file")
}

/// Opens a file of Keras, or any HDF5 file.
pub(crate) fn detect(probe: &Probe<'_>, options: &ReadOptions) -> Option<Result<Box<dyn TensorSource>>> {
    let start = probe.start.as_ref()?;
    let is_keras = if start.starts_with(&SIGNATURE) {
        true
    } else if start.starts_with(b"PK") {
        let archive = Input::open(probe.path).and_then(Archive::open);
        archive.is_ok_and(|archive| ["config.json", "metadata.json"].iter().all(|name| archive.get(name).is_some()))
    } else if start.trim_ascii_start().starts_with(b"{") {
        let input = Input::open(probe.path).ok()?;
        let text = input.read_vec(0..input.len(), MAX_BYTES).ok()?;
        Index::parse(&text).is_some()
    } else {
        false
    };
    is_keras.then(|| {
        let weights = Weights::open_with(probe.path, options)?;
        Ok(Box::new(weights) as Box<dyn TensorSource>)
    })
}

impl TensorSource for Weights {
    fn format(&self) -> &'static str {
        self.format
    }

    fn path(&self) -> &Location {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.tensors
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.by_key.get(key).and_then(|place| self.first.get(place)).map_or(key, String::as_str)
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        let has_checksum = self.member.as_ref().is_some_and(|member| member.has_checksum());
        match self.dataset(key) {
            Some((_, dataset)) if dataset.is_checksummed() || has_checksum => VerifiedBy::Container,
            _ => VerifiedBy::Nothing,
        }
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let spec = self.tensors.get(key).ok_or_else(|| unknown_key(key))?;
        // Compared once: the archive has one checksum for all tensors.
        self.member.as_ref().map_or(Ok(()), |member| member.verify())?;
        self.read_range(key, 0..spec.shape.iter().product(), target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let spec = self.tensors.get(key).ok_or_else(|| unknown_key(key))?;
        let (file, dataset) = self.dataset(key).ok_or_else(|| unknown_key(key))?;
        check_range(key, spec, &range, target.len())?;
        file.read(dataset, range, target)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        let (file, dataset) = self.dataset(key).ok_or_else(|| unknown_key(key))?;
        self.member.as_ref().map_or(Ok(()), |member| member.verify())?;
        dataset.verify(&file.input)
    }

    fn verify(&self) -> Result<()> {
        self.member.as_ref().map_or(Ok(()), |member| member.verify_again())?;
        for file in &self.files {
            file.datasets.iter().try_for_each(|dataset| dataset.verify(&file.input))?;
        }
        Ok(())
    }
}
