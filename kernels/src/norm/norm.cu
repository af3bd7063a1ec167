// norm: sum_i x[i]^2 in two passes, without an atomic
//
//   x        in   f32 [len]    16-byte aligned
//   partial  out  f64 [tiles]  the sum of each tile of 32,768 elements
//   total    out  f64 [1]      norm_total_f64: the sum of partial
//
// Needs      len > 0. Checked in norm/cuda.rs, not here.
// Launch     norm_tiles_f32: grid = (tiles), block = (256); norm_total_f64: grid = (1), block = (1024).
//            Shared memory: a double a warp. sm_80 or newer.
// Moves      x once. Memory-bound.
// Numbers    A thread's 128 squares in f32, everything above in f64, in a fixed order.
// Source     none. CPU twin: norm.rs.

#include "device.cuh"

constexpr u64 TILE = 32768;

extern "C" __global__ void __launch_bounds__(256)
norm_tiles_f32(const float* x, double* partial, u64 len) {
    const u64 start = u64(blockIdx.x) * TILE;
    const u64 end = start + TILE < len ? start + TILE : len;
    float sum = 0.0f;
    for (u64 i = start + threadIdx.x * 4; i < end; i += 1024) {
        if (i + 4 <= end) {
            const float4 four = reinterpret_cast<const float4*>(x)[i / 4];
            sum = fmaf(four.x, four.x, sum);
            sum = fmaf(four.y, four.y, sum);
            sum = fmaf(four.z, four.z, sum);
            sum = fmaf(four.w, four.w, sum);
        } else {
            for (u64 j = i; j < end; j++) {
                sum = fmaf(x[j], x[j], sum);
            }
        }
    }
    const double total = block_sum(double(sum), reinterpret_cast<double*>(shared));
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = total;
    }
}

extern "C" __global__ void __launch_bounds__(1024)
norm_total_f64(const double* partial, double* total, int tiles) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < u32(tiles); i += 1024) {
        sum += partial[i];
    }
    sum = block_sum(sum, reinterpret_cast<double*>(shared));
    if (threadIdx.x == 0) {
        total[0] = sum;
    }
}
