//! The top of the page: what needs attention, and what the run is.

use super::html::Html;
use super::page::time;
use super::tensors::Row;
use super::view::{Run, View};
use crate::human;
use tch_checkpoint::inspect::{OtherState, ReportedCheckpoint, Trend};

/// The largest number of names in a sentence.
const NAMED: usize = 4;

/// Writes what needs attention. `rows` are the tensors, the most conspicuous first.
pub fn attention(html: &mut Html, view: &View<'_>, rows: &[Row<'_>]) {
    html.raw("<section aria-labelledby=\"attention\"><h2 id=\"attention\">Needs attention</h2>");
    let mut items = Html::new();
    for run in &view.runs {
        of_run(&mut items, run);
    }
    of_tensors(&mut items, rows);
    if items.is_empty() {
        html.raw(
            "<p class=\"fine\"><span aria-hidden=\"true\">✓</span> Nothing: no checkpoint is damaged, unhealthy or \
                  incomplete, as far as this report read them, and no tensor explodes or vanishes.</p>",
        );
    } else {
        html.raw("<ul class=\"attention\">").piece(&items).raw("</ul>");
    }
    html.raw("</section>");
}

fn of_run(items: &mut Html, run: &Run<'_>) {
    let report = run.report;
    let others = |state: OtherState| report.others.iter().filter(move |other| other.state == state);
    let damaged: Vec<&str> = others(OtherState::Damaged).map(|other| other.name.as_str()).collect();
    item(items, run, "Damaged", &damaged, "others");
    let unreadable: Vec<&str> = others(OtherState::Unreadable).map(|other| other.name.as_str()).collect();
    item(items, run, "Cannot be read", &unreadable, "others");
    let named = |wanted: &dyn Fn(&ReportedCheckpoint) -> bool| -> Vec<&str> {
        let wanted = report.checkpoints.iter().filter(|one| wanted(one));
        wanted.map(|one| one.entry.name.as_str()).collect()
    };
    item(items, run, "Damaged, found when the tensors were read", &named(&|one| one.problem.is_some()), "checkpoints");
    item(
        items,
        run,
        "Unhealthy: NaN or infinite values",
        &named(&|one| !one.entry.non_finite.is_empty()),
        "checkpoints",
    );
    item(items, run, "Saved after an error", &named(&|one| one.entry.unclean), "checkpoints");
    item(items, run, "Without some components", &named(&|one| !one.entry.without.is_empty()), "checkpoints");
    let aside: Vec<&str> = others(OtherState::MovedAside).map(|other| other.name.as_str()).collect();
    item(items, run, "Moved aside by a manager", &aside, "others");
    if let Some((first, second)) = &report.undecided {
        item(items, run, "Nothing decides which one is the newest", &[first.as_str(), second.as_str()], "checkpoints");
    }
}

