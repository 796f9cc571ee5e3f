//! An exported program returns the outputs of the live model for all inputs that it accepts; what it cannot represent
//! is an error.

#[path = "common/bits.rs"]
mod bits;
mod common;
#[path = "export/random.rs"]
mod random;

use bits::bits;
use common::turn;
use std::path::Path;
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::{
    Checkpoint, CheckpointReader, Error, Node, SavedModel, SignatureDef, Trackable, Variables, optim,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Numbers that depend on the shape alone.
fn numbers(shape: &[i64]) -> Tensor {
    (Tensor::arange(shape.iter().product::<i64>(), FLOAT).view(shape) * 0.37 + shape.iter().sum::<i64>()).sin()
}

fn weight(vs: &VarStore) -> Tensor {
    vs.root().var("w", &[4, 3], nn::Init::Randn { mean: 0.0, stdev: 1.0 })
}

/// Exports `body` for these examples into a new directory.
fn export(
    vs: &VarStore,
    examples: &[&[Tensor]],
    body: impl FnMut(&[Tensor]) -> Vec<Tensor>,
) -> Result<(SavedModel, tempfile::TempDir), Error> {
    let dir = tempfile::tempdir().unwrap();
    let copies = examples.iter().map(|example| example.iter().map(Tensor::copy).collect::<Vec<_>>());
    let definition = copies.fold(SignatureDef::new("forward", body), SignatureDef::example);
    let path = SavedModel::export(dir.path().join("model"), vs).signature(definition).write()?;
    Ok((SavedModel::load(path, Device::Cpu)?, dir))
}

/// Why it is refused.
fn refusal(vs: &VarStore, examples: &[&[Tensor]], body: impl FnMut(&[Tensor]) -> Vec<Tensor>) -> String {
    export(vs, examples, body).expect_err("it was exported").to_string()
}

/// Exports, and compares with the live model for inputs of these shapes.
fn assert_right(
    examples: &[&[Tensor]],
    shapes: &[&[&[i64]]],
    body: impl Fn(&[Tensor]) -> Vec<Tensor>,
) -> Result<(), Error> {
    let vs = VarStore::new(Device::Cpu);
    let _ = weight(&vs);
    let (saved, _dir) = export(&vs, examples, &body)?;
    for shapes in shapes {
        let inputs: Vec<Tensor> = shapes.iter().map(|shape| numbers(shape)).collect();
        let got = saved.run("forward", &inputs.iter().collect::<Vec<_>>())?;
        let expected = body(&inputs);
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!((got.size(), bits(got)), (expected.size(), bits(expected)), "{shapes:?}");
        }
    }
    Ok(())
}

fn sum(x: &Tensor) -> Tensor {
    x.sum_dim_intlist(1i64, false, Kind::Float)
}

#[test]
fn of_several_expressions_none_is_chosen() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let pair = |a: [i64; 2], b: [i64; 2]| [[numbers(&a)], [numbers(&b)]];
    // 4 and 6 are the length and 1, and twice the batch; 3 and 5 the length; and so on.
    type Case = ([i64; 2], [i64; 2], fn(i64, i64) -> i64);
    let cases: [Case; 8] = [
        ([2, 3], [3, 5], |_, length| length + 1),
        ([2, 3], [4, 7], |batch, _| 2 * batch - 1),
        ([2, 6], [3, 8], |_, length| length / 2 - 1),
        ([3, 4], [5, 8], |batch, _| batch * 2 - 2),
        ([2, 4], [3, 6], |_, length| (length + 1) / 2),
        ([2, 3], [3, 2], |batch, length| batch * length),
        ([2, 3], [3, 2], |batch, length| batch + length),
        ([1, 4], [3, 5], |_, length| length / 4),
    ];
    for (place, (a, b, number)) in cases.into_iter().enumerate() {
        let [a, b] = pair(a, b);
        let body = |x: &[Tensor]| vec![sum(&x[0]) / number(x[0].size()[0], x[0].size()[1])];
        let text = refusal(&vs, &[&a, &b], body);
        assert!(text.contains("one more example"), "{place}: {text}");
    }
    // Where the closure accepts no other sizes than those of the examples, every expression competes.
    type Strict = ([i64; 2], [i64; 2], fn(i64, i64) -> i64);
    let strict: [Strict; 3] = [
        ([2, 3], [3, 5], |_, length| length + 1),
        ([2, 5], [3, 6], |_, length| length - 3),
        ([2, 5], [3, 6], |batch, _| batch),
    ];
    for (place, (a, b, number)) in strict.into_iter().enumerate() {
        let examples = pair(a, b);
        let body = |x: &[Tensor]| {
            assert!([&a[..], &b[..]].contains(&x[0].size().as_slice()));
            vec![sum(&x[0]) / number(x[0].size()[0], x[0].size()[1])]
        };
        let text = refusal(&vs, &[&examples[0], &examples[1]], body);
        assert!(text.contains("one more example"), "{place}: {text}");
    }
    // Sizes that two examples leave ambiguous need a third one, and then are right.
    let body = |x: &[Tensor]| vec![sum(&x[0]) / (3 * x[0].size()[1] + 2)];
    let [a, b] = pair([2, 3], [5, 7]);
    assert!(refusal(&vs, &[&a, &b], body).contains("one more example"));
    assert_right(&[&a, &b, &[numbers(&[7, 4])]], &[&[&[1, 9]], &[&[6, 2]]], body).unwrap();
}

