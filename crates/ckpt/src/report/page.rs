//! The page.

use super::html::Html;
use super::view::View;
use super::{checkpoints, origin, size, summary, tensors, timeline, times};
use crate::human;
use chrono::{DateTime, Utc};
use tch_checkpoint::inspect::RunReport;

/// The largest page, in bytes.
pub const MAX_BYTES: usize = 5_000_000;

/// Returns the page for one run, or for two side by side.
pub fn page(reports: &[RunReport], now: DateTime<Utc>) -> String {
    let view = View::new(reports);
    let rows = tensors::rows(&view);
    let mut html = Html::new();
    head(&mut html, &view, now);
    summary::attention(&mut html, &view, &rows);
    summary::facts(&mut html, &view);
    timeline::section(&mut html, &view);
    checkpoints::section(&mut html, &view);
    size::section(&mut html, &view);
    times::section(&mut html, &view);
    let mut end = Html::new();
    origin::section(&mut end, &view);
    end.raw("</main><script>").raw(include_str!("script.js")).raw("</script></body></html>\n");
    let room = MAX_BYTES.saturating_sub(html.len() + end.len() + 10_000);
    tensors::section(&mut html, &view, &rows, room);
    html.piece(&end);
    html.into_string()
}

fn head(html: &mut Html, view: &View<'_>, now: DateTime<Utc>) {
    // Nothing can be fetched, whatever is in the page.
    html.raw(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; \
         form-action 'none'\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta \
         name=\"color-scheme\" content=\"light dark\"><meta name=\"generator\" content=\"ckpt\"><title>",
    );
    title(html, view);
    html.raw("</title><script>document.documentElement.classList.add(\"script\")</script>");
    html.raw("<style>").raw(include_str!("style.css")).raw("</style></head><body>");
    html.raw("<a class=\"skip\" href=\"#main\">Skip to the content</a><header><h1>");
    title(html, view);
    html.raw("</h1><p>Made ");
    time(html, now);
    html.raw(" UTC by ckpt ").raw(env!("CARGO_PKG_VERSION")).raw("</p>");
    html.raw(
        "<button type=\"button\" id=\"theme\" class=\"needs-script\" aria-pressed=\"false\">Dark colours</button>",
    );
    html.raw("<nav aria-label=\"Sections\"><ul>");
    for (link, text) in [
        ("#attention", "Needs attention"),
        ("#facts", "At a glance"),
        ("#timeline", "Time line"),
        ("#checkpoints", "Checkpoints"),
        ("#size", "Size"),
        ("#times", "Times"),
        ("#tensors", "Tensors"),
        ("#origin", "Provenance"),
    ] {
        html.raw("<li><a").attribute("href", link).raw(">").raw(text).raw("</a></li>");
    }
    html.raw("</ul></nav></header><main id=\"main\" tabindex=\"-1\">");
    html.raw(
        "<svg width=\"0\" height=\"0\" class=\"defs\" aria-hidden=\"true\"><defs><pattern id=\"hatch\" width=\"5\" ",
    );
    html.raw("height=\"5\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><rect width=\"5\" ");
    html.raw(
        "height=\"5\" class=\"hatch-back\"/><rect width=\"2\" height=\"5\" class=\"hatch\"/></pattern></defs></svg>",
    );
}

fn title(html: &mut Html, view: &View<'_>) {
    html.raw("Checkpoints of ");
    for (at, run) in view.runs.iter().enumerate() {
        html.raw(if at > 0 { " and " } else { "" }).text(human::text(&run.report.directory));
    }
}

/// Writes a time in UTC.
pub fn time(html: &mut Html, time: DateTime<Utc>) -> &mut Html {
    html.raw("<time").attribute("datetime", time.format("%Y-%m-%dT%H:%M:%SZ").to_string()).raw(">");
    html.text(time.format("%Y-%m-%d %H:%M:%S").to_string()).raw("</time>")
}
