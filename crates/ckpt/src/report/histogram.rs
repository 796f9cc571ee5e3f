//! The distribution of a tensor's values over time.

use super::chart;
use super::html::Html;
use super::scale::Scale;
use super::tensors::{points, rounded};
use super::view::{Run, View};
use crate::human;
use tch_checkpoint::inspect::{Histogram, TensorHistory, TensorPoint};

const WIDTH: f64 = 360.0;
const LEFT: f64 = 62.0;
const ROW: f64 = 16.0;
/// How much higher than its row a histogram can be.
const PEAK: f64 = 26.0;
/// Room for the ticks.
const BOTTOM: f64 = 22.0;

/// Draws at most `most` histograms of a tensor in one run, the oldest at the top, and a table of the numbers.
pub fn draw(html: &mut Html, view: &View<'_>, run: &Run<'_>, history: &TensorHistory, most: usize) {
    let known: Vec<(f64, &TensorPoint, &Histogram)> = points(view, run.number, history)
        .filter_map(|(x, point)| Some((x, point, point.stats.histogram.as_ref()?)))
        .collect();
    // The last one is always shown.
    let every = known.len().div_ceil(most).max(1);
    let mut shown: Vec<_> = known.into_iter().rev().step_by(every).collect();
    shown.reverse();
    let known = shown;
    let Some(scale) = Scale::linear(known.iter().flat_map(|(_, _, one)| [one.min, one.max])) else {
        html.raw("<p>No finite values are known.</p>");
        return;
    };
    html.raw("<figure><figcaption>Distribution of the values");
    run.title(html);
    html.raw(", by ").raw(view.axis()).raw("</figcaption>");
    let height = PEAK + ROW * known.len() as f64 + BOTTOM;
    html.raw("<svg class=\"ridges\" role=\"img\" aria-label=\"Histograms; the table next to them has the numbers\"");
    html.attribute("viewBox", format!("0 0 {WIDTH} {height}")).raw(">");
    for tick in scale.ticks(4) {
        let x = across(&scale, tick);
        html.raw("<line class=\"grid\"").numbers([("x1", x), ("x2", x), ("y1", PEAK / 2.0), ("y2", height - BOTTOM)]);
        html.raw("/><text class=\"tick middle\"").numbers([("x", x), ("y", height - 6.0)]).raw(">");
        html.text(human::figure(tick)).raw("</text>");
    }
    for (at, (x, _, one)) in known.iter().enumerate() {
        let base = PEAK + ROW * (at + 1) as f64 - 4.0;
        html.raw("<text class=\"tick end\"").numbers([("x", LEFT - 8.0), ("y", base)]).raw(">").text(chart::count(*x));
        html.raw("</text><path class=\"ridge ").raw(run.class()).raw("\"");
        ridge(html, &scale, one, base);
    }
    html.raw("</svg></figure>");
    table(html, view, run, &known);
}

fn across(scale: &Scale, value: f64) -> f64 {
    LEFT + scale.at(value) * (WIDTH - LEFT - 14.0)
}

/// Draws a histogram, the highest bin of which has a height common to all, as a path in which a bin is one wide, so
/// that it has few digits.
fn ridge(html: &mut Html, scale: &Scale, one: &Histogram, base: f64) {
    let highest = one.counts.iter().max().copied().unwrap_or(0).max(1) as f64;
    let (left, right) = (across(scale, one.min), across(scale, one.max));
    let width = (right - left).max(1.0) / one.counts.len().max(1) as f64;
    html.attribute("transform", format!("translate({} {base}) scale({width:.3} 1)", chart::tenths(left)));
    html.raw(" d=\"M0 0");
    let mut height = 0;
    for count in &one.counts {
        let next = ((PEAK - 6.0) * *count as f64 / highest).round() as i64;
        html.raw("v").number(height - next).raw("h1");
        height = next;
    }
    html.raw("V0\"/>");
}

fn table(html: &mut Html, view: &View<'_>, run: &Run<'_>, known: &[(f64, &TensorPoint, &Histogram)]) {
    html.raw("<table><caption>Numbers");
    run.title(html);
    html.raw("</caption><thead><tr><th scope=\"col\">").raw(view.axis());
    html.raw(
        "</th><th scope=\"col\">norm</th><th scope=\"col\">mean</th><th scope=\"col\">std</th><th \
         scope=\"col\">smallest</th><th scope=\"col\">largest</th><th scope=\"col\">NaN, ∞</th><th \
         scope=\"col\">update</th></tr></thead><tbody>",
    );
    for (x, point, _) in known {
        let stats = &point.stats;
        html.raw("<tr><th scope=\"row\">").text(chart::count(*x)).raw("</th>");
        for value in [stats.norm, stats.mean, stats.std, stats.min, stats.max] {
            html.raw("<td>").text(value.map_or_else(|| "–".to_string(), rounded));
        }
        html.raw("<td>").number(stats.non_finite()).raw("<td>");
        html.text(point.update.map_or_else(|| "–".to_string(), rounded)).raw("</tr>");
    }
    html.raw("</tbody></table>");
}
