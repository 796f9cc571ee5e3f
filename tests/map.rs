//! Maps: every transform against an oracle, the text form there and back, errors with their place, and restores.

mod common;
#[path = "common/memory.rs"]
mod memory;

use common::Memory;
use common::sources::read;
use common::table::Table;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use tch_checkpoint::map::{Functions, Loss, NameMap, TensorFunction, Transform, propose};
use tch_checkpoint::{
    Checkpoint, Dtype, Error, Node, RestoreOptions, Result, TensorSource, TensorSpec, Trackable, VerifiedBy,
};

/// The oracle: a shape, and a function from indices to numbers.
#[derive(Debug, Clone)]
struct Array {
    shape: Vec<u64>,
    numbers: BTreeMap<Vec<u64>, i16>,
}

fn indices(shape: &[u64]) -> Vec<Vec<u64>> {
    shape.iter().fold(vec![Vec::new()], |all, &length| {
        all.iter().flat_map(|index| (0..length).map(move |i| [index.as_slice(), &[i]].concat())).collect()
    })
}

impl Array {
    fn new(shape: &[u64], number: impl Fn(&[u64]) -> i16) -> Array {
        let numbers = indices(shape).into_iter().map(|index| (index.clone(), number(&index))).collect();
        Array { shape: shape.to_vec(), numbers }
    }

    fn at(&self, index: &[u64]) -> i16 {
        self.numbers[index]
    }

    fn in_order(&self) -> Vec<i16> {
        indices(&self.shape).iter().map(|index| self.at(index)).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.in_order().into_iter().flat_map(i16::to_le_bytes).collect()
    }
}

/// One step of a transform.
#[derive(Debug, Clone)]
enum Step {
    Transpose,
    Permute(Vec<u64>),
    Reshape(Vec<u64>, usize),
    Flatten(u64, u64),
    Slice(u64, u64, u64),
    Blocks(u64, u64, Vec<u64>),
    Concat(u64, bool),
    Stack(u64),
    Repeat(Vec<u64>),
    Pad(u64, u64, i16),
    Truncate(u64, u64),
    Zeros,
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0u64..4;
    prop_oneof![
        Just(Step::Transpose),
        prop::collection::vec(0u64..4, 0..5).prop_map(Step::Permute),
        (prop::collection::vec(0u64..7, 0..4), 0usize..4).prop_map(|(shape, open)| Step::Reshape(shape, open)),
        (small.clone(), small.clone()).prop_map(|(a, b)| Step::Flatten(a, b)),
        (small.clone(), small.clone(), small.clone()).prop_map(|(d, a, b)| Step::Slice(d, a, b)),
        (small.clone(), 1u64..4, prop::collection::vec(0u64..4, 0..4)).prop_map(|(d, n, o)| Step::Blocks(d, n, o)),
        (small.clone(), any::<bool>()).prop_map(|(d, twice)| Step::Concat(d, twice)),
        small.clone().prop_map(Step::Stack),
        prop::collection::vec(0u64..3, 0..4).prop_map(Step::Repeat),
        (small.clone(), 0u64..6, any::<i16>()).prop_map(|(d, n, v)| Step::Pad(d, n, v)),
        (small.clone(), small).prop_map(|(d, n)| Step::Truncate(d, n)),
        Just(Step::Zeros),
    ]
}