#[test]
fn expressions_of_sizes_are_followed() -> Outcome {
    let _turn = turn();
    let examples: [&[Tensor]; 2] = [&[numbers(&[3, 5])], &[numbers(&[4, 11])]];
    let shapes: [&[&[i64]]; 4] = [&[&[1, 9]], &[&[6, 2]], &[&[7, 8]], &[&[2, 31]]];
    type Number = fn(i64, i64) -> i64;
    let numbers: [Number; 8] = [
        |batch, _| batch,
        |_, length| length,
        |_, length| length + 1,
        |_, length| 3 * length,
        |batch, length| batch * length,
        |batch, length| batch + length,
        |_, length| length / 2,
        |_, length| (length + 1) / 2,
    ];
    for (place, number) in numbers.into_iter().enumerate() {
        assert_right(&examples, &shapes, |x| vec![sum(&x[0]) / number(x[0].size()[0], x[0].size()[1])])
            .map_err(|e| format!("{place}: {e}"))?;
    }
    Ok(())
}

#[test]
fn a_part_without_a_remainder_is_right_or_refused_for_one_with_a_remainder() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let _ = weight(&vs);
    let examples: [&[Tensor]; 2] = [&[numbers(&[3, 4])], &[numbers(&[2, 10])]];
    let half = |x: &[Tensor]| vec![x[0].narrow(1, 0, x[0].size()[1] / 2)];
    assert_right(&examples, &[&[&[2, 7]], &[&[5, 1]], &[&[5, 6]]], half)?;
    let rounded_up = |x: &[Tensor]| vec![x[0].narrow(1, 0, (x[0].size()[1] + 1) / 2)];
    assert!(refusal(&vs, &examples, rounded_up).contains("one more example"));
    // A closure that fails for a remainder: so does the program, whatever it does with the number.
    let strict = |x: &[Tensor]| {
        assert_eq!(x[0].size()[1] % 2, 0);
        vec![x[0].sum(Kind::Float) / (x[0].size()[1] / 2)]
    };
    let (saved, _dir) = export(&vs, &examples, strict)?;
    assert_eq!(bits(&saved.run("forward", &[&numbers(&[3, 8])])?[0]), bits(&strict(&[numbers(&[3, 8])])[0]));
    let error = saved.run("forward", &[&numbers(&[3, 7])]).unwrap_err().to_string();
    assert!(error.contains("leaves a remainder"), "{error}");
    Ok(())
}

#[test]
fn a_size_that_data_decides_is_refused() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    // No element is 0, so that everything is selected.
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3]).abs() + 1.0], &[numbers(&[3, 5]).abs() + 1.0]];
    let masked: fn(&Tensor) -> Tensor = |x| x.masked_select(&x.not_equal(0.0));
    let indexed: fn(&Tensor) -> Tensor = |x| x.index(&[Some(x.not_equal(0.0))]);
    let places: fn(&Tensor) -> Tensor = |x| x.nonzero().to_kind(Kind::Float);
    for select in [masked, indexed, places] {
        let text = refusal(&vs, &examples, |x| {
            let kept = select(&x[0]);
            vec![kept.sum(Kind::Float) / kept.size()[0]]
        });
        assert!(text.contains("selected by the data"), "{text}");
        // Without its size, or where its size is another one.
        export(&vs, &examples, |x| vec![select(&x[0]).sum(Kind::Float) / x[0].size()[0]]).unwrap();
        export(&vs, &examples, |x| vec![select(&x[0]).mean(Kind::Float)]).unwrap();
    }
    let fewer = Tensor::zeros([4, 3], FLOAT);
    let examples: [&[Tensor]; 3] = [examples[0], examples[1], &[fewer]];
    let shapes: [&[&[i64]]; 2] = [&[&[2, 7]], &[&[6, 1]]];
    assert_right(&examples, &shapes, |x| vec![masked(&x[0]).sum(Kind::Float) / (x[0].size()[0] * x[0].size()[1])])
        .unwrap();
}

