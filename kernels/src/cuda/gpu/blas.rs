//! Matrix products by cuBLASLt, with a plan for each shape that is made once.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::{result as driver, sys as driver_sys};

use super::{Context, failed};
use crate::cuda::libraries::{self, Which};
use crate::cuda::product::{Layout, Target};
use crate::cuda::{Error, Product};
use crate::matmul::Accumulate;

/// Scratch of the products; NVIDIA recommends 32 MiB for Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;

/// What a plan depends on: layout, sizes, whether the result is f32.
type Key = (Layout, [usize; 3], bool);

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: BTreeMap<Key, Plan>,
    context: Arc<Context>,
}

struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    first: sys::cublasLtMatrixLayout_t,
    second: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Blas {
    pub(super) fn new(context: Arc<Context>) -> Result<Self, Error> {
        if libraries::load(Which::CublasLt).is_none() {
            let what = "cuBLASLt, which multiplies matrices,".to_owned();
            return Err(Error::Missing {
                what,
                remedy: Which::CublasLt.remedy(libraries::driver_release()),
            });
        }
        let handle = result::create_handle().map_err(|e| wrong("cublasLtCreate", e))?;
        // SAFETY: Any size may be asked for.
        let workspace =
            unsafe { driver::malloc_sync(WORKSPACE_BYTES) }.map_err(|e| failed("cuMemAlloc", e))?;
        Ok(Self { handle, workspace, plans: BTreeMap::new(), context })
    }

    pub(super) fn multiply(
        &mut self,
        product: &Product<'_>,
        stream: driver_sys::CUstream,
    ) -> Result<(), Error> {
        let (target, is_f32) = match product.c {
            Target::Bf16(c) => (c.address(), false),
            Target::F32(c) => (c.address(), true),
        };
        let key = (product.layout, product.sizes, is_f32);
        if !self.plans.contains_key(&key) {
            self.plans.insert(key, self.plan(key)?);
        }
        let plan = &self.plans[&key];
        let one = 1.0_f32;
        let keep = if product.accumulate == Accumulate::Add { 1.0_f32 } else { 0.0 };
        // cuBLAS counts columns first: the transposed result is the product of the operands in the
        // other order.
        let (first, second) = (product.b.address(), product.a.address());
        // SAFETY: The plan's layouts are those of the operands, whose lengths were checked; the
        // workspace has its size, and products of one stream use it one after the other.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                (&raw const keep).cast(),
                first as *const c_void,
                plan.first,
                second as *const c_void,
                plan.second,
                target as *const c_void,
                plan.result,
                target as *mut c_void,
                plan.result,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
        .map_err(|e| wrong("cublasLtMatmul", e))
    }

    fn plan(&self, (layout, [m, n, k], is_f32): Key) -> Result<Plan, Error> {
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        let f32 = sys::cudaDataType::CUDA_R_32F;
        let matrix = |kind, rows: usize, cols: usize| {
            result::create_matrix_layout(kind, rows as u64, cols as u64, rows as i64)
                .map_err(|e| wrong("cublasLtMatrixLayoutCreate", e))
        };
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32)
            .map_err(|e| wrong("cublasLtMatmulDescCreate", e))?;
        let (first_turned, second_turned) = (layout == Layout::Nt, layout == Layout::Tn);
        let attributes = [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, first_turned),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, second_turned),
        ];
        for (attribute, turned) in attributes {
            let turned = i32::from(turned);
            // SAFETY: The attribute is a 32-bit number: 0 as it is, 1 transposed.
            unsafe {
                result::set_matmul_desc_attribute(
                    product,
                    attribute,
                    (&raw const turned).cast(),
                    size_of::<i32>(),
                )
            }
            .map_err(|e| wrong("cublasLtMatmulDescSetAttribute", e))?;
        }
        let first = if first_turned { matrix(bf16, k, n) } else { matrix(bf16, n, k) }?;
        let second = if second_turned { matrix(bf16, m, k) } else { matrix(bf16, k, m) }?;
        let target = matrix(if is_f32 { f32 } else { bf16 }, n, m)?;
        let algorithm = self.algorithm(product, [first, second, target])?;
        Ok(Plan { product, first, second, result: target, algorithm })
    }

    fn algorithm(
        &self,
        product: sys::cublasLtMatmulDesc_t,
        [first, second, target]: [sys::cublasLtMatrixLayout_t; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        let preference =
            result::create_matmul_pref().map_err(|e| wrong("cublasLtMatmulPreferenceCreate", e))?;
        let bytes = WORKSPACE_BYTES;
        // SAFETY: The attribute is a size.
        let set = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )
        };
        // SAFETY: All descriptors were just made.
        let found = set.and_then(|()| unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                product,
                first,
                second,
                target,
                target,
                preference,
            )
        });
        // SAFETY: Made above and used no more.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        Ok(found.map_err(|e| wrong("cublasLtMatmulAlgoGetHeuristic", e))?.algo)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        for plan in std::mem::take(&mut self.plans).into_values() {
            for matrix in [plan.first, plan.second, plan.result] {
                // SAFETY: Made once, in `plan`.
                let _ = unsafe { result::destroy_matrix_layout(matrix) };
            }
            // SAFETY: As above.
            let _ = unsafe { result::destroy_matmul_desc(plan.product) };
        }
        // SAFETY: Made once, in `new`; the driver waits for what uses the workspace.
        let _ = unsafe { driver::free_sync(self.workspace) };
        // SAFETY: As above.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn wrong(call: &'static str, error: result::CublasError) -> Error {
    Error::Call { call, message: format!("{:?}", error.0) }
}
