// sum_rows: out[c] += sum_r x[r, c], the last step of gradients that blocks add up apart
//
//   x    in      f32 [rows, stride]  row-major; the first cols columns are summed
//   out  in/out  f32 [cols]
//
// Needs      cols <= stride. Checked in cuda/sum_rows.rs, not here.
// Launch     grid = (cols / 32, rounded up), block = (256), shared memory 1 KiB. sm_80 or newer.
// Moves      x once. Memory-bound and small.
// Numbers    f32; eight warps take every eighth row in order, and their sums are added in order.
// Source     none.

#include "device.cuh"

extern "C" __global__ void __launch_bounds__(256)
sum_rows_f32(const float* x, float* out, int rows, int cols, int stride) {
    float* sums = reinterpret_cast<float*>(shared);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 col = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (col < u32(cols)) {
        for (u32 row = warp; row < u32(rows); row += 8) {
            sum += x[size_t(row) * u32(stride) + col];
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && col < u32(cols)) {
        float total = 0.0f;
        for (u32 i = 0; i < 8; i++) {
            total += sums[i * WARP + lane];
        }
        out[col] += total;
    }
}
