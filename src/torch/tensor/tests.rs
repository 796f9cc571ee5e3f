use super::*;
use crate::graph::{LeafObject, walk};
use std::sync::Arc;
use tch::{Device, Kind};

fn leaf(tensor: &Tensor) -> Arc<dyn TensorLeaf> {
    match walk(&[("t".to_string(), tensor.node())]).unwrap().leaves.pop().unwrap().object {
        LeafObject::Tensor(leaf) => leaf,
        LeafObject::Value(_) => panic!("a tensor"),
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    leaf(tensor).bytes().unwrap().as_slice().to_vec()
}

fn write(tensor: &Tensor, bytes: &[u8]) {
    let mut target = leaf(tensor).target().unwrap();
    target.as_mut_slice().copy_from_slice(bytes);
    target.finish().unwrap();
}

fn refusal(tensor: &Tensor) -> String {
    let leaf = leaf(tensor);
    assert!(leaf.bytes().is_err() && leaf.target().is_err() && leaf.identity().is_none());
    leaf.spec().unwrap_err().to_string()
}

fn numbers(shape: &[i64]) -> Tensor {
    Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).reshape(shape)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn version(tensor: &Tensor) -> u64 {
    shim::version(tensor).unwrap()
}

#[test]
fn every_type_that_can_require_a_gradient_is_asked() {
    for &(number, dtype) in &DTYPES {
        let tensor = shim::zeros(number, &[2]).unwrap();
        let can = tensor.f_set_requires_grad(true).is_ok();
        assert_eq!(leaf(&tensor).requires_grad(), can.then_some(true), "{dtype}");
    }
}

#[test]
fn every_type_goes_out_and_in_again() {
    for &(number, dtype) in &DTYPES {
        for shape in [&[2i64, 3][..], &[], &[0, 4]] {
            let tensor = shim::zeros(number, shape).unwrap();
            let spec = leaf(&tensor).spec().unwrap();
            assert_eq!(spec.dtype, dtype);
            assert_eq!(spec.shape, shape.iter().map(|&n| n as u64).collect::<Vec<_>>());
            let len = spec.bytes().unwrap() as usize;
            assert_eq!(bytes(&tensor), vec![0; len], "{dtype} {shape:?}");
            // Patterns that a conversion would change: any byte, but a bool is 0 or 1.
            let pattern: Vec<u8> =
                (0..len).map(|i| if dtype == Dtype::Bool { (i % 2) as u8 } else { (i * 37 + 0x7f) as u8 }).collect();
            write(&tensor, &pattern);
            assert_eq!(bytes(&tensor), pattern, "{dtype} {shape:?}");
        }
    }
    assert_eq!(Dtype::ALL.len(), DTYPES.len());
}

#[test]
fn every_type_goes_through_a_strided_view() {
    for &(number, dtype) in &DTYPES {
        let base = shim::zeros(number, &[3, 2]).unwrap();
        let view = base.tr();
        let len = 6 * dtype.size();
        let pattern: Vec<u8> =
            (0..len).map(|i| if dtype == Dtype::Bool { (i % 2) as u8 } else { (i * 29 + 1) as u8 }).collect();
        write(&view, &pattern);
        assert_eq!(bytes(&view), pattern, "{dtype}");
        assert_ne!(bytes(&base), pattern, "{dtype}");
    }
}

#[test]
fn tch_reads_what_was_written() {
    let tensor = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    write(&tensor, &floats(&[1.5, -2.0]));
    assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [1.5, -2.0]);
    let flags = Tensor::zeros([3], (Kind::Bool, Device::Cpu));
    write(&flags, &[0, 1, 0xff]);
    assert_eq!(bytes(&flags), [0, 1, 1]);
    let strided = Tensor::zeros([3, 2], (Kind::Bool, Device::Cpu)).tr();
    write(&strided, &[0, 1, 2, 3, 0, 0]);
    assert_eq!(bytes(&strided), [0, 1, 1, 1, 0, 0]);
}

