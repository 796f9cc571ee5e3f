//! The rules of a directory of checkpoints. Tests leave out one at a time, to show that each is necessary.

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The newest is the head of the chain; broken: the one with the highest sequence.
    Chain,
    /// What is abandoned is superseded; broken: it stays.
    Supersede,
    /// What is superseded stays until enough newer ones are there; broken: it is removed at once.
    KeepSuperseded,
    /// What is kept for good is not removed; broken: what the marks say is not asked.
    Marks,
    /// Numbers come from the names that are there; broken: from the good checkpoints.
    Names,
    /// Saving a name again takes the place of what had it; broken: both are listed.
    OneEntry,
    /// What is gone does not count; broken: it does.
    Gone,
    /// A run goes back to a checkpoint that is gone; broken: it then abandons nothing.
    GoneBefore,
    /// A step that goes back is due; broken: it is not.
    StepBack,
    /// A step that is saved already is compared with the state; broken: it is taken for that.
    SameStep,
    /// Metrics of a step that is saved already are added; broken: they are dropped.
    LateMetrics,
    /// A new run in the directory of another one must be asked for; broken: it need not be.
    FreshStart,
    /// What a run was restored from stays until enough newer ones exist; broken: it does not.
    Restored,
    /// What is pinned stays; broken: it does not.
    Pins,
    /// Marks of other processes are read before it is decided what goes; broken: they are not.
    FreshMarks,
    /// What is not healthy counts for no policy; broken: it does.
    Healthy,
    /// A run resumes from a healthy checkpoint; broken: from any.
    ResumeHealthy,
    /// A run resumes from a checkpoint with all components; broken: from any.
    ResumeWhole,
    /// What stays to be resumed from, or for a pin, stays whole; broken: it loses components as others do.
    Whole,
    /// Each checkpoint records from when intervals are counted; broken: it does not.
    CountedFrom,
    /// A state that was saved as unclean is saved anew; broken: it is taken for saved.
    CleanAgain,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 21] = [
        Rule::Chain,
        Rule::Supersede,
        Rule::KeepSuperseded,
        Rule::Marks,
        Rule::Names,
        Rule::OneEntry,
        Rule::Gone,
        Rule::GoneBefore,
        Rule::StepBack,
        Rule::SameStep,
        Rule::LateMetrics,
        Rule::FreshStart,
        Rule::Restored,
        Rule::Pins,
        Rule::FreshMarks,
        Rule::Healthy,
        Rule::ResumeHealthy,
        Rule::ResumeWhole,
        Rule::Whole,
        Rule::CountedFrom,
        Rule::CleanAgain,
    ];
}

/// The rules that a manager follows: all of them, except in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rules {
    broken: Option<Rule>,
}

impl Rules {
    /// Returns all rules but one.
    pub(crate) fn without(rule: Rule) -> Rules {
        Rules { broken: Some(rule) }
    }

    pub(crate) fn hold(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }
}
