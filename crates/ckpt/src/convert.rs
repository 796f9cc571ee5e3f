//! `ckpt convert` and `ckpt average`: any readable checkpoint, or the average of several, in another format.

use crate::cli::{Average, Convert, Destination, To, Writing};
use crate::human::{self, text};
use crate::output::{Exit, Output};
use crate::target;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch_checkpoint::convert::{ConvertOptions, Format, convert_with};
use tch_checkpoint::inspect::Target;
use tch_checkpoint::interop::{huggingface, pytorch};
use tch_checkpoint::map::{self, Mapping, NameMap, Transform};
use tch_checkpoint::name::matches;
use tch_checkpoint::{Dtype, Error, TensorSource};

/// The JSON document.
#[derive(Serialize)]
struct Converted<'a> {
    sources: Vec<String>,
    path: String,
    tensors: usize,
    values: usize,
    mapped: Vec<Mapped<'a>>,
    left_out: &'a BTreeMap<String, String>,
    attributes_left_out: &'a BTreeMap<String, String>,
}

/// The mappings of the source's tensors.
#[derive(Serialize)]
struct Mapped<'a> {
    key: &'a str,
    from: &'a [String],
    transform: &'a str,
    loss: String,
}

/// The result's options.
pub struct Wanted<'a> {
    /// Names and transforms.
    pub map: NameMap,
    /// The type of floats whose names, after the map, match a pattern of `cast`; of all floats if there is none.
    pub dtype: Option<&'a str>,
    pub cast: &'a [String],
    pub destination: &'a Destination,
}

impl<'a> Wanted<'a> {
    /// Everything under its own name.
    pub fn of(destination: &'a Destination) -> Wanted<'a> {
        Wanted { map: NameMap::new(), dtype: None, cast: &[], destination }
    }
}

impl Destination {
    /// Returns the format of `dest`, and its options.
    fn format(&self, dest: &Path) -> Result<(Format, ConvertOptions), Error> {
        let format = format(dest, self.to)?;
        let is_pytorch = format == Format::PyTorch;
        let misplaced = match () {
            () if self.flat && !is_pytorch => Some("--flat is for PyTorch files"),
            () if self.optimizer.is_some() && !is_pytorch => Some("--optimizer is for PyTorch files"),
            () if self.root.is_some() && !is_pytorch && format != Format::Safetensors => {
                Some("--root is for PyTorch and safetensors files; extract what is wanted, or use a map")
            }
            () => None,
        };
        if let Some(reason) = misplaced {
            return Err(Error::InvalidArgument(reason.to_string()));
        }
        let mut pytorch = pytorch::WriteOptions::default().flat(self.flat);
        let mut safetensors = huggingface::WriteOptions::default();
        if let Some(root) = &self.root {
            (pytorch, safetensors) = (pytorch.only(root), safetensors.only(root));
        }
        if let (Some(key), Some(file)) = (&self.optimizer, &self.parameters) {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io("read the file", file, e))?;
            pytorch = pytorch.optimizer(key, groups(&text));
        }
        let options = ConvertOptions::default().replace(self.force).pytorch(pytorch).safetensors(safetensors);
        Ok((format, options))
    }
}

/// The parameter groups of a file with a name per line and an empty line before each further group.
fn groups(text: &str) -> Vec<Vec<&str>> {
    let mut groups = vec![Vec::new()];
    for line in text.lines().map(str::trim) {
        match groups.last_mut() {
            Some(group) if !line.is_empty() => group.push(line),
            Some(group) if group.is_empty() => {}
            _ => groups.push(Vec::new()),
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

impl Writing {
    fn wanted(&self) -> Result<Wanted<'_>, Error> {
        let mut map = match &self.map {
            Some(path) => NameMap::open(path)?,
            None => NameMap::new(),
        };
        if !self.only.is_empty() {
            map = map.include(&self.only);
        }
        Ok(Wanted { map, dtype: self.dtype.as_deref(), ..Wanted::of(&self.destination) })
    }
}

/// Opens the sources: checkpoints of any format, or the latest of directories of checkpoints, which it states.
pub fn open(paths: &[PathBuf], out: &mut Output) -> Result<Vec<Target>, Error> {
    paths.iter().map(|path| target::open_stated(path, out)).collect()
}

pub fn run(args: &Convert, out: &mut Output) -> Result<Exit, Error> {
    let source = target::open_stated(&args.source, out)?;
    write(source.source(), std::slice::from_ref(&source), &args.dest, &args.writing.wanted()?, out)
}

pub fn average(args: &Average, out: &mut Output) -> Result<Exit, Error> {
    let mut sources = open(&args.sources, out)?;
    if !args.weights.is_empty() && args.weights.len() != sources.len() {
        let reason = format!("{} weights do not fit {} sources", args.weights.len(), sources.len());
        return Err(Error::InvalidArgument(reason));
    }
    if let Some(sequences) = sequences(&sources)
        && !sequences.is_sorted()
    {
        sources.sort_by_key(|source| source.overview().sequence);
        let order: Vec<String> = sources.iter().map(|source| source.source().path().display().to_string()).collect();
        let order = order.join(", ");
        if !args.weights.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "the sources are not in the order in which they were saved, so it is not clear which weight is whose; give \
                 both, oldest first: {order}"
            )));
        }
        out.note(format!("the sources are averaged in the order in which they were saved: {order}"));
    }
    let all = sources.iter().map(Target::source);
    let average = match args.decay {
        Some(decay) => map::Average::exponential(all, decay)?,
        None if !args.weights.is_empty() => map::Average::weighted(all.zip(args.weights.iter().copied()))?,
        None => map::Average::uniform(all)?,
    };
    write(&average, &sources, &args.dest, &args.writing.wanted()?, out)
}

