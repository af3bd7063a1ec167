//! Kernels to machine code by NVRTC, kept in a folder.

use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};

use super::launch::{Header, Source};
use super::libraries::{self, Which};
use super::{DEVICE_HEADER, Error};

/// Products and sums are not contracted, so that results are those of the emulator; warnings of the
/// assembler are shown.
const OPTIONS: [&str; 4] =
    ["--std=c++17", "--fmad=false", "--ptxas-options=-v", "--ptxas-options=-warn-spills"];

/// NVRTC, loaded.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    version: [i32; 2],
}

/// A kernel file as machine code.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// What a driver loads.
    pub bytes: Vec<u8>,
    /// What the compiler says; empty when it was compiled before.
    pub log: String,
}

/// Where compiled kernels are kept: `sbp/cubins` in the user's cache folder.
pub fn cache_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    cache.unwrap_or_else(std::env::temp_dir).join("sbp/cubins")
}

impl Compiler {
    /// Loads NVRTC.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> Result<Self, Error> {
        if libraries::load(Which::Nvrtc).is_none() {
            let what = "NVRTC, which compiles the kernels,".to_owned();
            return Err(Error::Missing {
                what,
                remedy: Which::Nvrtc.remedy(libraries::driver_release()),
            });
        }
        let [mut major, mut minor] = [0, 0];
        // SAFETY: Both are places for a number.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
            .result()
            .map_err(|error| failed("nvrtcVersion", error))?;
        Ok(Self { version: [major, minor] })
    }

    /// Its CUDA release, major and minor.
    pub fn version(self) -> [i32; 2] {
        self.version
    }

    /// Architectures it knows, such as 90, ascending.
    ///
    /// # Errors
    /// When NVRTC fails.
    pub fn architectures(self) -> Result<Vec<i32>, Error> {
        let mut n = 0;
        // SAFETY: A place for a number.
        unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut n) }
            .result()
            .map_err(|error| failed("nvrtcGetNumSupportedArchs", error))?;
        let mut found = vec![0; n as usize];
        // SAFETY: As many places as NVRTC asked for.
        unsafe { sys::nvrtcGetSupportedArchs(found.as_mut_ptr()) }
            .result()
            .map_err(|error| failed("nvrtcGetSupportedArchs", error))?;
        found.sort_unstable();
        Ok(found)
    }

    /// Compiles a kernel file for `arch`, such as `sm_90a`, together with a check that its kernels
    /// have the types of their descriptions.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn compile(self, source: &Source, arch: &str) -> Result<Cubin, Error> {
        let text = checked_text(source);
        let c_string = |text: &str| CString::new(text).expect("kernels hold no zero bytes");
        let [program_text, name] = [text.as_str(), source.name].map(c_string);
        let headers: Vec<[CString; 2]> = (headers(source).iter())
            .map(|header| [header.text, header.name].map(c_string))
            .collect();
        let [texts, names] =
            [0, 1].map(|i| headers.iter().map(|header| header[i].as_ptr()).collect::<Vec<_>>());
        let mut program = std::ptr::null_mut();
        // SAFETY: Texts end in zeros and outlive the call; each header has one name.
        unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                program_text.as_ptr(),
                name.as_ptr(),
                headers.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        }
        .result()
        .map_err(|error| failed("nvrtcCreateProgram", error))?;
        let options: Vec<String> = options(arch);
        // SAFETY: The program lives until it is destroyed below.
        let status = unsafe { result::compile_program(program, &options) };
        // SAFETY: As above.
        let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
        // SAFETY: NVRTC's log ends in a zero; an empty one is replaced.
        let log = if log.is_empty() { c"" } else { unsafe { CStr::from_ptr(log.as_ptr()) } };
        let log = log.to_string_lossy().into_owned();
        let bytes = match status {
            Ok(()) => cubin(program),
            Err(_) => Err(Error::Compile {
                source_name: source.name.to_owned(),
                target: arch.to_owned(),
                log: log.clone(),
            }),
        };
        // SAFETY: Nothing uses the program any more.
        unsafe { result::destroy_program(program) }
            .map_err(|error| failed("nvrtcDestroyProgram", error))?;
        Ok(Cubin { bytes: bytes?, log })
    }

    /// What machine code is made of: text, headers, options, architecture and the compiler's version.
    pub fn digest(self, source: &Source, arch: &str) -> blake3::Hash {
        let mut hash = blake3::Hasher::new();
        let [major, minor] = self.version;
        let version = format!("NVRTC {major}.{minor}");
        let (options, text) = (options(arch).join(" "), checked_text(source));
        let mut add = |part: &str| {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        };
        add(&version);
        add(&options);
        for header in headers(source) {
            add(header.text);
        }
        add(&text);
        hash.finalize()
    }

    /// [`Self::compile`], unless the same was compiled before and is in `dir`.
    ///
    /// What counts as the same is [`Self::digest`]. A damaged file is compiled again.
    ///
    /// # Errors
    /// When it does not compile. A folder that cannot be written costs only time.
    pub fn compile_cached(self, source: &Source, arch: &str, dir: &Path) -> Result<Cubin, Error> {
        let digest = self.digest(source, arch).to_hex();
        let stem = source.name.trim_end_matches(".cu");
        let path = dir.join(format!("{stem}-{arch}-{}.cubin", &digest[..32]));
        if let Some(bytes) = std::fs::read(&path).ok().and_then(|file| unsealed(&file)) {
            return Ok(Cubin { bytes, log: String::new() });
        }
        let cubin = self.compile(source, arch)?;
        let own = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(&own, sealed(&cubin.bytes)))
            .and_then(|()| std::fs::rename(&own, &path));
        if written.is_err() {
            // Another run compiles again.
            drop(std::fs::remove_file(&own));
        }
        Ok(cubin)
    }
}

