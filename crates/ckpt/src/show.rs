//! `ckpt show`: shows the content of a checkpoint.

use crate::cli::Show;
use crate::human;
use crate::output::{Exit, Output};
use crate::stats;
use crate::table::{Align, Table};
use crate::target::{self, title};
use serde_json::Value;
use std::collections::HashMap;
use tch_checkpoint::format::TensorInfo;
use tch_checkpoint::inspect::{StatsOptions, Summary};
use tch_checkpoint::{Error, SaveFigures, VerifiedBy};

/// How many characters of a value are shown.
const SHOWN: usize = 80;

/// The metadata that `Checkpoint::provenance` records.
const PROVENANCE: &str = "provenance";

pub fn run(args: &Show, out: &mut Output) -> Result<Exit, Error> {
    let target = target::open(&args.path, out)?;
    let pattern = args.pattern.as_deref().or(args.filter.as_deref());
    let summary = match args.stats || args.histogram {
        true => target.summary_with_stats(pattern, &options(args)),
        false => target.summary(pattern),
    }?;
    if pattern.is_none() {
        print_head(&summary, out);
        print_components(&summary, out);
        print_dtypes(&summary, out);
        print_metadata(&summary, out);
        print_saved_model(&summary, out);
    }
    if args.tree {
        out.separate();
        target.contents(pattern).to_string().lines().for_each(|line| out.line(line));
    } else {
        print_tensors(&summary, out);
    }
    if args.stats {
        stats::print(&summary, out);
    }
    if args.histogram {
        stats::print_histograms(&summary, out);
    }
    if !args.tree {
        print_json("VALUE", summary.values.iter(), out);
    }
    if pattern.is_none() {
        print_unreadable(&summary, out);
    }
    if let Some(pattern) = pattern
        && summary.tensors.is_empty()
        && summary.values.is_empty()
    {
        out.line(format!(
            "no name matches {pattern:?} among {} and {}",
            human::count(summary.totals.tensors, "tensor"),
            human::count(summary.totals.values, "value")
        ));
    }
    out.document(&summary);
    Ok(Exit::Fine)
}

fn options(args: &Show) -> StatsOptions {
    if args.histogram { StatsOptions::new().histogram(args.bins.into()) } else { StatsOptions::new() }
}

fn print_head(summary: &Summary<'_>, out: &mut Output) {
    let overview = &summary.overview;
    out.line(title(overview));
    out.line("");
    let mut table = Table::without_headings([Align::Left, Align::Left]);
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    match (overview.saved_at, overview.sequence, &overview.run) {
        (Some(saved_at), Some(sequence), Some(run)) => {
            row("step", human::number(overview.step));
            row("saved", human::time_and_offset(saved_at));
            row("save counter", human::number(overview.save_counter));
            row("sequence", sequence.to_string());
            row("run", run.clone());
        }
        _ => {
            row("format", overview.format.to_string());
            row("verified by", verified_by(summary.verified_by).to_string());
        }
    }
    if let Some(figures) = summary.figures {
        row("save", cost(&figures));
    }
    if summary.unclean {
        row("unclean", "saved after an error; the state may not belong together".to_string());
    }
    if !summary.without.is_empty() {
        row("without", summary.without.join(", "));
    }
    if !summary.metrics.is_empty() {
        row("metrics", human::metrics(&summary.metrics));
    }
    for (name, notes) in [("pins", &summary.pins), ("notes", &summary.notes)] {
        if !notes.is_empty() {
            row(name, human::notes(notes));
        }
    }
    table.print(out);
    out.line("");
}

/// Prints the cost of the save in one line.
fn cost(figures: &SaveFigures) -> String {
    let [stall, total, waited] = [figures.stall, figures.total, figures.waited];
    let waited = match waited.is_zero() {
        true => String::new(),
        false => format!(", {} of it waiting for the save before", human::seconds(waited.as_secs_f64())),
    };
    format!(
        "took {}, stalled the training for {}{waited}; {} written at {}, {} linked",
        human::seconds(total.as_secs_f64()),
        human::seconds(stall.as_secs_f64()),
        human::bytes(figures.bytes_written),
        human::rate(figures.rate()),
        human::bytes(figures.bytes_linked),
    )
}

