// rms_norm: y[r, c] = x[r, c] * rstd[r] * gain[c] with rstd[r] = 1 / sqrt(mean_c(x[r, c]^2) + eps)
//
//   x, y       in, out  bf16 [rows, cols]  row-major, 16-byte aligned
//   delta      in       bf16 [rows, cols]  rms_norm_add_bf16: sum = x + delta is normalized
//   sum        out      bf16 [rows, cols]  may be x or delta (in place)
//   gain       in       bf16 [cols]        16-byte aligned
//   rstd       out, in  f32  [rows]        kept for the backward pass
//   d_y        in       bf16 [rows, cols]  rms_norm_backward_bf16
//   d_x        in/out   bf16 [rows, cols]  += the gradient of x
//   d_gains    out      f32  [blocks, cols]  a block's share of the gradient of gain; sum_rows_f32
//                                            adds them up
//
// Needs      cols % 8 == 0; backward: cols <= 8192. Checked in rms_norm/cuda.rs, not here.
// Launch     forward: grid = (rows), block = whole warps, at most 256. backward: grid = (any), block =
//            (256); the rows go round the blocks. Shared memory: a float a warp. sm_80 or newer.
// Moves      forward: x once (what 8192 columns exceed, twice), y once. 4 FLOP per element, memory-bound.
//            backward: d_y, x, d_x once, d_x once more to write.
// Numbers    Sums in f32 in a fixed order, one rounding to bf16 at each store; sum is rounded before it
//            is normalized, so that both passes see the same numbers. Two launches give the same bits.
// Source     Zhang and Sennrich, arXiv 1910.07467, eq. 4. CPU twin: rms_norm/cpu.rs.

#include "device.cuh"

// Vectors of eight columns that a thread keeps in registers between the two passes over a row.
constexpr u32 KEPT = 4;

// Vector i of a row of x, or of the sum, which is then also written.
template <bool ADD>
__device__ __forceinline__ uint4 read_vector(const uint4* x, const uint4* delta, uint4* sum, u32 i) {
    const uint4 packed = x[i];
    if (!ADD) {
        return packed;
    }
    float a[8], b[8];
    unpack8(packed, a);
    unpack8(delta[i], b);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        a[j] += b[j];
    }
    const uint4 added = pack8(a);
    sum[i] = added;
    return added;
}

__device__ __forceinline__ float add_squares(float sum, const uint4& packed) {
    float x[8];
    unpack8(packed, x);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        sum = fmaf(x[j], x[j], sum);
    }
    return sum;
}

__device__ __forceinline__ uint4 scale(const uint4& packed, const uint4& gain, float rstd) {
    float x[8], g[8];
    unpack8(packed, x);
    unpack8(gain, g);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        x[j] = x[j] * rstd * g[j];
    }
    return pack8(x);
}

template <bool ADD>
__device__ __forceinline__ void forward(const bf16* x, const bf16* delta, bf16* sum,
                                        const bf16* gain, bf16* y, float* rstd, int cols, float eps) {
    const u32 n_vectors = u32(cols) / 8;
    const size_t start = size_t(blockIdx.x) * n_vectors;
    const uint4* x_row = reinterpret_cast<const uint4*>(x) + start;
    const uint4* delta_row = reinterpret_cast<const uint4*>(delta) + start;
    uint4* sum_row = reinterpret_cast<uint4*>(sum) + start;
    uint4* y_row = reinterpret_cast<uint4*>(y) + start;
    const uint4* gains = reinterpret_cast<const uint4*>(gain);

    uint4 kept[KEPT];
    float squares = 0.0f;
#pragma unroll
    for (u32 n = 0; n < KEPT; n++) {
        const u32 i = threadIdx.x + n * blockDim.x;
        if (i < n_vectors) {
            kept[n] = read_vector<ADD>(x_row, delta_row, sum_row, i);
            squares = add_squares(squares, kept[n]);
        }
    }
    for (u32 i = threadIdx.x + KEPT * blockDim.x; i < n_vectors; i += blockDim.x) {
        squares = add_squares(squares, read_vector<ADD>(x_row, delta_row, sum_row, i));
    }
    const float total = block_sum(squares, reinterpret_cast<float*>(shared));
    const float scale_by = 1.0f / sqrtf(total / float(cols) + eps);
    if (threadIdx.x == 0) {
        rstd[blockIdx.x] = scale_by;
    }
#pragma unroll
    for (u32 n = 0; n < KEPT; n++) {
        const u32 i = threadIdx.x + n * blockDim.x;
        if (i < n_vectors) {
            y_row[i] = scale(kept[n], gains[i], scale_by);
        }
    }
    // Each thread reads back what it wrote itself.
    const uint4* again = ADD ? sum_row : x_row;
    for (u32 i = threadIdx.x + KEPT * blockDim.x; i < n_vectors; i += blockDim.x) {
        y_row[i] = scale(again[i], gains[i], scale_by);
    }
}

