//! How long saves took and stalled the training, and how long it took from one checkpoint to the next.

use super::chart::{self, Bar, Part, Series};
use super::html::Html;
use super::scale::second_ticks;
use super::size::shown;
use super::view::{Run, View};
use crate::human;
use tch_checkpoint::SaveFigures;
use tch_checkpoint::inspect::ReportedCheckpoint;

/// The largest number of rows of the table of a run. The newest ones are shown.
const ROWS: usize = 200;

pub fn section(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"times\"><h2 id=\"times\">Times</h2><div class=\"charts\">");
    let recorded: Vec<&Run<'_>> = view.runs.iter().filter(|run| figures(run).next().is_some()).collect();
    // The bars of two runs have one scale.
    let times = recorded.iter().flat_map(|run| figures(run)).map(|(_, figures)| figures.total.max(figures.stall));
    let longest = times.max().unwrap_or_default().as_secs_f64();
    for run in &recorded {
        saves(html, view, run, longest);
    }
    between(html, view);
    html.raw("</div>");
    for run in &recorded {
        table(html, run);
    }
    let all = || view.runs.iter().flat_map(|run| &run.report.checkpoints);
    let unknown = all().filter(|one| one.entry.figures.is_none()).count();
    if unknown > 0 {
        html.raw("<p>").number(unknown).raw(if unknown == 1 { " checkpoint does" } else { " checkpoints do" });
        html.raw(" not record what the save cost: that began with version 6 of the format.</p>");
    }
    html.raw(
        "<p>The time between checkpoints is by the clock of the machine that saved them, and only between checkpoints of one \
         run of the program with no save between them that is gone.</p></section>",
    );
}

/// The checkpoints that record what their save cost, oldest first.
fn figures<'a>(run: &Run<'a>) -> impl DoubleEndedIterator<Item = (&'a ReportedCheckpoint, SaveFigures)> {
    run.report.checkpoints.iter().filter_map(|one| Some((one, one.entry.figures?)))
}

/// A bar per save: what the training waited for at the bottom, what went on during the training at the top.
fn saves(html: &mut Html, view: &View<'_>, run: &Run<'_>, longest: f64) {
    html.raw("<figure><figcaption>Stall and save times");
    run.title(html);
    html.raw("</figcaption>");
    let shown = shown(run);
    let bars = shown.iter().filter_map(|(x, one)| {
        let SaveFigures { stall, total, waited, .. } = one.entry.figures?;
        let waiting = waited.min(stall);
        let parts = [("c1", waiting), ("c0", stall.saturating_sub(waiting)), ("linked", total.saturating_sub(stall))];
        let [stall, total, waited] = [stall, total, waited].map(|time| human::seconds(time.as_secs_f64()));
        let name = &one.entry.name;
        let title = format!("{name}: stalled the training for {stall}, {waited} of it waiting; written after {total}");
        Some(Bar { x: *x, title, parts: parts.map(|(class, time)| Part { class, value: time.as_secs_f64() }).into() })
    });
    let label = format!("Seconds that each save took, by {}; the table below has the numbers", view.axis());
    chart::bars(html, view, &label, &bars.collect::<Vec<Bar>>(), longest, second_ticks, human::seconds);
    html.raw(
        "<ul class=\"legend\"><li><span class=\"box c1\"></span> stall: waiting for the save before</li><li><span \
         class=\"box c0\"></span> stall: the save itself</li><li><span class=\"box linked\"></span> in the \
         background</li></ul></figure>",
    );
}

/// The numbers of the bars, for all saves.
fn table(html: &mut Html, run: &Run<'_>) {
    html.raw("<h3>What the saves");
    run.title(html);
    html.raw(" cost</h3><div class=\"scroll tall\" role=\"region\" tabindex=\"0\" aria-label=\"Table of save times");
    run.title(html);
    html.raw("\"><table class=\"saves\"><caption class=\"hidden\">Save times, the newest first</caption><thead><tr>");
    html.raw("<th scope=\"col\">Name</th>");
    for heading in ["Stall", "Of it waiting", "Until written", "Bytes written", "Rate", "Bytes linked"] {
        html.raw("<th scope=\"col\" class=\"end\">").raw(heading).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for (one, figures) in figures(run).rev().take(ROWS) {
        html.raw("<tr><th scope=\"row\">").name(&one.entry.name).raw("</th>");
        for time in [figures.stall, figures.waited, figures.total] {
            html.raw("<td class=\"end\">").text(human::seconds(time.as_secs_f64())).raw("</td>");
        }
        let [written, linked] = [figures.bytes_written, figures.bytes_linked].map(human::bytes);
        for text in [written, human::rate(figures.rate()), linked] {
            html.raw("<td class=\"end\">").text(text).raw("</td>");
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>");
    let count = figures(run).count();
    if count > ROWS {
        html.raw("<p>").number(count - ROWS).raw(" older saves are left out of this table.</p>");
    }
}

fn between(html: &mut Html, view: &View<'_>) {
    let series: Vec<Series<'_>> = view.runs.iter().map(line).collect();
    html.raw("<figure><figcaption>Time since the checkpoint before");
    view.keys(html);
    html.raw("</figcaption>");
    if series.iter().all(|line| line.points.is_empty()) {
        html.raw("<p>There are no two checkpoints in a row.</p>");
    } else {
        let label = format!("Seconds by {}; the table of checkpoints has the times", view.axis());
        chart::lines(html, view, &label, &series, human::seconds);
    }
    html.raw("</figure>");
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
