//! The table of `docs/retention.md` is what the policies do.

use super::model::{Listed, policy};
use super::oracle::{Rule, Save};

/// The policies in the order of the table's columns; a column that combines has two.
fn columns() -> Vec<(&'static str, Vec<Rule>)> {
    vec![
        ("`Latest(2)`", vec![Rule::Latest(2)]),
        ("`Best` loss, 2", vec![Rule::Lowest(2)]),
        ("`EveryNSteps(400)`", vec![Rule::Multiples(400)]),
        ("`EveryNStepsClosest(250)`", vec![Rule::Closest(250)]),
        ("`Every` hour", vec![Rule::Every(60)]),
        ("`Steps([100, 500])`", vec![Rule::Steps(vec![100, 500])]),
        ("`YoungerThan` 1 hour", vec![Rule::Younger(60)]),
        ("`Latest(2)` and `Best` loss, 2", vec![Rule::Latest(2), Rule::Lowest(2)]),
    ]
}

const LOSSES: [Option<f64>; 10] =
    [Some(0.9), Some(0.7), Some(0.4), Some(0.5), None, Some(0.4), Some(f64::NAN), Some(0.6), Some(0.3), Some(0.8)];

/// The table as it should be.
fn table() -> String {
    let columns = columns();
    let save = |i: usize| Save { step: Some(100 * (i as u64 + 1)), minutes: 20 * (i as i64 + 1), metric: LOSSES[i] };
    let kept: Vec<Vec<usize>> = columns
        .iter()
        .map(|(_, rules)| {
            let (mut listed, policies) = (Listed::default(), rules.iter().map(policy).collect());
            (0..LOSSES.len()).for_each(|i| listed.save(i, &save(i), &policies, 0));
            listed.0.iter().map(|(place, _)| *place).collect()
        })
        .collect();
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let mut text = format!("| Step | Saved | Loss | {} |\n", names.join(" | "));
    text += &format!("|---|---|---|{}\n", "---|".repeat(columns.len()));
    for i in 0..LOSSES.len() {
        let Save { step, minutes, metric } = save(i);
        let loss = metric.map_or("none".to_string(), |loss| loss.to_string());
        let cells: Vec<&str> = kept.iter().map(|kept| if kept.contains(&i) { "kept" } else { "" }).collect();
        let (hours, minutes) = (minutes / 60, minutes % 60);
        text += &format!("| {} | {hours}:{minutes:02} | {loss} | {} |\n", step.unwrap_or(0), cells.join(" | "));
    }
    text
}

#[test]
fn the_table_of_the_documentation_is_what_the_policies_keep() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/retention.md");
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains(&table()), "docs/retention.md should have this table:\n{}", table());
}
