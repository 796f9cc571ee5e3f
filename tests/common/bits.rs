//! Tensors of libtorch, compared bit for bit.

/// The bytes of a tensor of libtorch.
pub fn bits(tensor: &tch::Tensor) -> Vec<u8> {
    let plain = tensor.detach().contiguous();
    let mut bytes = vec![0; plain.numel() * plain.kind().elt_size_in_bytes()];
    plain.copy_data_u8(&mut bytes, plain.numel());
    bytes
}
