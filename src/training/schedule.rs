//! Schedules: values that are functions of the step.

use std::f64::consts::PI;

/// A learning rate, or any other number, as a function of the step.
///
/// A schedule has no state, so it need not be saved: a resumed run continues with the same values. Steps are counted
/// from 0: `at(0)` is the value for the first step. Negative steps are taken as 0.
///
/// The values are those of PyTorch's schedulers in their closed form; they differ only in the last digits from the
/// values that PyTorch computes step by step (docs/training.md).
///
/// ```
/// use tch_checkpoint::Schedule;
/// let schedule = Schedule::cosine(1e-3, 1e-5, 10_000).warm_up(500, 0.0);
/// assert_eq!(schedule.at(0), 0.0);
/// assert_eq!(schedule.at(500), 1e-3);
/// assert_eq!(schedule.at(10_500), 1e-5);
/// ```
///
/// With an optimizer of `optim`, for all groups and for one of them:
///
/// ```text
/// optimizer.set_lr(schedule.at(step.get()));
/// optimizer.set_lr_group(1, schedule.at(step.get()) * 0.1);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule(Kind);

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Constant(f64),
    Linear { from: f64, to: f64, steps: u64 },
    Step { initial: f64, gamma: f64, every: u64 },
    MultiStep { initial: f64, gamma: f64, milestones: Vec<u64> },
    Exponential { initial: f64, gamma: f64 },
    Polynomial { initial: f64, end: f64, power: f64, steps: u64 },
    Cosine { initial: f64, min: f64, steps: u64 },
    CosineRestarts { initial: f64, min: f64, first: u64, factor: u64 },
    InverseSqrt { peak: f64, warm_up: u64 },
    Phases { phases: Vec<Phase>, linear: bool },
    Sequence { first: Box<Schedule>, until: u64, next: Box<Schedule> },
}

/// A part of a one-cycle schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Phase {
    /// The last step, possibly fractional.
    end: f64,
    from: f64,
    to: f64,
}

impl Schedule {
    /// Returns the same value at every step.
    #[must_use]
    pub fn constant(value: f64) -> Schedule {
        Schedule(Kind::Constant(value))
    }

    /// Goes from `from` to `to` in `steps` equal steps and stays at `to` (PyTorch's `LinearLR`).
    #[must_use]
    pub fn linear(from: f64, to: f64, steps: u64) -> Schedule {
        Schedule(Kind::Linear { from, to, steps })
    }

    /// Multiplies `initial` by `gamma` after every `every` steps (PyTorch's `StepLR`). An `every` of 0 is taken as 1.
    #[must_use]
    pub fn step(initial: f64, gamma: f64, every: u64) -> Schedule {
        Schedule(Kind::Step { initial, gamma, every: every.max(1) })
    }

    /// Multiplies `initial` by `gamma` at every milestone (PyTorch's `MultiStepLR`). A duplicate milestone counts
    /// twice.
    pub fn multi_step(initial: f64, gamma: f64, milestones: impl IntoIterator<Item = u64>) -> Schedule {
        let mut milestones: Vec<u64> = milestones.into_iter().collect();
        milestones.sort_unstable();
        Schedule(Kind::MultiStep { initial, gamma, milestones })
    }

    /// Multiplies `initial` by `gamma` after every step (PyTorch's `ExponentialLR`).
    #[must_use]
    pub fn exponential(initial: f64, gamma: f64) -> Schedule {
        Schedule(Kind::Exponential { initial, gamma })
    }

    /// Computes `(initial - end) * (1 - step / steps)^power + end`, and `end` from `steps` on (PyTorch's `PolynomialLR`
    /// if `end` is 0).
    #[must_use]
    pub fn polynomial(initial: f64, end: f64, power: f64, steps: u64) -> Schedule {
        Schedule(Kind::Polynomial { initial, end, power, steps })
    }

    /// Follows half a cosine from `initial` to `min` in `steps` steps and stays at `min` (PyTorch's
    /// `CosineAnnealingLR`, which rises again after `T_max`; for that use
    /// [`cosine_restarts`](Schedule::cosine_restarts)).
    ///
    /// Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    #[must_use]
    pub fn cosine(initial: f64, min: f64, steps: u64) -> Schedule {
        Schedule(Kind::Cosine { initial, min, steps })
    }

    /// Repeats half cosines from `initial` to `min`: the first takes `first` steps, each other one `factor` times as
    /// many as the one before (PyTorch's `CosineAnnealingWarmRestarts`). A `first` or `factor` of 0 is taken as 1.
    #[must_use]
    pub fn cosine_restarts(initial: f64, min: f64, first: u64, factor: u64) -> Schedule {
        Schedule(Kind::CosineRestarts { initial, min, first: first.max(1), factor: factor.max(1) })
    }

