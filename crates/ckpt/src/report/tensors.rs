//! The table of tensors.

use super::histogram;
use super::html::Html;
use super::spark::{self, Line, Range};
use super::view::View;
use crate::human;
use std::collections::BTreeMap;
use tch_checkpoint::inspect::{TensorHistory, TensorPoint, Trend};

/// A row: a tensor, in one or both runs.
pub struct Row<'a> {
    pub key: &'a str,
    /// The position in the table, as its name in links.
    pub id: usize,
    /// The more serious one of both runs.
    pub trend: Trend,
    /// Whether it is a variable, as far as that is recorded.
    is_variable: bool,
    growth: f64,
    /// By run.
    histories: Vec<Option<&'a TensorHistory>>,
}

/// The number of rows of a large table that are shown at first, so that the page opens at once.
const FIRST: usize = 100;

/// How much is drawn of each tensor.
#[derive(Debug, Clone, Copy)]
struct Detail {
    /// Points of a line.
    points: usize,
    /// Histograms.
    histograms: usize,
    /// Whether the browser builds the details of a tensor only when they are opened.
    is_deferred: bool,
}

impl Detail {
    /// Returns as much as a page of so many tensors has room for.
    fn of(tensors: usize) -> Detail {
        match tensors {
            0..=300 => Detail { points: 60, histograms: 12, is_deferred: false },
            _ => Detail { points: 40, histograms: 6, is_deferred: true },
        }
    }
}

/// Returns the tensors of all runs, the most conspicuous first.
pub fn rows<'a>(view: &View<'a>) -> Vec<Row<'a>> {
    let mut by_key: BTreeMap<&str, Vec<Option<&TensorHistory>>> = BTreeMap::new();
    for run in &view.runs {
        for history in &run.report.tensors {
            let entry = by_key.entry(&history.key).or_insert_with(|| vec![None; view.runs.len()]);
            if let Some(own) = entry.get_mut(run.number) {
                *own = Some(history);
            }
        }
    }
    let row = |(key, histories): (&'a str, Vec<Option<&'a TensorHistory>>)| {
        let known = || histories.iter().flatten();
        let trend = known().map(|history| history.trend).min().unwrap_or(Trend::Unknown);
        let growth = known().filter_map(|history| history.growth).fold(0.0, f64::max);
        let is_variable = known().any(|history| history.is_variable != Some(false));
        Row { key, id: 0, trend, is_variable, growth, histories }
    };
    let mut rows: Vec<Row<'a>> = by_key.into_iter().map(row).collect();
    rows.sort_by(|a, b| {
        let verdict = a.trend.cmp(&b.trend).then(b.is_variable.cmp(&a.is_variable));
        verdict.then(b.growth.total_cmp(&a.growth)).then(a.key.cmp(b.key))
    });
    rows.iter_mut().zip(0..).for_each(|(row, id)| row.id = id);
    rows
}

/// Writes the section, in at most about `room` bytes.
pub fn section(html: &mut Html, view: &View<'_>, rows: &[Row<'_>], room: usize) {
    html.raw("<section aria-labelledby=\"tensors\"><h2 id=\"tensors\">Tensors</h2>");
    if rows.is_empty() {
        html.raw("<p>No tensor was read.</p></section>");
        return;
    }
    let (body, shown) = body(view, rows, room);
    explanation(html, view, rows.len(), shown);
    controls(html, shown);
    html.raw(
        "<div class=\"scroll\" role=\"region\" aria-label=\"Table of tensors\" tabindex=\"0\"><table id=\"tensor-table\" \
         class=\"tensors\"><caption class=\"hidden\">Tensors, the most conspicuous first</caption><thead><tr><th \
         scope=\"col\">Tensor</th><th scope=\"col\">Verdict</th><th scope=\"col\" colspan=\"2\">Norm</th><th \
         scope=\"col\">Growth</th><th scope=\"col\" colspan=\"2\">Spread (standard deviation)</th><th scope=\"col\" \
         colspan=\"2\">Update to weight</th><th scope=\"col\">Smallest, largest</th><th \
         scope=\"col\">Zeros</th></tr></thead>",
    );
    html.piece(&body).raw("</table></div></section>");
}

fn explanation(html: &mut Html, view: &View<'_>, all: usize, shown: usize) {
    html.raw("<p>");
    for run in &view.runs {
        html.raw("The tensors");
        run.title(html);
        html.raw(" were read in ").number(run.report.sampled.len()).raw(" of ");
        html.number(run.report.checkpoints.len()).raw(" checkpoints. ");
    }
    html.raw(
        "All small charts of a column have one scale: the middle line is the tensor&#39;s usual value (the median of \
         the first half of the run), the top ten times, the bottom a tenth of it. An update is the norm of what changed \
         since the checkpoint read before, divided by the norm of the tensor there; its middle line is 0.001, the top 1, \
         the bottom 0.000001. A cross marks NaN or infinite values. <em>Exploding</em>: the largest norm is at least ten times the usual one. \
         <em>Vanishing</em>: the last norm is at most a tenth of it. Tensors that are no variables, such as an \
         optimizer&#39;s moments, change more: 100 times, a hundredth.",
    );
    if view.runs.len() > 1 {
        html.raw(" Of two numbers in a cell, the upper one is of run A, the lower one of run B.");
    }
    if shown < all {
        html.raw(" <strong>").number(all - shown).raw(
            " tensors are left out to keep this page below 5 MB: those that changed least. <code>--tensors</code> \
             chooses others.</strong>",
        );
    }
    html.raw("</p>");
}