/// Returns the commit sequences of the sources if these are numbered checkpoints of one name in one directory.
fn sequences(sources: &[Target]) -> Option<Vec<u64>> {
    let series: Option<BTreeSet<PathBuf>> = sources.iter().map(|source| series(source.source().path())).collect();
    let sequences: Option<Vec<u64>> = sources.iter().map(|source| source.overview().sequence).collect();
    sequences.filter(|_| series.is_some_and(|series| series.len() == 1))
}

/// Returns the path of a numbered checkpoint without the number.
fn series(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let (name, number) = path.file_name()?.to_str()?.rsplit_once('-')?;
    number.parse::<u64>().ok()?;
    Some(path.with_file_name(name))
}

/// Applies the maps and writes the result.
pub fn write(
    source: &dyn TensorSource,
    sources: &[Target],
    dest: &Path,
    wanted: &Wanted<'_>,
    out: &mut Output,
) -> Result<Exit, Error> {
    let (format, options) = wanted.destination.format(dest)?;
    let mapped = wanted.map.apply(source)?;
    // The second map applies to the names of the first.
    let cast = match wanted.dtype {
        Some(name) => cast(&mapped, name, wanted.cast)?,
        None => NameMap::new(),
    };
    let mapped_twice = cast.apply(&mapped)?;
    let written = convert_with(&mapped_twice, dest, format, &options)?;
    let shown: Vec<&Mapping> = mapped.mappings().iter().chain(mapped_twice.mappings()).collect();
    let values = mapped_twice.values().len();
    out.line(format!("{}: {}", dest.display(), human::count(written.tensors, "tensor")));
    for mapping in shown.iter().filter(|mapping| !mapping.transform.is_empty()) {
        out.line(format!("  {} = {} ({})", mapping.key, mapping.transform, mapping.loss));
    }
    for (key, reason) in &written.left_out {
        out.note(format!("{key} is left out: {reason}"));
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, reason) in &written.attributes_left_out {
        by_reason.entry(reason).or_default().push(name);
    }
    for (reason, names) in by_reason {
        out.note(format!("left out: {}: {reason}", names.join(", ")));
    }
    let mapped = shown.iter().map(|mapping| Mapped {
        key: &mapping.key,
        from: &mapping.from,
        transform: &mapping.transform,
        loss: mapping.loss.to_string(),
    });
    out.document(&Converted {
        sources: sources.iter().map(|source| text(source.source().path())).collect(),
        path: text(dest),
        tensors: written.tensors,
        values,
        mapped: mapped.collect(),
        left_out: &written.left_out,
        attributes_left_out: &written.attributes_left_out,
    });
    Ok(Exit::Fine)
}

/// Returns a map that converts the floats that match a pattern to `name`; all of them if there is no pattern.
fn cast(source: &dyn TensorSource, name: &str, patterns: &[String]) -> Result<NameMap, Error> {
    let floats = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64];
    let dtype = floats.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name));
    let dtype = dtype.ok_or_else(|| Error::InvalidArgument(format!("--dtype is F16, BF16, F32 or F64, not {name}")))?;
    let others = source.tensors().iter().filter(|(_, spec)| floats.contains(&spec.dtype) && spec.dtype != dtype);
    let fits = |key: &str| patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, key));
    if let Some(pattern) = patterns.iter().find(|pattern| !source.tensors().keys().any(|key| matches(pattern, key))) {
        return Err(Error::InvalidArgument(format!("{}: there is no tensor for {pattern:?}", source.path())));
    }
    let others = others.filter(|(key, _)| fits(key));
    Ok(others.fold(NameMap::new(), |map, (key, _)| map.define(key, Transform::of(key).cast(dtype))))
}

/// Returns the requested format, or the one of the suffix.
fn format(dest: &Path, to: Option<To>) -> Result<Format, Error> {
    let suffix = dest.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
    Ok(match (to, suffix) {
        (Some(To::Checkpoint), _) => Format::Checkpoint,
        (Some(To::Safetensors), _) | (None, "safetensors") => Format::Safetensors,
        (Some(To::Pytorch), _) | (None, "pt" | "pth" | "bin") => Format::PyTorch,
        (Some(To::Tensorflow), _) => Format::TensorFlow,
        (None, "h5" | "keras" | "npz" | "ot" | "index") => {
            let reason = format!("files of the suffix .{suffix} are not written; choose a format with --to");
            return Err(Error::InvalidArgument(reason));
        }
        (None, _) => Format::Checkpoint,
    })
}