/// What a step should give; `None` where it must be refused.
#[allow(clippy::too_many_lines, reason = "one arm per kind of step")]
fn expected(array: &Array, step: &Step) -> Option<Array> {
    let shape = &array.shape;
    let rank = shape.len() as u64;
    let has = |d: u64| (d < rank).then_some(d as usize);
    let with = |d: usize, length: u64| {
        let mut shape = shape.clone();
        shape[d] = length;
        shape
    };
    let moved = |index: &[u64], d: usize, to: u64| {
        let mut index = index.to_vec();
        index[d] = to;
        index
    };
    Some(match step {
        Step::Transpose => {
            let reversed: Vec<u64> = shape.iter().rev().copied().collect();
            Array::new(&reversed, |index| array.at(&index.iter().rev().copied().collect::<Vec<_>>()))
        }
        Step::Permute(axes) => {
            let mut sorted = axes.clone();
            sorted.sort_unstable();
            if sorted != (0..rank).collect::<Vec<_>>() {
                return None;
            }
            let new: Vec<u64> = axes.iter().map(|axis| shape[*axis as usize]).collect();
            Array::new(&new, |index| {
                let mut old = vec![0; index.len()];
                axes.iter().zip(index).for_each(|(axis, i)| old[*axis as usize] = *i);
                array.at(&old)
            })
        }
        Step::Reshape(new, open) => {
            let mut new = new.clone();
            let count: u64 = shape.iter().product();
            if let Some(place) = new.get_mut(*open) {
                *place = 1;
                let rest: u64 = new.iter().product();
                if rest == 0 || !count.is_multiple_of(rest) {
                    return None;
                }
                new[*open] = count / rest;
            }
            if new.iter().product::<u64>() != count {
                return None;
            }
            let numbers = indices(&new).into_iter().zip(array.in_order()).collect();
            Array { shape: new, numbers }
        }
        Step::Flatten(a, b) => {
            let (a, b) = (has(*a)?, has(*b)?);
            if a > b {
                return None;
            }
            let mut new = shape[..a].to_vec();
            new.push(shape[a..=b].iter().product());
            new.extend(&shape[b + 1..]);
            let numbers = indices(&new).into_iter().zip(array.in_order()).collect();
            Array { shape: new, numbers }
        }
        Step::Slice(d, a, b) => {
            let d = has(*d)?;
            if a > b || *b > shape[d] {
                return None;
            }
            Array::new(&with(d, b - a), |index| array.at(&moved(index, d, index[d] + a)))
        }
        Step::Blocks(d, count, order) => {
            let d = has(*d)?;
            if !shape[d].is_multiple_of(*count) || order.iter().any(|block| block >= count) {
                return None;
            }
            let length = shape[d] / count;
            Array::new(&with(d, length * order.len() as u64), |index| {
                array.at(&moved(index, d, order[(index[d] / length) as usize] * length + index[d] % length))
            })
        }
        Step::Concat(d, twice) => {
            let d = has(*d)?;
            let times = if *twice { 2 } else { 1 };
            Array::new(&with(d, shape[d] * times), |index| array.at(&moved(index, d, index[d] % shape[d])))
        }
        Step::Stack(d) => {
            if *d > rank {
                return None;
            }
            let mut new = shape.clone();
            new.insert(*d as usize, 2);
            Array::new(&new, |index| {
                let mut old = index.to_vec();
                old.remove(*d as usize);
                array.at(&old)
            })
        }
        Step::Repeat(times) => {
            let more = times.len().checked_sub(shape.len())?;
            let long: Vec<u64> = vec![1; more].into_iter().chain(shape.iter().copied()).collect();
            let new: Vec<u64> = long.iter().zip(times).map(|(a, b)| a * b).collect();
            Array::new(&new, |index| {
                let old: Vec<u64> = index.iter().zip(&long).map(|(i, length)| i % length).collect();
                array.at(&old[more..])
            })
        }
        Step::Pad(d, length, value) => {
            let d = has(*d)?;
            if *length < shape[d] {
                return None;
            }
            Array::new(&with(d, *length), |index| if index[d] < shape[d] { array.at(index) } else { *value })
        }
        Step::Truncate(d, length) => {
            let d = has(*d)?;
            if *length > shape[d] {
                return None;
            }
            Array::new(&with(d, *length), |index| array.at(index))
        }
        Step::Zeros => Array::new(shape, |_| 0),
    })
}