/// `device.cuh` and what else a source includes.
fn headers(source: &Source) -> Vec<Header> {
    let device = Header { name: "device.cuh", text: DEVICE_HEADER };
    std::iter::once(device).chain(source.headers.iter().copied()).collect()
}

fn options(arch: &str) -> Vec<String> {
    let mut options: Vec<String> = OPTIONS.iter().map(|&option| option.to_owned()).collect();
    options.push(format!("--gpu-architecture={arch}"));
    options
}

/// The source, and a line a kernel that compiles only when its types are those of the description.
fn checked_text(source: &Source) -> String {
    let mut text = source.text.to_owned();
    text.push_str("\ntemplate <class A, class B> constexpr bool SAME_TYPE = false;\n");
    text.push_str("template <class A> constexpr bool SAME_TYPE<A, A> = true;\n");
    for kernel in source.kernels {
        let (name, signature) = (kernel.name, kernel.signature());
        writeln!(
            text,
            "static_assert(SAME_TYPE<decltype(&{name}), {signature}>, \"arguments of {name}\");"
        )
        .expect("strings take text");
    }
    text
}

fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, Error> {
    let mut size = 0;
    // SAFETY: The program was compiled for a real architecture.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }
        .result()
        .map_err(|error| failed("nvrtcGetCUBINSize", error))?;
    let mut bytes = vec![0_u8; size];
    // SAFETY: As many bytes as NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast()) }
        .result()
        .map_err(|error| failed("nvrtcGetCUBIN", error))?;
    Ok(bytes)
}

/// The bytes after their digest.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    [blake3::hash(bytes).as_bytes(), bytes].concat()
}

fn unsealed(file: &[u8]) -> Option<Vec<u8>> {
    let (digest, bytes) = file.split_at_checked(32)?;
    (blake3::hash(bytes).as_bytes() == digest).then(|| bytes.to_vec())
}

fn failed(call: &'static str, error: result::NvrtcError) -> Error {
    Error::Call { call, message: format!("{:?}", error.0) }
}
