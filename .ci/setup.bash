# What the build needs, for ./quickstart and ./test. Sourced from the project's root.

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need COMMAND=PACKAGE...: installs the Debian packages whose command is missing.
need() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
}

# install PACKAGE...: installs Debian packages, as root or through sudo.
install() {
  command -v apt-get >/dev/null || die "please install $*; there is no apt-get here to do it"
  local root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "please install $*; that needs root, and there is no sudo"
    root=(sudo)
  fi
  say "installing $*"
  "${root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Finds cargo, also where rustup put it and this shell has not seen it, and checks its version.
need_rust() {
  if ! command -v cargo >/dev/null && [ -f "${CARGO_HOME:-$HOME/.cargo}/env" ]; then
    . "${CARGO_HOME:-$HOME/.cargo}/env"
  fi
  command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs and run this again"
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  found=$(rustc --version | cut -d' ' -f2)
  if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
    command -v rustup >/dev/null || die "Rust $found is installed and $wanted is needed"
    say "Rust $found is older than $wanted: updating"
    rustup update stable >&2
  fi
}

# need_component NAME COMMAND: adds a component of the toolchain, such as clippy.
need_component() {
  cargo "$2" --version >/dev/null 2>&1 && return 0
  say "installing $1"
  rustup component add "$1" >&2
}