#[test]
fn a_number_read_out_of_a_tensor_is_refused() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let lengths = |all: &[i64]| Tensor::from_slice(all);
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3]), lengths(&[3, 1])], &[numbers(&[4, 5]), lengths(&[2, 5, 1, 4])]];
    let longest: fn(&Tensor) -> i64 = |lengths| lengths.max().int64_value(&[]);
    let through_memory: fn(&Tensor) -> i64 =
        |lengths| Vec::<i64>::try_from(lengths).unwrap().into_iter().max().unwrap();
    let by_branch: fn(&Tensor) -> i64 = |lengths| if lengths.max().double_value(&[]) > 0.0 { 1 } else { 2 };
    let by_equality: fn(&Tensor) -> i64 = |lengths| if *lengths == lengths.shallow_clone() { 1 } else { 2 };
    for (place, read) in [longest, through_memory, by_branch, by_equality].into_iter().enumerate() {
        let body = |x: &[Tensor]| vec![sum(&x[0]) / read(&x[1])];
        let text = export(&vs, &examples, body).err().map_or_else(String::new, |error| error.to_string());
        let says = ["reads a number out of a tensor", "depends on data"];
        assert!(says.iter().any(|one| text.contains(one)), "{place}: {text}");
    }
    // A factor that is the same in all examples, read from the memory of an input, a part of it, or what is computed of it.
    let factor = |shape: &[i64]| Tensor::full(shape, 2.0, FLOAT);
    let copied: fn(&Tensor) -> f32 = |x| {
        let mut one = [0f32];
        x.copy_data(&mut one, 1);
        one[0]
    };
    // SAFETY: the tensor is of this type and has an element.
    let pointed: fn(&Tensor) -> f32 = |x| unsafe { *x.data_ptr().cast::<f32>() };
    for shape in [&[][..], &[1], &[2]] {
        let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3]), factor(shape)], &[numbers(&[4, 5]), factor(shape)]];
        for read in [copied, pointed] {
            let direct = refusal(&vs, &examples, |x| vec![&x[0] * f64::from(read(&x[1]))]);
            let computed = refusal(&vs, &examples, |x| vec![&x[0] * f64::from(read(&(&x[1] * 2.0)))]);
            let used_too = refusal(&vs, &examples, |x| vec![&x[0] * f64::from(read(&x[1])) + x[1].sum(Kind::Float)]);
            for text in [direct, computed, used_too] {
                assert!(text.contains("reads a number out of a tensor") && text.contains("copy_data"), "{text}");
            }
        }
        // Made in the closure, it is no number out of a tensor.
        export(&vs, &examples, |x| vec![&x[0] * &x[1].sum(Kind::Float).unsqueeze(0) + x[0].size()[1]]).unwrap();
    }
    let text = refusal(&vs, &examples, |x| vec![sum(&x[0]) / longest(&x[1])]);
    assert!(text.contains("reads a number out of a tensor (aten::item)"), "{text}");
    // A size that an operation reads stays in the program.
    let one_hot = |x: &[Tensor]| vec![x[0].to_kind(Kind::Int64).abs().one_hot(7) * x[1].size()[0]];
    export(&vs, &examples, one_hot).unwrap();
}

#[test]
fn lengths_that_are_equal_in_all_examples_must_be_equal() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let body = |x: &[Tensor]| vec![sum(&x[0]) / x[1].size()[0] + x[1].sum(Kind::Float)];
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3]), numbers(&[3])], &[numbers(&[4, 5]), numbers(&[5])]];
    let (saved, dir) = export(&vs, &examples, body)?;
    let classes: Vec<Vec<String>> = saved.info().same_lengths["forward"]
        .iter()
        .map(|class| class.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(classes, [["size 1 of `input_0`", "size 0 of `input_1`"]]);
    let good = [numbers(&[7, 9]), numbers(&[9])];
    assert_eq!(bits(&saved.run("forward", &[&good[0], &good[1]])?[0]), bits(&body(&good)[0]));
    let error = saved.run("forward", &[&numbers(&[7, 9]), &numbers(&[4])]).unwrap_err().to_string();
    assert!(error.contains("size 1 of `input_0` is 9 and size 0 of `input_1` is 4"), "{error}");
    saved.check(0.0)?;
    // It stays so when the program is saved again.
    let again = saved.save(dir.path().join("again"), &mut saved.checkpoint()?)?;
    let again = SavedModel::load(again, Device::Cpu)?;
    assert!(again.run("forward", &[&numbers(&[7, 9]), &numbers(&[4])]).is_err());
    // With an example in which they differ, they may.
    let third: &[Tensor] = &[numbers(&[3, 2]), numbers(&[4])];
    let (saved, _dir) = export(&vs, &[examples[0], examples[1], third], body)?;
    assert!(saved.info().same_lengths.is_empty());
    let inputs = [numbers(&[7, 9]), numbers(&[4])];
    assert_eq!(bits(&saved.run("forward", &[&inputs[0], &inputs[1]])?[0]), bits(&body(&inputs)[0]));
    Ok(())
}

