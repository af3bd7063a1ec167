//! Instruction sets: one generic body per kernel, compiled once for each, chosen at run time.
//!
//! A body is written as plain loops over slices and fixed-size arrays, which the compiler turns into
//! vector code for the instruction set it is compiled for. Results may differ between instruction
//! sets in the last bits (fused against separate multiply-add), never between thread counts.

#![expect(clippy::inline_always, reason = "a call would leave the caller's instruction set")]

/// An instruction set that this processor has. Only detection makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// The fastest instruction set of this processor.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Every instruction set of this processor that the kernels know, fastest first. The last is
    /// the portable one: what the compiler targets by default (SSE2, NEON).
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
            {
                found.push(Self(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self(Kind::Avx2));
            }
        }
        found.push(Self(Kind::Portable));
        found
    }

    /// The name for logs and benchmarks: `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

/// How a body multiplies and adds: one fused instruction where there is one. Without it,
/// `f32::mul_add` would be a call into the C library for each element.
pub(crate) trait Arith {
    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding.
pub(crate) struct Fused;
/// Two roundings.
#[cfg(any(not(target_arch = "aarch64"), test))]
pub(crate) struct Split;
/// What the portable path uses: every aarch64 has a fused multiply-add, baseline x86 has none.
#[cfg(target_arch = "aarch64")]
pub(crate) type Native = Fused;
/// What the portable path uses: every aarch64 has a fused multiply-add, baseline x86 has none.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type Native = Split;

impl Arith for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(any(not(target_arch = "aarch64"), test))]
impl Arith for Split {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Defines a function with a leading `isa: Isa` argument from one body, compiled for each
/// instruction set. The body may use `M: Arith`, named in angle brackets.
macro_rules! per_isa {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$m:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$m: $crate::isa::Arith>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::isa::Fused>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::isa::Fused>($($arg),*)
            }

            match isa.kind() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: Only detection makes an `Isa`, so the processor has these features.
                $crate::isa::Kind::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: Only detection makes an `Isa`, so the processor has these features.
                $crate::isa::Kind::Avx2 => unsafe { avx2($($arg),*) },
                $crate::isa::Kind::Portable => body::<$crate::isa::Native>($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;
