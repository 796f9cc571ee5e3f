//! Charts as inline SVG.

use super::html::Html;
use super::scale::{Scale, thinned};
use super::view::View;
use crate::human;

/// A line of a chart.
pub struct Series<'a> {
    pub class: &'static str,
    /// The name in the titles of points; empty if there is only one line.
    pub letter: &'a str,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 38.0;

/// The width of a digit, at most.
const DIGIT: f64 = 7.0;

/// The largest number of points that are drawn one by one.
const DOTS: usize = 60;

/// Draws lines over the horizontal axis of the view, with values as `text` writes them. The chart is an image with the text alternative `label`.
pub fn lines(
    html: &mut Html,
    view: &View<'_>,
    label: &str,
    series: &[Series<'_>],
    text: impl Fn(f64) -> String + Copy,
) {
    let values = || series.iter().flat_map(|line| &line.points).map(|point| point.1);
    let scale = Scale::of(values());
    open(html, label);
    if let Some(scale) = &scale {
        vertical(html, scale, &scale.legible_ticks(4), text);
    }
    horizontal(html, view, 0.0);
    for line in series {
        draw(html, view, scale.as_ref(), line, text);
    }
    html.raw("</svg>");
}

fn open(html: &mut Html, label: &str) {
    html.raw("<svg class=\"chart\" role=\"img\"").attribute("aria-label", label);
    html.raw(" viewBox=\"0 0 420 200\">");
}

/// The width of the axis.
const LENGTH: f64 = WIDTH - LEFT - RIGHT;

/// The position of a value on the axis, of which `inset` at both ends is for the halves of the outermost bars.
fn across(view: &View<'_>, x: f64, inset: f64) -> f64 {
    LEFT + inset + view.at(x) * (LENGTH - 2.0 * inset)
}

fn up(at: f64) -> f64 {
    HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM)
}

fn vertical(html: &mut Html, scale: &Scale, ticks: &[f64], text: impl Fn(f64) -> String) {
    for tick in ticks {
        let y = up(scale.at(*tick));
        html.raw("<line class=\"grid\"").numbers([("x1", LEFT), ("x2", WIDTH - RIGHT), ("y1", y), ("y2", y)]);
        html.raw("/><text class=\"tick end\"").numbers([("x", LEFT - 6.0), ("y", y + 4.0)]);
        html.raw(">").text(text(*tick)).raw("</text>");
    }
}

fn horizontal(html: &mut Html, view: &View<'_>, inset: f64) {
    let base = HEIGHT - BOTTOM;
    html.raw("<line class=\"axis\"").numbers([("x1", LEFT), ("x2", WIDTH - RIGHT), ("y1", base), ("y2", base)]);
    html.raw("/>");
    for tick in view.across.iter().flat_map(|across| across.ticks(4)).filter(|tick| tick.fract() == 0.0) {
        let x = across(view, tick, inset);
        html.raw("<line class=\"axis\"").numbers([("x1", x), ("x2", x), ("y1", base), ("y2", base + 4.0)]);
        // A long number at the right end would not fit.
        let text = count(tick);
        let (class, x) = match x + DIGIT * text.len() as f64 / 2.0 > WIDTH {
            true => ("tick end", WIDTH),
            false => ("tick middle", x),
        };
        html.raw("/><text class=\"").raw(class).raw("\"").numbers([("x", x), ("y", base + 16.0)]);
        html.raw(">").text(text).raw("</text>");
    }
    html.raw("<text class=\"tick middle\"").numbers([("x", (LEFT + WIDTH - RIGHT) / 2.0), ("y", HEIGHT - 4.0)]);
    html.raw(">").text(view.axis()).raw("</text>");
}

/// A step or a position.
pub fn count(number: f64) -> String {
    if number.abs() < 1e15 { (number as i64).to_string() } else { human::figure(number) }
}

fn draw(
    html: &mut Html,
    view: &View<'_>,
    scale: Option<&Scale>,
    line: &Series<'_>,
    text: impl Fn(f64) -> String + Copy,
) {
    let finite: Vec<(f64, f64)> = line.points.iter().copied().filter(|point| point.1.is_finite()).collect();
    if let Some(scale) = scale.filter(|_| !finite.is_empty()) {
        html.raw("<path class=\"line ").raw(line.class).raw("\" d=\"");
        let mut before = f64::INFINITY;
        for (x, y) in thinned(&finite, 200) {
            // A run that went back starts anew.
            html.raw(if x < before { "M" } else { "L" });
            html.number(tenths(across(view, x, 0.0))).raw(" ").number(tenths(up(scale.at(y))));
            before = x;
        }
        html.raw("\"/>");
        for (x, y) in finite.iter().take(if finite.len() <= DOTS { DOTS } else { 0 }) {
            dot(html, line, (across(view, *x, 0.0), up(scale.at(*y))), &title(view, line, (*x, *y), text));
        }
    }
    let lost = line.points.iter().filter(|point| !point.1.is_finite());
    for (x, y) in lost.take(DOTS) {
        html.raw("<text class=\"bad middle\"").numbers([("x", across(view, *x, 0.0)), ("y", TOP + 10.0)]);
        html.raw(">✕<title>").text(title(view, line, (*x, *y), text)).raw("</title></text>");
    }
}

