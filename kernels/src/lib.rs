//! Numeric kernels: slices in, slices out.
//!
//! Every op has a reference that defines it (sums in `f64`) and fast paths chosen at run time. The
//! crate knows nothing of files, SQL or YAML.

pub mod decode;
pub mod int8_search;
pub mod philox;
pub mod pool;
pub mod quantize;
pub mod sampling;

pub use pool::Pool;
