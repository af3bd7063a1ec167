//! Runs the kernels on a CPU: the same `.cu` text, compiled as C++.
//!
//! `emulator/emulation.h` plays warps, barriers, shared memory and the tensor core instructions, as
//! hostile as CUDA's rules allow, and `emulator/emulation_hopper.h` what `sm_90a` adds; see there.
//! Memory ends in guards that every launch checks, and starts as NaN. It needs a C++ compiler (`g++`, or
//! what `CXX` names) and is for tests: a kernel that passes has right indices and barriers, whatever the
//! machine; it says nothing of speed.

mod record;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use half::bf16;
use libloading::Library;

use super::graph::Graph;
use super::launch::{Device, Launch, Source};
use super::memory::Allocation;
use super::product::{Layout, Product, Target};
use super::tensor_map::{Matrix, PANEL, TensorMap};
use super::{DEVICE_HEADER, Error, sources};
use crate::matmul::Accumulate;
use record::{Record, Step};

const EMULATION_HEADER: &str = include_str!("emulator/emulation.h");
const EMULATION_HOPPER_HEADER: &str = include_str!("emulator/emulation_hopper.h");
/// What tells the emulator's tensor maps from other bytes, as `emulation_hopper.h` knows it.
const MATRIX_MARK: u64 = 0x7465_6e73_6f72;
/// Bytes before and after every allocation that nothing may write.
const GUARD_BYTES: usize = 1024;
/// What memory holds before it is written: NaN as a float, of any width.
const POISON: u8 = 0xff;

/// Tells the builds of this process apart.
static N_BUILDS: AtomicU64 = AtomicU64::new(0);

/// Which warps, lanes and blocks run first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// The lowest.
    Forward,
    /// The highest warps and blocks; the lowest lanes.
    WarpsBackward,
    /// The highest.
    Backward,
}

impl Schedule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::WarpsBackward, Self::Backward];
}

/// A change of a kernel's text, to see that tests notice.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// The kernel file, or a header of it.
    pub source: &'static str,
    /// What to replace; it must occur.
    pub from: &'static str,
    /// The first occurrence's replacement.
    pub to: &'static str,
}

/// A CPU that runs kernels.
pub struct Emulator {
    dir: PathBuf,
    schedule: Schedule,
    mutation: Option<Mutation>,
    memory_bytes: u64,
    arch: &'static str,
    libraries: Mutex<BTreeMap<&'static str, Library>>,
    memory: Mutex<Vec<Weak<Memory>>>,
    n_bytes_read: AtomicU64,
    /// What is noted while it records.
    recording: Mutex<Option<Vec<Step>>>,
    n_replays: AtomicU64,
}

type Run = unsafe extern "C" fn(
    *const *mut c_void,
    *const u32,
    u32,
    usize,
    u32,
    *mut std::ffi::c_char,
    usize,
);

impl Emulator {
    /// An emulator that keeps compiled kernels in `dir`.
    pub fn new(dir: &Path, schedule: Schedule) -> Self {
        Self {
            dir: dir.to_owned(),
            schedule,
            mutation: None,
            memory_bytes: u64::MAX,
            arch: "sm_80",
            libraries: Mutex::default(),
            memory: Mutex::default(),
            n_bytes_read: AtomicU64::new(0),
            recording: Mutex::default(),
            n_replays: AtomicU64::new(0),
        }
    }

    /// Bytes that were copied from it so far.
    pub fn n_bytes_read(&self) -> u64 {
        self.n_bytes_read.load(Ordering::Relaxed)
    }

    /// Graphs that were replayed so far.
    pub fn n_replays(&self) -> u64 {
        self.n_replays.load(Ordering::Relaxed)
    }

    /// Notes a step where it records; gives whether it does.
    fn notes(&self, step: impl FnOnce() -> Step) -> bool {
        let mut recording = lock(&self.recording);
        let steps = recording.as_mut();
        steps.map(|steps| steps.push(step())).is_some()
    }

    /// Panics while it records.
    fn assert_live(&self, what: &str) {
        assert!(lock(&self.recording).is_none(), "{what} cannot be recorded");
    }

    /// Memory that is in use.
    fn memory(&self) -> Vec<Arc<Memory>> {
        let mut memory = lock(&self.memory);
        memory.retain(|memory| memory.strong_count() > 0);
        memory.iter().filter_map(Weak::upgrade).collect()
    }

