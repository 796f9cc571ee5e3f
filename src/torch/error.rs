//! Converts tch's errors to this crate's.

use crate::error::Error;
use tch::TchError;

impl Error {
    /// Returns the error for `what`, which failed in libtorch.
    pub(in crate::torch) fn torch(what: &'static str, error: TchError) -> Error {
        Error::Torch { what, source: Box::new(error) }
    }
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Error {
        Error::torch("an operation of libtorch", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;
    use tch::Tensor;

    #[test]
    fn an_error_of_tch_is_converted_and_kept() {
        fn sum() -> crate::Result<Tensor> {
            Ok(Tensor::from_slice(&[1i64, 2]).f_add(&Tensor::from_slice(&[1i64, 2, 3]))?)
        }
        let error = sum().unwrap_err();
        let source = error.source().and_then(|source| source.downcast_ref::<TchError>());
        assert!(matches!(source, Some(TchError::Torch(text)) if text.contains("size")), "{error:?}");
        assert_eq!(error.to_string(), "an operation of libtorch failed");
        let whole = format!("{error:#}");
        assert_eq!(whole.matches("must match the size").count(), 1, "{whole}");
    }
}