#[test]
fn what_only_other_sizes_show_is_refused() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3])], &[numbers(&[4, 5])]];
    let text = refusal(&vs, &examples, |x| vec![if x[0].size()[1] > 5 { x[0].relu() } else { x[0].tanh() }]);
    assert!(text.contains("does different things") && text.contains("made from them"), "{text}");
    let text = refusal(&vs, &examples, |x| vec![&x[0] * x[0].size()[1].min(5)]);
    assert!(text.contains("one more example"), "{text}");
    let text = refusal(&vs, &examples, |x| vec![&x[0] * (x[0].size()[1] / 3)]);
    assert!(text.contains("the same in all examples, 1"), "{text}");
    let text = refusal(&vs, &examples, |x| vec![Tensor::from_slice(&[i64::from(x[0].size()[1] > 5)]) + &x[0]]);
    assert!(text.contains("gives something else than the closure"), "{text}");
    // Sizes that the closure refuses are refused by the program too.
    let table = numbers(&[6, 3]);
    let positions = |x: &[Tensor]| vec![table.narrow(0, 0, x[0].size()[1]).sum(Kind::Float) + &x[0]];
    let (saved, _dir) = export(&vs, &examples, positions).unwrap();
    assert_eq!(bits(&saved.run("forward", &[&numbers(&[1, 6])]).unwrap()[0]), bits(&positions(&[numbers(&[1, 6])])[0]));
    assert!(saved.run("forward", &[&numbers(&[1, 7])]).is_err());
}

/// Decided otherwise only where the batch and the length are both small.
#[test]
fn a_condition_on_a_product_of_sizes_is_refused() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let examples = [[numbers(&[6, 8, 4])], [numbers(&[5, 3, 4])]];
    let body = |inputs: &[Tensor]| {
        let x = &inputs[0];
        let count = x.size()[0] * x.size()[1] * x.size()[0];
        vec![if count > 10 { x.relu() } else { x.tanh() }]
    };
    let reason = refusal(&vs, &[&examples[0], &examples[1]], body);
    assert!(reason.contains("does different things") && reason.contains("made from them"), "{reason}");
}

#[test]
fn a_view_made_outside_is_refused() {
    let _turn = turn();
    let mut vs = VarStore::new(Device::Cpu);
    let w = weight(&vs);
    vs.freeze();
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3])], &[numbers(&[5, 3])]];
    let views = [w.tr(), w.detach(), w.narrow(0, 1, 2), w.view([-1, 3]), tch::no_grad(|| w.select(0, 1).unsqueeze(0))];
    for view in &views {
        let body = |x: &[Tensor]| vec![&x[0] * view.sum(Kind::Float)];
        let text = refusal(&vs, &examples, body);
        assert!(text.contains("`w`") && text.contains("Make the view inside of the closure"), "{text}");
    }
    vs.unfreeze();
    let detached = w.detach();
    let text = refusal(&vs, &examples, |x| vec![x[0].matmul(&detached.tr())]);
    assert!(text.contains("inside of the closure"), "{text}");
    export(&vs, &examples, |x| vec![x[0].matmul(&w.tr())]).unwrap();
    // A copy is another tensor, and a constant.
    let copy = w.detach().copy();
    export(&vs, &examples, |x| vec![x[0].matmul(&copy.tr())]).unwrap();
}

fn program_bytes(path: &Path) -> u64 {
    std::fs::metadata(path.join("program.pt")).unwrap().len()
}

