//! `Latest` with `Every` against what TensorFlow's `CheckpointManager` kept: `tensorflow.json` is recorded by
//! `tensorflow.py`.

use super::Outcome;
use super::model::{Listed, Policies, policy};
use super::oracle::{Rule, Save};
use serde_json::Value;

#[test]
fn the_rule_is_that_of_tensorflow() -> Outcome {
    let trace: Value = serde_json::from_str(include_str!("tensorflow.json"))?;
    let number = |value: &Value| value.as_u64().ok_or("not a number");
    let (mut saves, mut removed) = (0, 0);
    for run in trace["runs"].as_array().ok_or("no runs")? {
        let (keep, every) = (number(&run["max_to_keep"])? as usize, number(&run["every_minutes"])? as i64);
        let policies: Policies = vec![policy(&Rule::Latest(keep)), policy(&Rule::Every(every))];
        let mut listed = Listed::default();
        for (place, save) in (1..).zip(run["saves"].as_array().ok_or("no saves")?) {
            let minutes = number(&save[0])? as i64;
            let before = listed.0.len();
            listed.save(place, &Save { step: Some(place as u64), minutes, metric: None }, &policies, 0);
            let there: Vec<u64> = listed.0.iter().map(|(place, _)| *place as u64).collect();
            let expected = save[1].as_array().ok_or("no list")?.iter().map(number).collect::<Result<Vec<_>, _>>()?;
            assert_eq!(there, expected, "keep {keep}, every {every} minutes, seed {}, save {place}", run["seed"]);
            saves += 1;
            removed += before + 1 - there.len();
        }
    }
    assert!(saves == 480 && removed > 200, "{saves} saves, {removed} removed");
    Ok(())
}
