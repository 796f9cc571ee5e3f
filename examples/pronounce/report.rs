//! The output of a run: the phoneme error rate, the progress line, the loss log and a few samples.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tch::TchError;
use tch_checkpoint::{EarlyStopping, StartOutcome};

use crate::model::Pronouncer;
use crate::words::Words;

/// The errors in the predicted pronunciations of the held-out words, for each true phoneme: phonemes
/// wrong, missing or too many (the edit distance) over the number of true phonemes, stress left out.
/// Draws no random numbers.
pub fn phoneme_error_rate(model: &Pronouncer, words: &Words) -> Result<f64, TchError> {
    let predictions = model.predict(&words.held_out.iter().collect::<Vec<_>>())?;
    let pairs = words.held_out.iter().map(|word| &word.phonemes).zip(&predictions);
    let errors: usize = pairs.map(|(truth, predicted)| edit_distance(truth, predicted)).sum();
    let phonemes: usize = words.held_out.iter().map(|word| word.phonemes.len()).sum();
    Ok(errors as f64 / phonemes as f64)
}

/// Returns the number of insertions, deletions and substitutions that turn `a` into `b`.
fn edit_distance(a: &[i64], b: &[i64]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Prints where the run starts: at a checkpoint, or from scratch.
pub fn started(started: &StartOutcome) {
    for damaged in &started.passed_over {
        eprintln!("passed over {}: {}", damaged.path.display(), damaged.reason);
    }
    match &started.restored {
        Some(status) => println!("goes on from {}", status.path().display()),
        None => println!("begins afresh"),
    }
}

/// Prints why the training ended before its last step, if it did, and when it was best.
pub fn stopped(stopping: &EarlyStopping) {
    if stopping.stop().is_stop() {
        println!("stopped early: {:?}", stopping.stop());
    }
    if let (Some(step), Some(rate)) = (stopping.best().step(), stopping.best().value()) {
        println!("best at step {step}: phoneme error rate {:.1} %", 100.0 * rate);
    }
}

/// Prints some held-out words, the model's pronunciations, and those of the dictionary where they differ.
pub fn print_samples(model: &Pronouncer, words: &Words) -> Result<(), TchError> {
    let samples: Vec<_> = words.held_out.iter().step_by(150).collect();
    println!("\nWords it never saw:");
    for (word, predicted) in samples.iter().zip(&model.predict(&samples)?) {
        print!("  {:<14} {}", word.spelling, words.spell(predicted));
        if *predicted == word.phonemes {
            println!();
        } else {
            println!("   (dictionary: {})", words.spell(&word.phonemes));
        }
    }
    Ok(())
}

/// One line on the screen, updated several times per second; if the output is not a terminal, one line per save.
pub struct Progress {
    terminal: bool,
    first_step: u64,
    steps: u64,
    started: Instant,
    shown: Instant,
    /// A running mean of the loss, for display.
    loss: Option<f64>,
    /// The error rate of the averaged model at the last save.
    error_rate: Option<f64>,
}

impl Progress {
    /// Prints the best phoneme error rate so far.
    pub fn start(step: u64, steps: u64, best: Option<f64>) -> Self {
        match best {
            Some(rate) => {
                println!("step {step} of {steps}: best phoneme error rate {:.1} % on held-out words", 100.0 * rate);
            }
            None => println!("step {step} of {steps}"),
        }
        let now = Instant::now();
        let terminal = std::io::stdout().is_terminal();
        Self { terminal, first_step: step, steps, started: now, shown: now, loss: None, error_rate: None }
    }

    /// Must be called after every step, with its loss.
    pub fn step(&mut self, step: u64, loss: f64) {
        self.loss = Some(self.loss.map_or(loss, |mean| 0.98 * mean + 0.02 * loss));
        if self.terminal && self.shown.elapsed() >= Duration::from_millis(200) {
            self.shown = Instant::now();
            print!("\r{}\x1b[K", self.line(step));
            let _ = std::io::stdout().flush(); // an error on the screen is no reason to stop
        }
    }

    /// Must be called after every save, with the error rate of the saved model.
    pub fn saved(&mut self, checkpoint: &Path, step: u64, error_rate: f64) {
        self.error_rate = Some(error_rate);
        let (begin, end) = if self.terminal { ("\r", "\x1b[K") } else { ("", "") };
        println!("{begin}{}, saved {}{end}", self.line(step), checkpoint.display());
    }

    fn line(&self, step: u64) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        format!(
            "step {step} of {}: loss {:.3}, phoneme error rate {:.1} %, {:.0} steps/s, {seconds:.0} s",
            self.steps,
            self.loss.unwrap_or(f64::NAN),
            100.0 * self.error_rate.unwrap_or(f64::NAN),
            (step - self.first_step) as f64 / seconds,
        )
    }
}

/// A file with one JSON object per step, `{"step":1,"loss":3.7}`, to which runs append.
pub struct LossLog {
    file: File,
    path: PathBuf,
}

impl LossLog {
    pub fn append_to(path: &Path) -> Result<Self, String> {
        match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => Ok(Self { file, path: path.into() }),
            Err(error) => Err(format!("cannot open {}: {error}", path.display())),
        }
    }

    /// Writes one step with a single call, so that nothing is buffered in this process.
    pub fn write(&mut self, step: u64, loss: f64) -> Result<(), String> {
        // `{:?}` prints the shortest digits from which the very same number is read back.
        let line = format!("{{\"step\":{step},\"loss\":{loss:?}}}\n");
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|error| format!("cannot write to {}: {error}", self.path.display()))
    }
}
