//! One or two runs on common axes.

use super::html::Html;
use super::scale::Scale;
use tch_checkpoint::inspect::{ReportedCheckpoint, RunReport};

/// What a page shows.
pub struct View<'a> {
    pub runs: Vec<Run<'a>>,
    /// The horizontal axis of all charts; `None` if there is no checkpoint.
    pub across: Option<Scale>,
    /// Whether the axis has steps; otherwise the order of saving.
    pub has_steps: bool,
}

/// A run of a page.
pub struct Run<'a> {
    pub report: &'a RunReport,
    /// `A` or `B` if there are two; otherwise empty.
    pub letter: &'static str,
    /// For unique names of elements.
    pub number: usize,
    /// The value of each checkpoint on the horizontal axis.
    pub x: Vec<f64>,
}

/// The state of a checkpoint, the most important one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Damaged,
    Unhealthy,
    Incomplete,
    Pinned,
    Whole,
}

impl<'a> View<'a> {
    pub fn new(reports: &'a [RunReport]) -> View<'a> {
        let has_steps = reports.iter().flat_map(|report| &report.checkpoints).all(|one| one.entry.step.is_some());
        let letters = if reports.len() > 1 { ["A", "B"] } else { ["", ""] };
        let runs: Vec<Run<'a>> = reports
            .iter()
            .zip(letters)
            .enumerate()
            .map(|(number, (report, letter))| {
                let x = |(at, one): (usize, &ReportedCheckpoint)| match one.entry.step {
                    Some(step) if has_steps => step as f64,
                    _ => (at + 1) as f64,
                };
                Run { report, letter, number, x: report.checkpoints.iter().enumerate().map(x).collect() }
            })
            .collect();
        let across = Scale::linear(runs.iter().flat_map(|run| run.x.iter().copied()));
        View { runs, across, has_steps }
    }

    pub fn is_comparison(&self) -> bool {
        self.runs.len() > 1
    }

    /// Adds the colours of the runs where there are two.
    pub fn keys(&self, html: &mut Html) {
        for run in self.runs.iter().filter(|_| self.is_comparison()) {
            html.raw(" <span class=\"key ").raw(run.class()).raw("\"></span>").text(run.letter);
        }
    }

    /// The name of the horizontal axis.
    pub fn axis(&self) -> &'static str {
        if self.has_steps { "step" } else { "order of saving" }
    }

    /// The position of a value on the horizontal axis, from 0 to 1.
    pub fn at(&self, x: f64) -> f64 {
        self.across.map_or(0.5, |across| across.at(x))
    }
}

impl Run<'_> {
    /// Adds ` of run A` where there are two.
    pub fn title(&self, html: &mut Html) {
        if !self.letter.is_empty() {
            html.raw(" of run ").text(self.letter);
        }
    }

    /// The class with the colour of the run.
    pub fn class(&self) -> &'static str {
        if self.number == 0 { "run-a" } else { "run-b" }
    }
}

impl State {
    pub fn of(one: &ReportedCheckpoint) -> State {
        let entry = &one.entry;
        if one.problem.is_some() {
            State::Damaged
        } else if !entry.non_finite.is_empty() || entry.unclean {
            State::Unhealthy
        } else if !entry.without.is_empty() {
            State::Incomplete
        } else if entry.permanent || !entry.pins.is_empty() {
            State::Pinned
        } else {
            State::Whole
        }
    }
}
