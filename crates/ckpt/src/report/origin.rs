//! Where the checkpoints come from.

use super::html::Html;
use super::page::time;
use super::view::View;
use crate::human;
use tch_checkpoint::inspect::RunOrigin;

/// The largest number of runs, and of entries of their metadata.
const MOST: usize = 50;

pub fn section(html: &mut Html, view: &View<'_>) {
    html.raw("<section aria-labelledby=\"origin\"><h2 id=\"origin\">Provenance</h2>");
    for run in &view.runs {
        for origin in run.report.runs.iter().rev().take(MOST) {
            of_program(html, origin, run.letter);
        }
        if run.report.runs.len() > MOST {
            html.raw("<p>").number(run.report.runs.len() - MOST).raw(" older runs of the program are left out.</p>");
        }
    }
    html.raw("</section>");
}

fn of_program(html: &mut Html, origin: &RunOrigin, letter: &'static str) {
    html.raw("<h3>");
    if !letter.is_empty() {
        html.text(letter).raw(": ");
    }
    html.raw("Run of the program ").name(&origin.run).raw("</h3><dl>");
    let mut row = |name: &'static str, cell: &dyn for<'h> Fn(&'h mut Html) -> &'h mut Html| {
        html.raw("<div><dt>").raw(name).raw("</dt><dd>");
        cell(html);
        html.raw("</dd></div>");
    };
    row("checkpoints", &|html| {
        html.number(origin.checkpoints).raw(", ").name(&origin.first).raw(" to ").name(&origin.last)
    });
    if let Some(follows) = &origin.follows {
        row("continues", &|html| html.raw("save ").number(follows.sequence).raw(" of run ").name(&follows.run));
    }
    match &origin.provenance {
        None => row("provenance", &|html| html.raw("not recorded (<code>Checkpoint::provenance</code> records it)")),
        Some(provenance) => {
            row("started", &|html| time(html, provenance.started_at).raw(" UTC"));
            row("tch-checkpoint", &|html| html.text(&provenance.crate_version));
            let texts = [
                ("tch", &provenance.tch_version),
                ("libtorch", &provenance.libtorch_version),
                ("git commit", &provenance.git_commit),
            ];
            for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
                row(name, &|html| html.name(text));
            }
            if let Some(dirty) = provenance.git_dirty {
                row("uncommitted changes", &|html| html.raw(if dirty { "yes" } else { "no" }));
            }
            if let Some(arguments) = &provenance.arguments {
                row("arguments", &|html| html.name(arguments.join(" ")));
            }
        }
    }
    for (name, value) in origin.metadata.iter().take(MOST) {
        html.raw("<div><dt>").name(name).raw("</dt><dd><code>");
        html.text(human::excerpt(&value.to_string(), 0, 300)).raw("</code></dd></div>");
    }
    html.raw("</dl>");
}
