//! How long it took from one checkpoint to the next.

use super::chart::{self, Series};
use super::html::Html;
use super::view::{Run, View};

pub fn section(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"times\"><h2 id=\"times\">Times</h2>");
    let series: Vec<Series<'_>> = view.runs.iter().map(line).collect();
    if series.iter().all(|line| line.points.is_empty()) {
        html.raw("<p>There are no two checkpoints in a row.</p>");
    } else {
        html.raw("<div class=\"charts\"><figure><figcaption>Time since the checkpoint before");
        view.keys(html);
        html.raw("</figcaption>");
        let label = format!("Seconds by {}; the table of checkpoints has the times", view.axis());
        chart::lines(html, view, &label, &series, seconds);
        html.raw("</figure></div>");
    }
    html.raw(
        "<p>By the clock of the machine that saved them, and only between checkpoints of one run of the program with no \
         save between them that is gone. Checkpoints do not record how long a save stalled the training, took, or \
         waited for the one before.</p></section>",
    );
}

/// Seconds between checkpoints that followed one another.
fn line<'a>(run: &Run<'a>) -> Series<'a> {
    let all = &run.report.checkpoints;
    let pairs = all.iter().zip(all.iter().skip(1)).zip(run.x.iter().skip(1));
    let points = pairs.filter_map(|((before, after), x)| {
        let is_next =
            before.entry.run == after.entry.run && before.entry.sequence.checked_add(1)? == after.entry.sequence;
        let took = (after.entry.saved_at - before.entry.saved_at).num_milliseconds();
        (is_next && took >= 0).then_some((*x, took as f64 / 1000.0))
    });
    Series { class: run.class(), letter: run.letter, points: points.collect() }
}

/// `0.5 s`, `12 min`, `3 h`.
fn seconds(seconds: f64) -> String {
    let (number, unit) = match seconds {
        ..120.0 => (seconds, "s"),
        ..7200.0 => (seconds / 60.0, "min"),
        _ => (seconds / 3600.0, "h"),
    };
    format!("{} {unit}", super::tensors::rounded(number))
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!([0.5, 90.0, 600.0, 10_800.0].map(seconds), ["0.5 s", "90 s", "10 min", "3 h"]);
    }
}
