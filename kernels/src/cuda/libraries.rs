//! Where CUDA's libraries are: the driver's, NVRTC and cuBLASLt.
//!
//! They are looked for by name where the loader looks, then in `SBP_CUDA_DIR`, our own cache folder,
//! toolkits, the driver's folders, and the `nvidia` wheels of Python environments. A library found
//! elsewhere is loaded by its path first; the loader then answers by-name requests from what is
//! loaded, so nobody sets `LD_LIBRARY_PATH`. What is missing is an answer, never a panic.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// A library of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The driver, which only its installer brings.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Matrix products.
    CublasLt,
}

/// The folders and names of one file system; another one in tests.
pub trait Files {
    /// An environment variable.
    fn variable(&self, name: &str) -> Option<String>;
    /// Names in a folder, sorted; none when there is no such folder.
    fn names(&self, dir: &Path) -> Vec<String>;
}

/// This machine.
pub struct Machine;

impl Files for Machine {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn names(&self, dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

impl Which {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// The name without version.
    pub fn file(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so",
            Self::Nvrtc => "libnvrtc.so",
            Self::CublasLt => "libcublasLt.so",
        }
    }

    /// Versions that are used, best first.
    fn versions(self) -> &'static [u32] {
        match self {
            Self::Driver => &[1],
            Self::Nvrtc | Self::CublasLt => &[13, 12],
        }
    }

    /// What a person calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Driver => "NVIDIA driver",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
        }
    }

    /// What a user without it does, who has a driver of release `driver`, if any.
    ///
    /// From CUDA 13 on, NVIDIA's wheels have plain names; before, each release has names of its own.
    pub fn remedy(self, driver: Option<[i32; 2]>) -> String {
        let wheel = match self {
            Self::Driver => return "install NVIDIA's driver, 580 or newer".to_owned(),
            Self::Nvrtc => "nvidia-cuda-nvrtc",
            Self::CublasLt => "nvidia-cublas",
        };
        let wheel = match driver {
            None => wheel.to_owned(),
            Some([major, _]) if major >= 13 => format!("'{wheel}=={major}.*'"),
            Some([major, _]) => format!("{wheel}-cu{major}"),
        };
        format!("pip install --target ~/.cache/sbp/cuda {wheel}")
    }
}

/// Paths of `which` in the order in which they are tried, beside the loader's own. A driver of
/// release `driver` cannot load what a library of a later major release compiles, so those are left out.
pub fn candidates(files: &dyn Files, which: Which, driver: Option<[i32; 2]>) -> Vec<PathBuf> {
    let is_usable = |version: &u32| match (which, driver) {
        (Which::Driver, _) | (_, None) => true,
        (Which::Nvrtc | Which::CublasLt, Some([major, _])) => i64::from(*version) <= major.into(),
    };
    let mut found = Vec::new();
    for dir in folders(files) {
        let names = files.names(&dir);
        for version in which.versions().iter().filter(|version| is_usable(version)) {
            let name = format!("{}.{version}", which.file());
            if names.contains(&name) {
                found.push(dir.join(name));
            }
        }
    }
    // A newer release anywhere is better than an older one; folders keep their order.
    let version = |path: &Path| which.versions().iter().position(|v| has_version(path, *v));
    found.sort_by_key(|path| version(path));
    found
}

fn has_version(path: &Path, version: u32) -> bool {
    path.extension().is_some_and(|extension| *extension == *version.to_string())
}

/// Folders that may hold libraries.
fn folders(files: &dyn Files) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let home = files.variable("HOME").map(PathBuf::from);
    let cache = files
        .variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| home.as_ref().map(|home| home.join(".cache")));
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| files.variable(name));
    let own = files.variable("SBP_CUDA_DIR").map(PathBuf::from);
    for dir in own.into_iter().chain(cache.map(|cache| cache.join("sbp/cuda"))) {
        folders.extend(wheel_folders(files, &dir));
        folders.extend([dir.clone(), dir.join("lib64"), dir.join("lib")]);
    }
    let mut roots: Vec<PathBuf> = toolkits.map(PathBuf::from).collect();
    let mut local = files.names(Path::new("/usr/local"));
    local.retain(|name| name.starts_with("cuda"));
    // `cuda` first, then the newest.
    local.sort_by_key(|name| (name != "cuda", std::cmp::Reverse(name.clone())));
    roots.extend(local.into_iter().map(|name| Path::new("/usr/local").join(name)));
    roots.push(PathBuf::from("/opt/cuda"));
    for root in roots {
        folders.extend([root.join("lib64"), root.join("targets/x86_64-linux/lib")]);
    }
    let arch = std::env::consts::ARCH;
    folders.extend(
        [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib64".into(), "/usr/lib/wsl/lib".into()]
            .map(PathBuf::from),
    );
    for packages in site_packages(files, home.as_deref()) {
        folders.extend(wheel_folders(files, &packages));
    }
    folders
}