#[test]
fn a_part_of_a_large_tensor_is_written_alone() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let large = numbers(&[1000, 1000]);
    let part = vs.root().add("part", large.narrow(0, 10, 1).view([1000]), true);
    let tied = vs.root().sub("tied").add("part", part.shallow_clone(), true);
    // Two halves of one tensor, which together are all of it.
    let flat = numbers(&[2000]);
    let left = vs.root().sub("flat").add("left", flat.narrow(0, 0, 1000), false);
    let right = vs.root().sub("flat").add("right", flat.narrow(0, 1000, 1000), false);
    let constant = large.narrow(0, 20, 1);
    let expanded = large.narrow(0, 30, 1).narrow(1, 5, 1).expand([1, 1000], false);
    let body = |x: &[Tensor]| vec![&x[0] * &part + &tied + &left - &right + &constant * &expanded];
    let (saved, dir) = export(&vs, &[&[numbers(&[2, 1000])], &[numbers(&[5, 1000])]], body)?;
    let bytes = program_bytes(saved.path());
    assert!(bytes < 4000 * 4 + 16_000, "{bytes}");
    let x = numbers(&[3, 1000]);
    let live = tch::no_grad(|| body(&[x.shallow_clone()]));
    assert_eq!(bits(&saved.run("forward", &[&x])?[0]), bits(&live[0]));
    let all = saved.var_store().variables();
    assert_eq!(all["part"].data_ptr(), all["tied.part"].data_ptr());
    assert!(all["part"].requires_grad() && all["part"].is_leaf());
    // The live model has not changed, and a program that is saved again is as small.
    assert_eq!(vs.variables()["part"].data_ptr(), large.narrow(0, 10, 1).data_ptr());
    let again = saved.save(dir.path().join("again"), &mut saved.checkpoint()?)?;
    assert_eq!(program_bytes(&again), bytes);
    Ok(())
}

#[test]
fn normalizing_without_running_statistics_evaluates() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let scale = vs.root().ones("scale", &[3]);
    let none = || None::<&Tensor>;
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3, 7])], &[numbers(&[4, 3, 5])]];
    let instance =
        |x: &[Tensor]| vec![Tensor::instance_norm(&x[0], Some(&scale), none(), none(), none(), true, 0.1, 1e-5, false)];
    let batch =
        |x: &[Tensor]| vec![Tensor::batch_norm(&x[0], Some(&scale), none(), none(), none(), true, 0.1, 1e-5, false)];
    type Body<'a> = &'a dyn Fn(&[Tensor]) -> Vec<Tensor>;
    let bodies: [Body<'_>; 2] = [&instance, &batch];
    for body in bodies {
        let (saved, _dir) = export(&vs, &examples, body)?;
        let x = numbers(&[3, 3, 9]);
        assert_eq!(bits(&saved.run("forward", &[&x])?[0]), bits(&body(&[x.shallow_clone()])[0]));
    }
    // With them it can be trained.
    let (mean, var) = (vs.root().zeros_no_train("mean", &[3]), vs.root().ones_no_train("var", &[3]));
    let trained = |x: &[Tensor]| {
        vec![Tensor::instance_norm(&x[0], none(), none(), Some(&mean), Some(&var), true, 0.1, 1e-5, false)]
    };
    assert!(refusal(&vs, &examples, trained).contains("train = false"));
    Ok(())
}

#[test]
fn a_panic_leaves_gradients_as_they_were() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let w = weight(&vs);
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3])], &[numbers(&[5, 3])]];
    let (examples, w) = (&examples, &w);
    for panics_at in 1..8 {
        for inside in [false, true] {
            let calls = std::cell::Cell::new(0);
            let body = |x: &[Tensor]| {
                calls.set(calls.get() + 1);
                if calls.get() >= panics_at {
                    if inside {
                        let _ = tch::no_grad(|| x[0].matmul(&x[0]));
                    }
                    panic!("here");
                }
                vec![x[0].matmul(&w.tr())]
            };
            let export = std::panic::AssertUnwindSafe(|| export(&vs, examples, body).map(|_| ()).unwrap());
            assert!(std::panic::catch_unwind(export).is_err());
            assert!((w * 2.0).requires_grad(), "{panics_at}");
        }
    }
}

#[test]
fn imaginary_parts_are_compared() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let w = vs.root().ones("w", &[3]);
    let body = |x: &[Tensor]| vec![Tensor::complex(&x[0], &(&x[0] * &w))];
    let (saved, _dir) = export(&vs, &[&[numbers(&[2, 3])], &[numbers(&[5, 3])]], body)?;
    saved.check(0.0)?;
    let _ = tch::no_grad(|| saved.var_store().variables()["w"].shallow_clone().fill_(1.001));
    assert!(saved.check(1e-5).is_err());
    saved.check(0.01)?;
    let _ = tch::no_grad(|| saved.var_store().variables()["w"].shallow_clone().fill_(1000.0));
    assert!(matches!(saved.check(0.01), Err(Error::Assertion(_))));
    Ok(())
}

