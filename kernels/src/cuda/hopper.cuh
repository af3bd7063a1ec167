// What kernels for sm_90a share: barriers that count bytes, the tensor copy engine, and products of a
// warpgroup. NVRTC takes them as PTX; a C++ compiler takes them from emulation_hopper.h.
//
// A warpgroup is four warps, the first a multiple of four. Matrices in shared memory are panels of 64
// columns: rows of 128 bytes one after the other, from a multiple of 1,024 bytes on, in which the copy
// engine turns the 16-byte pieces of a row by the row (the 128-byte swizzle of the PTX ISA).

#pragma once

constexpr u32 PANEL = 64;
constexpr u32 WARPGROUP = 128;

// A matrix in device memory as the copy engine sees it; cuda/tensor_map.rs makes them.
struct __align__(128) TensorMap {
    u64 words[16];
};

// A barrier whose phases end when all arrivals and all announced bytes are there.
typedef u64 Barrier;

#ifndef __CUDACC_RTC__
#include "emulation_hopper.h"
#else

// Tries, each of which sleeps for a while, after which a wait is a mistake: the kernel fails and does
// not hang. Seconds at least; what is waited for takes microseconds.
constexpr u32 PATIENCE = 1u << 22;

// Makes a barrier of as many arrivals a phase. One thread makes all, and calls barriers_ready.
__device__ __forceinline__ void barrier_make(Barrier* barrier, u32 n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(n_arrivals)
                 : "memory");
}

// Shows new barriers to the copy engine; __syncthreads shows them to the other threads.
__device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(barrier)) : "memory");
}

// Announces bytes that copies will bring, and arrives.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, u32 n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(n_bytes)
                 : "memory");
}

// Waits for the end of the phase of this parity: 0 for the first, 1 for the second. Of a new barrier
// parity 1 has ended.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, u32 parity) {
    const u32 address = shared_address(barrier);
#pragma unroll 1
    for (u32 n = 0; n < PATIENCE; n++) {
        u32 done;
        asm volatile(
            "{\n\t.reg .pred p;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
        if (done) {
            return;
        }
    }
    __trap();
}

// Starts to copy a box of a matrix to a panel, whose bytes count on the barrier; rows and columns that
// the matrix does not have become zeros.
__device__ __forceinline__ void tensor_copy(void* panel, const TensorMap& map, u32 column, u32 row,
                                            Barrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];"
        :
        : "r"(shared_address(panel)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// Registers a thread of this warpgroup has from here on.
template <int N>
__device__ __forceinline__ void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(N));
}
template <int N>
__device__ __forceinline__ void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(N));
}

// Comes before products whose registers anything else has touched.
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes a group of products.
__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Keeps the compiler from moving what is done with sums over what comes before and after.
template <u32 BLOCKS>
__device__ __forceinline__ void hold(float (&d)[BLOCKS][4]) {
#pragma unroll
    for (u32 n = 0; n < BLOCKS; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            asm volatile("" : "+f"(d[n][i])::"memory");
        }
    }
}

// Waits until at most the newest `NEWER` groups are under way; `d` is of the newest that is done.
template <int NEWER, u32 BLOCKS>
__device__ __forceinline__ void products_wait(float (&d)[BLOCKS][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(NEWER) : "memory");
    hold(d);
}

#define SUMS_4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SUMS_16(d, n) SUMS_4(d, n), SUMS_4(d, n + 1), SUMS_4(d, n + 2), SUMS_4(d, n + 3)
#define SUMS_32(d) SUMS_16(d, 0), SUMS_16(d, 4)
#define SUMS_64(d) SUMS_16(d, 0), SUMS_16(d, 4), SUMS_16(d, 8), SUMS_16(d, 12)
#define NAMES_32                                                                         \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                            \
    NAMES_32                                                                                \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d (+)= a * b with a [64, 16], b [16, 8 * BLOCKS], for the warpgroup. Warp w has rows 16 w.. of d, as
// mma_bf16 has them; d[n] is the n-th block of eight columns. `adds` says whether d is added to.
// a and b by the descriptors of panels: b[k][n] is in row n of its panel.
__device__ __forceinline__ void multiply_nt(float (&d)[16][4], u64 a, u64 b, bool adds) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %66, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64
        "}, %64, %65, p, 1, 1, 0, 0;\n\t}"
        : SUMS_64(d)
        : "l"(a), "l"(b), "r"(u32(adds)));
}

// The same with a in registers, as mma_bf16 has it, and b[k][n] in row k of its panels. Adds.
__device__ __forceinline__ void multiply_nn(float (&d)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %37, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n\t}"
        : SUMS_32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}
__device__ __forceinline__ void multiply_nn(float (&d)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %69, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n\t}"
        : SUMS_64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

#endif

// A matrix in shared memory for products, from 16-byte aligned `start` on: bytes between its groups of
// eight rows, and between its panels (read only where rows are not along the product's sum).
__device__ __forceinline__ u64 descriptor(const void* start, u32 group_bytes, u32 panel_bytes) {
    constexpr u64 SWIZZLE_128 = 1;
    return u64((shared_address(start) & 0x3ffff) >> 4) | u64(panel_bytes >> 4) << 16 |
           u64(group_bytes >> 4) << 32 | SWIZZLE_128 << 62;
}