/// Returns how far the elements of another tool's checkpoint can be verified.
fn verified_by(verified_by: VerifiedBy) -> &'static str {
    match verified_by {
        VerifiedBy::Digest => "a digest per tensor (seal)",
        VerifiedBy::Container => "checksums of the format",
        _ => "nothing: the format has no checksums (see `ckpt seal`)",
    }
}

fn print_components(summary: &Summary<'_>, out: &mut Output) {
    let sizes: HashMap<&str, u64> = summary.files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
    let mut table = Table::new([
        ("COMPONENT", Align::Left),
        ("TENSORS", Align::Right),
        ("VALUES", Align::Right),
        ("SIZE", Align::Right),
        ("FILES", Align::Left),
    ]);
    for component in &summary.components {
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
    let totals = &summary.totals;
    table.row([
        "total".to_string(),
        totals.tensors.to_string(),
        totals.values.to_string(),
        human::bytes(totals.tensor_bytes),
        format!("{} ({})", human::count(summary.files.len(), "file"), human::bytes(totals.bytes)),
    ]);
    table.print(out);
}

/// The origin of the run, field by field, and the other metadata.
fn print_metadata(summary: &Summary<'_>, out: &mut Output) {
    let provenance = summary.metadata.get(PROVENANCE).and_then(|value| value.as_object());
    if let Some(fields) = provenance {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
        print_json("PROVENANCE", fields.iter().map(|(name, value)| (name, plain(value))), out);
    }
    let is_shown = |name: &str| name == PROVENANCE && provenance.is_some();
    let rest: Vec<_> = summary.metadata.iter().filter(|(name, _)| !is_shown(name)).collect();
    print_json("METADATA", rest.into_iter(), out);
}

/// The sizes by element type, if there is more than one.
fn print_dtypes(summary: &Summary<'_>, out: &mut Output) {
    if summary.dtypes.len() < 2 {
        return;
    }
    let mut table = Table::new([("DTYPE", Align::Left), ("TENSORS", Align::Right), ("SIZE", Align::Right)]);
    for of in &summary.dtypes {
        table.row([of.dtype.to_string(), of.tensors.to_string(), human::bytes(of.bytes)]);
    }
    out.separate();
    table.print(out);
}

/// The signatures and the metadata of a saved model. The program itself is not read.
fn print_saved_model(summary: &Summary<'_>, out: &mut Output) {
    let Some(info) = &summary.saved_model else { return };
    let mut table = Table::new([("SIGNATURE", Align::Left), ("INPUTS", Align::Left), ("OUTPUTS", Align::Left)]);
    let list = |tensors: &[TensorInfo]| tensors.iter().map(TensorInfo::to_string).collect::<Vec<_>>().join(", ");
    for (name, signature) in &info.signatures {
        table.row([name.clone(), list(&signature.inputs), list(&signature.outputs)]);
    }
    out.separate();
    table.print(out);
    print_json("METADATA", info.metadata.iter(), out);
}

fn print_tensors(summary: &Summary<'_>, out: &mut Output) {
    if summary.tensors.is_empty() {
        return;
    }
    let mut table = Table::new([
        ("TENSOR", Align::Left),
        ("DTYPE", Align::Left),
        ("SHAPE", Align::Left),
        ("BYTES", Align::Right),
        ("", Align::Left),
    ]);
    for tensor in &summary.tensors {
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

/// Entries of a file of another tool that cannot be read.
fn print_unreadable(summary: &Summary<'_>, out: &mut Output) {
    if summary.unreadable.is_empty() {
        return;
    }
    let mut table = Table::new([("UNREADABLE", Align::Left), ("REASON", Align::Left)]);
    for (key, reason) in summary.unreadable {
        table.row([key.clone(), human::excerpt(reason, 0, SHOWN)]);
    }
    out.separate();
    table.print(out);
}

/// Names and their JSON, shortened to one line each.
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
