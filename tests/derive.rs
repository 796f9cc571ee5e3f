//! `#[derive(Trackable)]`: names of fields, and what their attributes do.

use std::collections::BTreeMap;
use tch_checkpoint::{Checkpoint, Counter, Trackable, Value};

#[derive(Trackable)]
struct Inner {
    step: Counter,
    #[track(rename = "best/loss")]
    best: Value<f64>,
}

#[derive(Trackable)]
struct Pair(Counter, #[track(skip)] (), Counter);

#[derive(Trackable)]
struct Outer<'a, T, const N: usize>
where
    T: Clone,
{
    #[track(flatten)]
    progress: Inner,
    pair: Pair,
    r#type: T,
    list: [T; N],
    borrowed: &'a Counter,
    #[track(flatten)]
    map: BTreeMap<String, Counter>,
    #[track(skip)]
    _title: String,
}

#[derive(Trackable)]
struct Nothing;

#[derive(Trackable)]
struct Tree<T> {
    value: T,
    children: Vec<Tree<T>>,
}

#[derive(Trackable)]
struct Chain<T> {
    value: Value<T>,
    rest: Vec<Self>,
}

fn keys(object: impl Trackable) -> Vec<String> {
    let contents = Checkpoint::new().track("all", object).unwrap().contents().unwrap();
    contents.entries().iter().map(|entry| entry.key.clone()).collect()
}

fn inner() -> Inner {
    Inner { step: Counter::new(1), best: Value::new(0.5) }
}

#[test]
fn fields_have_their_names() {
    let shared = Counter::new(9);
    let outer = Outer {
        progress: inner(),
        pair: Pair(Counter::new(2), (), Counter::new(3)),
        r#type: Counter::new(4),
        list: [Counter::new(5), Counter::new(6)],
        borrowed: &shared,
        map: BTreeMap::from([("a".to_string(), Counter::new(7))]),
        _title: "not saved".to_string(),
    };
    let expected = ["a", "best%2Floss", "borrowed", "list/0", "list/1", "pair/0", "pair/2", "step", "type"];
    assert_eq!(keys(&outer), expected.map(|name| format!("all/{name}")));
    assert_eq!(keys(Nothing), [] as [&str; 0]);
}

#[test]
fn a_generic_struct_can_contain_itself() {
    let leaf = |n| Tree { value: Counter::new(n), children: Vec::new() };
    let tree = Tree { value: Counter::new(1), children: vec![leaf(2), leaf(3)] };
    assert_eq!(keys(&tree), ["all/children/0/value", "all/children/1/value", "all/value"]);
    let chain = |rest| Chain { value: Value::new(0.5), rest };
    assert_eq!(keys(chain(vec![chain(vec![])])), ["all/rest/0/value", "all/value"]);
}

#[test]
fn it_is_saved_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let object = inner();
    let path = Checkpoint::new().track("o", &object).unwrap().write(dir.path().join("one")).unwrap();
    object.step.set(0);
    object.best.set(9.0);
    Checkpoint::new().track("o", &object).unwrap().restore(path).unwrap().assert_consumed().unwrap();
    assert_eq!((object.step.get(), object.best.get()), (1, 0.5));
}

#[test]
fn what_cannot_be_flattened_is_named() {
    #[derive(Trackable)]
    struct Wrong {
        #[track(flatten)]
        counter: Counter,
    }
    let refusal = Checkpoint::new().track("w", Wrong { counter: Counter::new(1) }).unwrap_err().to_string();
    assert!(refusal.contains("`counter`") && refusal.contains("flatten"), "{refusal}");

    #[derive(Trackable)]
    struct Twice {
        step: Counter,
        #[track(flatten)]
        inner: Inner,
    }
    let refusal =
        Checkpoint::new().track("t", Twice { step: Counter::new(1), inner: inner() }).unwrap_err().to_string();
    assert!(refusal.contains("step") && refusal.contains("two objects"), "{refusal}");
}
