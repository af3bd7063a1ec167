# NVRTC, which compiles the CUDA kernels also where there is no GPU. Sourced after setup.bash.

# Installs NVIDIA's wheel into the folder where `sbp` looks first, unless one is there, and makes its
# absence an error of the tests.
need_nvrtc() {
  # NVIDIA makes wheels for Linux only; elsewhere those tests say that they are skipped.
  [ "$(uname -s)" = Linux ] || return 0
  local dir=${SBP_CUDA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sbp/cuda}
  if [ -z "$(find -L "$dir" -name 'libnvrtc.so.1*' 2>/dev/null | head -n 1)" ]; then
    need python3=python3
    python3 -m pip --version >/dev/null 2>&1 || need pip-of-python3=python3-pip
    say "installing NVRTC into $dir"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps \
      --target "$dir" 'nvidia-cuda-nvrtc>=13,<14' >&2
  fi
  export SBP_REQUIRE_NVRTC=1
}
