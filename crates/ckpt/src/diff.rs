//! `ckpt diff`: whether two checkpoints hold the same state, and what differs.

use crate::cli::Diff;
use crate::elements::{self, Compared};
use crate::human;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use crate::target::{Place, Target, TargetJson, what_is};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch_checkpoint::format::{AssetEntry, Hasher, TensorRecord};
use tch_checkpoint::{Dtype, Error, interop};

/// The JSON document.
#[derive(Serialize)]
struct Comparison<'a> {
    equal: bool,
    a: TargetJson,
    b: TargetJson,
    /// Ordered by key.
    differences: Vec<Difference<'a>>,
    /// How many tensors and values are the same in both.
    equal_tensors: usize,
    equal_values: usize,
}

/// A tensor or value that is not the same in both.
#[derive(Serialize)]
struct Difference<'a> {
    key: &'a str,
    kind: Kind,
    /// What A has; `null` when it has nothing of that name.
    a: Option<Side<'a>>,
    b: Option<Side<'a>>,
    /// Of tensors of the same type and shape, how the elements differ, unless many tensors share their bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    elements: Option<Compared>,
}

/// The kinds of differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    OnlyInA,
    OnlyInB,
    /// A tensor in one, a value in the other.
    TensorOrValue,
    Dtype,
    Shape,
    DtypeAndShape,
    Content,
    Value,
    /// A file of a saved model, such as its program.
    Asset,
}

/// A tensor or a value.
#[derive(Serialize, Clone, Copy)]
#[serde(untagged)]
enum Side<'a> {
    Tensor { dtype: Dtype, shape: &'a [u64] },
    Value { value: &'a Value },
    Asset { asset: &'a AssetEntry },
}

/// What a checkpoint has under a key.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Tensor(&'a TensorRecord),
    Value(&'a Value),
}

impl<'a> Entry<'a> {
    fn of(target: &'a Target, key: &str) -> Option<Entry<'a>> {
        let manifest = target.reader.manifest();
        let tensor = manifest.tensors.get(key).map(Entry::Tensor);
        tensor.or_else(|| manifest.values.get(key).map(Entry::Value))
    }

    fn side(self) -> Side<'a> {
        match self {
            Entry::Tensor(record) => Side::Tensor { dtype: record.spec.dtype, shape: &record.spec.shape },
            Entry::Value(value) => Side::Value { value },
        }
    }
}

/// Whether both are checkpoints of this crate, or directories of such, under their own names.
pub fn is_of_own(args: &Diff) -> bool {
    let is_own = |path: &Path| matches!(what_is(path), Ok(Place::Checkpoint | Place::LostManifest));
    let is_other = |path: &Path| !is_own(path) && interop::open(path).is_ok();
    args.map.is_none() && !is_other(&args.a) && !is_other(&args.b)
}

pub fn run(args: &Diff, out: &mut Output) -> Result<Exit, Error> {
    let (a, b) = (Target::open(&args.a, out)?, Target::open(&args.b, out)?);
    let mut comparison =
        Comparison { equal: true, a: a.json(), b: b.json(), differences: vec![], equal_tensors: 0, equal_values: 0 };
    let mut budget = Budget::of(&a, &b);
    for key in &keys(&a) | &keys(&b) {
        let (in_a, in_b) = (Entry::of(&a, key), Entry::of(&b, key));
        match compare(key, in_a, in_b, &a, &b, &mut budget)? {
            Some((kind, elements)) => {
                let (a, b) = (in_a.map(Entry::side), in_b.map(Entry::side));
                comparison.differences.push(Difference { key, kind, a, b, elements });
            }
            None if matches!(in_a, Some(Entry::Tensor(_))) => comparison.equal_tensors += 1,
            None => comparison.equal_values += 1,
        }
    }
    comparison.differences.extend(assets(&a, &b));
    comparison.equal = comparison.differences.is_empty();
    print(&comparison, &a, &b, out);
    out.document(&comparison);
    Ok(if comparison.equal { Exit::Fine } else { Exit::Finding })
}

/// The files of two saved models that are not the same. What a saved model has more than a checkpoint is no difference in
/// their states.
fn assets<'a>(a: &'a Target, b: &'a Target) -> Vec<Difference<'a>> {
    let (a, b) = (&a.reader.manifest().assets, &b.reader.manifest().assets);
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).collect();
    let side = |assets: &'a BTreeMap<String, AssetEntry>, name| assets.get(name).map(|asset| Side::Asset { asset });
    let difference = |name: &'a String| {
        let (a, b) = (side(a, name), side(b, name));
        Difference { key: name, kind: Kind::Asset, a, b, elements: None }
    };
    names.into_iter().map(difference).collect()
}

/// The names of all tensors and values.
fn keys(target: &Target) -> BTreeSet<&str> {
    let manifest = target.reader.manifest();
    manifest.tensors.keys().chain(manifest.values.keys()).map(String::as_str).collect()
}

