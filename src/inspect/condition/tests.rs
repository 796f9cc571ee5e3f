//! Errors with their place, and random conditions against an oracle.

use super::parse::{MAX_BYTES, MAX_DEPTH};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn wrong(text: &str) -> (usize, String) {
    let ConditionError { column, reason } = text.parse::<Condition>().unwrap_err();
    (column, reason)
}

#[test]
fn errors_point_at_the_place() {
    for (text, column, reason) in [
        ("", 1, "not the end"),
        ("   ", 4, "not the end"),
        ("loss > 2", 1, "not `loss`"),
        ("metric(\"loss\") 2", 16, "<, <=, >, >=, == or != belongs here, not `2`"),
        ("metric(\"loss\") > two", 18, "a number belongs here, not `two`"),
        ("metric(\"loss\") > 1e999", 18, "a number belongs here, not `1e999`"),
        ("metric(\"loss\") > nan", 18, "a number"),
        ("metric(\"loss\") > ++1", 18, "a number"),
        ("metric(\"loss\") > 1e", 18, "a number belongs here, not `1e`"),
        ("metric(\"loss\") > 0x10", 18, "a number belongs here, not `0x10`"),
        ("metric(\"loss) > 2", 8, "not closed"),
        ("metric(\"lo\\ss\") > 2", 11, "after `\\`"),
        ("metric(\"ü\", 2) > 2", 11, "`)` belongs here, not `,`"),
        ("norm > 2", 6, "`(` belongs here, not `>`"),
        ("nonfinite nonfinite", 11, "`and`, `or` or the end"),
        ("(nonfinite", 11, "`and`, `or` or `)` belongs here, not the end"),
        ("nonfinite or", 13, "not the end"),
        ("not", 4, "not the end"),
        ("nonfinite)", 10, "`and`, `or` or the end belongs here, not `)`"),
        ("android", 1, "not `android`"),
    ] {
        let (found, told) = wrong(text);
        assert!(found == column && told.contains(reason), "{text:?}: {found}: {told}");
    }
}

#[test]
fn depth_and_length_have_limits() {
    let nested = |depth: usize| format!("{}nonfinite{}", "(".repeat(depth), ")".repeat(depth));
    assert!(nested(MAX_DEPTH).parse::<Condition>().is_ok());
    assert!(format!("{}nonfinite", "not ".repeat(MAX_DEPTH)).parse::<Condition>().is_ok());
    assert_eq!(wrong(&nested(MAX_DEPTH + 1)).0, MAX_DEPTH + 2);
    assert!(wrong(&nested(MAX_DEPTH + 1)).1.contains("nested"));
    assert!(wrong(&format!("{}nonfinite", "not ".repeat(1000))).1.contains("nested"));
    assert!(wrong(&" ".repeat(5000)).1.contains("at most 4096"));
    assert!(format!("unclean{}", " or unclean".repeat(300)).parse::<Condition>().is_ok());
}

/// A condition as the oracle knows it: how it is written, and whether it holds.
#[derive(Debug, Clone)]
struct Known {
    text: String,
    holds: bool,
    /// 0: `or` at the top; 1: `and`; 2: neither.
    binds: u8,
}

/// A checkpoint of a few numbers.
struct Table {
    numbers: BTreeMap<String, f64>,
    non_finite: Vec<&'static str>,
}

fn table() -> Table {
    let numbers = [("step", 100.0), ("metric loss", 0.5), ("metric nan", f64::NAN), ("norm a", 3.0), ("min a", -2.0)];
    let numbers = numbers.into_iter().map(|(name, number)| (name.to_string(), number)).collect();
    Table { numbers, non_finite: vec!["b"] }
}

impl Facts for Table {
    type Error = ();
    fn non_finite(&mut self, pattern: Option<&str>) -> Result<bool, ()> {
        Ok(pattern.is_none_or(|pattern| self.non_finite.contains(&pattern)))
    }
    fn unclean(&mut self) -> Result<bool, ()> {
        Ok(false)
    }
    fn number(&mut self, quantity: &Quantity) -> Result<Option<f64>, ()> {
        let name = match quantity {
            Quantity::Step => "step".to_string(),
            Quantity::Metric(name) => format!("metric {name}"),
            Quantity::Tensors(statistic, pattern) => format!("{statistic:?} {pattern}").to_lowercase(),
        };
        Ok(self.numbers.get(&name).copied())
    }
}

