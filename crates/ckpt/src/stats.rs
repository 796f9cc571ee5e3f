//! The statistics of `ckpt show`: tables and histograms.

use crate::human;
use crate::output::Output;
use crate::table::{Align, Table};
use tch_checkpoint::inspect::{Histogram, Summary};

/// A row of numbers per tensor.
pub fn print(summary: &Summary<'_>, out: &mut Output) {
    if summary.tensors.is_empty() {
        return;
    }
    let mut table = Table::new([
        ("STATISTICS", Align::Left),
        ("MIN", Align::Right),
        ("MAX", Align::Right),
        ("MEAN", Align::Right),
        ("STD", Align::Right),
        ("NORM", Align::Right),
        ("ZEROS", Align::Right),
        ("NOT FINITE", Align::Right),
    ]);
    for tensor in &summary.tensors {
        let Some(stats) = &tensor.stats else { continue };
        let number = |number: Option<f64>| number.map_or_else(|| "-".to_string(), human::figure);
        table.row([
            tensor.key.to_string(),
            number(stats.min),
            number(stats.max),
            number(stats.mean),
            number(stats.std),
            number(stats.norm),
            format!("{:.1} %", 100.0 * stats.zero_share()),
            stats.non_finite().to_string(),
        ]);
    }
    out.separate();
    table.print(out);
}

/// A row of bars per tensor, each as high as its share of the highest.
pub fn print_histograms(summary: &Summary<'_>, out: &mut Output) {
    if summary.tensors.is_empty() {
        return;
    }
    let mut table =
        Table::new([("HISTOGRAM", Align::Left), ("FROM", Align::Right), ("", Align::Left), ("TO", Align::Left)]);
    for tensor in &summary.tensors {
        let Some(stats) = &tensor.stats else { continue };
        let (from, bars, to) = match &stats.histogram {
            Some(histogram) => (human::figure(histogram.min), bars(histogram), human::figure(histogram.max)),
            None => ("-".to_string(), String::new(), "-".to_string()),
        };
        table.row([tensor.key.to_string(), from, bars, to]);
    }
    out.separate();
    table.print(out);
}

/// One character per bin. A bin that is not empty is visible.
fn bars(histogram: &Histogram) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let bar = |count: &u64| BARS[(*count as f64 / most * 8.0).ceil() as usize];
    let bars: String = histogram.counts.iter().map(bar).collect();
    format!("│{bars}│")
}
