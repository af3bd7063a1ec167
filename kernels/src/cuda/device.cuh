// What the kernels share: types, conversions, reductions, and the few instructions that C++ has no
// word for. NVRTC takes those as PTX; a C++ compiler takes them from emulation.h, so that the very
// same kernels run on a CPU, thread for thread.
//
// Rules: no header that is not ours; shared memory is always the one dynamic array `shared`; a warp-wide
// function is called by all 32 lanes; no atomics on floats, so sums have one order. Products and
// sums are not contracted (--fmad=false): a fused multiply-add is written as fmaf.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
// The bits of a bfloat16.
typedef unsigned short bf16;

#ifndef __CUDACC_RTC__
#include "emulation.h"
#else

constexpr u32 WARP = 32;
#define INFINITY __uint_as_float(0x7f800000u)

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// Rounds to nearest even; `low` goes to the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// 2^x within 2 units in the last place; 0 for -inf; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// d += a * b with a [16, 16], b [16, 8], d [16, 8]. With g = lane / 4, t = lane % 4:
//   a[0], a[1]  rows g, g + 8; columns 2t, 2t + 1        a[2], a[3]  the same, columns + 8
//   b[0], b[1]  column g; rows 2t, 2t + 1 and + 8        d[0..2], d[2..4]  rows g, g + 8; as a[0]
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a * b with a [16, 32], b [32, 8] of signed bytes: as mma_bf16, four columns of a (rows of b)
// in a register and the second half 16 further.
__device__ __forceinline__ void mma_s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l names row l % 8 of matrix l / 8
// (16 aligned bytes) and gets in r[i] the elements (lane / 4, 2 (lane % 4)) and the next of matrix i.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same with each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy 16 aligned bytes to shared memory, or zeros where not `wanted`. The bytes are
// there after copies_wait and a barrier.
__device__ __forceinline__ void copy_start(void* to, const void* from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0)
                 : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the newest `NEWER` groups of this thread are under way.
template <int NEWER>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(NEWER) : "memory");
}

#endif

// The block's shared memory, laid out by each kernel.
extern __shared__ __align__(1024) u8 shared[];

constexpr u32 ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x) << 16); }

__device__ __forceinline__ bf16 to_bf16(float x) { return bf16(pack_bf16(x, 0.0f)); }

// The two halves of a packed pair.
__device__ __forceinline__ float low_float(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// Eight bf16 as floats, and back.
__device__ __forceinline__ void unpack8(const uint4& packed, float (&x)[8]) {
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = low_float(words[i]);
        x[2 * i + 1] = high_float(words[i]);
    }
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                      pack_bf16(x[6], x[7]));
}

// Sums over the lanes of a warp; every lane gets the same bits.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// Sums over a block of whole warps; every thread gets the same bits. `scratch` has an element a
// warp, and may be the one of the call before.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    T sum = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) {
        sum += scratch[warp];
    }
    return sum;
}

// e^x as kernels::lanes::exp computes it, bit for bit.
__device__ __forceinline__ float exp_exact(float x) {
    constexpr float ROUND = 12582912.0f;
    float clamped = x < -87.0f ? -87.0f : x;
    clamped = clamped > 88.0f ? 88.0f : clamped;
    const float shifted = fmaf(clamped, 1.44269504f, ROUND);
    const float n = shifted - ROUND;
    const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, clamped));
    float poly = 1.9875691e-4f;
    poly = fmaf(poly, r, 1.3981999e-3f);
    poly = fmaf(poly, r, 8.333452e-3f);
    poly = fmaf(poly, r, 4.1665796e-2f);
    poly = fmaf(poly, r, 1.6666665e-1f);
    poly = fmaf(poly, r, 0.5f);
    const float power = fmaf(poly, r * r, r) + 1.0f;
    const float scaled = __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
    return x < -87.0f ? 0.0f : scaled;
}