fn controls(html: &mut Html, shown: usize) {
    html.raw(
        "<div class=\"controls needs-script\"><label>Name contains <input type=\"search\" id=\"filter\" \
         autocomplete=\"off\"></label><label>Sort by <select id=\"sort\"><option value=\"rank\">verdict, then \
         growth</option><option value=\"name\">name</option><option value=\"norm\">norm</option><option \
         value=\"growth\">growth</option><option value=\"update\">last update</option></select></label><label><input \
         type=\"checkbox\" id=\"flagged\"> only conspicuous ones</label><span id=\"shown\" role=\"status\">",
    );
    html.number(shown).raw(" of ").number(shown);
    html.raw("</span><button type=\"button\" id=\"all\" hidden>Show all</button></div>");
}

/// Writes as many rows as there is room for; the details of a row only while more than a third of the room is left.
fn body(view: &View<'_>, rows: &[Row<'_>], room: usize) -> (Html, usize) {
    let mut body = Html::new();
    let mut shown = 0;
    let detail = Detail::of(rows.len() * view.runs.len());
    for row in rows {
        let mut one = Html::new();
        let has_details = body.len() < room / 3 * 2;
        write(&mut one, view, row, detail, has_details);
        if body.len() + one.len() > room {
            break;
        }
        body.piece(&one);
        shown += 1;
    }
    (body, shown)
}

/// The points of a history, with their positions on the horizontal axis.
pub fn points<'a>(
    view: &'a View<'a>,
    number: usize,
    history: &'a TensorHistory,
) -> impl Iterator<Item = (f64, &'a TensorPoint)> {
    let run = view.runs.get(number);
    let x = move |at: &usize| run.and_then(|run| run.x.get(*at)).copied();
    let sampled = run.into_iter().flat_map(|run| &run.report.sampled);
    sampled.zip(&history.points).filter_map(move |(at, point)| Some((x(at)?, point.as_ref()?)))
}

fn write(html: &mut Html, view: &View<'_>, row: &Row<'_>, detail: Detail, has_details: bool) {
    let last = |of: &dyn Fn(&TensorPoint) -> Option<f64>| -> Vec<Option<f64>> {
        let last = |(number, history): (usize, Option<&TensorHistory>)| {
            let history = history?;
            let run = view.runs.get(number)?;
            debug_assert_eq!(run.report.sampled.len(), history.points.len());
            history.points.iter().flatten().next_back().and_then(of)
        };
        row.histories.iter().copied().enumerate().map(last).collect()
    };
    let (norms, spreads) = (last(&|point| point.stats.norm), last(&|point| point.stats.std));
    let updates = last(&|point| point.update);
    html.raw("<tbody").attribute("id", format!("tensor-{}", row.id));
    for (name, values) in [("data-norm", &norms), ("data-update", &updates)] {
        html.attribute(name, human::figure(values.iter().flatten().copied().fold(0.0, f64::max)));
    }
    html.attribute("data-growth", human::figure(row.growth));
    html.attribute(
        "class",
        match (row.trend.is_conspicuous(), detail.is_deferred && row.id >= FIRST) {
            (true, false) => "flagged",
            (true, true) => "flagged later",
            (false, true) => "later",
            (false, false) => "",
        },
    );
    html.raw("><tr><th scope=\"row\">");
    name(html, row, has_details);
    html.raw("</th><td>");
    verdict(html, row.trend);
    let lines = |of: &dyn Fn(&TensorPoint) -> Option<f64>| -> Vec<Line> {
        let line = |(number, history): (usize, Option<&TensorHistory>)| {
            let history = history?;
            let all = || points(view, number, history);
            let known = all().filter(|(_, point)| point.stats.non_finite() == 0);
            let known = known.filter_map(|(x, point)| Some((x, of(point)?))).collect();
            let broken = all().filter(|(_, point)| point.stats.non_finite() > 0).map(|(x, _)| x).collect();
            Some(Line { class: view.runs.get(number)?.class(), points: known, broken })
        };
        row.histories.iter().copied().enumerate().filter_map(line).collect()
    };
    for (of, values) in [
        (&(|point: &TensorPoint| point.stats.norm) as &dyn Fn(&TensorPoint) -> Option<f64>, &norms),
        (&|point: &TensorPoint| point.stats.std, &spreads),
        (&|point: &TensorPoint| point.update, &updates),
    ] {
        let lines = lines(of);
        let usual = lines.iter().find_map(|line| {
            let values: Vec<f64> = line.points.iter().map(|point| point.1).collect();
            spark::usual(&values)
        });
        html.raw("</td><td>");
        let range =
            if std::ptr::eq(values, &raw const updates) { Range::Share } else { Range::Around(usual.unwrap_or(1.0)) };
        spark::draw(html, view, range, &lines, detail.points);
        html.raw("</td><td class=\"end\">");
        figures(html, values);
        if std::ptr::eq(values, &raw const norms) {
            html.raw("</td><td class=\"end\">");
            let growth = |history: Option<&TensorHistory>| history.and_then(|history| history.growth);
            let growths: Vec<Option<f64>> = row.histories.iter().copied().map(growth).collect();
            each(html, &growths, |growth| format!("×{}", rounded(growth)));
        }
    }
    html.raw("</td><td class=\"end\">");
    ranges(html, row);
    html.raw("</td><td class=\"end\">");
    each(html, &last(&|point| Some(point.stats.zero_share())), |share| format!("{} %", rounded(100.0 * share)));
    html.raw("</td></tr>");
    if has_details {
        details(html, view, row, detail);
    }
    html.raw("</tbody>");
}

