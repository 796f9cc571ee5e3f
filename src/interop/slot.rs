//! The slots of optimizers, with their names in other tools and in this crate.

/// The state that an optimizer keeps for a variable: a moment, a momentum or an accumulator.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slot {
    /// The key of the optimizer; `optimizer` if the file does not name it.
    pub optimizer: String,
    /// The key of the variable.
    pub variable: String,
    /// The file's name for the slot, such as `m`, `v`, `momentum` or `velocity`.
    pub name: String,
    /// PyTorch's name for it, which this crate's optimizers use as well: `exp_avg` for `m` …
    pub torch: Option<&'static str>,
    /// The key of the slot's tensor.
    pub key: String,
}

/// PyTorch's and this crate's name for a slot. `has` returns whether its variable has a slot of a name.
pub(crate) fn torch_slot(name: &str, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    Some(match name {
        "m" if has("v") => "exp_avg",
        "v" if has("m") => "exp_avg_sq",
        "vhat" => "max_exp_avg_sq",
        "momentum" if has("velocity") => "exp_avg",
        "velocity" if has("momentum") => "exp_avg_sq",
        "velocity_hat" => "max_exp_avg_sq",
        "rms" => "square_avg",
        "momentum" => "momentum_buffer",
        "accumulator" => "sum",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_word_means_different_slots() {
        let name = |name: &str, beside: &[&str]| torch_slot(name, |other| beside.contains(&other));
        assert_eq!(name("momentum", &["momentum"]), Some("momentum_buffer"));
        assert_eq!(name("momentum", &["momentum", "velocity"]), Some("exp_avg"));
        assert_eq!(name("v", &["v", "m"]), Some("exp_avg_sq"));
        assert_eq!(name("other", &["other"]), None);
    }
}