fn dot(html: &mut Html, line: &Series<'_>, (x, y): (f64, f64), title: &str) {
    match line.class {
        "run-b" => {
            html.raw("<rect class=\"dot run-b\" width=\"6\" height=\"6\"").numbers([("x", x - 3.0), ("y", y - 3.0)])
        }
        class => html.raw("<circle r=\"3\" class=\"dot ").raw(class).raw("\"").numbers([("cx", x), ("cy", y)]),
    };
    html.raw("><title>").text(title).raw("</title>").raw(if line.class == "run-b" { "</rect>" } else { "</circle>" });
}

fn title(view: &View<'_>, line: &Series<'_>, (x, y): (f64, f64), text: impl Fn(f64) -> String) -> String {
    let run = if line.letter.is_empty() { String::new() } else { format!("run {}, ", line.letter) };
    format!("{run}{} {}: {}", view.axis(), count(x), text(y))
}

pub fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A part of a bar.
pub struct Part {
    pub class: &'static str,
    pub value: f64,
}

/// A bar: the value on the horizontal axis, a title, and parts from the bottom to the top.
pub struct Bar {
    pub x: f64,
    pub title: String,
    pub parts: Vec<Part>,
}

/// Draws bars on an axis that reaches up to `top` at least, with values as `text` writes them, at the ticks that `ticks`
/// returns for the largest value and their number.
pub fn bars(
    html: &mut Html,
    view: &View<'_>,
    label: &str,
    bars: &[Bar],
    top: f64,
    ticks: impl Fn(f64, usize) -> Vec<f64>,
    text: impl Fn(f64) -> String,
) {
    open(html, label);
    let sum = |bar: &Bar| bar.parts.iter().map(|part| part.value).sum::<f64>();
    let largest = bars.iter().map(sum).fold(top, f64::max);
    let width = bar_width(bars.iter().map(|bar| view.at(bar.x)));
    if let Some(scale) = Scale::from_zero([largest]) {
        vertical(html, &scale, &ticks(largest, 4), text);
        for bar in bars {
            let x = tenths(across(view, bar.x, width / 2.0) - width / 2.0);
            html.raw("<g><title>").text(&bar.title).raw("</title>");
            let mut below = 0.0;
            for part in bar.parts.iter().filter(|part| part.value > 0.0) {
                let (bottom, top) = (up(scale.at(below)), up(scale.at(below + part.value)));
                html.raw("<rect class=\"").raw(part.class).raw("\"");
                html.numbers([("x", x), ("y", top), ("width", width), ("height", bottom - top)]).raw("/>");
                below += part.value;
            }
            html.raw("</g>");
        }
    }
    horizontal(html, view, width / 2.0);
    html.raw("</svg>");
}

/// Returns how wide bars at these positions, from 0 to 1, can be so that no two overlap: at most 24, and at least 1.
fn bar_width(positions: impl Iterator<Item = f64>) -> f64 {
    let mut positions: Vec<f64> = positions.collect();
    positions.sort_by(f64::total_cmp);
    let between = positions.windows(2).map(|pair| pair[1] - pair[0]).filter(|between| *between > 0.0);
    let apart = 0.8 * between.fold(1.0, f64::min);
    // Half a bar at each end is no part of the axis.
    tenths(apart * LENGTH / (1.0 + apart)).clamp(1.0, 24.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_do_not_overlap() {
        for positions in [vec![0.0, 1.0], vec![0.0, 0.05, 1.0], (0..20).map(|at| f64::from(at) / 19.0).collect()] {
            let width = bar_width(positions.iter().copied());
            let left = |at: f64| at * (LENGTH - width);
            assert!(positions.windows(2).all(|pair| left(pair[1]) - left(pair[0]) > width), "{positions:?}: {width}");
        }
        assert_eq!(bar_width([0.5].into_iter()), 24.0);
        assert_eq!(bar_width((0..1000).map(|at| f64::from(at) / 999.0)), 1.0);
    }
}
