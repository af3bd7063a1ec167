//! Numeric kernels: slices in, slices out.
//!
//! Every op has a reference that defines it (sums in `f64`) and fast paths chosen at run time. The
//! crate knows nothing of files, SQL or YAML.

pub mod adamw;
pub mod attention;
pub mod bench;
pub mod clock;
pub mod cross_entropy;
pub mod cuda;
pub mod decode;
mod disjoint;
pub mod embedding;
pub mod int8_search;
pub mod isa;
mod lanes;
pub mod matmul;
pub mod minhash;
pub mod norm;
pub mod philox;
pub mod pool;
pub mod qk_norm_rope;
pub mod quantize;
pub mod rms_norm;
pub mod sampling;
pub mod swiglu;

pub use pool::Pool;
