//! A GPU: one context, one stream, kernels compiled when they are first wanted.

mod blas;
mod graph;
mod probe;

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{result, sys};

use super::compile::Compiler;
use super::graph::Graph;
use super::launch::{Device, Kernel, Launch, Source};
use super::memory::Allocation;
use super::parity::{self, Effort};
use super::proof::{Record, Refusal, Verdict};
use super::tensor_map::{Matrix, PANEL, TensorMap};
use super::{Error, Product, sources};
use blas::Blas;
pub use probe::probe;

/// Bytes of page-locked memory through which small copies go without waiting.
const STAGING_BYTES: usize = 4 << 20;
/// Most bytes of a copy through it.
const STAGED_MAX: usize = STAGING_BYTES / 4;
/// Shared memory that a kernel gets without asking.
const SHARED_FREE: u32 = 48 << 10;

/// An open GPU.
pub struct Gpu {
    name: String,
    arch: String,
    compiler: Compiler,
    cubin_dir: PathBuf,
    context: Arc<Context>,
    stream: sys::CUstream,
    n_processors: u32,
    memory_bytes: u64,
    functions: Mutex<BTreeMap<&'static str, Function>>,
    staging: Mutex<Staging>,
    blas: Mutex<Blas>,
    refusals: Vec<Refusal>,
    /// What was taken, for graphs to hold.
    memory: Mutex<Vec<Weak<Memory>>>,
    records: AtomicBool,
}

// SAFETY: Driver handles may be used from any thread once the context is current there, which every
// call sees to; what changes is behind locks.
unsafe impl Send for Gpu {}
// SAFETY: As above.
unsafe impl Sync for Gpu {}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

/// The device's primary context, held while anything of it lives.
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: As of `Gpu`.
unsafe impl Send for Context {}
// SAFETY: As of `Gpu`.
unsafe impl Sync for Context {}

