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

use tch::{Device, nn};
use tch_checkpoint::{Background, Checkpoint, CheckpointManager, Counter, Rng, Variables, optim};

use args::{Args, USAGE};
use model::Pronouncer;
use report::{LossLog, Progress, phoneme_error_rate};
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
    // In how many parts libtorch sums up depends on the number of threads: with one, the bits do not depend on how
    // many cores there are. A model this small gains little from more.
    tch::set_num_threads(1);
    tch::manual_seed(args.seed);
    let device = Device::cuda_if_available();
    let words = Words::load();
    let mut batches = Batches::new(&words.train, args.batch, args.seed, device);

    let vs = nn::VarStore::new(device);
    let model = Pronouncer::new(&vs.root(), words.phoneme_count(), args.hidden);
    let mut optimizer = optim::Adam::default().build(&vs, learning_rate(0))?;
    let step = Counter::new(0);

    let checkpoint = Checkpoint::new()
        .track("embedding", Variables::of(&vs).under("embedding"))?
        .track("encoder", Variables::of(&vs).under("encoder"))?
        .track("decoder", Variables::of(&vs).under("decoder"))?
        .track("optimizer", &optimizer)?
        .track("step", &step)?
        .track("rng", Rng::global())?;
    let mut manager = CheckpointManager::builder(checkpoint, &args.dir)
        .max_to_keep(args.max_to_keep)
        .save_every(args.save_every)
        .background(Background::new())
        .open()?;

    report::started(&manager.restore_or_initialize()?);
    let mut loss_log = args.loss_log.as_deref().map(LossLog::append_to).transpose()?;
    let mut progress = Progress::start(step.get(), args.steps, phoneme_error_rate(&model, &words)?);

    while step.get() < args.steps {
        optimizer.set_lr(learning_rate(step.get()));
        let loss = model.loss(&batches.at(step.get()));
        optimizer.backward_step_clip_norm(&loss, 1.0);
        step.increment();

        let loss = loss.double_value(&[]);
        if !loss.is_finite() {
            return Err(format!("the loss of step {} is {loss}", step.get()).into());
        }
        if let Some(log) = &mut loss_log {
            log.write(step.get(), loss)?;
        }
        progress.step(step.get(), loss);

        let last = step.get() == args.steps;
        let saved = if last { Some(manager.save_at(step.get())?) } else { manager.save_if_due(step.get())? };
        if let Some(path) = saved {
            progress.saved(&path, step.get(), phoneme_error_rate(&model, &words)?);
        }
    }
    manager.close()?;

    report::print_samples(&model, &words)?;
    Ok(())
}

/// Rises to 0.002 over the first 200 steps, stays until step 1000, then falls with the square root of
/// the step. A function of the step alone, not of how many steps the run is to have: so a finished run
/// can be given more steps.
fn learning_rate(step: i64) -> f64 {
    let step = (step + 1) as f64;
    0.002 * (step / 200.0).min(1.0) * (1000.0 / step).sqrt().min(1.0)
}
