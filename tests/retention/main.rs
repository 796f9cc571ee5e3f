//! Retention, from the user's side: policies against an oracle of their documented rules, the table of
//! `docs/retention.md`, and managers with policies.

mod managers;
mod model;
mod mutants;
mod oracle;
mod table;
mod tensorflow;

type Outcome = Result<(), Box<dyn std::error::Error>>;
