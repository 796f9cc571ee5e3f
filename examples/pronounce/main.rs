//! Letters to phonemes: an encoder-decoder that learns from the CMU Pronouncing Dictionary how English
//! words are pronounced. Kill it whenever you like: it goes on from its last checkpoint and ends with
//! the very bits that it would have had without the interruption.
//!
//! ```text
//! cargo run --release --example pronounce -- --dir checkpoints/pronounce
//! ```

mod args;
mod model;
mod report;
mod words;

use std::error::Error;
use std::process::ExitCode;

use tch::Device;
use tch::nn::{self, OptimizerConfig};

use args::{Args, USAGE};
use model::Pronouncer;
use report::{LossLog, Progress, phoneme_error_rate, print_samples};
use words::{Batches, Words};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let args = match Args::parse(arguments) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("pronounce: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match train(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pronounce: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(args: &Args) -> Result<(), Box<dyn Error>> {
    // One thread: more gain little on a model this small, and the order in which libtorch adds numbers
    // up depends on how many there are. So a machine with other cores than this one has the same bits.
    tch::set_num_threads(1);
    tch::manual_seed(args.seed);
    let device = Device::cuda_if_available();
    let words = Words::load();
    let mut batches = Batches::new(&words.train, args.batch, args.seed as u64, device);

    let vs = nn::VarStore::new(device);
    let model = Pronouncer::new(&vs.root(), words.phoneme_count(), args.hidden);
    let mut optimizer = nn::Adam::default().build(&vs, learning_rate(0))?;
    let mut step = 0;

    let mut loss_log = args.loss_log.as_ref().map(|path| LossLog::append_to(path)).transpose()?;
    let error_rate = phoneme_error_rate(&model, &words)?;
    let mut progress = Progress::start(step, args.steps, error_rate);

    while step < args.steps {
        optimizer.set_lr(learning_rate(step));
        let loss = model.loss(&batches.at(step as usize));
        optimizer.backward_step_clip_norm(&loss, 1.0);
        step += 1;

        let loss = loss.double_value(&[]);
        if !loss.is_finite() {
            return Err(format!("the loss of step {step} is {loss}").into());
        }
        if let Some(log) = &mut loss_log {
            log.write(step, loss)?;
        }
        progress.step(step, loss);
        if step.is_multiple_of(args.save_every) || step == args.steps {
            progress.saved(step, phoneme_error_rate(&model, &words)?);
        }
    }

    print_samples(&model, &words)?;
    Ok(())
}

/// Rises to 0.002 over the first 200 steps, stays until step 1000, then falls with the square root of
/// the step. A function of the step alone, not of how many steps the run is to have: so a finished run
/// can be given more steps.
fn learning_rate(step: u64) -> f64 {
    let step = (step + 1) as f64;
    0.002 * (step / 200.0).min(1.0) * (1000.0 / step).sqrt().min(1.0)
}
