//! The columns of `ckpt ls`.

use crate::human;
use crate::ls::Column;
use crate::table::Align;
use chrono::{DateTime, Utc};
use tch_checkpoint::inspect::CheckpointEntry;
use tch_checkpoint::{Provenance, SaveFigures};

/// The heading of a column, and how its cells are aligned.
pub fn heading(column: Column) -> (&'static str, Align) {
    match column {
        Column::Name => ("NAME", Align::Left),
        Column::Step => ("STEP", Align::Right),
        Column::Saved => ("SAVED", Align::Left),
        Column::Age => ("AGE", Align::Right),
        Column::Size => ("SIZE", Align::Right),
        Column::New => ("NEW", Align::Right),
        Column::Tensors => ("TENSORS", Align::Right),
        Column::Values => ("VALUES", Align::Right),
        Column::Metrics => ("METRICS", Align::Left),
        Column::Metadata => ("METADATA", Align::Left),
        Column::Health => ("HEALTH", Align::Left),
        Column::Pins => ("PINS", Align::Left),
        Column::Notes => ("NOTES", Align::Left),
        Column::Stall => ("STALL", Align::Right),
        Column::Took => ("TOOK", Align::Right),
        Column::Waited => ("WAITED", Align::Right),
        Column::Written => ("WRITTEN", Align::Right),
        Column::Linked => ("LINKED", Align::Right),
        Column::Rate => ("RATE", Align::Right),
        Column::Provenance => ("PROVENANCE", Align::Left),
        Column::Kept => ("KEPT BY", Align::Left),
        Column::Marks => ("", Align::Left),
    }
}

/// Returns the content of a column for a checkpoint.
pub fn cell(column: Column, entry: &CheckpointEntry, is_best: bool, kept: &str, now: DateTime<Utc>) -> String {
    let figure = |of: fn(SaveFigures) -> String| entry.figures.map_or_else(|| "-".to_string(), of);
    match column {
        Column::Name => entry.name.clone(),
        Column::Step => human::number(entry.step),
        Column::Saved => human::time(entry.saved_at),
        Column::Age => human::age(now - entry.saved_at),
        Column::Size => human::bytes(entry.bytes),
        Column::New => human::bytes(entry.new_bytes),
        Column::Tensors => entry.tensors.to_string(),
        Column::Values => entry.values.to_string(),
        Column::Metrics => human::metrics(&entry.metrics),
        Column::Metadata => entry.metadata.join(", "),
        Column::Health => health(entry),
        Column::Pins => human::notes(&entry.pins),
        Column::Notes => human::notes(&entry.notes),
        Column::Stall => figure(|figures| human::seconds(figures.stall.as_secs_f64())),
        Column::Took => figure(|figures| human::seconds(figures.total.as_secs_f64())),
        Column::Waited => figure(|figures| human::seconds(figures.waited.as_secs_f64())),
        Column::Written => figure(|figures| human::bytes(figures.bytes_written)),
        Column::Linked => figure(|figures| human::bytes(figures.bytes_linked)),
        Column::Rate => figure(|figures| human::rate(figures.rate())),
        Column::Provenance => entry.provenance.as_ref().map_or_else(|| "-".to_string(), provenance),
        Column::Kept => kept.to_string(),
        Column::Marks => marks(entry, is_best),
    }
}

/// The commit, shortened, or the version if no commit was recorded.
fn provenance(provenance: &Provenance) -> String {
    let dirty = if provenance.git_dirty == Some(true) { ", uncommitted changes" } else { "" };
    match &provenance.git_commit {
        Some(commit) => format!("commit {}{dirty}", commit.chars().take(12).collect::<String>()),
        None => format!("tch-checkpoint {}{dirty}", provenance.crate_version),
    }
}

fn health(entry: &CheckpointEntry) -> String {
    let mut found = Vec::new();
    if !entry.non_finite.is_empty() {
        found.push(format!("not finite: {}", human::excerpt(&entry.non_finite.join(", "), 0, 60)));
    }
    if entry.unclean {
        found.push("unclean".to_string());
    }
    if found.is_empty() { "healthy".to_string() } else { found.join("; ") }
}

fn marks(entry: &CheckpointEntry, is_best: bool) -> String {
    let marks = [
        (entry.latest, "latest"),
        (is_best, "best"),
        (entry.permanent, "permanent"),
        (!entry.non_finite.is_empty(), "not finite"),
        (entry.unclean, "unclean"),
    ];
    let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| mark.to_string());
    let mut marks: Vec<String> = marks.collect();
    marks.extend(entry.pins.keys().map(|pin| format!("pinned as {pin}")));
    marks.extend(entry.without.iter().map(|component| format!("without {component}")));
    marks.join(", ")
}
