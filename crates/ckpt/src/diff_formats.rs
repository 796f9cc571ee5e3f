//! `ckpt diff` between checkpoints of any formats, the first of them under the names of a map.

use crate::cli::Diff;
use crate::elements::{self, Compared};
use crate::human;
use crate::output::{Exit, Output};
use crate::problem::text;
use crate::table::{Align, Table};
use serde::Serialize;
use std::collections::BTreeSet;
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{Error, TensorSource, VerifiedBy, interop};

/// The JSON document.
#[derive(Serialize)]
struct Comparison {
    equal: bool,
    a: Side,
    b: Side,
    differences: Vec<Difference>,
    equal_tensors: usize,
    equal_values: usize,
}

#[derive(Serialize)]
struct Side {
    path: String,
    format: &'static str,
}

#[derive(Serialize)]
struct Difference {
    key: String,
    /// As in the comparison of two own checkpoints.
    kind: &'static str,
    how: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    elements: Option<Compared>,
}

/// How many bytes of a tensor are compared at a time: whole elements of every type.
const CHUNK: u64 = 512 << 10;

pub fn run(args: &Diff, out: &mut Output) -> Result<Exit, Error> {
    let (first, b) = (interop::open(&args.a)?, interop::open(&args.b)?);
    let map = args.map.as_ref().map(NameMap::open).transpose()?.unwrap_or_default();
    let a = map.apply(&*first)?;
    let mut differences = Vec::new();
    let (mut equal_tensors, mut equal_values) = (0, 0);
    for key in &keys(&a) | &keys(&*b) {
        match compare(key, &a, &*b)? {
            Some((kind, how, elements)) => {
                differences.push(Difference { key: key.to_string(), kind, how, elements });
            }
            None if a.tensors().contains_key(key) => equal_tensors += 1,
            None => equal_values += 1,
        }
    }
    let side = |source: &dyn TensorSource| Side { path: text(source.path()), format: source.format() };
    for (name, source) in [("A", &a as &dyn TensorSource), ("B", &*b)] {
        out.line(format!("{name}  {}  {}", source.path().display(), source.format()));
    }
    out.line("");
    let same = format!("{} and {}", human::count(equal_tensors, "tensor"), human::count(equal_values, "value"));
    if differences.is_empty() {
        out.line(format!("equal: {same}"));
    } else {
        let mut table = Table::new([("DIFFERS", Align::Left), ("NAME", Align::Left), ("HOW", Align::Left)]);
        for difference in &differences {
            let kind = difference.kind.replace('_', " ").replace("in a", "in A").replace("in b", "in B");
            table.row([kind, difference.key.clone(), difference.how.clone()]);
        }
        table.print(out);
        out.line("");
        out.line(format!("{}; equal: {same}", human::count(differences.len(), "difference")));
    }
    let equal = differences.is_empty();
    out.document(&Comparison { equal, a: side(&a), b: side(&*b), differences, equal_tensors, equal_values });
    Ok(if equal { Exit::Fine } else { Exit::Finding })
}

fn keys(source: &dyn TensorSource) -> BTreeSet<&str> {
    source.tensors().keys().chain(source.values().keys()).map(String::as_str).collect()
}

type Found = (&'static str, String, Option<Compared>);

/// How the two entries of a key differ.
fn compare(key: &str, a: &dyn TensorSource, b: &dyn TensorSource) -> Result<Option<Found>, Error> {
    let shown = |source: &dyn TensorSource| match (source.tensors().get(key), source.values().get(key)) {
        (Some(spec), _) => spec.to_string(),
        (_, Some(value)) => human::excerpt(&value.to_string(), 0, 40),
        _ => String::new(),
    };
    let has = |source: &dyn TensorSource| source.tensors().contains_key(key) || source.values().contains_key(key);
    let both = || format!("{} in A, {} in B", shown(a), shown(b));
    Ok(match (a.tensors().get(key), b.tensors().get(key)) {
        _ if !has(b) => Some(("only_in_a", shown(a), None)),
        _ if !has(a) => Some(("only_in_b", shown(b), None)),
        (Some(in_a), Some(in_b)) => match (in_a.dtype == in_b.dtype, in_a.shape == in_b.shape) {
            (false, false) => Some(("dtype_and_shape", both(), None)),
            (false, true) => Some(("dtype", both(), None)),
            (true, false) => Some(("shape", both(), None)),
            (true, true) => elements(key, a, b)?.map(|compared| ("content", compared.to_string(), Some(compared))),
        },
        (None, None) => {
            let [in_a, in_b] = [a, b].map(|source| source.values().get(key).map(|value| value.to_string()));
            (in_a != in_b).then(|| ("value", both(), None))
        }
        _ => Some(("tensor_or_value", both(), None)),
    })
}

/// How the elements differ. What has a checksum is verified before.
fn elements(key: &str, a: &dyn TensorSource, b: &dyn TensorSource) -> Result<Option<Compared>, Error> {
    let Some(spec) = a.tensors().get(key) else { return Ok(None) };
    for source in [a, b] {
        if source.verified_by(key) != VerifiedBy::Nothing {
            source.verify_tensor(key)?;
        }
    }
    let size = spec.dtype.size() as u64;
    let count = spec.bytes().unwrap_or_default() / size;
    let mut compared = Compared::new();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < count {
        let end = (at + CHUNK / size).min(count);
        for (source, buffer) in [(a, &mut left), (b, &mut right)] {
            buffer.resize(((end - at) * size) as usize, 0);
            source.read_range(key, at..end, buffer)?;
        }
        elements::compare(&mut compared, spec.dtype, &left, &right);
        at = end;
    }
    Ok((compared.differing > 0).then_some(compared))
}
