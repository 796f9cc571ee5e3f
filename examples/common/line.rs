//! A line through noisy points: the model of the small examples.

use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::optim;

pub struct Line {
    pub vs: VarStore,
    pub optimizer: optim::Optimizer,
    layer: nn::Linear,
}

impl Line {
    pub fn new(learning_rate: f64) -> Result<Line, tch_checkpoint::Error> {
        let vs = VarStore::new(Device::Cpu);
        let layer = nn::linear(vs.root(), 3, 1, Default::default());
        let optimizer = optim::Sgd::default().build(&vs, learning_rate)?;
        Ok(Line { vs, optimizer, layer })
    }

    fn loss(&self, points: &Tensor, noise: f64) -> Tensor {
        let wanted = points.sum_dim_intlist(1, true, Kind::Float) * 2.0 + 1.0;
        let wanted = &wanted + wanted.randn_like() * noise;
        (self.layer.forward(points) - wanted).square().mean(Kind::Float)
    }

    /// Makes one step on random points. Returns the loss.
    pub fn train(&mut self) -> f64 {
        let points = Tensor::randn([16, 3], (Kind::Float, Device::Cpu));
        let loss = self.loss(&points, 0.5);
        self.optimizer.backward_step(&loss);
        loss.double_value(&[])
    }

    /// Returns the loss on a fixed set of points, without noise.
    pub fn validate(&self) -> f64 {
        let points = Tensor::arange(300, (Kind::Float, Device::Cpu)).sin().view([100, 3]);
        tch::no_grad(|| self.loss(&points, 0.0)).double_value(&[])
    }
}
