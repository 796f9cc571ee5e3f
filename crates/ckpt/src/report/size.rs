//! Bytes by component, and written against linked.

use super::chart::{self, Bar, Part};
use super::html::Html;
use super::scale::byte_ticks;
use super::summary::sum;
use super::view::{Run, View};
use crate::human;
use std::collections::BTreeMap;
use tch_checkpoint::inspect::ReportedCheckpoint;

/// The classes of the components, the largest first. The last one is for all others.
const COLOURS: [&str; 7] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6"];

/// The largest number of bars of a chart.
const BARS: usize = 60;

pub fn section(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"size\"><h2 id=\"size\">Size</h2>");
    for run in view.runs.iter().filter(|run| !run.report.checkpoints.is_empty()) {
        of_run(html, view, run);
    }
    html.raw("</section>");
}

fn of_run(html: &mut Html, view: &View<'_>, run: &Run<'_>) {
    let mut largest: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, bytes) in run.report.checkpoints.iter().flat_map(|one| &one.components) {
        let entry = largest.entry(name).or_default();
        *entry = (*entry).max(*bytes);
    }
    let mut order: Vec<(&str, u64)> = largest.into_iter().collect();
    order.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let named: Vec<&str> = order.iter().take(COLOURS.len() - 1).map(|(name, _)| *name).collect();
    let shown = shown(run);
    html.raw("<div class=\"charts\"><figure><figcaption>Tensors by component");
    run.title(html);
    html.raw("</figcaption>");
    let by_component = |one: &ReportedCheckpoint| -> Vec<Part> {
        let own = |(name, class): (&&str, &&'static str)| {
            let value = one.components.get(*name).copied().unwrap_or(0) as f64;
            Part { class, value }
        };
        let mut parts: Vec<Part> = named.iter().zip(&COLOURS).map(own).collect();
        let known: f64 = parts.iter().map(|part| part.value).sum();
        let others = sum(one.components.values().copied()) as f64 - known;
        parts.push(Part { class: "c6", value: others });
        parts
    };
    let title = |one: &ReportedCheckpoint| {
        format!("{}: {} of tensors", one.entry.name, human::bytes(sum(one.components.values().copied())))
    };
    bars(
        html,
        view,
        &shown,
        "Bytes of tensors by component; the table below has those of the newest",
        &by_component,
        &title,
    );
    html.raw("</figure><figure><figcaption>Files, written or linked");
    run.title(html);
    html.raw("</figcaption>");
    let by_origin = |one: &ReportedCheckpoint| {
        vec![
            Part { class: "c0", value: one.written_bytes as f64 },
            Part { class: "linked", value: one.linked_bytes as f64 },
        ]
    };
    let title = |one: &ReportedCheckpoint| {
        let [written, linked] = [one.written_bytes, one.linked_bytes].map(human::bytes);
        format!("{}: {written} written, {linked} linked", one.entry.name)
    };
    bars(html, view, &shown, "Bytes written and linked; the table of checkpoints has the numbers", &by_origin, &title);
    html.raw(
        "<ul class=\"legend\"><li><span class=\"box c0\"></span> written</li><li><span class=\"box linked\"></span> ",
    );
    html.raw("linked: the file of an earlier checkpoint</li></ul></figure></div>");
    table(html, run, &order);
}

/// At most [`BARS`] checkpoints, evenly spaced, the newest one among them, with their positions.
pub fn shown<'a>(run: &Run<'a>) -> Vec<(f64, &'a ReportedCheckpoint)> {
    let all = &run.report.checkpoints;
    let every = all.len().div_ceil(BARS).max(1);
    let pairs = run.x.iter().copied().zip(all).rev().step_by(every);
    let mut shown: Vec<(f64, &ReportedCheckpoint)> = pairs.collect();
    shown.reverse();
    shown
}

fn bars(
    html: &mut Html,
    view: &View<'_>,
    shown: &[(f64, &ReportedCheckpoint)],
    label: &str,
    parts: &dyn Fn(&ReportedCheckpoint) -> Vec<Part>,
    title: &dyn Fn(&ReportedCheckpoint) -> String,
) {
    let bar = |(x, one): &(f64, &ReportedCheckpoint)| Bar { x: *x, title: title(one), parts: parts(one) };
    let bars: Vec<Bar> = shown.iter().map(bar).collect();
    chart::bars(html, view, label, &bars, 0.0, byte_ticks, |bytes| human::bytes(bytes as u64));
}

/// The components of the newest checkpoint, with the colours of the chart.
fn table(html: &mut Html, run: &Run<'_>, order: &[(&str, u64)]) {
    let Some(newest) = run.report.checkpoints.last() else { return };
    html.raw("<div class=\"scroll\"><table class=\"components\"><caption>Components of the newest checkpoint");
    run.title(html);
    html.raw("</caption><thead><tr><th scope=\"col\">Component</th><th scope=\"col\" class=\"end\">Bytes</th></tr></thead><tbody>");
    const ROWS: usize = 40;
    for (at, (name, _)) in order.iter().enumerate().take(ROWS) {
        let class = COLOURS.get(at.min(COLOURS.len() - 1)).copied().unwrap_or("c6");
        html.raw("<tr><th scope=\"row\"><span class=\"box ").raw(class).raw("\"></span> ").name(name);
        let bytes = newest.components.get(*name).copied();
        html.raw("</th><td class=\"end\">").text(bytes.map_or_else(|| "not there".to_string(), human::bytes));
        html.raw("</td></tr>");
    }
    html.raw("</tbody></table></div>");
    if order.len() > ROWS {
        html.raw("<p>").number(order.len() - ROWS).raw(" smaller components are left out.</p>");
    }
}
