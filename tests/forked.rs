//! A process that is forked while a save in the background copies: the child may write to its memory.

#![cfg(unix)]

use std::time::{Duration, Instant};
use tch::nn::{self, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{
    Background, Checkpoint, CheckpointManager, CheckpointReader, Durability, SaveOptions, Variables, optim,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const LARGE: i64 = 16 << 20;

#[test]
fn a_child_does_not_wait_for_the_threads_of_its_parent() -> Outcome {
    tch::set_num_threads(1);
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().var("w", &[LARGE], nn::Init::Const(0.5));
    let sgd = optim::Sgd::default().build(&vs, 1.0)?;
    let dir = tempfile::tempdir()?;
    let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("optimizer", &sgd)?;
    let options = SaveOptions::new().durability(Durability::ProcessCrash);
    let builder = CheckpointManager::builder(checkpoint, dir.path()).save_options(options);
    let mut manager = builder.background(Background::new()).open()?;
    let mut data: Tensor = w.data();
    for step in 1..=5 {
        let path = manager.save_at(step)?;
        // The copy has begun.
        std::thread::sleep(Duration::from_millis(step));
        // SAFETY: the child writes to a tensor on one thread, and ends without running anything else.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let written = data.fill_(7.0).get(3).double_value(&[]) == 7.0;
            sgd.gate().pass();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!written)) };
        }
        manager.wait()?;
        let (mut status, began) = (0, Instant::now());
        // SAFETY: the pointer is that of a variable that outlives the call.
        while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
            if began.elapsed() > Duration::from_secs(20) {
                // SAFETY: the child is ours, and not yet waited for.
                unsafe { libc::kill(child, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(status, 0, "step {step}: the child waited for ever, or failed");
        let saved = CheckpointReader::open(&path)?.tensor("model/w")?;
        assert!(saved == 0.5f32.to_le_bytes().repeat(LARGE as usize), "step {step}");
        assert_eq!(w.sum(Kind::Double).double_value(&[]), 0.5 * LARGE as f64);
    }
    Ok(())
}
