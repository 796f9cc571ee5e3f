//! `ckpt diff`: whether two checkpoints hold the same state, and what differs.

use crate::cli;
use crate::human;
use crate::output::{Exit, Output};
use crate::table::{Align, Table};
use crate::target::{self, title};
use serde_json::Value;
use std::collections::BTreeSet;
use tch_checkpoint::inspect::{Diff, DiffEntry, DiffKind, DiffOptions, DiffSide, ElementDiff, diff_with};
use tch_checkpoint::map::NameMap;
use tch_checkpoint::{Error, TensorSource};

/// How many characters of a value are shown.
const SHOWN: usize = 40;

pub fn run(args: &cli::Diff, out: &mut Output) -> Result<Exit, Error> {
    let (a, b) = (target::open(&args.a, out)?, target::open(&args.b, out)?);
    let mapped = match &args.map {
        Some(map) => Some(NameMap::open(map)?.apply(a.source())?),
        None => None,
    };
    let options = args.tolerance.map_or_else(DiffOptions::new, |tolerance| DiffOptions::new().tolerance(tolerance));
    let named = mapped.as_ref().map_or(a.source(), |mapped| mapped as &dyn TensorSource);
    let mut diff = diff_with(&a, named, &b, &options)?;
    diff.sort_by_change();
    print(&diff, out);
    out.document(&diff);
    Ok(if diff.equal { Exit::Fine } else { Exit::Finding })
}

fn print(diff: &Diff<'_>, out: &mut Output) {
    let mut table = Table::without_headings([Align::Left, Align::Left, Align::Left, Align::Left]);
    for (name, overview) in [("A", &diff.a), ("B", &diff.b)] {
        let (step, time) = match overview.saved_at {
            Some(time) => (overview.step.map_or_else(String::new, |step| format!("step {step}")), human::time(time)),
            None => (overview.format.to_string(), String::new()),
        };
        table.row([name.to_string(), title(overview), step, time]);
    }
    table.print(out);
    out.line("");
    let (tensors, values) = (human::count(diff.equal_tensors, "tensor"), human::count(diff.equal_values, "value"));
    let close = match diff.within_tolerance {
        0 => String::new(),
        count => format!("; within the tolerance: {}", human::count(count, "tensor")),
    };
    if diff.equal {
        out.line(format!("equal: {tensors} and {values}{close}"));
        print_metadata(diff, out);
        return;
    }
    let mut table = Table::new([("DIFFERS", Align::Left), ("NAME", Align::Left), ("HOW", Align::Left)]);
    for entry in &diff.differences {
        table.row([kind(entry.kind).to_string(), entry.key.to_string(), how(entry)]);
    }
    table.print(out);
    out.line("");
    out.line(format!("{}; equal: {tensors} and {values}{close}", human::count(diff.differences.len(), "difference")));
    print_metadata(diff, out);
}

/// The metadata of the two checkpoints, which is not part of the state.
fn print_metadata(diff: &Diff<'_>, out: &mut Output) {
    if diff.metadata.is_empty() {
        return;
    }
    out.line("");
    let mut table = Table::new([("METADATA", Align::Left), ("A", Align::Left), ("B", Align::Left)]);
    let shown =
        |value: Option<&Value>| value.map_or_else(String::new, |value| human::excerpt(&value.to_string(), 0, SHOWN));
    let plain = |value: Option<&Value>| match value {
        Some(Value::String(text)) => human::excerpt(text, 0, SHOWN),
        value => shown(value),
    };
    for entry in &diff.metadata {
        // For metadata with fields, such as the provenance, the fields that differ.
        match (entry.a.and_then(Value::as_object), entry.b.and_then(Value::as_object)) {
            (Some(a), Some(b)) => {
                let fields: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for field in fields.into_iter().filter(|field| a.get(*field) != b.get(*field)) {
                    table.row([format!("{}.{field}", entry.name), plain(a.get(field)), plain(b.get(field))]);
                }
            }
            _ => table.row([entry.name.to_string(), shown(entry.a), shown(entry.b)]),
        }
    }
    table.print(out);
}

fn kind(kind: DiffKind) -> &'static str {
    match kind {
        DiffKind::OnlyInA => "only in A",
        DiffKind::OnlyInB => "only in B",
        DiffKind::TensorOrValue => "kind",
        DiffKind::Dtype => "dtype",
        DiffKind::Shape => "shape",
        DiffKind::DtypeAndShape => "dtype and shape",
        DiffKind::Content => "content",
        DiffKind::Value => "value",
        DiffKind::Asset => "file",
        _ => "other",
    }
}

fn how(entry: &DiffEntry<'_>) -> String {
    match (entry.a, entry.b) {
        (Some(DiffSide::Value { value: a }), Some(DiffSide::Value { value: b })) => {
            let (a, b) = (a.to_string(), b.to_string());
            let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
            format!("{} in A, {} in B", human::excerpt(&a, same, SHOWN), human::excerpt(&b, same, SHOWN))
        }
        (Some(a), Some(b)) => match &entry.elements {
            Some(elements) => compared(elements),
            None if entry.kind == DiffKind::Content => "the digests differ".to_string(),
            None => format!("{} in A, {} in B", side(a), side(b)),
        },
        (Some(only), None) | (None, Some(only)) => side(only),
        (None, None) => String::new(),
    }
}

fn side(side: DiffSide<'_>) -> String {
    match side {
        DiffSide::Tensor { dtype, shape } => format!("{dtype} {shape:?}"),
        DiffSide::Value { value } => human::excerpt(&value.to_string(), 0, SHOWN),
        DiffSide::Asset { asset } => format!("{} of digest {}", human::bytes(asset.bytes), asset.digest),
        _ => String::new(),
    }
}

fn compared(elements: &ElementDiff) -> String {
    let mut text = format!("{} of {} elements", elements.differing, elements.total);
    if let Some(largest) = elements.largest_difference {
        text.push_str(&format!(", by at most {}", human::figure(largest)));
    }
    if elements.not_finite > 0 {
        text.push_str(&format!(", {} of them NaN or infinite in A or B", elements.not_finite));
    }
    let numbers = [("relative L2", elements.relative_l2), ("cosine", elements.cosine)];
    let known = numbers.iter().filter_map(|(name, number)| Some(format!("{name} {}", human::figure((*number)?))));
    let known: Vec<String> = known.collect();
    if !known.is_empty() {
        text.push_str(&format!("; {}", known.join(", ")));
    }
    text
}
