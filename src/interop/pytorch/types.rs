//! Element types of torch and of numpy, and the types of storages.

use crate::dtype::Dtype;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NumpyDtype {
    pub kind: u8,
    pub size: u8,
    pub big_endian: bool,
}

macro_rules! torch_types {
    ($($variant:ident = $name:literal, $size:literal, $dtype:expr;)*) => {
        /// An element type of torch.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum TorchType { $($variant),* }

        impl TorchType {
            /// Returns the type that torch calls `torch.NAME`.
            pub(crate) fn named(name: &str) -> Option<TorchType> {
                match name { $($name => Some(TorchType::$variant),)* _ => None }
            }

            /// Returns its name in torch, without the module.
            pub(crate) fn name(self) -> &'static str {
                match self { $(TorchType::$variant => $name),* }
            }

            /// Returns the number of bytes per element in a storage.
            pub(crate) fn size(self) -> u64 {
                match self { $(TorchType::$variant => $size),* }
            }

            /// Returns the same type in safetensors files, if there is one.
            pub(crate) fn dtype(self) -> Option<Dtype> {
                match self { $(TorchType::$variant => $dtype),* }
            }
        }
    };
}

torch_types! {
    Bool = "bool", 1, Some(Dtype::Bool);
    U8 = "uint8", 1, Some(Dtype::U8);
    I8 = "int8", 1, Some(Dtype::I8);
    I16 = "int16", 2, Some(Dtype::I16);
    U16 = "uint16", 2, Some(Dtype::U16);
    I32 = "int32", 4, Some(Dtype::I32);
    U32 = "uint32", 4, Some(Dtype::U32);
    I64 = "int64", 8, Some(Dtype::I64);
    U64 = "uint64", 8, Some(Dtype::U64);
    F16 = "float16", 2, Some(Dtype::F16);
    BF16 = "bfloat16", 2, Some(Dtype::BF16);
    F32 = "float32", 4, Some(Dtype::F32);
    F64 = "float64", 8, Some(Dtype::F64);
    C32 = "complex32", 4, None;
    C64 = "complex64", 8, Some(Dtype::C64);
    C128 = "complex128", 16, None;
    F8E4m3 = "float8_e4m3fn", 1, Some(Dtype::F8E4m3);
    F8E5m2 = "float8_e5m2", 1, Some(Dtype::F8E5m2);
    F8E4m3fnuz = "float8_e4m3fnuz", 1, Some(Dtype::F8E4m3fnuz);
    F8E5m2fnuz = "float8_e5m2fnuz", 1, Some(Dtype::F8E5m2fnuz);
    F8E8m0 = "float8_e8m0fnu", 1, Some(Dtype::F8E8m0);
    F4 = "float4_e2m1fn_x2", 1, None;
    QI8 = "qint8", 1, None;
    QU8 = "quint8", 1, None;
    QI32 = "qint32", 4, None;
    QU4 = "quint4x2", 1, None;
    QU2 = "quint2x4", 1, None;
    Bits1 = "bits1x8", 1, None;
    Bits2 = "bits2x4", 1, None;
    Bits4 = "bits4x2", 1, None;
    Bits8 = "bits8", 1, None;
    Bits16 = "bits16", 2, None;
}

impl TorchType {
    /// Returns how many numbers an element consists of.
    pub(crate) fn parts(self) -> u64 {
        if matches!(self, TorchType::C32 | TorchType::C64 | TorchType::C128) { 2 } else { 1 }
    }
}

/// The type of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StorageType {
    Of(TorchType),
    /// `torch.storage.UntypedStorage`: bytes; the tensors say of what type they are.
    Untyped,
}