fn of_tensors(items: &mut Html, rows: &[Row<'_>]) {
    for (trend, text) in [
        (Trend::NonFinite, "Tensors with NaN or infinite values"),
        (Trend::Exploding, "Exploding tensors"),
        (Trend::Vanishing, "Vanishing tensors"),
    ] {
        let found: Vec<&Row<'_>> = rows.iter().filter(|row| row.trend == trend).collect();
        if found.is_empty() {
            continue;
        }
        items.raw("<li><strong>").text(text).raw("</strong> (").number(found.len()).raw("): ");
        for (at, row) in found.iter().take(NAMED).enumerate() {
            items.raw(if at > 0 { ", " } else { "" });
            items.raw("<a").attribute("href", format!("#tensor-{}", row.id)).raw(">").name(row.key).raw("</a>");
        }
        more(items, found.len(), "tensors");
        items.raw("</li>");
    }
}

fn item(items: &mut Html, run: &Run<'_>, text: &'static str, names: &[&str], section: &'static str) {
    if names.is_empty() {
        return;
    }
    items.raw("<li><strong>").text(text).raw("</strong>");
    run.title(items);
    items.raw(" (").number(names.len()).raw("): ");
    for (at, name) in names.iter().take(NAMED).enumerate() {
        items.raw(if at > 0 { ", " } else { "" });
        items.raw("<a").attribute("href", format!("#{section}-{}", run.number)).raw(">").name(name).raw("</a>");
    }
    more(items, names.len(), "checkpoints");
    items.raw("</li>");
}

fn more(items: &mut Html, count: usize, things: &'static str) {
    if count > NAMED {
        items.raw(" and ").number(count - NAMED).raw(" more ").raw(things);
    }
}

/// Writes a cell of the table of facts.
type Cell<'a> = &'a dyn for<'h> Fn(&'h mut Html, &Run<'_>) -> &'h mut Html;

/// Writes the facts of each run, side by side.
pub fn facts(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"facts\"><h2 id=\"facts\">At a glance</h2><div class=\"scroll\"><table class=\"facts\">");
    html.raw("<caption class=\"hidden\">Facts</caption>");
    if view.is_comparison() {
        html.raw("<thead><tr><td></td>");
        for run in &view.runs {
            html.raw("<th scope=\"col\"><span class=\"key ")
                .raw(run.class())
                .raw("\"></span>Run ")
                .text(run.letter)
                .raw("</th>");
        }
        html.raw("</tr></thead>");
    }
    html.raw("<tbody>");
    let mut row = |name: &'static str, cell: Cell<'_>| {
        html.raw("<tr><th scope=\"row\">").raw(name).raw("</th>");
        for run in &view.runs {
            html.raw("<td>");
            cell(html, run);
            html.raw("</td>");
        }
        html.raw("</tr>");
    };
    row("Directory", &|html, run| html.name(human::text(&run.report.directory)));
    row("Checkpoints", &|html, run| html.number(run.report.checkpoints.len()));
    row("Newest", &|html, run| html.name(run.report.latest.as_deref().unwrap_or("none")));
    row("Steps", &|html, run| {
        let steps = || run.report.checkpoints.iter().filter_map(|one| one.entry.step);
        match (steps().min(), steps().max()) {
            (Some(first), Some(last)) => html.number(first).raw(" to ").number(last),
            _ => html.raw("none"),
        }
    });
    row("Saved", &|html, run| {
        let times = || run.report.checkpoints.iter().map(|one| one.entry.saved_at);
        match (times().min(), times().max()) {
            (Some(first), Some(last)) => time(time(html, first).raw(" to "), last).raw(" UTC"),
            _ => html.raw("never"),
        }
    });
    row("Removed earlier", &|html, run| {
        let missing = run.report.gaps.iter().fold(0u64, |sum, gap| sum.saturating_add(gap.missing));
        html.number(missing).raw(if missing == 1 { " save" } else { " saves" })
    });
    row("Policies of this report", &|html, run| match &run.report.policies[..] {
        [] => html.raw("none given: what keeps a checkpoint is known only as far as it holds under all policies"),
        policies => html.text(policies.join(", ")),
    });
    row("Bytes written", &|html, run| {
        html.text(human::bytes(sum(run.report.checkpoints.iter().map(|one| one.written_bytes))))
    });
    row("Bytes linked", &|html, run| {
        html.text(human::bytes(sum(run.report.checkpoints.iter().map(|one| one.linked_bytes))))
    });
    row("Training stalled by saves", &|html, run| {
        let stalls = || run.report.checkpoints.iter().filter_map(|one| Some(one.entry.figures?.stall.as_secs_f64()));
        match stalls().count() {
            0 => html.raw("not recorded"),
            saves => html.text(human::seconds(stalls().sum())).raw(" in ").text(human::count(saves, "save")),
        }
    });
    row("Tensors", &|html, run| html.number(run.report.checkpoints.last().map_or(0, |one| one.entry.tensors)));
    html.raw("</tbody></table></div></section>");
}

pub fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}