/// `lib` of every `nvidia` wheel in a folder of Python packages.
fn wheel_folders(files: &dyn Files, packages: &Path) -> Vec<PathBuf> {
    let nvidia = packages.join("nvidia");
    files.names(&nvidia).into_iter().map(|name| nvidia.join(name).join("lib")).collect()
}

/// Folders of Python packages: the active environment, the user's, the system's.
fn site_packages(files: &dyn Files, home: Option<&Path>) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .iter()
        .filter_map(|name| files.variable(name))
        .map(PathBuf::from)
        .collect();
    prefixes.extend(home.map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    // Interpreters of their own: pyenv's, and what images put under `/opt`.
    let versions = home.map(|home| home.join(".pyenv/versions"));
    for parent in versions.into_iter().chain([PathBuf::from("/opt")]) {
        let names = files.names(&parent).into_iter().rev();
        prefixes.extend(names.map(|name| parent.join(name)));
    }
    let mut found = Vec::new();
    for prefix in prefixes {
        let lib = prefix.join("lib");
        let pythons = files.names(&lib);
        for python in pythons.iter().rev().filter(|name| name.starts_with("python3")) {
            found.extend(["site-packages", "dist-packages"].map(|dir| lib.join(python).join(dir)));
        }
    }
    found
}

/// A library that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The loader knew it.
    Loader,
    /// It was found here.
    Path(PathBuf),
}

/// Loads a library once and says where it was; nothing when there is none.
///
/// Afterwards the wrappers of `cudarc` find it.
pub fn load(which: Which) -> Option<&'static Origin> {
    static LOADED: [OnceLock<Option<Origin>>; 3] = [const { OnceLock::new() }; 3];
    LOADED[which as usize]
        .get_or_init(|| {
            let driver = if which == Which::Driver { None } else { driver_release() };
            find(&Machine, which, driver)
        })
        .as_ref()
}

/// The CUDA release that the driver supports, such as `[13, 0]`; nothing without a driver, or when it
/// does not say.
pub fn driver_release() -> Option<[i32; 2]> {
    load(Which::Driver)?;
    let mut version = 0;
    // SAFETY: A place for a number; the library is loaded.
    let status = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) };
    let is_told = status == cudarc::driver::sys::CUresult::CUDA_SUCCESS;
    is_told.then_some([version / 1000, version % 1000 / 10])
}

fn find(files: &dyn Files, which: Which, driver: Option<[i32; 2]>) -> Option<Origin> {
    if is_present(which) {
        return Some(Origin::Loader);
    }
    candidates(files, which, driver).into_iter().find_map(|path| {
        // NVRTC opens its builtins by name when it compiles, cuBLASLt its parts when it loads.
        for helper in helpers(files, which, &path) {
            keep(&helper);
        }
        (keep(&path) && is_present(which)).then_some(Origin::Path(path))
    })
}

fn helpers(files: &dyn Files, which: Which, path: &Path) -> Vec<PathBuf> {
    let Some(dir) = path.parent() else { return Vec::new() };
    let prefix = match which {
        Which::Nvrtc => "libnvrtc-builtins.so.",
        Which::Driver | Which::CublasLt => return Vec::new(),
    };
    let names = files.names(dir).into_iter();
    names.filter(|name| name.starts_with(prefix)).map(|name| dir.join(name)).collect()
}

/// Loads a library for as long as the process lives.
fn keep(path: &Path) -> bool {
    // SAFETY: Initializers of NVIDIA's libraries have no preconditions.
    let Ok(library) = (unsafe { Library::new(path) }) else { return false };
    // It stays loaded, so that requests by name are answered by it.
    Box::leak(Box::new(library));
    true
}