/// Two variables of one memory.
fn tied(names: [&str; 2]) -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    let add = |name: &str, tensor: Option<Tensor>| {
        let (path, last) = match name.rsplit_once('.') {
            Some((path, last)) => (path.split('.').fold(vs.root(), |path, part| path.sub(part)), last),
            None => (vs.root(), name),
        };
        match tensor {
            Some(tensor) => path.add(last, tensor, true),
            None => path.var(last, &[4, 3], nn::Init::Randn { mean: 0.0, stdev: 1.0 }),
        }
    };
    let first = add(names[0], None);
    let _ = add(names[1], Some(first));
    vs
}

/// A struct with names of its own.
struct Own(Vec<(&'static str, Tensor)>);

impl Trackable for Own {
    fn node(&self) -> Node {
        Node::group(self.0.iter().map(|(name, tensor)| (*name, tensor.node())))
    }
}

#[test]
fn tied_variables_have_keys_of_their_own_and_go_back() -> Outcome {
    let _turn = turn();
    type Track = fn(&VarStore) -> Result<Checkpoint, Error>;
    let by_parts: Track = |vs| {
        let part = |prefix: &str| Variables::of(vs).under(prefix);
        Checkpoint::new().track("enc", part("encoder"))?.track("dec", part("decoder"))
    };
    let as_tensors: Track = |vs| {
        let all = vs.variables();
        Checkpoint::new().track("embedding", &all["embedding"])?.track("out_embedding", &all["out_embedding"])
    };
    let whole: Track = |vs| Checkpoint::new().track("model", Variables::of(vs));
    let own: Track = |vs| {
        let all = vs.variables();
        let own = [("out", all["word"].shallow_clone()), ("in", all["keyword"].shallow_clone())];
        Checkpoint::new().track("net", Own(own.into()))
    };
    let twice: Track =
        |vs| Checkpoint::new().track("model", Variables::of(vs))?.track("encoder", Variables::of(vs).under("encoder"));
    let once: Track = |vs| Checkpoint::new().track("w", &vs.variables()["word"]);
    let cases: [([&str; 2], Track, usize); 8] = [
        (["encoder.embedding.weight", "decoder.embedding.weight"], by_parts, 2),
        (["embedding", "out_embedding"], as_tensors, 2),
        (["word", "keyword"], whole, 2),
        (["keyword", "word"], whole, 2),
        (["word", "keyword"], own, 2),
        (["encoder.w", "decoder.w"], twice, 3),
        (["word", "keyword"], once, 1),
        (["a.b", "b"], whole, 2),
    ];
    for (names, track, keys) in cases {
        let dir = tempfile::tempdir()?;
        let vs = tied(names);
        let all = vs.variables();
        let (one, other) = (&all[names[0]], &all[names[1]]);
        let body = |x: &[Tensor]| vec![x[0].matmul(&one.tr()) + x[0].matmul(&other.tr())];
        let definition = SignatureDef::new("forward", body).example([numbers(&[2, 3])]).example([numbers(&[5, 3])]);
        let mut checkpoint = track(&vs)?;
        let path = SavedModel::export(dir.path().join("model"), &vs)
            .checkpoint(&mut checkpoint)
            .signature(definition)
            .write()?;
        let saved = SavedModel::load(&path, Device::Cpu)?;
        let mut used: Vec<&str> = saved.info().variables.values().map(|variable| variable.key.as_str()).collect();
        used.extend(saved.info().other_keys.keys().map(String::as_str));
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), keys, "{names:?}: {:?}", saved.info());
        if keys > 1 {
            assert_ne!(saved.info().variables[names[0]].key, saved.info().variables[names[1]].key);
        }
        for key in CheckpointReader::open(&path)?.manifest().tensors.keys() {
            assert!(used.contains(&key.as_str()), "{names:?}: {key}");
        }
        // What was trained without the code can be restored into the live model.
        let mut optimizer = optim::Sgd::default().build(saved.var_store(), 0.1)?;
        optimizer.backward_step(&saved.run("forward", &[&numbers(&[3, 3])])?[0].square().mean(Kind::Float));
        let tuned = saved.save(dir.path().join("tuned"), &mut saved.checkpoint()?)?;
        let plain = saved.checkpoint()?.write(dir.path().join("plain"))?;
        for path in [&tuned, &plain] {
            let vs = tied(names);
            track(&vs)?.restore(path).map_err(|e| format!("{names:?}: {e}"))?.assert_consumed()?;
            assert_eq!(bits(&vs.variables()[names[1]]), bits(&saved.var_store().variables()[names[0]]));
        }
        SavedModel::load(&tuned, Device::Cpu)?.check(0.0)?;
    }
    Ok(())
}