    /// An emulator of changed kernels.
    #[must_use]
    pub fn mutated(self, mutation: Mutation) -> Self {
        Self { mutation: Some(mutation), ..self }
    }

    /// An emulator that has no more than `memory_bytes` of memory.
    #[must_use]
    pub fn limited(self, memory_bytes: u64) -> Self {
        Self { memory_bytes, ..self }
    }

    /// An emulator that also offers the kernels of one architecture, such as `sm_90a`.
    #[must_use]
    pub fn of_arch(self, arch: &'static str) -> Self {
        Self { arch, ..self }
    }

    /// The compiler to use.
    fn compiler() -> String {
        std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned())
    }

    /// Compiles a kernel file, unless that was done before, and loads it.
    fn load(&self, source: &Source) -> Result<Library, Error> {
        let mut texts = vec![(source.name, source.text.to_owned())];
        texts.extend(source.headers.iter().map(|header| (header.name, header.text.to_owned())));
        if let Some(Mutation { source: changed, from, to }) = self.mutation
            && let Some((_, text)) = texts.iter_mut().find(|(name, _)| *name == changed)
        {
            assert!(text.contains(from), "`{from}` is not in `{changed}`");
            *text = text.replacen(from, to, 1);
        }
        let caller = caller(source);
        let compiler = Self::compiler();
        let mut hash = blake3::Hasher::new();
        let shared = [
            compiler.as_str(),
            DEVICE_HEADER,
            EMULATION_HEADER,
            EMULATION_HOPPER_HEADER,
            caller.as_str(),
        ];
        for part in shared.into_iter().chain(texts.iter().map(|(_, text)| text.as_str())) {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let name = format!("{}-{}", source.name, &hash.finalize().to_hex()[..16]);
        let library = self.dir.join(format!("{name}.so"));
        let broken = |what: &str, error: std::io::Error| Error::Call {
            call: "the emulator's build",
            message: format!("cannot write {what} in {}: {error}", self.dir.display()),
        };
        // Several processes may build the same; each under a name of its own, the last one stays.
        let n = N_BUILDS.fetch_add(1, Ordering::Relaxed);
        let own = self.dir.join(format!("{name}-{}-{n}", std::process::id()));
        if !library.exists() {
            std::fs::create_dir_all(&own).map_err(|error| broken("a folder", error))?;
            let files = [
                ("device.cuh", DEVICE_HEADER),
                ("emulation.h", EMULATION_HEADER),
                ("emulation_hopper.h", EMULATION_HOPPER_HEADER),
                ("caller.cpp", &caller),
            ];
            let texts = texts.iter().map(|(name, text)| (*name, text.as_str()));
            for (name, text) in files.into_iter().chain(texts) {
                std::fs::write(own.join(name), text).map_err(|error| broken(name, error))?;
            }
            let built = build(&compiler, source, &own);
            if built.is_ok() {
                std::fs::rename(own.join("kernels.so"), &library)
                    .map_err(|error| broken("a library", error))?;
            }
            std::fs::remove_dir_all(&own).map_err(|error| broken("a folder", error))?;
            built?;
        }
        // A copy has variables of its own, so emulators can run side by side.
        let copy = self.dir.join(format!("{name}-{}-{n}.so", std::process::id()));
        std::fs::copy(&library, &copy).map_err(|error| broken("a library", error))?;
        // SAFETY: The library was built from our sources; it has no initializers.
        let loaded = unsafe { Library::new(&copy) };
        std::fs::remove_file(&copy).map_err(|error| broken("a library", error))?;
        loaded.map_err(|error| Error::Call { call: "dlopen", message: error.to_string() })
    }

    fn check_guards(&self, kernel: &str) -> Result<(), Error> {
        for memory in self.memory() {
            if let Some(at) = memory.damage() {
                let size = memory.size_bytes;
                let message = format!("it writes byte {at} of an allocation of {size}");
                return Err(Error::Emulation { kernel: kernel.to_owned(), message });
            }
        }
        Ok(())
    }
}