    /// Rises linearly to `peak` in `warm_up` steps, then falls with the square root of the step:
    /// `peak * min(s / warm_up, sqrt(warm_up / s))`, where `s = step + 1`. A `warm_up` of 0 is taken as 1.
    #[must_use]
    pub fn inverse_sqrt(peak: f64, warm_up: u64) -> Schedule {
        Schedule(Kind::InverseSqrt { peak, warm_up: warm_up.max(1) })
    }

    /// Returns the schedule of the Transformer: [`inverse_sqrt`](Schedule::inverse_sqrt) with the peak
    /// `1 / sqrt(model_size * warm_up)`.
    ///
    /// Vaswani et al., "Attention Is All You Need", 2017, section 5.3, where steps are counted from 1.
    #[must_use]
    pub fn noam(model_size: u64, warm_up: u64) -> Schedule {
        let warm_up = warm_up.max(1);
        Schedule::inverse_sqrt(1.0 / (model_size.max(1) as f64 * warm_up as f64).sqrt(), warm_up)
    }

    /// Rises linearly for `steps` steps, from `factor` times the first value of this schedule to that value; then
    /// follows this schedule from its own step 0 on. As PyTorch's `SequentialLR` of a `LinearLR` and this one, which
    /// allow no `factor` of 0.
    #[must_use]
    pub fn warm_up(self, steps: u64, factor: f64) -> Schedule {
        let first = self.at(0);
        Schedule::linear(first * factor, first, steps).then(steps, self)
    }

    /// Follows this schedule until step `until`, and then `next` from its step 0 (PyTorch's `SequentialLR` with the
    /// milestone `until`).
    ///
    /// ```
    /// use tch_checkpoint::Schedule;
    /// let schedule = Schedule::constant(1.0).then(10, Schedule::constant(0.5)).then(30, Schedule::linear(0.5, 0.0, 20));
    /// assert_eq!([schedule.at(9), schedule.at(10), schedule.at(40), schedule.at(50)], [1.0, 0.5, 0.25, 0.0]);
    /// ```
    #[must_use]
    pub fn then(self, until: u64, next: Schedule) -> Schedule {
        Schedule(Kind::Sequence { first: Box::new(self), until, next: Box::new(next) })
    }

    /// Returns the value for the step that follows `step` others.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        match &self.0 {
            Kind::Constant(value) => *value,
            Kind::Linear { to, steps, .. } if step >= *steps => *to,
            Kind::Linear { from, to, steps } => from + (to - from) * step as f64 / *steps as f64,
            Kind::Step { initial, gamma, every } => initial * power(*gamma, step / every),
            Kind::MultiStep { initial, gamma, milestones } => {
                initial * power(*gamma, milestones.partition_point(|milestone| *milestone <= step) as u64)
            }
            Kind::Exponential { initial, gamma } => initial * power(*gamma, step),
            Kind::Polynomial { end, steps, .. } if step >= *steps => *end,
            Kind::Polynomial { initial, end, power, steps } => {
                end + (initial - end) * (1.0 - step as f64 / *steps as f64).powf(*power)
            }
            Kind::Cosine { min, steps, .. } if step >= *steps => *min,
            Kind::Cosine { initial, min, steps } => cosine(*initial, *min, step as f64 / *steps as f64),
            Kind::CosineRestarts { initial, min, first, factor } => {
                let (step, length) = restart(step, *first, *factor);
                cosine(*initial, *min, step as f64 / length as f64)
            }
            Kind::InverseSqrt { peak, warm_up } => {
                let (step, warm_up) = (step as f64 + 1.0, *warm_up as f64);
                peak * (step / warm_up).min((warm_up / step).sqrt())
            }
            Kind::Phases { phases, linear } => one_cycle(phases, *linear, step as f64),
            Kind::Sequence { first, until, next } => match step.checked_sub(*until) {
                Some(step) => next.at(step),
                None => first.at(step),
            },
        }
    }
}

fn power(base: f64, exponent: u64) -> f64 {
    base.powf(exponent as f64)
}

/// Returns the value of half a cosine, of which the fraction `part` is over.
fn cosine(initial: f64, min: f64, part: f64) -> f64 {
    min + (initial - min) * (1.0 + (PI * part).cos()) / 2.0
}

/// Returns the step within its period, and the period's length.
fn restart(mut step: u64, first: u64, factor: u64) -> (u64, u64) {
    if factor == 1 {
        return (step % first, first);
    }
    // At most 64 iterations: each period is at least twice as long.
    let mut length = first;
    while step >= length {
        step -= length;
        length = length.saturating_mul(factor);
    }
    (step, length)
}

