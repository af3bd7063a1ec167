//! Numbers of a safetensors file: f32 here, f32, bf16 or f16 there.

use std::borrow::Cow;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::View;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the numbers in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits: what training computes with.
    #[default]
    F32,
    /// 16 bits with the range of `f32` and 8 bits of mantissa.
    Bf16,
    /// 16 bits with 11 bits of mantissa, up to 65,504.
    F16,
}

impl Precision {
    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// The name in `config.json`.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// Whether a finite number stays finite.
    pub(super) fn holds(self, x: f32) -> bool {
        match self {
            Self::F32 => x.is_finite(),
            Self::Bf16 => bf16::from_f32(x).is_finite(),
            Self::F16 => f16::from_f32(x).is_finite(),
        }
    }
}

/// A part of the arena as the safetensors crate writes it, rounded to the nearest.
pub(super) struct Numbers<'a> {
    pub(super) shape: Vec<usize>,
    pub(super) data: &'a [f32],
    pub(super) precision: Precision,
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        self.precision.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = self.data.iter();
        match self.precision {
            Precision::F32 if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(self.data))
            }
            Precision::F32 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
            Precision::Bf16 => numbers.flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Precision::F16 => numbers.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.data.len() * if self.precision == Precision::F32 { 4 } else { 2 }
    }
}

/// Writes numbers of a file to `data`, as many as both have; `dtype` is one of [`Precision`]'s.
pub(super) fn decode(dtype: Dtype, bytes: &[u8], data: &mut [f32]) {
    let (twos, _) = bytes.as_chunks::<2>();
    match dtype {
        Dtype::BF16 => {
            data.iter_mut().zip(twos).for_each(|(x, b)| *x = bf16::from_le_bytes(*b).to_f32());
        }
        Dtype::F16 => {
            data.iter_mut().zip(twos).for_each(|(x, b)| *x = f16::from_le_bytes(*b).to_f32());
        }
        _ => {
            let (fours, _) = bytes.as_chunks::<4>();
            data.iter_mut().zip(fours).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }
    }
}
