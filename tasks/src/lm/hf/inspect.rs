//! What the files of a model folder hold, tensor by tensor, whether or not it can be loaded.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use super::{Error, decode, map, weight_files};

/// Numbers decoded at once.
const STRIDE: usize = 1 << 16;

/// What the weight files of a model folder hold.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Names and sizes in bytes of the weight files.
    pub files: Vec<(String, u64)>,
    /// Numbers in all tensors.
    pub n_numbers: u64,
    /// Every tensor, by file, then name.
    pub tensors: Vec<TensorFigures>,
}

/// Figures of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorFigures {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its numbers, as the file says it.
    pub dtype: String,
    /// Mean of the finite numbers; nothing when the type is not read here.
    pub mean: Option<f64>,
    /// Root of the mean square of the finite numbers.
    pub root_mean_square: Option<f64>,
    /// Largest magnitude of the finite numbers.
    pub max: Option<f64>,
    /// Numbers that are NaN or infinite.
    pub n_not_finite: u64,
}

/// Reads every tensor of the weight files in `dir`.
///
/// # Errors
/// When a file is missing or is not a safetensors file.
pub fn inspect(dir: &Path) -> Result<Inspection, Error> {
    let mut inspection = Inspection { files: Vec::new(), n_numbers: 0, tensors: Vec::new() };
    for path in weight_files(dir)? {
        let map = map(&path)?;
        let file = SafeTensors::deserialize(&map).map_err(|e| Error::safetensors(&path, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inspection.files.push((name, map.len() as u64));
        let mut tensors = file.tensors();
        tensors.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, view) in tensors {
            let n_numbers = view.shape().iter().product::<usize>();
            inspection.n_numbers += n_numbers as u64;
            let figures = Sums::of(view.dtype(), view.data(), n_numbers);
            inspection.tensors.push(TensorFigures {
                name,
                shape: view.shape().to_vec(),
                dtype: format!("{:?}", view.dtype()),
                mean: figures.as_ref().map(Sums::mean),
                root_mean_square: figures.as_ref().map(Sums::root_mean_square),
                max: figures.as_ref().map(|sums| sums.max),
                n_not_finite: figures.map_or(0, |sums| sums.n_not_finite),
            });
        }
    }
    Ok(inspection)
}

#[derive(Default)]
struct Sums {
    n: u64,
    n_not_finite: u64,
    sum: f64,
    squares: f64,
    max: f64,
}

impl Sums {
    fn of(dtype: Dtype, bytes: &[u8], n_numbers: usize) -> Option<Self> {
        let width = match dtype {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
            _ => return None,
        };
        let mut sums = Self::default();
        let mut numbers = vec![0.0; STRIDE.min(n_numbers)];
        for bytes in bytes.chunks(STRIDE * width) {
            let numbers = &mut numbers[..bytes.len() / width];
            decode(dtype, bytes, numbers);
            for x in numbers.iter().copied().map(f64::from) {
                if x.is_finite() {
                    sums.n += 1;
                    sums.sum += x;
                    sums.squares += x * x;
                    sums.max = sums.max.max(x.abs());
                } else {
                    sums.n_not_finite += 1;
                }
            }
        }
        Some(sums)
    }

    fn mean(&self) -> f64 {
        self.sum / self.n.max(1) as f64
    }

    fn root_mean_square(&self) -> f64 {
        (self.squares / self.n.max(1) as f64).sqrt()
    }
}