fn one_cycle(phases: &[Phase], linear: bool, step: f64) -> f64 {
    let mut begin = 0.0;
    for (place, Phase { end, from, to }) in phases.iter().enumerate() {
        if step <= *end || place + 1 == phases.len() {
            let length = end - begin;
            let part = if length > 0.0 { ((step - begin) / length).clamp(0.0, 1.0) } else { 1.0 };
            return match linear {
                true => (to - from) * part + from,
                false => to + (from - to) / 2.0 * ((PI * part).cos() + 1.0),
            };
        }
        begin = *end;
    }
    f64::NAN
}

/// The one-cycle policy: rises to a maximum and falls far below the initial value (PyTorch's `OneCycleLR`, with its
/// defaults).
///
/// Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017.
///
/// ```
/// use tch_checkpoint::OneCycle;
/// let cycle = OneCycle { max: 0.1, ..OneCycle::new(1000) };
/// let (rate, momentum) = (cycle.rate(), cycle.momentum(0.85, 0.95));
/// assert_eq!((rate.at(299), momentum.at(299)), (0.1, 0.85));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    /// The highest value. Defaults to 1.
    pub max: f64,
    /// The number of steps of the cycle; afterwards the value is constant.
    pub steps: u64,
    /// The fraction of the steps in which the value rises. Defaults to 0.3.
    pub rise: f64,
    /// The highest value divided by the first one. Defaults to 25.
    pub div_factor: f64,
    /// The first value divided by the last one. Defaults to 10,000.
    pub final_div_factor: f64,
    /// Whether the value rises and falls linearly instead of as a cosine. Defaults to `false`.
    pub linear: bool,
    /// Whether the value falls to the first value in as many steps as it rose, and then to the last one. Defaults to
    /// `false`.
    pub three_phases: bool,
}

impl OneCycle {
    /// Creates a cycle of `steps` steps with PyTorch's defaults.
    #[must_use]
    pub fn new(steps: u64) -> OneCycle {
        OneCycle {
            max: 1.0,
            steps,
            rise: 0.3,
            div_factor: 25.0,
            final_div_factor: 1e4,
            linear: false,
            three_phases: false,
        }
    }

    /// Returns the learning rate.
    #[must_use]
    pub fn rate(&self) -> Schedule {
        let first = self.max / self.div_factor;
        self.schedule(first, self.max, first / self.final_div_factor)
    }

    /// Returns the matching momentum: from `max` to `base` while the learning rate rises, and back.
    #[must_use]
    pub fn momentum(&self, base: f64, max: f64) -> Schedule {
        self.schedule(max, base, max)
    }

    fn schedule(&self, first: f64, middle: f64, last: f64) -> Schedule {
        let (steps, risen) = (self.steps as f64, self.rise * self.steps as f64 - 1.0);
        let mut phases = vec![Phase { end: risen, from: first, to: middle }];
        match self.three_phases {
            true => phases.extend([
                Phase { end: 2.0 * self.rise * steps - 2.0, from: middle, to: first },
                Phase { end: steps - 1.0, from: first, to: last },
            ]),
            false => phases.push(Phase { end: steps - 1.0, from: middle, to: last }),
        }
        Schedule(Kind::Phases { phases, linear: self.linear })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_exact() {
        let steps = 1000;
        for (schedule, first, last) in [
            (Schedule::linear(0.3, 0.1, steps), 0.3, 0.1),
            (Schedule::polynomial(0.3, 0.1, 2.0, steps), 0.3, 0.1),
            (Schedule::cosine(0.3, 0.1, steps), 0.3, 0.1),
            (Schedule::constant(0.3).then(5, Schedule::constant(0.1)), 0.3, 0.1),
        ] {
            assert!((schedule.at(0) - first).abs() < 1e-16, "{schedule:?}");
            for step in [1000, 1001, 5000, u64::MAX] {
                assert_eq!(schedule.at(step), last, "{schedule:?} at {step}");
            }
        }
    }

    #[test]
    fn numbers_of_steps_that_make_no_sense_are_no_panic() {
        for steps in [0, 1, u64::MAX] {
            for schedule in [
                Schedule::linear(1.0, 0.0, steps),
                Schedule::step(1.0, 0.5, steps),
                Schedule::multi_step(1.0, 0.5, [steps, steps, 0]),
                Schedule::polynomial(1.0, 0.0, 2.0, steps),
                Schedule::cosine(1.0, 0.0, steps),
                Schedule::cosine_restarts(1.0, 0.0, steps, steps),
                Schedule::inverse_sqrt(1.0, steps),
                Schedule::noam(steps, steps),
                OneCycle::new(steps).rate(),
                OneCycle { three_phases: true, ..OneCycle::new(steps) }.momentum(0.8, 0.9),
                Schedule::constant(1.0).warm_up(steps, 0.0),
                Schedule::exponential(1.0, 0.9),
            ] {
                for step in [0, 1, 2, u64::MAX] {
                    let value = schedule.at(step);
                    assert!((0.0..=1.0).contains(&value), "{schedule:?} at {step}: {value}");
                }
            }
        }
    }
}