#[test]
fn contiguous_memory_is_not_copied() {
    let tensor = numbers(&[4, 2]);
    assert_eq!(leaf(&tensor).bytes().unwrap().as_slice().as_ptr() as usize, tensor.data_ptr() as usize);
    assert_eq!(leaf(&tensor).target().unwrap().as_mut_slice().as_ptr() as usize, tensor.data_ptr() as usize);
    let rows = tensor.narrow(0, 1, 2);
    assert_eq!(leaf(&rows).bytes().unwrap().as_slice().as_ptr() as usize, rows.data_ptr() as usize);
    assert_eq!(bytes(&rows), floats(&[2., 3., 4., 5.]));
}

#[test]
fn bytes_keep_the_memory_alive() {
    let held = leaf(&numbers(&[1000])).bytes().unwrap();
    let _other = numbers(&[1000]) + 1.0;
    assert_eq!(held.as_slice()[4..8], 1f32.to_le_bytes());
}

#[test]
fn views_are_written_where_they_are() {
    let base = numbers(&[2, 3]);
    let column = base.select(1, 1);
    write(&column, &floats(&[10., 20.]));
    assert_eq!(bytes(&base), floats(&[0., 10., 2., 3., 20., 5.]));
    write(&base.tr(), &floats(&[0., 1., 2., 3., 4., 5.]));
    assert_eq!(bytes(&base), floats(&[0., 2., 4., 1., 3., 5.]));
}

#[test]
fn channels_last_is_saved_in_the_order_of_indices() {
    let plain = numbers(&[2, 3, 4, 5]);
    let strides = [3 * 4 * 5, 1, 3 * 5, 3];
    let last = Tensor::empty_strided([2, 3, 4, 5], strides, (Kind::Float, Device::Cpu));
    write(&last, &bytes(&plain));
    assert_eq!(last.stride(), strides);
    assert!(last.equal(&plain));
    assert_eq!(bytes(&last), bytes(&plain));
}

#[test]
fn conjugate_and_negative_views_are_resolved() {
    let complex = Tensor::complex(&numbers(&[2]), &(numbers(&[2]) + 1.0));
    let conjugate = complex.conj();
    assert!(conjugate.is_conj());
    assert_eq!(bytes(&conjugate), floats(&[0., -1., 1., -2.]));
    assert!(leaf(&conjugate).identity().is_none());
    write(&conjugate, &floats(&[5., 6., 7., 8.]));
    assert_eq!(bytes(&complex), floats(&[5., -6., 7., -8.]));
    let negative = conjugate.imag();
    assert!(negative.is_neg());
    assert_eq!(bytes(&negative), floats(&[6., 8.]));
    write(&negative, &floats(&[1., 2.]));
    assert_eq!(bytes(&complex), floats(&[5., -1., 7., -2.]));
}

#[test]
fn identity_is_the_memory_and_how_it_is_shown() {
    let tensor = numbers(&[2, 3]);
    let id = |tensor: &Tensor| leaf(tensor).identity();
    assert_eq!(id(&tensor), id(&tensor.shallow_clone()));
    assert_eq!(id(&tensor), id(&tensor.detach().view([2, 3])));
    assert_eq!(id(&tensor).unwrap().device, "cpu");
    assert_ne!(id(&tensor), id(&tensor.copy()));
    assert_ne!(id(&tensor), id(&tensor.view([3, 2])));
    let square = numbers(&[3, 3]);
    assert_ne!(id(&square), id(&square.tr()));
    assert_ne!(id(&tensor), id(&tensor.view_dtype(Kind::Int)));
    // The step of a dimension of length 1 is nothing.
    let row = numbers(&[1, 4]);
    assert_eq!(id(&row), id(&row.as_strided([1, 4], [77, 1], None::<i64>)));
    assert_eq!(id(&numbers(&[0, 3])), None);
    let (a, b) = (numbers(&[0]), numbers(&[0]));
    assert_eq!((id(&a), id(&b)), (None, None));
    assert!(id(&numbers(&[])).is_some());
}

