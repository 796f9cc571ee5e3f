//! When checkpoints were saved, and their metrics.

use super::chart::{self, Series};
use super::html::Html;
use super::view::{Run, State, View};
use crate::human;
use std::collections::BTreeSet;
use tch_checkpoint::inspect::OtherState;

/// The largest number of metrics that are drawn.
const METRICS: usize = 24;

/// Writes the strip of checkpoints of each run and a chart per metric.
pub fn section(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"timeline\"><h2 id=\"timeline\">Time line</h2>");
    for run in &view.runs {
        strip(html, view, run);
    }
    legend(html);
    metrics(html, view);
    html.raw("</section>");
}

fn strip(html: &mut Html, view: &View<'_>, run: &Run<'_>) {
    html.raw("<figure class=\"strip\"><figcaption>Checkpoints");
    run.title(html);
    html.raw(" by ").raw(view.axis()).raw("</figcaption><svg role=\"img\" height=\"58\" aria-label=\"");
    html.text(format!("{} checkpoints; the table below lists them", run.report.checkpoints.len())).raw("\">");
    html.raw("<line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"36\" y2=\"36\"/>");
    gaps(html, view, run);
    let mut drawn = BTreeSet::new();
    for (one, x) in run.report.checkpoints.iter().zip(&run.x) {
        let at = percent(view, *x);
        let state = State::of(one);
        if state == State::Whole && !drawn.insert((at * 10.0) as i64) {
            continue;
        }
        html.raw("<g><title>").text(&one.entry.name).raw("</title>");
        mark(html, state, at);
        html.raw("</g>");
    }
    // The steps of damaged checkpoints are known by their names only.
    for other in run.report.others.iter().filter(|other| is_damage(other.state)) {
        let number = other.name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| view.has_steps) {
            html.raw("<g><title>").text(&other.name).raw(": ").text(&other.reason).raw("</title>");
            mark(html, State::Damaged, percent(view, number as f64));
            html.raw("</g>");
        }
    }
    for tick in view.across.iter().flat_map(|across| across.ticks(5)).filter(|tick| tick.fract() == 0.0) {
        let at = percent(view, tick);
        let class = if at < 4.0 {
            "tick"
        } else if at > 96.0 {
            "tick end"
        } else {
            "tick middle"
        };
        html.raw("<text class=\"").raw(class).raw("\" y=\"54\" x=\"").number(at).raw("%\">");
        html.text(chart::count(tick)).raw("</text>");
    }
    html.raw("</svg></figure>");
}

pub fn is_damage(state: OtherState) -> bool {
    matches!(state, OtherState::Damaged | OtherState::Unreadable | OtherState::MovedAside)
}

/// Half a percent from the edges, with one digit after the point.
fn percent(view: &View<'_>, x: f64) -> f64 {
    chart::tenths(1.0 + 98.0 * view.at(x))
}

/// Bands where saves are gone.
fn gaps(html: &mut Html, view: &View<'_>, run: &Run<'_>) {
    let at = |name: &str| {
        let found = run.report.checkpoints.iter().position(|one| one.entry.name == name);
        found.and_then(|found| run.x.get(found)).map(|x| percent(view, *x))
    };
    for gap in &run.report.gaps {
        let after = gap.after.as_deref().map_or(Some(0.0), at);
        let (Some(from), Some(to)) = (after, at(&gap.before)) else { continue };
        if to > from {
            html.raw("<rect class=\"gap\" y=\"29\" height=\"14\" x=\"").number(from).raw("%\" width=\"");
            html.number(chart::tenths(to - from)).raw("%\"><title>").number(gap.missing);
            html.raw(" saves before ").text(&gap.before).raw(" are no longer here</title></rect>");
        }
    }
}

fn mark(html: &mut Html, state: State, at: f64) {
    let text = |html: &mut Html, class: &'static str, sign: &'static str| {
        html.raw("<text class=\"").raw(class).raw(" middle\" y=\"18\" x=\"").number(at).raw("%\">").raw(sign);
        html.raw("</text>");
    };
    let tick = |html: &mut Html, class: &'static str| {
        html.raw("<line class=\"").raw(class).raw("\" y1=\"24\" y2=\"44\" x1=\"").number(at).raw("%\" x2=\"");
        html.number(at).raw("%\"/>");
    };
    match state {
        State::Whole => tick(html, "mark"),
        State::Pinned => {
            tick(html, "mark");
            text(html, "pinned", "◆");
        }
        State::Incomplete => {
            tick(html, "mark thin");
            text(html, "part", "◐");
        }
        State::Unhealthy => {
            tick(html, "mark unhealthy");
            text(html, "unhealthy", "▲");
        }
        State::Damaged => text(html, "bad", "✕"),
    }
}

fn legend(html: &mut Html) {
    html.raw(
        "<ul class=\"legend\"><li><span class=\"sign mark\">|</span> whole</li><li><span class=\"sign \
         pinned\">◆</span> pinned or permanent</li><li><span class=\"sign unhealthy\">▲</span> unhealthy</li><li><span \
         class=\"sign part\">◐</span> without some components</li><li><span class=\"sign bad\">✕</span> \
         damaged</li><li><span class=\"sign gap-key\"></span> saves that are no longer here</li></ul>",
    );
}

fn metrics(html: &mut Html, view: &View<'_>) {
    let checkpoints = || view.runs.iter().flat_map(|run| &run.report.checkpoints);
    let names: BTreeSet<&str> = checkpoints().flat_map(|one| one.entry.metrics.keys().map(String::as_str)).collect();
    if names.is_empty() {
        html.raw("<p>No metrics were recorded.</p>");
        return;
    }
    html.raw("<div class=\"charts\">");
    for name in names.iter().take(METRICS) {
        let series: Vec<Series<'_>> = view.runs.iter().map(|run| line(run, name)).collect();
        html.raw("<figure><figcaption>").name(name);
        view.keys(html);
        html.raw("</figcaption>");
        let label = format!("{name} by {}; the table of checkpoints has the numbers", view.axis());
        chart::lines(html, view, &label, &series, human::figure);
        html.raw("</figure>");
    }
    html.raw("</div>");
    if names.len() > METRICS {
        html.raw("<p>").number(names.len() - METRICS).raw(
            " more metrics are only in the output of <code>ckpt report \
                 --json</code>.</p>",
        );
    }
}

fn line<'a>(run: &Run<'a>, name: &str) -> Series<'a> {
    let points = run.report.checkpoints.iter().zip(&run.x);
    let points = points.filter_map(|(one, x)| Some((*x, *one.entry.metrics.get(name)?))).collect();
    Series { class: run.class(), letter: run.letter, points }
}
