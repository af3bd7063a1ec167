// cross_entropy: loss of rows of logits, and their gradient
//
//   logits    in   f32  [rows, stride]  a chunk of x . w^T; 16-byte aligned
//   targets   in   u32  [rows]          below vocab, or 2^32 - 1 for none
//   nll       out  f32  [rows]          lse - logits[target]; 0 without a target
//   lse       out  f32  [rows]          logarithm of the sum of e^logits; 0 without a target
//   d_logits  out  bf16 [rows, stride]  scale * d(nll + z_loss * lse^2); zeros without a target and beyond
//                                       vocab; not written when null
//   loss      in   f32  [2]             scale, z_loss; not read when d_logits is null
//   sums      out  f64  [2]             cross_entropy_sums: of nll, of lse^2
//
// Needs      stride % 8 == 0; vocab <= stride; targets below vocab. Checked in cross_entropy/cuda.rs,
//            not here.
// Launch     cross_entropy_rows: grid = (rows), block = (512), shared memory 2 floats a warp.
//            cross_entropy_sums: grid = (1), block = (1024), shared memory a double a warp. sm_80 or newer.
// Moves      4 bytes read an element, twice (the second time from L2), 2 written. Memory-bound.
// Numbers    f32, sums in a fixed order; the gradient is rounded to bf16 once. sums in f64.
// Source     none. CPU twin: cross_entropy/cpu.rs.

#include "device.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr u32 NO_TARGET = 0xffffffffu;

// Reads four logits; what is beyond the vocabulary is -inf.
__device__ __forceinline__ float4 read_four(const float* row, u32 i, u32 vocab) {
    float4 x = reinterpret_cast<const float4*>(row)[i];
    const u32 first = 4 * i;
    x.x = first < vocab ? x.x : -INFINITY;
    x.y = first + 1 < vocab ? x.y : -INFINITY;
    x.z = first + 2 < vocab ? x.z : -INFINITY;
    x.w = first + 3 < vocab ? x.w : -INFINITY;
    return x;
}

// Logarithm of the sum of e^x over the row; every thread gets the same bits.
__device__ __forceinline__ float log_sum_exp(const float* row, u32 vocab, u32 n_fours) {
    float* scratch = reinterpret_cast<float*>(shared);
    const u32 warp = threadIdx.x / WARP, n_warps = blockDim.x / WARP;
    float highest = -INFINITY, mass = 0.0f;
    for (u32 i = threadIdx.x; i < n_fours; i += blockDim.x) {
        const float4 x = read_four(row, i, vocab);
        const float top = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
        if (top > highest) {
            mass *= exp2_fast((highest - top) * LOG2_E);
            highest = top;
        }
        if (highest != -INFINITY) {
            mass += exp2_fast((x.x - highest) * LOG2_E) + exp2_fast((x.y - highest) * LOG2_E) +
                    exp2_fast((x.z - highest) * LOG2_E) + exp2_fast((x.w - highest) * LOG2_E);
        }
    }
    float top = highest;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, distance));
    }
    mass = warp_sum(highest == -INFINITY ? 0.0f : mass * exp2_fast((highest - top) * LOG2_E));
    if (threadIdx.x % WARP == 0) {
        scratch[warp] = top;
        scratch[n_warps + warp] = mass;
    }
    __syncthreads();
    float row_top = scratch[0];
    for (u32 i = 1; i < n_warps; i++) {
        row_top = fmaxf(row_top, scratch[i]);
    }
    float total = 0.0f;
    for (u32 i = 0; i < n_warps; i++) {
        const float by = scratch[i] == -INFINITY ? 0.0f : exp2_fast((scratch[i] - row_top) * LOG2_E);
        total = fmaf(scratch[n_warps + i], by, total);
    }
    return row_top + logf(total);
}

extern "C" __global__ void __launch_bounds__(512)
cross_entropy_rows(const float* logits, const u32* targets, float* nll, float* lse, bf16* d_logits,
                   int vocab, int stride, const float* loss) {
    const float* row = logits + size_t(blockIdx.x) * u32(stride);
    const u32 target = targets[blockIdx.x], n_fours = u32(stride) / 4;
    float row_lse = 0.0f;
    if (target != NO_TARGET) {
        row_lse = log_sum_exp(row, u32(vocab), n_fours);
    }
    if (threadIdx.x == 0) {
        nll[blockIdx.x] = target == NO_TARGET ? 0.0f : row_lse - row[target];
        lse[blockIdx.x] = row_lse;
    }
    if (d_logits == nullptr) {
        return;
    }
    uint2* d_row = reinterpret_cast<uint2*>(d_logits + size_t(blockIdx.x) * u32(stride));
    const float scale = loss[0], z_loss = loss[1];
    const float by = scale * fmaf(2.0f * z_loss, row_lse, 1.0f);
    for (u32 i = threadIdx.x; i < n_fours; i += blockDim.x) {
        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (target != NO_TARGET) {
            const float4 x = read_four(row, i, u32(vocab));
            const float four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                d[j] = by * exp2_fast((four[j] - row_lse) * LOG2_E);
                d[j] -= 4 * i + j == target ? scale : 0.0f;
            }
        }
        d_row[i] = make_uint2(pack_bf16(d[0], d[1]), pack_bf16(d[2], d[3]));
    }
}

extern "C" __global__ void __launch_bounds__(1024)
cross_entropy_sums(const float* nll, const float* lse, double* sums, int rows) {
    double* scratch = reinterpret_cast<double*>(shared);
    double sum = 0.0, squares = 0.0;
    for (u32 i = threadIdx.x; i < u32(rows); i += 1024) {
        sum += double(nll[i]);
        squares += double(lse[i]) * double(lse[i]);
    }
    sum = block_sum(sum, scratch);
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) {
        sums[0] = sum;
        sums[1] = squares;
    }
}