impl StorageType {
    /// Returns the class `module.name`.
    pub(crate) fn named(module: &str, name: &str) -> Option<StorageType> {
        if (module, name) == ("torch.storage", "UntypedStorage") || (module, name) == ("torch", "UntypedStorage") {
            return Some(StorageType::Untyped);
        }
        if module != "torch" && module != "torch.cuda" {
            return None;
        }
        let torch_type = match name.strip_suffix("Storage")? {
            "Float" => TorchType::F32,
            "Double" => TorchType::F64,
            "Half" => TorchType::F16,
            "BFloat16" => TorchType::BF16,
            "Long" => TorchType::I64,
            "Int" => TorchType::I32,
            "Short" => TorchType::I16,
            "Char" => TorchType::I8,
            "Byte" => TorchType::U8,
            "Bool" => TorchType::Bool,
            "ComplexFloat" => TorchType::C64,
            "ComplexDouble" => TorchType::C128,
            "QInt8" => TorchType::QI8,
            "QInt32" => TorchType::QI32,
            "QUInt8" => TorchType::QU8,
            "QUInt4x2" => TorchType::QU4,
            "QUInt2x4" => TorchType::QU2,
            _ => return None,
        };
        Some(StorageType::Of(torch_type))
    }

    /// Returns bytes of what its number of elements counts.
    pub(crate) fn size(self) -> u64 {
        match self {
            StorageType::Of(torch_type) => torch_type.size(),
            StorageType::Untyped => 1,
        }
    }
}

/// Returns the torch type of a dtype, and the class of its storage, where there is one. The others are in untyped
/// storages.
pub(crate) fn torch_class(dtype: Dtype) -> (TorchType, Option<&'static str>) {
    match dtype {
        Dtype::Bool => (TorchType::Bool, Some("BoolStorage")),
        Dtype::U8 => (TorchType::U8, Some("ByteStorage")),
        Dtype::I8 => (TorchType::I8, Some("CharStorage")),
        Dtype::I16 => (TorchType::I16, Some("ShortStorage")),
        Dtype::I32 => (TorchType::I32, Some("IntStorage")),
        Dtype::I64 => (TorchType::I64, Some("LongStorage")),
        Dtype::F16 => (TorchType::F16, Some("HalfStorage")),
        Dtype::BF16 => (TorchType::BF16, Some("BFloat16Storage")),
        Dtype::F32 => (TorchType::F32, Some("FloatStorage")),
        Dtype::F64 => (TorchType::F64, Some("DoubleStorage")),
        Dtype::C64 => (TorchType::C64, Some("ComplexFloatStorage")),
        Dtype::U16 => (TorchType::U16, None),
        Dtype::U32 => (TorchType::U32, None),
        Dtype::U64 => (TorchType::U64, None),
        Dtype::F8E4m3 => (TorchType::F8E4m3, None),
        Dtype::F8E5m2 => (TorchType::F8E5m2, None),
        Dtype::F8E4m3fnuz => (TorchType::F8E4m3fnuz, None),
        Dtype::F8E5m2fnuz => (TorchType::F8E5m2fnuz, None),
        Dtype::F8E8m0 => (TorchType::F8E8m0, None),
    }
}

impl NumpyDtype {
    /// From a descriptor such as `f4`, or `<f4` with the order of bytes.
    pub(crate) fn parse(text: &str) -> Option<NumpyDtype> {
        // No number has more digits, unless they begin with many zeros.
        let text = Some(text).filter(|text| text.len() <= 16)?;
        let (big_endian, rest) = match text.split_at_checked(1)? {
            (">", rest) => (true, rest),
            ("<" | "|" | "=", rest) => (false, rest),
            _ => (false, text),
        };
        let (kind, size) = rest.split_at_checked(1)?;
        Some(NumpyDtype { kind: kind.bytes().next()?, size: size.parse().ok()?, big_endian })
    }

    /// Returns the same type of torch, complex128 among them.
    pub(crate) fn torch_type(self) -> Option<TorchType> {
        Some(match (self.kind, self.size) {
            (b'b', 1) => TorchType::Bool,
            (b'i', 1) => TorchType::I8,
            (b'i', 2) => TorchType::I16,
            (b'i', 4) => TorchType::I32,
            (b'i', 8) => TorchType::I64,
            (b'u', 1) => TorchType::U8,
            (b'u', 2) => TorchType::U16,
            (b'u', 4) => TorchType::U32,
            (b'u', 8) => TorchType::U64,
            (b'f', 2) => TorchType::F16,
            (b'f', 4) => TorchType::F32,
            (b'f', 8) => TorchType::F64,
            (b'c', 8) => TorchType::C64,
            (b'c', 16) => TorchType::C128,
            _ => return None,
        })
    }
}