#[test]
fn what_cannot_be_saved_is_refused_with_the_reason() {
    let cpu = |kind| (kind, Device::Cpu);
    assert!(refusal(&Tensor::new()).contains("undefined"));
    assert!(refusal(&numbers(&[2, 2]).to_sparse(None, None::<i64>, 0)).contains("layout is Sparse"));
    assert!(refusal(&numbers(&[2, 2]).to_mkldnn()).contains("layout is Mkldnn"));
    assert!(refusal(&numbers(&[2]).quantize_per_tensor(0.1, 0, Kind::QInt8)).contains("quantized"));
    assert!(refusal(&Tensor::zeros([2], cpu(Kind::ComplexHalf))).contains("ComplexFloat"));
    let double = Tensor::zeros([2], cpu(Kind::ComplexDouble));
    assert!(refusal(&double).contains("view_as_real"));
    assert_eq!(leaf(&double.view_as_real()).spec().unwrap().to_string(), "F64 [2, 2]");
    for overlapping in [
        numbers(&[1, 3]).expand([4, 3], false),
        numbers(&[]).expand([2], false),
        numbers(&[5]).as_strided([2, 3], [1, 1], None::<i64>),
    ] {
        assert!(refusal(&overlapping).contains("contiguous()"));
    }
    // Gaps and swapped dimensions are fine, as long as every element has its own memory.
    for fine in [numbers(&[20]).as_strided([2, 3], [1, 5], None::<i64>), numbers(&[1, 3]).expand([1, 3], false)] {
        assert!(leaf(&fine).spec().is_ok());
    }
}

#[test]
fn a_restored_parameter_stays_a_leaf_with_its_gradient() {
    let w = numbers(&[3]).set_requires_grad(true);
    let alias = w.shallow_clone();
    let strided = numbers(&[3, 2]).tr().detach().set_requires_grad(true);
    for parameter in [&w, &strided] {
        let loss = (parameter * parameter).sum(Kind::Float);
        loss.backward();
        let gradient = parameter.grad().copy();
        write(parameter, &vec![0; bytes(parameter).len()]);
        assert!(parameter.requires_grad() && parameter.is_leaf() && parameter.grad().equal(&gradient));
    }
    assert_eq!(alias.double_value(&[2]), 0.0);
}

#[test]
fn going_backward_through_overwritten_values_is_an_error() {
    for direct in [true, false] {
        let base = numbers(&[2, 2]);
        let w = (if direct { base } else { base.tr() }).detach().set_requires_grad(true);
        let loss = (&w * &w).sum(Kind::Float);
        let before = version(&w);
        write(&w, &floats(&[9., 9., 9., 9.]));
        assert!(version(&w) > before);
        assert!(loss.f_backward().unwrap_err().to_string().contains("modified by an inplace operation"));
        (&w * &w).sum(Kind::Float).backward();
        assert_eq!(bytes(&w.grad()), floats(&[18.; 4]));
    }
}

#[test]
fn a_tensor_that_is_tracked_sees_later_changes() {
    let tensor = numbers(&[2]);
    let leaf = leaf(&tensor);
    let _ = tensor.shallow_clone().fill_(4.0);
    assert_eq!(leaf.bytes().unwrap().as_slice(), floats(&[4., 4.]));
    tensor.shallow_clone().set_data(&Tensor::zeros([3], (Kind::Int64, Device::Cpu)));
    assert_eq!(leaf.spec().unwrap().to_string(), "I64 [3]");
}

#[test]
fn a_tensor_that_changes_its_shape_while_it_is_restored_is_an_error() {
    let tensor = numbers(&[3, 2]).tr();
    let target = leaf(&tensor).target().unwrap();
    tensor.shallow_clone().set_data(&numbers(&[5]));
    assert!(target.finish().unwrap_err().to_string().contains("became F32 [5]"));
}

#[test]
fn storage_is_shared_between_views() {
    let tensor = numbers(&[6]);
    let of = |tensor: &Tensor| shim::info(tensor).unwrap();
    let (whole, part) = (of(&tensor), of(&tensor.narrow(0, 2, 3)));
    assert_eq!(whole.memory.as_ref().unwrap().storage, part.memory.as_ref().unwrap().storage);
    assert_eq!(part.memory.unwrap().storage_offset, 2);
    assert_ne!(whole.object, part.object);
    assert_eq!(whole.object, of(&tensor.shallow_clone()).object);
}