fn is_present(which: Which) -> bool {
    // SAFETY: Probes only load a library and let it go.
    unsafe {
        match which {
            Which::Driver => cudarc::driver::sys::is_culib_present(),
            Which::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
            Which::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Fake {
        variables: BTreeMap<&'static str, &'static str>,
        files: Vec<&'static str>,
    }

    impl Files for Fake {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).map(|&value| value.to_owned())
        }

        fn names(&self, dir: &Path) -> Vec<String> {
            let below = self.files.iter().filter_map(|path| Path::new(path).strip_prefix(dir).ok());
            let mut names: Vec<String> =
                below.filter_map(|rest| Some(rest.iter().next()?.to_str()?.to_owned())).collect();
            names.sort();
            names.dedup();
            names
        }
    }

    fn check(fake: &Fake, which: Which, expected: &[&str]) {
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(candidates(fake, which, None), expected);
    }

    #[test]
    fn libraries_are_found_where_they_are_installed() {
        let mut fake = Fake::default();
        check(&fake, Which::Nvrtc, &[]);
        fake.files = vec![
            "/usr/local/cuda-12.4/lib64/libnvrtc.so.12",
            "/usr/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "/env/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "/env/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
            "/env/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
        ];
        check(
            &fake,
            Which::Nvrtc,
            &[
                "/usr/local/cuda-12.4/lib64/libnvrtc.so.12",
                "/usr/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            ],
        );
        // The active environment's is of a newer release and goes first.
        fake.variables.insert("VIRTUAL_ENV", "/env");
        let newest = "/env/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13";
        let nvrtc = |driver| candidates(&fake, Which::Nvrtc, driver);
        assert_eq!(nvrtc(None)[0], Path::new(newest));
        assert_eq!(nvrtc(Some([13, 0])), nvrtc(None));
        // A driver of CUDA 12 cannot load what that one compiles.
        assert_eq!(nvrtc(Some([12, 4])), nvrtc(None)[1..]);
        assert_eq!(nvrtc(Some([11, 8])), [] as [PathBuf; 0]);
        assert_eq!(
            helpers(&fake, Which::Nvrtc, Path::new(newest)),
            [Path::new(newest).with_file_name("libnvrtc-builtins.so.13.0")]
        );
        check(
            &fake,
            Which::CublasLt,
            &["/env/lib/python3.12/site-packages/nvidia/cu13/lib/libcublasLt.so.13"],
        );
    }

    #[test]
    fn our_own_folder_goes_before_a_toolkit() {
        let mut fake = Fake::default();
        fake.variables.insert("HOME", "/home/u");
        fake.variables.insert("CUDA_HOME", "/toolkit");
        fake.files = vec![
            "/toolkit/lib64/libnvrtc.so.13",
            "/home/u/.cache/sbp/cuda/nvidia/cu13/lib/libnvrtc.so.13",
        ];
        check(
            &fake,
            Which::Nvrtc,
            &[
                "/home/u/.cache/sbp/cuda/nvidia/cu13/lib/libnvrtc.so.13",
                "/toolkit/lib64/libnvrtc.so.13",
            ],
        );
        fake.variables.insert("SBP_CUDA_DIR", "/mine");
        fake.files.push("/mine/libnvrtc.so.13");
        assert_eq!(candidates(&fake, Which::Nvrtc, None)[0], Path::new("/mine/libnvrtc.so.13"));
    }

    /// Names as the package index has them: `nvidia-cuda-nvrtc` begins with 13, earlier releases have a
    /// suffix.
    #[test]
    fn remedies_name_wheels_that_exist_for_the_driver() {
        let check = |which: Which, driver, end: &str| {
            assert!(which.remedy(driver).ends_with(end), "{}", which.remedy(driver));
        };
        check(Which::Nvrtc, None, " nvidia-cuda-nvrtc");
        check(Which::Nvrtc, Some([13, 1]), " 'nvidia-cuda-nvrtc==13.*'");
        check(Which::Nvrtc, Some([12, 4]), " nvidia-cuda-nvrtc-cu12");
        check(Which::CublasLt, Some([12, 4]), " nvidia-cublas-cu12");
        check(Which::CublasLt, Some([13, 0]), " 'nvidia-cublas==13.*'");
    }
}
