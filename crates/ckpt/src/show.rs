//! `ckpt show`: what is in a checkpoint.

use crate::cli::Show;
use crate::human;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use crate::target::{Target, TargetJson};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tch_checkpoint::format::{Digest, MANIFEST_FILE, Manifest, SavedModelInfo, TensorInfo, TensorRecord};
use tch_checkpoint::{Dtype, Error, name};

/// How many characters of a value are shown.
const SHOWN: usize = 80;

/// How many characters of another tensor's key are shown.
const KEY_SHOWN: usize = 200;

/// The JSON document.
#[derive(Serialize)]
struct Content<'a> {
    #[serde(flatten)]
    checkpoint: TargetJson,
    metrics: &'a BTreeMap<String, f64>,
    /// The objects at the top, by name.
    components: Vec<Component<'a>>,
    files: Vec<File<'a>>,
    tensors: Vec<Tensor<'a>>,
    values: BTreeMap<&'a str, &'a serde_json::Value>,
    /// Of a saved model what it says of its program.
    saved_model: Option<&'a SavedModelInfo>,
    totals: Totals,
}

/// What was tracked under one name.
#[derive(Serialize)]
struct Component<'a> {
    /// As at the start of its keys.
    name: &'a str,
    tensors: usize,
    values: usize,
    /// Of its tensors' elements; elements that several of them show count once.
    bytes: u64,
    /// The files with its tensors.
    files: BTreeSet<&'a str>,
    #[serde(skip)]
    seen: HashSet<Place<'a>>,
}

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    bytes: u64,
}

#[derive(Serialize)]
struct Tensor<'a> {
    key: &'a str,
    dtype: Dtype,
    shape: &'a [u64],
    bytes: u64,
    xxh3_128: Digest,
    files: BTreeSet<&'a str>,
    /// The first key that stands for the same bytes of the same file, if that is another; shortened to [`KEY_SHOWN`]
    /// characters, since many keys may name the same one.
    same_as: Option<String>,
}

/// Of the whole checkpoint, whatever the filter.
#[derive(Serialize)]
struct Totals {
    components: usize,
    tensors: usize,
    values: usize,
    /// Of all tensors' elements; elements that several tensors show count once.
    tensor_bytes: u64,
    /// Of all files, the manifest included.
    bytes: u64,
}

pub fn run(args: &Show, out: &mut Output) -> Result<Exit, Error> {
    let target = match Target::open(&args.path, out) {
        Err(error @ Error::Damaged { .. }) => {
            out.error(&error);
            return Ok(Exit::Finding);
        }
        result => result?,
    };
    let manifest = target.reader.manifest();
    let fits = |key: &str| args.filter.as_ref().is_none_or(|pattern| name::matches(pattern, key));
    let manifest_bytes =
        std::fs::metadata(target.reader.path().join(MANIFEST_FILE)).map_or(0, |metadata| metadata.len());
    let saved_model = match target.reader.saved_model() {
        Err(error @ Error::Damaged { .. }) => {
            out.error(&error);
            return Ok(Exit::Finding);
        }
        result => result?,
    };
    let content = content(&target, manifest_bytes, saved_model.as_ref(), &fits);
    if args.filter.is_none() {
        print_head(&target, out);
        print_components(&content, out);
        print_saved_model(&content, out);
    }
    print_tensors(&content, out);
    print_json("VALUE", content.values.iter(), out);
    if let Some(pattern) = &args.filter
        && content.tensors.is_empty()
        && content.values.is_empty()
    {
        out.line(format!(
            "no name fits {pattern:?} among {} and {}",
            human::count(manifest.tensors.len(), "tensor"),
            human::count(manifest.values.len(), "value")
        ));
    }
    out.document(&content);
    Ok(Exit::Fine)
}

fn content<'a>(
    target: &'a Target,
    manifest_bytes: u64,
    saved_model: Option<&'a SavedModelInfo>,
    fits: &dyn Fn(&str) -> bool,
) -> Content<'a> {
    let manifest = target.reader.manifest();
    let components = components(manifest);
    let mut first: HashMap<Place<'_>, &str> = HashMap::new();
    let mut tensors = Vec::new();
    let mut tensor_bytes = 0u64;
    for (key, record) in &manifest.tensors {
        let same_as = *first.entry(place(record)).or_insert(key);
        let bytes = record.spec.bytes().unwrap_or(u64::MAX);
        if same_as == key {
            tensor_bytes = tensor_bytes.saturating_add(bytes);
        }
        if fits(key) {
            tensors.push(Tensor {
                key,
                dtype: record.spec.dtype,
                shape: &record.spec.shape,
                bytes,
                xxh3_128: record.digest,
                files: files(record).collect(),
                same_as: (same_as != key).then(|| human::excerpt(same_as, 0, KEY_SHOWN)),
            });
        }
    }
    let totals = Totals {
        components: components.len(),
        tensors: manifest.tensors.len(),
        values: manifest.values.len(),
        tensor_bytes,
        bytes: manifest.bytes().saturating_add(manifest_bytes),
    };
    let manifest_file = File { name: MANIFEST_FILE, bytes: manifest_bytes };
    let files = manifest.files.iter().map(|(name, file)| File { name, bytes: file.bytes });
    let assets = manifest.assets.iter().map(|(name, asset)| File { name, bytes: asset.bytes });
    Content {
        checkpoint: target.json(),
        metrics: &manifest.metrics,
        components,
        files: files.chain(assets).chain([manifest_file]).collect(),
        tensors,
        values: manifest.values.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| fits(key)).collect(),
        saved_model,
        totals,
    }
}