/// How the two entries of a key differ.
fn compare(
    key: &str,
    in_a: Option<Entry<'_>>,
    in_b: Option<Entry<'_>>,
    a: &Target,
    b: &Target,
    budget: &mut Budget,
) -> Result<Option<(Kind, Option<Compared>)>, Error> {
    let kind = match (in_a, in_b) {
        (None, None) => return Ok(None),
        (Some(_), None) => Kind::OnlyInA,
        (None, Some(_)) => Kind::OnlyInB,
        (Some(Entry::Tensor(_)), Some(Entry::Value(_))) | (Some(Entry::Value(_)), Some(Entry::Tensor(_))) => {
            Kind::TensorOrValue
        }
        (Some(Entry::Value(a)), Some(Entry::Value(b))) if is_same(a, b) => return Ok(None),
        (Some(Entry::Value(_)), Some(Entry::Value(_))) => Kind::Value,
        (Some(Entry::Tensor(in_a)), Some(Entry::Tensor(in_b))) => {
            match (in_a.spec.dtype == in_b.spec.dtype, in_a.spec.shape == in_b.spec.shape) {
                (false, false) => Kind::DtypeAndShape,
                (false, true) => Kind::Dtype,
                (true, false) => Kind::Shape,
                (true, true) if in_a.digest == in_b.digest => return Ok(None),
                (true, true) => return Ok(Some((Kind::Content, budget.compare(key, in_a, [a, b])?))),
            }
        }
    };
    Ok(Some((kind, None)))
}

/// How many bytes of elements may still be read: bytes that many keys share are not read for each of them.
struct Budget(u64);

/// As often as the files of both checkpoints are read, at most.
const READS: u64 = 4;

/// How many bytes of a tensor are compared at a time: whole elements of every type.
const CHUNK: usize = 512 << 10;

impl Budget {
    fn of(a: &Target, b: &Target) -> Budget {
        let bytes = |target: &Target| target.reader.manifest().bytes();
        Budget(bytes(a).saturating_add(bytes(b)).saturating_mul(READS))
    }

    /// How the elements of the tensor `key` differ, verified as they are read; `None` when too much was read already.
    fn compare(&mut self, key: &str, record: &TensorRecord, targets: [&Target; 2]) -> Result<Option<Compared>, Error> {
        let bytes = record.spec.bytes().unwrap_or(u64::MAX);
        match self.0.checked_sub(bytes.saturating_mul(2)) {
            Some(left) => self.0 = left,
            None => return Ok(None),
        }
        let mut compared = Compared::new();
        let mut sides = targets.map(|target| (target, Hasher::new(), Vec::new()));
        let mut offset = 0;
        while offset < bytes {
            let length = (bytes - offset).min(CHUNK as u64) as usize;
            for (target, hasher, buffer) in &mut sides {
                buffer.resize(length, 0);
                target.reader.read_at(key, offset, buffer)?;
                hasher.update(buffer);
            }
            elements::compare(&mut compared, record.spec.dtype, &sides[0].2, &sides[1].2);
            offset += length as u64;
        }
        for (target, hasher, _) in sides {
            target.reader.check_digest(key, hasher.finish())?;
        }
        Ok(Some(compared))
    }
}

/// Compares as text, since that tells 0.0 from -0.0; the keys of objects are in order in both.
fn is_same(a: &Value, b: &Value) -> bool {
    let [a, b] = [a, b].map(Value::to_string);
    a == b
}

fn print(comparison: &Comparison<'_>, a: &Target, b: &Target, out: &mut Output) {
    let mut table = Table::without_headings([Align::Left, Align::Left, Align::Left, Align::Left]);
    for (name, target) in [("A", a), ("B", b)] {
        let manifest = target.reader.manifest();
        let step = manifest.step.map_or_else(String::new, |step| format!("step {step}"));
        table.row([name.to_string(), target.title(), step, human::time(manifest.saved_at)]);
    }
    table.print(out);
    out.line("");
    let same = format!(
        "{} and {}",
        human::count(comparison.equal_tensors, "tensor"),
        human::count(comparison.equal_values, "value")
    );
    if comparison.equal {
        out.line(format!("equal: {same}"));
        return;
    }
    let mut table = Table::new([("DIFFERS", Align::Left), ("NAME", Align::Left), ("HOW", Align::Left)]);
    for difference in &comparison.differences {
        table.row([difference.kind.name().to_string(), difference.key.to_string(), difference.how()]);
    }
    table.print(out);
    out.line("");
    out.line(format!("{}; equal: {same}", human::count(comparison.differences.len(), "difference")));
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::OnlyInA => "only in A",
            Kind::OnlyInB => "only in B",
            Kind::TensorOrValue => "kind",
            Kind::Dtype => "dtype",
            Kind::Shape => "shape",
            Kind::DtypeAndShape => "dtype and shape",
            Kind::Content => "content",
            Kind::Value => "value",
            Kind::Asset => "file",
        }
    }
}

/// How many characters of a value are shown.
const SHOWN: usize = 40;

impl Difference<'_> {
    fn how(&self) -> String {
        match (self.a, self.b) {
            (Some(Side::Value { value: a }), Some(Side::Value { value: b })) => {
                let (a, b) = (a.to_string(), b.to_string());
                let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
                format!("{} in A, {} in B", human::excerpt(&a, same, SHOWN), human::excerpt(&b, same, SHOWN))
            }
            (Some(a), Some(b)) => match &self.elements {
                Some(elements) => elements.to_string(),
                None if self.kind == Kind::Content => "the digests differ".to_string(),
                None => format!("{} in A, {} in B", a.text(), b.text()),
            },
            (Some(side), None) | (None, Some(side)) => side.text(),
            (None, None) => String::new(),
        }
    }
}

impl Side<'_> {
    fn text(&self) -> String {
        match self {
            Side::Tensor { dtype, shape } => format!("{dtype} {shape:?}"),
            Side::Value { value } => human::excerpt(&value.to_string(), 0, SHOWN),
            Side::Asset { asset } => format!("{} of digest {}", human::bytes(asset.bytes), asset.digest),
        }
    }
}