#[test]
fn keys_follow_the_variables_names() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let vs = tied(["encoder.embedding.weight", "decoder.embedding.weight"]);
    let all = vs.variables();
    let one = &all["encoder.embedding.weight"];
    let definition = SignatureDef::new("forward", |x| vec![x[0].matmul(&one.tr())]);
    let definition = definition.example([numbers(&[2, 3])]).example([numbers(&[5, 3])]);
    let part = |prefix: &str| Variables::of(&vs).under(prefix);
    let mut checkpoint = Checkpoint::new().track("b", part("encoder"))?.track("a", part("decoder"))?;
    let export = SavedModel::export(dir.path().join("model"), &vs).checkpoint(&mut checkpoint);
    let saved = SavedModel::load(export.signature(definition).write()?, Device::Cpu)?;
    assert_eq!(saved.info().variables["encoder.embedding.weight"].key, "b/embedding.weight");
    assert_eq!(saved.info().variables["decoder.embedding.weight"].key, "a/embedding.weight");
    Ok(())
}

#[test]
fn a_variable_or_an_input_itself_is_an_output() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let w = weight(&vs);
    let constant = numbers(&[2]);
    let examples: [&[Tensor]; 2] = [&[numbers(&[2, 3])], &[numbers(&[5, 3])]];
    type Body<'a> = Box<dyn Fn(&[Tensor]) -> Vec<Tensor> + 'a>;
    let bodies: [Body<'_>; 5] = [
        Box::new(|_| vec![w.shallow_clone()]),
        Box::new(|x| vec![w.shallow_clone(), x[0].relu(), w.shallow_clone()]),
        Box::new(|x| vec![x[0].shallow_clone()]),
        Box::new(|_| vec![constant.shallow_clone()]),
        Box::new(|x| {
            let y = x[0].relu();
            vec![y.shallow_clone(), y]
        }),
    ];
    for (place, body) in bodies.iter().enumerate() {
        let (saved, _dir) = export(&vs, &examples, body).map_err(|e| format!("{place}: {e}"))?;
        let x = numbers(&[4, 3]);
        let (got, expected) = (saved.run("forward", &[&x])?, body(&[x.shallow_clone()]));
        assert_eq!(got.iter().map(bits).collect::<Vec<_>>(), expected.iter().map(bits).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn pieces_over_a_free_length_are_refused_as_such() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let examples: [&[Tensor]; 2] = [&[numbers(&[4, 3])], &[numbers(&[6, 3])]];
    let split: fn(&Tensor) -> Vec<Tensor> = |x| x.split(1, 0);
    let unbind: fn(&Tensor) -> Vec<Tensor> = |x| x.unbind(0);
    for pieces in [split, unbind] {
        let text = refusal(&vs, &examples, |x| vec![Tensor::cat(&pieces(&x[0])[..2], 0)]);
        assert!(text.contains("into 4 pieces for the first example and 6"), "{text}");
    }
    // Over a fixed size they are right.
    assert_right(&examples, &[&[&[9, 3]]], |x| vec![Tensor::cat(&x[0].split(1, 1)[1..], 0)]).unwrap();
}

#[test]
fn inputs_are_left_as_they_are() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let examples: [&[Tensor]; 2] = [&[numbers(&[4, 3])], &[numbers(&[6, 3])]];
    let body = |x: &[Tensor]| {
        let mut first = x[0].narrow(1, 0, 1);
        let _ = first.fill_(7.0);
        vec![x[0].shallow_clone().relu_() + x[0].size()[0]]
    };
    let (saved, _dir) = export(&vs, &examples, body)?;
    let x = numbers(&[5, 3]);
    let before = bits(&x);
    let got = saved.run("forward", &[&x])?;
    assert_eq!(bits(&x), before);
    let expected = body(&[x.copy()]);
    assert_eq!(got.iter().map(bits).collect::<Vec<_>>(), expected.iter().map(bits).collect::<Vec<_>>());
    let module = tch::CModule::load(saved.path().join("program.pt"))?;
    let _ = module.method_ts("forward", &[&x])?;
    assert_eq!(bits(&x), before);
    Ok(())
}