/// What tells the bytes of one tensor from those of another: the names of its pieces, each with its file.
type Place<'a> = Vec<(&'a str, &'a str)>;

fn place(record: &TensorRecord) -> Place<'_> {
    record.pieces.iter().map(|piece| (piece.file.as_str(), piece.name.as_str())).collect()
}

/// The files a tensor is in.
fn files(record: &TensorRecord) -> impl Iterator<Item = &str> {
    record.pieces.iter().map(|piece| piece.file.as_str())
}

fn components(manifest: &Manifest) -> Vec<Component<'_>> {
    let mut components = BTreeMap::new();
    for (key, record) in &manifest.tensors {
        let component = component_of(key, &mut components);
        component.tensors += 1;
        component.files.extend(files(record));
        if component.seen.insert(place(record)) {
            component.bytes = component.bytes.saturating_add(record.spec.bytes().unwrap_or(u64::MAX));
        }
    }
    for key in manifest.values.keys() {
        component_of(key, &mut components).values += 1;
    }
    components.into_values().collect()
}

fn component_of<'a, 'b>(key: &'a str, components: &'b mut BTreeMap<&'a str, Component<'a>>) -> &'b mut Component<'a> {
    let name = key.split('/').next().unwrap_or(key);
    components.entry(name).or_insert_with(|| Component {
        name,
        tensors: 0,
        values: 0,
        bytes: 0,
        files: BTreeSet::new(),
        seen: HashSet::new(),
    })
}

fn print_head(target: &Target, out: &mut Output) {
    let manifest = target.reader.manifest();
    out.line(target.title());
    out.line("");
    let mut table = Table::without_headings([Align::Left, Align::Left]);
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("step", human::number(manifest.step));
    row("saved", human::time_and_offset(manifest.saved_at));
    row("save counter", human::number(manifest.save_counter));
    row("sequence", manifest.sequence.to_string());
    row("run", manifest.run.clone());
    if !manifest.metrics.is_empty() {
        row("metrics", human::metrics(&manifest.metrics));
    }
    table.print(out);
    out.line("");
}

fn print_components(content: &Content<'_>, out: &mut Output) {
    let sizes: HashMap<&str, u64> = content.files.iter().map(|file| (file.name, file.bytes)).collect();
    let mut table = Table::new([
        ("COMPONENT", Align::Left),
        ("TENSORS", Align::Right),
        ("VALUES", Align::Right),
        ("SIZE", Align::Right),
        ("FILES", Align::Left),
    ]);
    for component in &content.components {
        let file = |name: &&str| format!("{name} ({})", human::bytes(sizes.get(name).copied().unwrap_or_default()));
        let files: Vec<String> = component.files.iter().map(file).collect();
        table.row([
            component.name.to_string(),
            component.tensors.to_string(),
            component.values.to_string(),
            human::bytes(component.bytes),
            files.join(", "),
        ]);
    }
    let totals = &content.totals;
    table.row([
        "total".to_string(),
        totals.tensors.to_string(),
        totals.values.to_string(),
        human::bytes(totals.tensor_bytes),
        format!("{} ({})", human::count(content.files.len(), "file"), human::bytes(totals.bytes)),
    ]);
    table.print(out);
}

/// The methods of the program, and what its owner says of it. The program itself is never looked at.
fn print_saved_model(content: &Content<'_>, out: &mut Output) {
    let Some(info) = content.saved_model else { return };
    let mut table = Table::new([("SIGNATURE", Align::Left), ("INPUTS", Align::Left), ("OUTPUTS", Align::Left)]);
    let list = |tensors: &[TensorInfo]| tensors.iter().map(TensorInfo::to_string).collect::<Vec<_>>().join(", ");
    for (name, signature) in &info.signatures {
        table.row([name.clone(), list(&signature.inputs), list(&signature.outputs)]);
    }
    out.separate();
    table.print(out);
    print_json("METADATA", info.metadata.iter(), out);
}

fn print_tensors(content: &Content<'_>, out: &mut Output) {
    if content.tensors.is_empty() {
        return;
    }
    let mut table = Table::new([
        ("TENSOR", Align::Left),
        ("DTYPE", Align::Left),
        ("SHAPE", Align::Left),
        ("BYTES", Align::Right),
        ("", Align::Left),
    ]);
    for tensor in &content.tensors {
        table.row([
            tensor.key.to_string(),
            tensor.dtype.to_string(),
            format!("{:?}", tensor.shape),
            tensor.bytes.to_string(),
            tensor.same_as.as_ref().map_or_else(String::new, |key| format!("the same as {key}")),
        ]);
    }
    out.separate();
    table.print(out);
}

/// Names and their JSON, as far as it fits a line.
fn print_json<K: ToString>(title: &str, entries: impl ExactSizeIterator<Item = (K, impl ToString)>, out: &mut Output) {
    if entries.len() == 0 {
        return;
    }
    let mut table = Table::new([(title, Align::Left), ("", Align::Left)]);
    for (name, value) in entries {
        table.row([name.to_string(), human::excerpt(&value.to_string(), 0, SHOWN)]);
    }
    out.separate();
    table.print(out);
}
