// What the attention kernels share: the mask and the running softmax over scores as mma_bf16 leaves
// them, s[n] being the lane's part of the n-th block of eight keys.

#pragma once

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Scores of keys that a row does not see become -inf. `row` is the lane's first of two.
// Where documents start is read here, in the few tiles that need it, to keep registers.
template <u32 BLOCKS>
__device__ __forceinline__ void mask(float (&s)[BLOCKS][4], u32 first_key, u32 row,
                                     const u32* starts, u32 n_rows) {
    const u32 lane = threadIdx.x % WARP;
    const u32 row_start[2] = {row < n_rows ? starts[row] : 0xffffffffu,
                              row + 8 < n_rows ? starts[row + 8] : 0xffffffffu};
#pragma unroll
    for (u32 n = 0; n < BLOCKS; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 key = first_key + n * 8 + lane % 4 * 2 + i % 2;
            const bool seen = key <= row + i / 2 * 8 && key >= row_start[i / 2];
            s[n][i] = seen ? s[n][i] : -INFINITY;
        }
    }
}

// Turns scores into weights relative to the highest score so far; `rescale` is what the sums before
// are to be multiplied with.
template <u32 BLOCKS>
__device__ __forceinline__ void soften(float (&s)[BLOCKS][4], float (&highest)[2], float (&mass)[2],
                                       float (&rescale)[2], float scale_log2) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float top = highest[half];
#pragma unroll
        for (u32 n = 0; n < BLOCKS; n++) {
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        top = quad_max(top);
        // A row that has seen no key yet stays at zero mass.
        const float base = top == -INFINITY ? 0.0f : top * scale_log2;
        rescale[half] = exp2_fast(highest[half] * scale_log2 - base);
        highest[half] = top;
        float added = 0.0f;
#pragma unroll
        for (u32 n = 0; n < BLOCKS; n++) {
#pragma unroll
            for (u32 i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = exp2_fast(fmaf(s[n][i], scale_log2, -base));
                added += s[n][i];
            }
        }
        mass[half] = fmaf(mass[half], rescale[half], added);
    }
}

// Multiplies each half of the rows.
template <u32 BLOCKS>
__device__ __forceinline__ void scale_rows(float (&sum)[BLOCKS][4], const float (&by)[2]) {
#pragma unroll
    for (u32 n = 0; n < BLOCKS; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            sum[n][i] *= by[i / 2];
        }
    }
}