fn build(compiler: &str, source: &Source, dir: &Path) -> Result<(), Error> {
    let output = Command::new(compiler)
        .args(["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function"])
        // Tensor maps are passed between functions of one build alone.
        .arg("-Wno-psabi")
        .args(["-fPIC", "-shared", "-fvisibility=hidden", "-I.", "-o", "kernels.so", "caller.cpp"])
        .current_dir(dir)
        .output()
        .map_err(|error| Error::Missing {
            what: format!("the C++ compiler `{compiler}`"),
            remedy: format!("install one or name it in CXX ({error})"),
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Compile {
        source_name: source.name.to_owned(),
        target: compiler.to_owned(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// C++ that includes a kernel file, holds its kernels to their descriptions, and runs them.
fn caller(source: &Source) -> String {
    let mut text = format!("#include \"device.cuh\"\n#include \"{}\"\n", source.name);
    for kernel in source.kernels {
        let (name, signature) = (kernel.name, kernel.signature());
        write!(
            text,
            "static_assert(std::is_same<decltype(&{name}), {signature}>::value, \"{name}\");\n\
             extern \"C\" __attribute__((visibility(\"default\"))) void run_{name}(void** arguments, \
             const u32* grid, u32 threads, size_t shared_bytes, u32 schedule, char* text, size_t size) \
             {{\n    emulation::run([](void** a) {{ emulation::call({name}, a); }}, arguments, grid, \
             threads, shared_bytes, schedule, text, size);\n}}\n"
        )
        .expect("strings take text");
    }
    text
}

/// Host memory between guards.
struct Memory {
    words: Box<[std::cell::UnsafeCell<u128>]>,
    start: usize,
    size_bytes: usize,
}

// SAFETY: Only the emulator touches the words, and launches and copies are made one at a time by the
// caller, as a device's stream demands.
unsafe impl Send for Memory {}
// SAFETY: As above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(size_bytes: usize) -> Self {
        let n_words = (size_bytes + 2 * GUARD_BYTES + 256) / 16 + 1;
        let words: Box<[std::cell::UnsafeCell<u128>]> =
            (0..n_words).map(|_| std::cell::UnsafeCell::new(u128::MAX)).collect();
        let base = words.as_ptr() as usize;
        let start = (base + GUARD_BYTES).next_multiple_of(256) - base;
        Self { words, start, size_bytes }
    }

    /// Where a guard was written, counted from the start of the allocation.
    fn damage(&self) -> Option<isize> {
        let guards = [self.start - GUARD_BYTES..self.start, {
            let end = self.start + self.size_bytes;
            end..end + GUARD_BYTES
        }];
        let base: *const u8 = self.words.as_ptr().cast();
        guards.into_iter().flatten().find_map(|at| {
            // SAFETY: Guards lie within the words.
            let byte = unsafe { *base.add(at) };
            (byte != POISON).then_some(at as isize - self.start as isize)
        })
    }
}

impl Allocation for Memory {
    fn address(&self) -> u64 {
        (self.words.as_ptr() as usize + self.start) as u64
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl Device for Emulator {
    fn name(&self) -> String {
        format!("emulator, {:?}", self.schedule)
    }

    fn free_bytes(&self) -> Result<u64, Error> {
        let taken = self.memory().into_iter().map(|memory| memory.size_bytes as u64);
        Ok(self.memory_bytes - taken.sum::<u64>())
    }

    fn allocate(&self, size_bytes: usize) -> Result<Arc<dyn Allocation>, Error> {
        self.assert_live("taking memory");
        let (needed_bytes, free_bytes) = (size_bytes as u64, self.free_bytes()?);
        if needed_bytes > free_bytes {
            return Err(Error::OutOfMemory { needed_bytes, free_bytes });
        }
        let memory = Arc::new(Memory::new(size_bytes));
        lock(&self.memory).push(Arc::downgrade(&memory));
        Ok(memory)
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.assert_live("a copy to the device");
        // SAFETY: The range belongs to an allocation, by the caller's word.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
        }
        Ok(())
    }

    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.assert_live("a copy from the device");
        self.n_bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // SAFETY: As of `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    unsafe fn fill(&self, address: u64, value: u8, size_bytes: usize) -> Result<(), Error> {
        if self.notes(|| Step::Fill { address, value, size_bytes }) {
            return Ok(());
        }
        // SAFETY: As of `write`.
        unsafe { std::ptr::write_bytes(address as *mut u8, value, size_bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, size_bytes: usize) -> Result<(), Error> {
        if self.notes(|| Step::Copy { from, to, size_bytes }) {
            return Ok(());
        }
        // SAFETY: As of `write`; the ranges do not overlap, by the caller's word.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, size_bytes) };
        Ok(())
    }

    fn offers(&self, source: &Source) -> bool {
        source.is_for(self.arch)
    }

    fn tensor_map(&self, matrix: &Matrix<'_>) -> Result<TensorMap, Error> {
        let n_rows = matrix.n_rows() as u64;
        let (address, n_columns) = (matrix.elements.address(), matrix.n_columns as u64);
        let (row_bytes, box_rows) = (matrix.row_bytes(), matrix.box_rows as u64);
        let mut words = [0; 16];
        words[..7].copy_from_slice(&[
            address,
            n_columns,
            n_rows,
            row_bytes,
            PANEL as u64,
            box_rows,
            MATRIX_MARK,
        ]);
        Ok(TensorMap(words))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        launch.check();
        // SAFETY: The arguments have the kernel's types, by the caller's word.
        if self.notes(|| unsafe { Step::launch(launch) }) {
            return Ok(());
        }
        let kernel = launch.kernel;
        let source = sources()
            .into_iter()
            .find(|source| source.name == kernel.source)
            .expect("a kernel's file is listed");
        let mut libraries = lock(&self.libraries);
        if !libraries.contains_key(source.name) {
            libraries.insert(source.name, self.load(source)?);
        }
        let symbol = format!("run_{}", kernel.name);
        // SAFETY: `caller` gives every kernel a function of this type.
        let run = unsafe { libraries[source.name].get::<Run>(symbol.as_bytes()) }
            .map_err(|error| Error::Call { call: "dlsym", message: error.to_string() })?;
        let schedule = match self.schedule {
            Schedule::Forward => 0,
            Schedule::WarpsBackward => 1,
            Schedule::Backward => 3,
        };
        let mut text = [0_u8; 256];
        let grid = launch.grid;
        // SAFETY: Arguments have the kernel's types, by the caller's word; `libraries` is locked, and
        // so the library's variables are this thread's.
        unsafe {
            run(
                launch.arguments.as_ptr(),
                grid.blocks.as_ptr(),
                grid.threads,
                grid.shared_bytes as usize,
                schedule,
                text.as_mut_ptr().cast(),
                text.len(),
            );
        }
        drop(libraries);
        let message = text.split(|&byte| byte == 0).next().expect("there is a first part");
        if !message.is_empty() {
            let message = String::from_utf8_lossy(message).into_owned();
            return Err(Error::Emulation { kernel: kernel.name.to_owned(), message });
        }
        self.check_guards(kernel.name)
    }

    fn multiply(&self, product: &Product<'_>) -> Result<(), Error> {
        product.check();
        if self.notes(|| Step::multiply(product)) {
            return Ok(());
        }
        let [m, n, k] = product.sizes;
        let wide = |x: Vec<bf16>| -> Vec<f32> { x.into_iter().map(bf16::to_f32).collect() };
        let (a, b) = (wide(product.a.read(self)?), wide(product.b.read(self)?));
        let mut sums = vec![0.0_f32; m * n];
        for i in 0..m {
            for j in 0..n {
                sums[i * n + j] = (0..k)
                    .map(|l| match product.layout {
                        Layout::Nt => a[i * k + l] * b[j * k + l],
                        Layout::Nn => a[i * k + l] * b[l * n + j],
                        Layout::Tn => a[l * m + i] * b[l * n + j],
                    })
                    .sum();
            }
        }
        let add = product.accumulate == Accumulate::Add;
        match product.c {
            Target::F32(c) => {
                let c = c.front(m * n);
                if add {
                    sums.iter_mut().zip(c.read(self)?).for_each(|(sum, c)| *sum += c);
                }
                c.write(self, &sums)
            }
            Target::Bf16(c) => {
                let c = c.front(m * n);
                if add {
                    sums.iter_mut().zip(c.read(self)?).for_each(|(sum, c)| *sum += c.to_f32());
                }
                c.write(self, &sums.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
            }
        }
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.assert_live("waiting");
        Ok(())
    }

    fn begin_recording(&self) -> Result<(), Error> {
        self.assert_live("recording");
        *lock(&self.recording) = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Graph, Error> {
        let steps = lock(&self.recording).take().expect("it records");
        Ok(Graph::new(Record { steps, _memory: self.memory() }))
    }

    fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.assert_live("a graph");
        self.n_replays.fetch_add(1, Ordering::Relaxed);
        graph.of::<Record>().steps.iter().try_for_each(|step| step.run(self))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