impl Context {
    fn bind(&self) -> Result<(), Error> {
        // SAFETY: The context is retained until this is dropped.
        unsafe { result::ctx::set_current(self.handle) }.map_err(|e| failed("cuCtxSetCurrent", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: Retained once, in `Gpu::open`. At the end of a process the driver may be gone.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Page-locked memory, filled from the front; at its end the stream is waited for.
struct Staging {
    memory: *mut u8,
    used: usize,
}

impl Gpu {
    /// Opens GPU `index` for kernels of `arch`; [`super::choice::choose`] chooses both. Kernels for that
    /// architecture alone are tried where they never were, which takes seconds.
    ///
    /// # Errors
    /// When a library is missing or a call fails, also because kernels that were tried have spoiled the
    /// GPU for this process; the next one does not try them.
    pub fn open(index: u32, arch: String, cubin_dir: &Path) -> Result<Self, Error> {
        let compiler = Compiler::new()?;
        result::init().map_err(|e| failed("cuInit", e))?;
        let device = result::device::get(index as i32).map_err(|e| failed("cuDeviceGet", e))?;
        let name = result::device::get_name(device).map_err(|e| failed("cuDeviceGetName", e))?;
        // SAFETY: The device was just found.
        let handle = unsafe { result::primary_ctx::retain(device) }
            .map_err(|e| failed("cuDevicePrimaryCtxRetain", e))?;
        let context = Arc::new(Context { device, handle });
        context.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|e| failed("cuStreamCreate", e))?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: The device was just found.
        let n_processors = unsafe { result::device::get_attribute(device, attribute) }
            .map_err(|e| failed("cuDeviceGetAttribute", e))? as u32;
        let (_, memory) = result::mem_get_info().map_err(|e| failed("cuMemGetInfo", e))?;
        // SAFETY: Any size may be asked for; it is given back in `drop`.
        let memory_host = unsafe { result::malloc_host(STAGING_BYTES, 0) }
            .map_err(|e| failed("cuMemHostAlloc", e))?;
        let blas = Blas::new(Arc::clone(&context))?;
        let mut gpu = Self {
            name,
            arch,
            compiler,
            cubin_dir: cubin_dir.to_owned(),
            context,
            stream,
            n_processors,
            memory_bytes: memory as u64,
            functions: Mutex::default(),
            staging: Mutex::new(Staging { memory: memory_host.cast(), used: 0 }),
            blas: Mutex::new(blas),
            refusals: Vec::new(),
            memory: Mutex::default(),
            records: AtomicBool::new(false),
        };
        gpu.refusals = gpu.try_kernels()?;
        // Without them it gives other bits, so it is another device to those who go by its name.
        for refusal in &gpu.refusals {
            write!(gpu.name, " without {}", refusal.source_name).expect("strings take text");
        }
        Ok(gpu)
    }

    /// Kernels for this architecture that are not used, and why.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// Sees to it that there is a verdict on all kernels for this architecture alone.
    fn try_kernels(&self) -> Result<Vec<Refusal>, Error> {
        let mut refusals = Vec::new();
        let records = Record::all(&self.cubin_dir, &self.arch, self.compiler, &self.name);
        for record in records {
            match record.prove(|| parity::fault(self, record.source(), Effort::Full)) {
                Verdict::Proven => {}
                Verdict::Refused(refusal) => refusals.push(refusal),
            }
        }
        // A trap spoils the context, and nothing more can be done in this process.
        self.synchronize().map_err(|error| match refusals.first() {
            None => error,
            Some(refusal) => {
                let message = format!("{error}; {refusal}. Another process goes without it");
                Error::Call { call: "the trial of kernels", message }
            }
        })?;
        Ok(refusals)
    }

    /// Panics while it records.
    fn assert_live(&self, what: &str) {
        assert!(!self.records.load(Ordering::Relaxed), "{what} cannot be recorded");
    }

    /// Architecture that kernels are compiled for.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Multiprocessors.
    pub fn n_processors(&self) -> u32 {
        self.n_processors
    }

    /// All of its memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The compiled kernel, loaded.
    fn function(&self, kernel: &'static Kernel) -> Result<sys::CUfunction, Error> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel.name) {
            return Ok(function.0);
        }
        let source = sources()
            .into_iter()
            .find(|source| source.name == kernel.source)
            .expect("a kernel's file is listed");
        let cubin = self.compiler.compile_cached(source, &self.arch, &self.cubin_dir)?;
        // SAFETY: NVRTC made the image, or its digest said so; the module stays loaded.
        let module = unsafe { result::module::load_data(cubin.bytes.as_ptr().cast()) }
            .map_err(|e| failed("cuModuleLoadData", e))?;
        for kernel in source.kernels {
            let name = CString::new(kernel.name).expect("names hold no zero bytes");
            // SAFETY: The module is loaded.
            let function = unsafe { result::module::get_function(module, name) }
                .map_err(|e| failed("cuModuleGetFunction", e))?;
            if kernel.shared_bytes_max > SHARED_FREE {
                let attribute =
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let bytes = kernel.shared_bytes_max as i32;
                // SAFETY: The function is of the loaded module.
                unsafe { result::function::set_function_attribute(function, attribute, bytes) }
                    .map_err(|e| failed("cuFuncSetAttribute", e))?;
            }
            functions.insert(kernel.name, Function(function));
        }
        Ok(functions[kernel.name].0)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let staging = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner);
        // At the end of a process the driver may be gone; then there is nothing to give back.
        if self.context.bind().is_ok() {
            // SAFETY: The stream is ours.
            let _ = unsafe { result::stream::synchronize(self.stream) };
            // SAFETY: No copy is under way any more.
            let _ = unsafe { result::free_host(staging.memory.cast()) };
            // SAFETY: Nothing is given to it any more.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

/// Memory of the GPU.
struct Memory {
    address: u64,
    size_bytes: usize,
    context: Arc<Context>,
}

impl Allocation for Memory {
    fn address(&self) -> u64 {
        self.address
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: Allocated once, and freed once; the driver waits for what uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn free_bytes(&self) -> Result<u64, Error> {
        self.context.bind()?;
        let (free, _) = result::mem_get_info().map_err(|e| failed("cuMemGetInfo", e))?;
        Ok(free as u64)
    }

    fn allocate(&self, size_bytes: usize) -> Result<Arc<dyn Allocation>, Error> {
        self.assert_live("taking memory");
        self.context.bind()?;
        // SAFETY: Any size may be asked for.
        match unsafe { result::malloc_sync(size_bytes) } {
            Ok(address) => {
                let context = Arc::clone(&self.context);
                let taken = Arc::new(Memory { address, size_bytes, context });
                let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.retain(|memory| memory.strong_count() > 0);
                memory.push(Arc::downgrade(&taken));
                Ok(taken)
            }
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free_bytes = self.free_bytes()?;
                Err(Error::OutOfMemory { needed_bytes: size_bytes as u64, free_bytes })
            }
            Err(error) => Err(failed("cuMemAlloc", error)),
        }
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.assert_live("a copy to the device");
        self.context.bind()?;
        if bytes.len() > STAGED_MAX {
            // SAFETY: The range belongs to an allocation, by the caller's word. The driver has read
            // pageable memory when this returns.
            return unsafe { result::memcpy_htod_async(address, bytes, self.stream) }
                .map_err(|e| failed("cuMemcpyHtoDAsync", e));
        }
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.used + bytes.len() > STAGING_BYTES {
            self.synchronize()?;
            staging.used = 0;
        }
        let offset = staging.used;
        staging.used = (offset + bytes.len()).next_multiple_of(64).min(STAGING_BYTES);
        // SAFETY: The part from `offset` on is inside the staging memory, and no copy reads it.
        let staged = unsafe { staging.memory.add(offset) };
        // SAFETY: As above; the bytes are elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), staged, bytes.len()) };
        // SAFETY: Just written.
        let staged = unsafe { std::slice::from_raw_parts(staged, bytes.len()) };
        // SAFETY: The target belongs to an allocation; the part is not written again before the
        // stream has been waited for.
        unsafe { result::memcpy_htod_async(address, staged, self.stream) }
            .map_err(|e| failed("cuMemcpyHtoDAsync", e))
    }

    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.assert_live("a copy from the device");
        self.context.bind()?;
        // SAFETY: The range belongs to an allocation, by the caller's word; the stream is waited for
        // before the bytes are used.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) }
            .map_err(|e| failed("cuMemcpyDtoHAsync", e))?;
        self.synchronize()
    }

    unsafe fn fill(&self, address: u64, value: u8, size_bytes: usize) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: The range belongs to an allocation, by the caller's word.
        unsafe { result::memset_d8_async(address, value, size_bytes, self.stream) }
            .map_err(|e| failed("cuMemsetD8Async", e))
    }

    unsafe fn copy(&self, from: u64, to: u64, size_bytes: usize) -> Result<(), Error> {
        self.context.bind()?;
        // SAFETY: Both ranges belong to allocations, by the caller's word.
        unsafe { result::memcpy_dtod_async(to, from, size_bytes, self.stream) }
            .map_err(|e| failed("cuMemcpyDtoDAsync", e))
    }

    fn offers(&self, source: &Source) -> bool {
        let refused = self.refusals.iter().any(|refusal| refusal.source_name == source.name);
        source.is_for(&self.arch) && !refused
    }

    fn tensor_map(&self, matrix: &Matrix<'_>) -> Result<TensorMap, Error> {
        let sizes = [matrix.n_columns as u64, matrix.n_rows() as u64];
        let (row_bytes, box_sizes) = ([matrix.row_bytes()], [PANEL as u32, matrix.box_rows as u32]);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: The map is a place for one; two sizes, steps and box sizes and one distance of rows
        // are what a matrix has. The address is only noted.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                matrix.elements.address() as *mut c_void,
                sizes.as_ptr(),
                row_bytes.as_ptr(),
                box_sizes.as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| failed("cuTensorMapEncodeTiled", e))?;
        Ok(TensorMap(map.opaque))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        launch.check();
        self.context.bind()?;
        let function = self.function(launch.kernel)?;
        let [x, y, z] = launch.grid.blocks;
        let mut arguments: Vec<*mut c_void> = launch.arguments.to_vec();
        // SAFETY: The arguments have the kernel's types, by the caller's word and by the check that
        // was compiled with the kernel.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.grid.threads, 1, 1),
                launch.grid.shared_bytes,
                self.stream,
                &mut arguments,
            )
        }
        .map_err(|e| failed("cuLaunchKernel", e))
    }

    fn multiply(&self, product: &Product<'_>) -> Result<(), Error> {
        product.check();
        self.context.bind()?;
        let mut blas = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        blas.multiply(product, self.stream)
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.assert_live("waiting");
        self.context.bind()?;
        // SAFETY: The stream is ours.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|e| failed("cuStreamSynchronize", e))
    }

    fn begin_recording(&self) -> Result<(), Error> {
        self.assert_live("recording");
        self.context.bind()?;
        graph::begin(self.stream)?;
        self.records.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end_recording(&self) -> Result<Graph, Error> {
        assert!(self.records.swap(false, Ordering::Relaxed), "it records");
        self.context.bind()?;
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = memory.iter().filter_map(Weak::upgrade).collect();
        Ok(Graph::new(graph::end(self.stream, Arc::clone(&self.context), memory)?))
    }

    fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.assert_live("a graph");
        self.context.bind()?;
        graph.of::<graph::Executable>().launch(self.stream)
    }
}

fn failed(call: &'static str, error: result::DriverError) -> Error {
    let text = |text: Result<&std::ffi::CStr, result::DriverError>| {
        text.map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
    };
    let message = format!("{}: {}", text(error.error_name()), text(error.error_string()));
    Error::Call { call, message }
}
