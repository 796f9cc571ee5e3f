//! Checkpoints of other tools: PyTorch, Hugging Face, TensorFlow, Keras, tch.
//!
//! Each format is read as a [`TensorSource`](crate::TensorSource). Nothing in a file is executed or imported, and time and
//! memory are bounded by the size of the file.