fn name(html: &mut Html, row: &Row<'_>, has_details: bool) {
    if has_details {
        html.raw("<button type=\"button\" class=\"more needs-script\" aria-expanded=\"false\"");
        html.attribute("aria-controls", format!("more-{}", row.id)).raw("><span aria-hidden=\"true\">▸</span><span ");
        html.raw("class=\"hidden\">Details of </span>").name(row.key).raw("</button><span class=\"no-script\">");
        html.name(row.key).raw("</span>");
    } else {
        html.name(row.key);
    }
    if let Some(history) = row.histories.iter().flatten().next() {
        html.raw("<small>").text(history.dtype.to_string()).raw(" ");
        html.text(format!("{:?}", history.shape)).raw("</small>");
    }
}

fn verdict(html: &mut Html, trend: Trend) {
    let (class, sign, text) = match trend {
        Trend::NonFinite => ("badge bad", "✕", "NaN or infinite"),
        Trend::Exploding => ("badge bad", "▲", "exploding"),
        Trend::Vanishing => ("badge warn", "▼", "vanishing"),
        Trend::Steady => ("steady", "", "steady"),
        _ => ("steady", "", "unknown"),
    };
    html.raw("<span class=\"").raw(class).raw("\"><span aria-hidden=\"true\">").raw(sign).raw("</span> ").raw(text);
    html.raw("</span>");
}

/// Writes a number of each run.
fn each(html: &mut Html, values: &[Option<f64>], text: impl Fn(f64) -> String) {
    for (at, value) in values.iter().enumerate() {
        html.raw(if at > 0 { "<br>" } else { "" });
        html.text(value.map_or_else(|| "–".to_string(), &text));
    }
}

fn figures(html: &mut Html, values: &[Option<f64>]) {
    each(html, values, rounded);
}

/// A number with 3 digits.
pub fn rounded(value: f64) -> String {
    let short = format!("{value:.2e}");
    if value.abs() < 1e5 { human::figure(short.parse().unwrap_or(value)) } else { short }
}

/// Writes the smallest and the largest value: of one run below each other, of two runs a line for each, as in the other
/// cells.
fn ranges(html: &mut Html, row: &Row<'_>) {
    let between = if row.histories.len() > 1 { ", " } else { "<br>" };
    for (at, history) in row.histories.iter().enumerate() {
        html.raw(if at > 0 { "<br>" } else { "" });
        let last = history.and_then(|history| history.points.iter().flatten().next_back());
        match last.and_then(|point| point.stats.min.zip(point.stats.max)) {
            Some((min, max)) => html.text(rounded(min)).raw(between).text(rounded(max)),
            None => html.raw("–"),
        };
    }
}

/// Writes the row that the button of the name shows: histograms, and numbers at some checkpoints.
fn details(html: &mut Html, view: &View<'_>, row: &Row<'_>, detail: Detail) {
    html.raw("<tr class=\"details\"").attribute("id", format!("more-{}", row.id)).raw("><td colspan=\"11\">");
    // A comment is one node, whatever is in it. It cannot end early: `>` is escaped.
    html.raw(if detail.is_deferred { "<!--" } else { "" });
    html.raw("<div class=\"detail\">");
    for (number, history) in row.histories.iter().enumerate() {
        if let (Some(history), Some(run)) = (history, view.runs.get(number)) {
            histogram::draw(html, view, run, history, detail.histograms);
        }
    }
    html.raw("</div>").raw(if detail.is_deferred { "-->" } else { "" }).raw("</td></tr>");
}