extern "C" __global__ void __launch_bounds__(256)
rms_norm_bf16(const bf16* x, const bf16* gain, bf16* y, float* rstd, int cols, float eps) {
    forward<false>(x, nullptr, nullptr, gain, y, rstd, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256)
rms_norm_add_bf16(const bf16* x, const bf16* delta, bf16* sum, const bf16* gain, bf16* y,
                  float* rstd, int cols, float eps) {
    forward<true>(x, delta, sum, gain, y, rstd, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256)
rms_norm_backward_bf16(const bf16* d_y, const bf16* x, const bf16* gain, const float* rstd,
                       bf16* d_x, float* d_gains, int rows, int cols) {
    const u32 n_vectors = u32(cols) / 8;
    const uint4* gains = reinterpret_cast<const uint4*>(gain);
    float d_gain[KEPT][8] = {};
    for (u32 row = blockIdx.x; row < u32(rows); row += gridDim.x) {
        const size_t start = size_t(row) * n_vectors;
        const uint4* x_row = reinterpret_cast<const uint4*>(x) + start;
        const uint4* d_y_row = reinterpret_cast<const uint4*>(d_y) + start;
        uint4* d_x_row = reinterpret_cast<uint4*>(d_x) + start;
        const float scale_by = rstd[row];
        uint4 kept_x[KEPT], kept_d[KEPT];
        float dot = 0.0f;
#pragma unroll
        for (u32 n = 0; n < KEPT; n++) {
            const u32 i = threadIdx.x + n * 256;
            if (i < n_vectors) {
                kept_x[n] = x_row[i];
                kept_d[n] = d_y_row[i];
                float xs[8], ds[8], gs[8];
                unpack8(kept_x[n], xs);
                unpack8(kept_d[n], ds);
                unpack8(gains[i], gs);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    dot = fmaf(ds[j] * gs[j], xs[j], dot);
                    d_gain[n][j] = fmaf(ds[j] * xs[j], scale_by, d_gain[n][j]);
                }
            }
        }
        const float mean = block_sum(dot, reinterpret_cast<float*>(shared)) / float(cols);
        const float slope = mean * scale_by * scale_by;
#pragma unroll
        for (u32 n = 0; n < KEPT; n++) {
            const u32 i = threadIdx.x + n * 256;
            if (i < n_vectors) {
                float xs[8], ds[8], gs[8], sums[8];
                unpack8(kept_x[n], xs);
                unpack8(kept_d[n], ds);
                unpack8(gains[i], gs);
                unpack8(d_x_row[i], sums);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sums[j] = fmaf(scale_by, fmaf(-xs[j], slope, ds[j] * gs[j]), sums[j]);
                }
                d_x_row[i] = pack8(sums);
            }
        }
    }
    float* share = d_gains + size_t(blockIdx.x) * u32(cols);
#pragma unroll
    for (u32 n = 0; n < KEPT; n++) {
        const u32 i = threadIdx.x + n * 256;
        if (i < n_vectors) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                share[8 * i + j] = d_gain[n][j];
            }
        }
    }
}