#[test]
fn names_are_checked_first() {
    let _turn = turn();
    let examples: [&[Tensor]; 2] = [&[numbers(&[4, 3])], &[numbers(&[6, 3])]];
    for name in ["é", "größe", "层", "a\"b", "a\\b", "a\nb", "a\tb", "a\u{7f}b", "torch", "self", "for", "training"]
    {
        let vs = VarStore::new(Device::Cpu);
        let w = vs.root().sub("part").ones(name, &[3]);
        let text = refusal(&vs, &examples, |x| vec![&x[0] * &w]);
        assert!(text.contains(&format!("part.{name}")) && text.contains("rename it"), "{name}: {text}");
    }
    let words = [
        "a b",
        "a-b",
        "a'b",
        "a/b",
        "0",
        "a$b",
        "forward1",
        "ops",
        "inf",
        "nan",
        "annotate",
        "list",
        "len",
        "int",
        "float",
        "Tensor",
        "device",
        "range",
        "print",
        "uninitialized",
        "unchecked_cast",
        "fork",
        "CONSTANTS",
        "__torch__",
        "bool",
        "str",
        "getattr",
        "isinstance",
        "Optional",
        "List",
        "Tuple",
        "Dict",
        "complex",
        "tuple",
        "dict",
        "math",
        "input",
        "input_0",
        "weight",
        "_0",
        "a",
        "__init__",
        "None_",
        "#",
        "{}",
        "%d",
        "a%b",
    ];
    for name in words {
        let vs = VarStore::new(Device::Cpu);
        let w = vs.root().sub("part").ones(name, &[3]);
        let top = vs.root().ones(name, &[3]);
        if let Err(error) = export(&vs, &examples, |x| vec![&x[0] * &w / &top + x[0].size()[0]]) {
            panic!("{name}: {error}");
        }
    }
    for name in ["torch", "größe", "a b", "self"] {
        let vs = VarStore::new(Device::Cpu);
        let definition = SignatureDef::new("forward", |x| vec![x[0].relu()]).inputs([name]);
        let definition = definition.example([numbers(&[4, 3])]).example([numbers(&[6, 3])]);
        let dir = tempfile::tempdir().unwrap();
        let error = SavedModel::export(dir.path().join("model"), &vs).signature(definition).write().unwrap_err();
        assert!(error.to_string().contains("is not a valid name for an input"), "{error}");
    }
}

#[test]
fn linear_layers_over_free_batches_are_right() -> Outcome {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let layer = nn::linear(vs.root() / "layer", 3, 4, Default::default());
    let body = |x: &[Tensor]| {
        let (batch, length) = (x[0].size()[0], x[0].size()[1]);
        vec![layer.forward(&x[0].view([batch * length, 3])).view([batch, length * 4])]
    };
    let (saved, _dir) = export(&vs, &[&[numbers(&[2, 5, 3])], &[numbers(&[3, 8, 3])]], body)?;
    for shape in [[1, 1, 3], [7, 2, 3], [4, 33, 3]] {
        let x = numbers(&shape);
        assert_eq!(bits(&saved.run("forward", &[&x])?[0]), bits(&body(&[x.shallow_clone()])[0]));
    }
    Ok(())
}

/// The closure cannot be called with other sizes, which would refute the constant.
#[test]
fn a_constant_that_may_be_a_product_or_a_float_of_one_is_refused() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let only = |tensor: &Tensor, shapes: &[&[i64]]| assert!(shapes.contains(&tensor.size().as_slice()));
    let (a, b): (&[i64], &[i64]) = (&[2, 6], &[3, 4]);
    let text = refusal(&vs, &[&[numbers(a)], &[numbers(b)]], |inputs| {
        only(&inputs[0], &[a, b]);
        vec![&inputs[0] / inputs[0].size().iter().product::<i64>() as f64]
    });
    assert!(text.contains("could be a constant as well as"), "{text}");
    let (a, b): (&[i64], &[i64]) = (&[2, 3, 4], &[3, 4, 2]);
    let text = refusal(&vs, &[&[numbers(a)], &[numbers(b)]], |inputs| {
        only(&inputs[0], &[a, b]);
        vec![inputs[0].view([inputs[0].size().iter().product::<i64>()])]
    });
    assert!(text.contains("could be a constant as well as"), "{text}");
}

#[test]
fn numbers_at_the_ends_of_their_range_are_refused() {
    let _turn = turn();
    let vs = VarStore::new(Device::Cpu);
    let text = refusal(&vs, &[&[numbers(&[3, 4])], &[numbers(&[2, 5])]], |inputs| {
        let end = if inputs[0].size()[0] > 2 { -1 } else { i64::MAX };
        vec![inputs[0].slice(0, 0, end, 1)]
    });
    assert!(text.contains("no simple function"), "{text}");
}
