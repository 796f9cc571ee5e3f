//! Very small charts of a tensor over time, all on the same scale, so that outliers stand out.

use super::html::Html;
use super::scale::thinned;
use super::view::View;

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 48.0;
/// The vertical axis.
#[derive(Debug, Clone, Copy)]
pub enum Range {
    /// From a tenth of the usual value to ten times of it, which is in the middle.
    Around(f64),
    /// From one millionth to 1.
    Share,
}

impl Range {
    /// The position of a value, from 0 at the bottom to 1.
    fn at(self, value: f64) -> f64 {
        let decades = match self {
            Range::Around(usual) => (value / usual).log10() / 2.0 + 0.5,
            Range::Share => value.log10() / 6.0 + 1.0,
        };
        // 0 is at the bottom.
        if decades.is_nan() { 0.0 } else { decades.clamp(0.0, 1.0) }
    }
}

/// A line: the class of its run, and values against the horizontal axis.
pub struct Line {
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Where values are NaN or infinite.
    pub broken: Vec<f64>,
}

/// Draws lines of at most `most` points. The numbers in the cells next to it are the alternative for those who do not
/// see it.
pub fn draw(html: &mut Html, view: &View<'_>, range: Range, lines: &[Line], most: usize) {
    html.raw("<svg class=\"spark\" viewBox=\"0 0 320 48\" aria-hidden=\"true\">");
    for x in lines.iter().flat_map(|line| &line.broken).take(most) {
        html.raw("<path class=\"cross\" d=\"M").number(whole(view.at(*x), WIDTH) - 5).raw(" 4l10 10m0-10l-10 10\"/>");
    }
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        html.raw("<path class=\"").raw(line.class).raw("\" d=\"");
        let mut before: Option<(i64, i64)> = None;
        for (x, y) in thinned(&line.points, most / 2) {
            let (x, y) = (whole(view.at(x), WIDTH), whole(1.0 - range.at(y), HEIGHT));
            match before {
                // Relative positions are shorter.
                Some((last, at)) if x >= last => html.raw("l").number(x - last).raw(" ").number(y - at),
                _ => html.raw("M").number(x).raw(" ").number(y),
            };
            before = Some((x, y));
        }
        // A single point is a short line.
        html.raw(if line.points.len() == 1 { "h4\"/>" } else { "\"/>" });
    }
    html.raw("</svg>");
}

/// A position inside of the drawing, away from the edges by the width of the line.
fn whole(at: f64, length: f64) -> i64 {
    (4.0 + at * (length - 8.0)).round() as i64
}

/// Returns the usual one of positive values over time: the median of the first half.
pub fn usual(values: &[f64]) -> Option<f64> {
    let mut first: Vec<f64> = values.iter().copied().take(values.len().div_ceil(2)).collect();
    first.sort_by(f64::total_cmp);
    first.get(first.len() / 2).copied().filter(|usual| *usual > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_value_is_in_the_middle() {
        let range = Range::Around(5.0);
        assert_eq!([range.at(5.0), range.at(50.0), range.at(0.5), range.at(5e9)], [0.5, 1.0, 0.0, 1.0]);
        assert_eq!([range.at(0.0), range.at(f64::NAN)], [0.0, 0.0]);
        assert_eq!([Range::Share.at(1e-3), Range::Share.at(1.0), Range::Share.at(0.0)], [0.5, 1.0, 0.0]);
    }

    #[test]
    fn the_usual_value_does_not_follow_an_explosion() {
        assert_eq!(usual(&[1.0, 1.1, 1.2, 1.3, 500.0, 1e6]), Some(1.1));
        assert_eq!(usual(&[0.0, 0.0, 3.0]), None);
        assert_eq!(usual(&[]), None);
    }
}
