//! The table of checkpoints, and of entries that are not valid ones.

use super::html::Html;
use super::page::time;
use super::view::{Run, View};
use crate::human;
use std::collections::BTreeSet;
use tch_checkpoint::inspect::{OtherState, ReportedCheckpoint};

/// The largest number of rows. The newest ones are shown.
const ROWS: usize = 500;
/// The largest number of columns of metrics.
const METRICS: usize = 8;

pub fn section(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"checkpoints\"><h2 id=\"checkpoints\">Checkpoints</h2>");
    for run in &view.runs {
        whole(html, run);
        others(html, run);
    }
    html.raw("</section>");
}

fn whole(html: &mut Html, run: &Run<'_>) {
    let all = &run.report.checkpoints;
    html.raw("<h3").attribute("id", format!("checkpoints-{}", run.number)).raw(">Whole checkpoints");
    run.title(html);
    html.raw("</h3>");
    if all.is_empty() {
        html.raw("<p>There is none.</p>");
        return;
    }
    let metrics: BTreeSet<&String> = all.iter().flat_map(|one| one.entry.metrics.keys()).collect();
    let metrics: Vec<&String> = metrics.into_iter().take(METRICS).collect();
    html.raw("<div class=\"scroll tall\" role=\"region\" aria-label=\"Table of checkpoints\" tabindex=\"0\"><table ");
    html.raw(
        "class=\"checkpoints\"><caption class=\"hidden\">Whole checkpoints, the newest first</caption><thead><tr>",
    );
    html.raw("<th scope=\"col\">Name</th><th scope=\"col\">State, and what keeps it</th>");
    html.raw("<th scope=\"col\" class=\"end\">Step</th><th scope=\"col\">Saved (UTC)</th>");
    for name in &metrics {
        html.raw("<th scope=\"col\" class=\"end\">").name(name).raw("</th>");
    }
    html.raw(
        "<th scope=\"col\" class=\"end\">Written</th><th scope=\"col\" class=\"end\">Linked</th></tr></thead><tbody>",
    );
    for one in all.iter().rev().take(ROWS) {
        row(html, one, &metrics, !run.report.policies.is_empty());
    }
    html.raw("</tbody></table></div>");
    if all.len() > ROWS {
        html.raw("<p>")
            .number(all.len() - ROWS)
            .raw(" older checkpoints are left out of this table; the charts have all.</p>");
    }
}

fn row(html: &mut Html, one: &ReportedCheckpoint, metrics: &[&String], has_policies: bool) {
    let entry = &one.entry;
    html.raw("<tr><th scope=\"row\">").name(&entry.name).raw("</th><td>");
    states(html, one, has_policies);
    html.raw("</td><td class=\"end\">").text(human::number(entry.step)).raw("</td><td>");
    time(html, entry.saved_at);
    html.raw("</td>");
    for name in metrics {
        html.raw("<td class=\"end\">");
        html.text(entry.metrics.get(*name).map_or_else(|| "–".to_string(), |value| human::figure(*value))).raw("</td>");
    }
    html.raw("<td class=\"end\">").text(human::bytes(one.written_bytes)).raw("</td><td class=\"end\">");
    html.text(human::bytes(one.linked_bytes)).raw("</td></tr>");
}

fn badge(html: &mut Html, class: &'static str, sign: &'static str, text: &str) {
    html.raw("<span class=\"").raw(class).raw("\"><span aria-hidden=\"true\">").raw(sign).raw("</span> ");
    html.text(text).raw("</span> ");
}

fn states(html: &mut Html, one: &ReportedCheckpoint, has_policies: bool) {
    let entry = &one.entry;
    if let Some(problem) = &one.problem {
        badge(html, "badge bad", "✕", "damaged");
        html.text(problem.within(&entry.path)).raw(" ");
    }
    if let [first, more @ ..] = &entry.non_finite[..] {
        badge(html, "badge bad", "▲", "NaN or infinite");
        html.name(first);
        if !more.is_empty() {
            html.raw(" and ").number(more.len()).raw(" more");
        }
        html.raw(" ");
    }
    if entry.unclean {
        badge(html, "badge bad", "▲", "saved after an error");
    }
    if !entry.without.is_empty() {
        badge(html, "badge warn", "◐", "without");
        html.text(entry.without.join(", ")).raw(" ");
    }
    if entry.latest {
        badge(html, "badge good", "●", "newest");
    }
    if entry.permanent {
        badge(html, "badge", "◆", "permanent");
    }
    for (name, note) in &one.entry.pins {
        badge(html, "badge", "◆", &format!("pinned: {name}"));
        html.text(note).raw(" ");
    }
    for (name, text) in &one.entry.notes {
        html.raw("<span class=\"note\">").text(name).raw(": ").text(text).raw("</span> ");
    }
    match &one.kept_by {
        Some(reasons) if !reasons.is_empty() => html.raw("<small>kept: ").text(reasons.join("; ")).raw("</small>"),
        Some(_) if has_policies => html.raw("<small>no policy keeps it</small>"),
        Some(_) => html,
        None => html.raw("<small>of another run or name</small>"),
    };
}

/// Lists entries that are damaged, moved aside, unfinished or gone.
fn others(html: &mut Html, run: &Run<'_>) {
    let report = run.report;
    html.raw("<h3").attribute("id", format!("others-{}", run.number)).raw(">What else is there, and what is gone");
    run.title(html);
    html.raw("</h3>");
    if report.others.is_empty() && report.gaps.is_empty() {
        html.raw("<p>Nothing.</p>");
        return;
    }
    html.raw("<ul class=\"others\">");
    for other in report.others.iter().take(ROWS) {
        let (class, sign, text) = match other.state {
            OtherState::Damaged => ("badge bad", "✕", "damaged"),
            OtherState::Unreadable => ("badge bad", "✕", "cannot be read"),
            OtherState::MovedAside => ("badge bad", "✕", "moved aside"),
            OtherState::Superseded => ("badge", "↩", "superseded"),
            OtherState::UnfinishedSave => ("badge warn", "…", "unfinished"),
            OtherState::Removed => ("badge", "−", "removed"),
            OtherState::Link => ("badge", "→", "link"),
            _ => ("badge", "?", "other"),
        };
        html.raw("<li>");
        badge(html, class, sign, text);
        html.name(&other.name).raw(": ").text(&other.reason).raw("</li>");
    }
    for gap in report.gaps.iter().take(ROWS) {
        html.raw("<li>");
        badge(html, "badge", "−", "gone");
        html.number(gap.missing).raw(if gap.missing == 1 { " save " } else { " saves " });
        match &gap.after {
            Some(after) => html.raw("between ").name(after).raw(" and "),
            None => html.raw("before "),
        };
        html.name(&gap.before).raw(": removed by a retention policy or by hand</li>");
    }
    html.raw("</ul>");
    let more = report.others.len().saturating_sub(ROWS) + report.gaps.len().saturating_sub(ROWS);
    if more > 0 {
        html.raw("<p>").number(more).raw(" more are left out.</p>");
    }
}