/// A comparison, decided by the ordering of the two numbers.
fn comparison() -> impl Strategy<Value = Known> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let quantity = prop_oneof![
        Just(("step", Some(100.0))),
        Just(("metric(\"loss\")", Some(0.5))),
        Just(("metric( \"nan\" )", Some(f64::NAN))),
        Just(("metric(\"other\")", None)),
        Just(("norm(\"a\")", Some(3.0))),
        Just(("min (\"a\")", Some(-2.0))),
        Just(("zeros(\"a\")", None::<f64>)),
    ];
    let operator = proptest::sample::select(vec![
        ("<", vec![Some(Less)]),
        ("<=", vec![Some(Less), Some(Equal)]),
        (">", vec![Some(Greater)]),
        (">=", vec![Some(Greater), Some(Equal)]),
        ("==", vec![Some(Equal)]),
        ("!=", vec![Some(Less), Some(Greater), None]),
    ]);
    let number = proptest::sample::select(vec![("100", 100.0), ("5e-1", 0.5), ("-2.0", -2.0), ("3", 3.0), ("+0", 0.0)]);
    (quantity, operator, number).prop_map(|((name, value), (operator, orders), (text, number))| Known {
        text: format!("{name}{operator}{text}"),
        holds: value.is_some_and(|value| orders.contains(&value.partial_cmp(&number))),
        binds: 2,
    })
}

fn known() -> impl Strategy<Value = Known> {
    let plain = |text: &str, holds| Just(Known { text: text.to_string(), holds, binds: 2 });
    let leaf = prop_oneof![
        4 => comparison(),
        1 => plain("nonfinite", true),
        1 => plain("nonfinite(\"a\")", false),
        1 => plain("nonfinite (\"b\")", true),
        1 => plain("unclean", false),
    ];
    leaf.prop_recursive(6, 40, 3, |inner| {
        // What binds less than its place is put into parentheses, the rest as it comes.
        let within = |known: &Known, least: u8, also: bool| match known.binds < least || also {
            true => format!("( {})", known.text),
            false => known.text.clone(),
        };
        let many = || (proptest::collection::vec((inner.clone(), any::<bool>()), 2..4), any::<bool>());
        prop_oneof![
            (inner.clone(), any::<bool>()).prop_map(move |(known, also)| Known {
                text: format!("not {}", within(&known, 2, also)),
                holds: !known.holds,
                binds: 2,
            }),
            many().prop_map(move |(parts, any)| {
                let (word, binds) = if any { (" or ", 0) } else { ("\tand  ", 1) };
                let texts: Vec<String> = parts.iter().map(|(known, also)| within(known, binds + 1, *also)).collect();
                let count = parts.iter().filter(|(known, _)| known.holds).count();
                let holds = if any { count > 0 } else { count == parts.len() };
                Known { text: texts.join(word), holds, binds }
            }),
        ]
    })
}

proptest! {
    /// The truth of a condition is that of the tree from which its text was made, and it comes back from its own text.
    #[test]
    fn conditions_mean_what_they_say(known in known()) {
        prop_assume!(known.text.len() <= MAX_BYTES);
        let condition: Condition = known.text.parse().map_err(|e| TestCaseError::fail(format!("{}: {e}", known.text)))?;
        prop_assert_eq!(condition.holds(&mut table()), Ok(known.holds), "{}", known.text);
        let again: Condition = condition.to_string().parse().unwrap();
        prop_assert_eq!(&again, &condition);
    }

    /// Whatever the text, there is no panic, and an error is inside of it.
    #[test]
    fn any_text_is_a_condition_or_wrong_somewhere(text in "[a-z()\"\\\\<>=!. 0-9üé-]{0,60}|\\PC{0,40}") {
        match text.parse::<Condition>() {
            Ok(condition) => prop_assert_eq!(condition.to_string().parse::<Condition>(), Ok(condition)),
            Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{}", error),
        }
    }
}