fn transform(from: Transform, step: &Step) -> Transform {
    let axes = |all: &[u64]| all.iter().map(|axis| *axis as i64).collect::<Vec<_>>();
    match step {
        Step::Transpose => from.transpose(),
        Step::Permute(all) => from.permute(axes(all)),
        Step::Reshape(shape, open) => {
            let shape: Vec<Option<u64>> =
                shape.iter().enumerate().map(|(i, length)| (i != *open).then_some(*length)).collect();
            from.reshape(shape)
        }
        Step::Flatten(a, b) => from.flatten(*a as i64, *b as i64),
        Step::Slice(d, a, b) => from.slice(*d as i64, *a, *b),
        Step::Blocks(d, count, order) => from.blocks(*d as i64, *count, order.clone()),
        Step::Concat(d, twice) => Transform::concat(*d as i64, vec![from; if *twice { 2 } else { 1 }]),
        Step::Stack(d) => Transform::stack(*d as i64, [from.clone(), from]),
        Step::Repeat(times) => from.repeat(times.clone()),
        Step::Pad(d, length, value) => from.pad(*d as i64, *length, f64::from(*value)),
        Step::Truncate(d, length) => from.truncate(*d as i64, *length),
        Step::Zeros => from.zeros(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Any transforms, one after the other: what they give, in whole and in pieces, and what they refuse.
    #[test]
    fn transforms_give_what_they_should(
        shape in prop::collection::vec(0u64..4, 0..4), steps in prop::collection::vec(step(), 1..5), cut in 0usize..100,
    ) {
        let mut number = 0;
        let array = Array { shape: shape.clone(), numbers: indices(&shape).into_iter().map(|index| {
            number += 1;
            (index, number)
        }).collect() };
        let table = Table::default().with("x", Dtype::I16, &shape, array.bytes());
        let (mut expr, mut wanted) = (Transform::of("x"), Some(array));
        for step in &steps {
            expr = transform(expr, step);
            wanted = wanted.and_then(|array| expected(&array, step)).filter(|array| array.numbers.len() < 5000);
            if wanted.is_none() { break; }
        }
        let map = NameMap::new().define("y", expr);
        // The same by way of the text.
        prop_assert_eq!(&map.to_string().parse::<NameMap>().unwrap(), &map);
        let mapped = map.apply(&table);
        let Some(wanted) = wanted else {
            if let Ok(mapped) = &mapped {
                prop_assert!(mapped.tensors()["y"].bytes().unwrap() >= 10_000, "{map}");
            }
            return Ok(());
        };
        let mapped = mapped.unwrap();
        prop_assert_eq!(&mapped.tensors()["y"], &TensorSpec::new(Dtype::I16, wanted.shape.clone()));
        let bytes = wanted.bytes();
        prop_assert_eq!(read(&mapped, "y"), bytes.clone());
        let cut = cut.min(bytes.len() / 2);
        let mut pieces = vec![0; bytes.len()];
        mapped.read_range("y", 0..cut as u64, &mut pieces[..2 * cut]).unwrap();
        mapped.read_range("y", cut as u64..bytes.len() as u64 / 2, &mut pieces[2 * cut..]).unwrap();
        prop_assert_eq!(pieces, bytes);
        mapped.verify_tensor("y").unwrap();
        // A transform that is said to lose nothing keeps every number.
        if mapped.mappings()[0].loss == Loss::Nothing {
            let there: std::collections::BTreeSet<i16> = wanted.in_order().into_iter().collect();
            prop_assert!((1..=number).all(|n| there.contains(&n)));
        }
    }

    /// Any names, with quotes, stars and spaces in them.
    #[test]
    fn texts_come_back(
        names in prop::collection::vec("[a-z0-9._/*\\-> \"\\\\#(),=\u{e9}\n\t]{0,9}|optional|only|map", 6), n in any::<u64>(), d in any::<i64>(), x in any::<f64>(),
    ) {
        let x = if x.is_nan() { f64::NAN } else { x };
        prop_assume!(!x.is_nan());
        let stars = |name: &str| name.replace('*', "x");
        let map = NameMap::new()
            .only(&names[..2])
            .include(&names[2..3])
            .exclude(&names[3..])
            .weights()
            .add_prefix(&stars(&names[0]))
            .remove_prefix(&names[1].replace('*', ""))
            .rename(&names[2], &names[2])
            .define(&stars(&names[3]), Transform::sum([Transform::of(&stars(&names[4])).pad(d, n, x), Transform::of(&stars(&names[5])).cast(Dtype::BF16)]))
            .define_optional(&stars(&names[1]), Transform::of(&stars(&names[4])).slice(d, n, None).truncate(d, n).reshape([Some(n), None]));
        let text = map.to_string();
        prop_assert_eq!(text.parse::<NameMap>().unwrap_or_else(|e| panic!("{e}\n{text}")), map);
    }
}

/// The other lengths of a shape with a zero can be any numbers: nothing may go through them, or multiply them.
#[test]
fn tensors_without_elements_are_made_at_once() {
    let table = Table::default()
        .with("wide", Dtype::F32, &[1 << 40, 0], Vec::new())
        .with("long", Dtype::F32, &[0, 1 << 40, 1 << 40], Vec::new())
        .with("row", Dtype::F32, &[1, 2], vec![0; 8]);
    for expression in [
        "concat(1, wide, wide)",
        "stack(0, wide, wide)",
        "repeat(wide, [1, 3])",
        "slice(wide, 1, 0..0)",
        "blocks(wide, 1, 2, [1, 0])",
        "transpose(wide)",
        "add(wide, zeros(wide))",
        "cast(concat(1, wide, wide), F16)",
        "concat(0, long, long)",
        "slice(long, 0, 0..0)",
        "transpose(reshape(long, [0, 0, 1099511627776, 1099511627776]), [1, 0, 2, 3])",
    ] {
        let map: NameMap = format!("map 1\nmade = {expression}\n").parse().unwrap();
        let mapped = map.apply(&table).unwrap();
        assert!(read(&mapped, "made").is_empty(), "{expression}");
        mapped.verify().unwrap();
    }
    // From an empty tensor to one with elements.
    let map: NameMap = "map 1\nmade = concat(0, row, pad(slice(row, 1, 0..0), 1, 2, 1))\n".parse().unwrap();
    let expected: Vec<u8> = [0f32, 0.0, 1.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(read(&map.apply(&table).unwrap(), "made"), expected);
}

fn keys(map: &str, table: &Table) -> Vec<String> {
    let map: NameMap = format!("map 1\n{map}").parse().unwrap_or_else(|e| panic!("{e}"));
    let mapped = map.apply(table).unwrap_or_else(|e| panic!("{e}"));
    // Each as `name=number`, the numbers being the places in the table.
    mapped.tensors().keys().map(|key| format!("{key}={}", read(&mapped, key)[0])).collect()
}

/// A definition with stars also takes what earlier ones defined: without a bound, names double with every line.
#[test]
fn names_do_not_double_without_end() {
    let table = Table::of(&["a", "b", "c"]);
    let lines: String = (0..40).map(|line| format!("p{line}/* = *\n")).collect();
    let map: NameMap = format!("map 1\n{lines}").parse().unwrap();
    let error = map.apply(&table).unwrap_err().to_string();
    assert!(error.contains("more than 65536 names") && error.contains("line 16"), "{error}");
}

#[test]
fn names_go_through_the_statements_in_order() {
    let all = Table::of(&["enc.l.0.w", "enc.l.1.w", "enc2.w", "opt", "optimizer/state/0/m"]);
    for (map, wanted) in [
        ("only enc", "enc.l.0.w=0 enc.l.1.w=1"),
        ("include *.w\nexclude enc2*", "enc.l.0.w=0 enc.l.1.w=1"),
        ("weights\nremove_prefix enc.", "enc2.w=2 l.0.w=0 l.1.w=1"),
        ("only enc2\nadd_prefix model/", "model/enc2.w=2"),
        ("only enc\nb/*/weight = enc.l.*.w", "b/0/weight=0 b/1/weight=1"),
        // Each star takes as little as it can, the last one the rest.
        ("only enc\n*|*|* = *.*.*", "enc|l|0.w=0 enc|l|1.w=1"),
        // Two names exchanged: what one definition used is still there for the next.
        ("only enc\nt = enc.l.0.w\nenc.l.0.w = enc.l.1.w\nenc.l.1.w = t", "enc.l.0.w=1 enc.l.1.w=0"),
        // Used twice, gone after that.
        ("only enc2\na = enc2.w\nb = enc2.w\nadd_prefix x/", "x/a=2 x/b=2"),
        ("only enc2\noptional a = nothing\noptional a/* = none/*", "enc2.w=2"),
        ("only enc2\n\"a b*\" = enc2*", "a b.w=2"),
        (
            r#"only enc2
"\*" = enc2.w"#,
            "*=2",
        ),
    ] {
        assert_eq!(keys(map, &all).join(" "), wanted, "{map}");
    }
    let mut with_groups = Table::of(&["model/w", "adam/state/0/m"]);
    with_groups.values.insert("adam/param_groups".to_string(), json!([]));
    with_groups.values.insert("epoch".to_string(), json!(3));
    let mapped = NameMap::new().weights().rename("epoch", "training/epoch").apply(&with_groups).unwrap();
    assert_eq!(mapped.tensors().keys().collect::<Vec<_>>(), ["model/w"]);
    assert_eq!(*mapped.values(), BTreeMap::from([("training/epoch".to_string(), json!(3))]));
    assert_eq!(mapped.left_out(), ["adam/param_groups", "adam/state/0/m"]);
}

#[test]
fn errors_point_at_the_place_and_name_what_is_near() {
    let table = Table::of(&["encoder.weight", "encoder.bias", "w"]);
    for (text, line, column, wanted) in [
        ("", 1, 1, "starts with the line `map 1`"),
        ("# only a comment\n", 1, 1, "starts with the line `map 1`"),
        ("only x\n", 1, 1, "starts with the line `map 1`"),
        ("map 2\n", 1, 5, "version 1"),
        ("map 1\n\nexlude a\n", 3, 1, "`exclude`?"),
        ("map 1\n  only\n", 2, 7, "a name is expected here, not the end of the line"),
        ("map 1\na = transpos(w)\n", 2, 5, "`transpose`?"),
        ("map 1\na = cast(w, F33)\n", 2, 13, "BF16"),
        ("map 1\na = slice(w, 0, 3)\n", 2, 17, "a range such as"),
        ("map 1\na = blocks(w, 0, 3, [1, x])\n", 2, 25, "the number of a block"),
        ("map 1\na = reshape(w [2])\n", 2, 15, "`,` is expected here"),
        ("map 1\na = transpose(w\n", 2, 16, "`)` is expected here, not the end"),
        ("map 1\na = w w\n", 2, 7, "the statement ends before `w`"),
        ("map 1\na = \"w\n", 2, 5, "not closed"),
        ("map 1\na = \"\\q\"\n", 2, 6, "hexadecimal"),
        ("map 1\nü = a\\b\n", 2, 6, "double quotes"),
        ("map 1\na* = w\n", 2, 6, "nothing that it is made of says what they stand for"),
        ("map 1\na = w*\n", 2, 5, "has 1 stars"),
        ("map 1\nadd_prefix a*\n", 2, 12, "no `*`"),
    ] {
        let error = text.parse::<NameMap>().unwrap_err();
        let Error::Map { line: l, column: c, reason, .. } = &error else { panic!("{error}") };
        assert!((*l, *c) == (line, column) && reason.contains(wanted), "{text:?}: {error}");
    }
    for (text, line, wanted) in [
        ("include encoder.bia", 2, "the nearest is \"encoder.bias\""),
        ("\na = encoder.weigth", 3, "the nearest is \"encoder.weight\""),
        ("w = encoder.weight", 2, "there is a \"w\" already"),
        ("x = *.weight", 2, "has 1 stars"),
        ("y* = none*", 2, "there is nothing for \"none*\""),
        ("remove_prefix model.", 2, "no name starts with"),
        ("a = transpose(w, [0])", 2, "has no dimension 0"),
        ("a = cast(w, F8_E5M2)", 2, "no conversion"),
        ("a = concat(0, w, encoder.bias)", 2, "has no dimension 0"),
        ("a = repeat(w, [9223372036854775807])", 2, "no memory"),
    ] {
        let map = format!("map 1\n{text}\n").parse::<NameMap>();
        let error = map.and_then(|map| map.apply(&table).map(drop)).unwrap_err();
        let Error::Map { line: l, reason, .. } = &error else { panic!("{error}") };
        assert!(*l == line && reason.contains(wanted), "{text:?}: {error}");
    }
    // A short text cannot cause unlimited work.
    let bombs: String = (0..60).map(|i| format!("w{} = blocks(concat(0, w{i}, w{i}), 0, 2, [0])\n", i + 1)).collect();
    let table = Table::default().with("w0", Dtype::U8, &[2], vec![1, 2]);
    let error = format!("map 1\n{bombs}").parse::<NameMap>().unwrap().apply(&table).unwrap_err();
    assert!(error.to_string().contains("4096 steps"), "{error}");
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("names.map");
    std::fs::write(&path, "map 1\nonly\n").unwrap();
    let error = NameMap::open(&path).unwrap_err();
    assert!(
        error.to_string().ends_with("names.map, line 2, column 5: a name is expected here, not the end of the line")
    );
}

/// The first half of a vector; refuses elements above 100.
struct Half;

impl TensorFunction for Half {
    fn spec(&self, inputs: &[TensorSpec]) -> Result<TensorSpec, tch_checkpoint::BoxError> {
        match inputs {
            [spec] if spec.shape.len() == 1 => Ok(TensorSpec::new(spec.dtype, [spec.shape[0] / 2])),
            _ => Err("takes one vector".into()),
        }
    }

    fn apply(&self, _: &[TensorSpec], inputs: Vec<Vec<u8>>) -> Result<Vec<u8>, tch_checkpoint::BoxError> {
        let half = &inputs[0][..inputs[0].len() / 2];
        let large = half.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).find(|x| *x > 100.0);
        large.map_or(Ok(half.to_vec()), |x| Err(format!("{x} is above 100").into()))
    }
}

#[test]
fn a_restore_takes_a_map_all_or_nothing_and_lists_what_it_did() {
    let numbers: Vec<f32> = (0..6).map(|n| n as f32 + 0.1).collect();
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let source = Table::default().with("net.kernel", Dtype::F32, &[2, 3], bytes(&numbers)).with(
        "net.long",
        Dtype::F32,
        &[4],
        bytes(&[1.0, 2.0, 300.0, 4.0]),
    );
    let (weight, live) = (Memory::new(Dtype::F16, &[3, 2], vec![7; 12]), Memory::f32(&[2], [8.0, 9.0]));
    let model = Node::group([("weight", weight.node()), ("half", live.node())]);
    let mut checkpoint = Checkpoint::new().track("model", model).unwrap();
    let functions = Functions::new().with("half", Half);
    let text = |half: &str| format!("map 1\nmodel/weight = cast(transpose(net.kernel), F16)\nmodel/half = {half}\n");
    let before = (weight.bytes().clone(), live.bytes().clone());
    // Refused by the function when all is verified, by the shape, and by the map.
    for (half, wanted) in [
        ("half(repeat(slice(net.long, 0, 2..), [2]))", "300 is above 100"),
        ("half(half(net.long))", "the checkpoint has F32 [1]"),
        ("half(net.kernel)", "takes one vector"),
    ] {
        let map = functions.parse(&text(half)).unwrap();
        let error = checkpoint.restore_source(&source, &RestoreOptions::new().map(map)).unwrap_err();
        assert!(error.to_string().contains(wanted), "{half}: {error}");
        assert!((weight.bytes().clone(), live.bytes().clone()) == before);
    }
    let map = functions.parse(&text("half(net.long)")).unwrap();
    let status = checkpoint.restore_source(&source, &RestoreOptions::new().map(map)).unwrap();
    status.assert_consumed().unwrap();
    let report = status.report();
    let mapped: Vec<_> = report.mapped.iter().map(|m| (m.key.as_str(), m.transform.as_str(), m.loss)).collect();
    assert_eq!(
        mapped,
        [
            ("model/half", "half(net.long)", Loss::Unknown),
            ("model/weight", "cast(transpose(net.kernel, [1, 0]), F16)", Loss::Precision)
        ]
    );
    assert_eq!(*live.bytes(), bytes(&[1.0, 2.0]));
    let f16 = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let wanted: Vec<u8> = [0, 3, 1, 4, 2, 5].into_iter().flat_map(|i| f16(numbers[i])).collect();
    assert_eq!(*weight.bytes(), wanted);
}

#[test]
fn own_checkpoints_are_renamed_too_and_go_on() {
    let temp = tempfile::tempdir().unwrap();
    let old = Memory::seeded(50, 1);
    let mut first = Checkpoint::new().track("enc", BTreeMap::from([("w", &old)])).unwrap();
    let path = first.save(temp.path().join("ckpt")).unwrap();
    let new = Memory::seeded(50, 2);
    let mut second = Checkpoint::new().track("encoder", BTreeMap::from([("weight", &new)])).unwrap();
    assert!(second.restore(&path).is_err());
    let options = RestoreOptions::new().map(NameMap::new().rename("enc/w", "encoder/weight"));
    let status = second.restore_with(&path, &options).unwrap();
    status.assert_consumed().unwrap();
    assert_eq!((status.verified_by(), second.save_counter()), (VerifiedBy::Digest, 1));
    assert!(*new.bytes() == *old.bytes());
}

#[test]
fn a_proposal_fits_and_says_how_sure_it_is() {
    let floats = |table: Table, key: &str, shape: &[u64]| {
        let count = shape.iter().product::<u64>() as usize;
        table.with(key, Dtype::F32, shape, vec![0; 4 * count])
    };
    let from = [("dense/kernel", &[3, 4][..]), ("dense/bias", &[4]), ("norm/gamma", &[7]), ("rest", &[9]), ("b", &[5])]
        .iter()
        .fold(Table::default(), |table, (key, shape)| floats(table, key, shape));
    let to = [("m/dense.weight", &[4, 3][..]), ("m/norm.weight", &[7]), ("b", &[5]), ("other", &[9]), ("none", &[2])]
        .iter()
        .fold(Table::default(), |table, (key, shape)| floats(table, key, shape));
    let proposal = tch_checkpoint::map::propose(&from, &to);
    let lines: Vec<String> =
        proposal.lines.iter().map(|line| format!("{} = {}: {:?}", line.name, line.made_of, line.sureness)).collect();
    assert_eq!(
        lines,
        [
            "b = b: Sure",
            "m/dense.weight = transpose(dense/kernel): Likely",
            "m/norm.weight = norm/gamma: Likely",
            "other = rest: Guess"
        ]
    );
    assert_eq!(
        (proposal.missing.as_slice(), proposal.unused.as_slice()),
        (&["none".to_string()][..], &["dense/bias".to_string()][..])
    );
    let mapped = proposal.map();
    let mapped = mapped.apply(&from).unwrap();
    assert!(mapped.tensors().iter().all(|(key, spec)| to.tensors()[key] == *spec));
    assert_eq!(proposal.to_string().parse::<NameMap>().unwrap(), proposal.map());
}

/// A tied tensor is found under each of its names.
#[test]
fn a_proposal_unties_what_has_the_same_names() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, memory: [&Memory; 3]| {
        let [a, b, c] = memory;
        let objects = BTreeMap::from([("a", a), ("b", b), ("c", c)]);
        let path = Checkpoint::new().track("m", objects).unwrap().write(temp.path().join(name)).unwrap();
        tch_checkpoint::interop::open(path).unwrap()
    };
    let (one, two, three) = (Memory::seeded(50, 1), Memory::seeded(50, 2), Memory::seeded(50, 3));
    let (tied, untied) = (write("tied", [&one, &one, &two]), write("untied", [&one, &two, &three]));
    let proposal = propose(&*tied, &*untied);
    let lines: Vec<_> = proposal.lines.iter().map(|line| (line.name.as_str(), line.made_of.as_str())).collect();
    assert_eq!(lines, [("m/a", "m/a"), ("m/b", "m/b"), ("m/c", "m/c")]);
    assert!(proposal.missing.is_empty() && proposal.unused.is_empty());
}

/// Which of them the variables are of is not guessed.
#[test]
fn one_optimizer_is_mapped_at_a_time() {
    let byte = |table: Table, key: &str| table.with(key, Dtype::U8, &[1], vec![7]);
    let weights = byte(Table::default(), "old");
    let state = |optimizers: &[&str]| {
        let mut state = Table::default();
        // Not an optimizer.
        state.values.insert("agent/algorithm".to_string(), json!("PPO"));
        for optimizer in optimizers {
            for value in ["algorithm", "defaults", "param_groups", "steps"] {
                state.values.insert(format!("{optimizer}/{value}"), json!(0));
            }
            state = byte(state, &format!("{optimizer}/state/old/exp_avg"));
        }
        state
    };
    let map = NameMap::new().rename("old", "model/new");
    let one = state(&["b"]);
    let mapped = map.apply_to_optimizer(&weights, &one, "model").unwrap();
    assert_eq!(mapped.tensors().keys().collect::<Vec<_>>(), ["b/state/new/exp_avg"]);
    let both = state(&["a", "b"]);
    let error = map.apply_to_optimizer(&weights, &both, "model").unwrap_err().to_string();
    assert!(error.starts_with("a: ") && error.contains("the state of \"b\", too"), "{error}");
    let chosen = NameMap::new().only(["b"]);
    let chosen = chosen.apply(&both).unwrap();
    assert_eq!(map.apply_to_optimizer(&weights, &chosen, "model").unwrap().tensors(), mapped.tensors());
    assert!(map.apply_to_optimizer(&weights, &state(&[]), "model").is_err());
}

/// What a map of a few lines may cost on a source of many names, or of long ones.
#[test]
fn many_names_take_time_in_proportion() {
    // Of the thread, which other work does not lengthen.
    fn quick<T>(work: impl FnOnce() -> T) -> T {
        let (result, time, _) = memory::measured(work);
        assert!(time < std::time::Duration::from_secs(15), "{time:?}");
        result
    }
    let byte = |table: &mut Table, key: String, shape: &[u64]| {
        table.specs.insert(key, TensorSpec::new(Dtype::F32, shape));
    };
    let mut layers = Table::default();
    for i in 0..40_000 {
        byte(&mut layers, format!("{i}/kernel"), &[1, 1]);
        byte(&mut layers, format!("{i}/bias"), &[1]);
    }
    let map: NameMap = "map 1\nmodel/* = keras.dense(*)\n".parse().unwrap();
    assert_eq!(quick(|| map.apply(&layers).unwrap().tensors().len()), 80_000);
    // Each name of a definition takes many tensors.
    let sum = vec!["0/bias"; 10_000].join(", ");
    let error = format!("map 1\na* = add(*/bias, {sum})\n").parse::<NameMap>().unwrap().apply(&layers).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    // Every name is compared with every other, word by word.
    let mut long = Table::default();
    (0..300).for_each(|i| byte(&mut long, format!("{}{i}", "a.b/".repeat(1000)), &[1]));
    quick(|| propose(&long, &long));
    // Every layer is looked for among all names.
    let mut recurrent = Table::default();
    for i in 0..3000 {
        byte(&mut recurrent, format!("l{i}.weight_hh_l0"), &[3, 1]);
        byte(&mut recurrent, format!("l{i}/recurrent_kernel"), &[1, 3]);
    }
    quick(|| propose(&recurrent, &recurrent));
    // The map is applied to each kind of slot.
    let mut state = Table::default();
    for value in ["algorithm", "param_groups", "steps"] {
        state.values.insert(format!("optimizer/{value}"), json!(0));
    }
    (0..65).for_each(|i| byte(&mut state, format!("optimizer/state/0%2Fbias/{i}"), &[1]));
    let error = NameMap::new().apply_to_optimizer(&layers, &state, "model").unwrap_err();
    assert!(error.to_string().contains("65 kinds of slots"), "{error}");
}
