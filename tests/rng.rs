//! The random state is restored exactly. This is the only test of its program, since a process has one generator, and
//! other tests would draw from it.

use tch::{Device, Kind, Tensor};
use tch_checkpoint::{Checkpoint, Rng};

fn draw() -> (Tensor, Tensor) {
    let normal = Tensor::randn([5], (Kind::Float, Device::Cpu));
    (normal, Tensor::ones([64], (Kind::Float, Device::Cpu)).dropout(0.5, true))
}

#[test]
fn the_same_numbers_follow_a_restored_state() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mut checkpoint = Checkpoint::new().track("rng", Rng::global())?;
    tch::manual_seed(7);
    // After an odd number of normal samples the generator holds one more, which is part of the state.
    let _ = Tensor::randn([1], (Kind::Double, Device::Cpu));
    let path = checkpoint.write(dir.path().join("ckpt"))?;
    let first = draw();
    assert_ne!(draw(), first);
    checkpoint.restore(&path)?.assert_consumed()?;
    assert_eq!(draw(), first);
    assert_ne!(draw(), first);
    Ok(())
}
