// qk_norm_rope: RMS norm of each query and key head, then rotation of the pairs (i, i + head_dim / 2)
//
//   qkv        in       bf16 [t, width]  rows [q heads | k heads | v heads], 4-byte aligned
//   gains      in       bf16 [2, head_dim]  of queries, then of keys
//   positions  in       u32  [t]         row of each token in the table
//   table      in       f32  [positions, head_dim]  cosines of each frequency, then sines
//   out        out      bf16 [t, width]  the values are copied; may be qkv (in place)
//   rstd       out, in  f32  [t, q and k heads]  kept for the backward pass
//   d_out      in       bf16 [t, width]  qk_norm_rope_backward
//   d_qkv      out      bf16 [t, width]  overwritten; may be d_out (in place)
//   d_gains    out      f32  [blocks, 2, head_dim]  a block's share; sum_rows_f32 adds them up
//
// Needs      head_dim 64 or 128 (one kernel each); positions inside the table. Checked in
//            qk_norm_rope/cuda.rs, not here.
// Launch     forward: grid = (t * heads / 8, rounded up), block = (256), a warp a head. backward: grid =
//            (any), block = (256), shared memory 16 * head_dim floats; heads go round the warps. sm_80 or
//            newer.
// Moves      forward: qkv once in, once out. backward: d_out and qkv in, d_qkv out. Memory-bound.
// Numbers    f32 inside, one rounding to bf16 at the store. Sums in a fixed order, no atomics.
// Source     Su et al., RoFormer, arXiv 2104.09864; the per-head norm of Qwen3. CPU twin:
//            qk_norm_rope/cpu.rs.

#include "device.cuh"

// Elements of each half of a head that a lane holds: one or two neighbours.
template <u32 DIM>
struct Pairs {
    static constexpr u32 N = DIM / 64;
    float low[N], high[N];
};

template <u32 DIM>
__device__ __forceinline__ Pairs<DIM> read_head(const bf16* head) {
    const u32 lane = threadIdx.x % WARP;
    Pairs<DIM> x;
    if (DIM == 128) {
        const u32 low = reinterpret_cast<const u32*>(head)[lane];
        const u32 high = reinterpret_cast<const u32*>(head + DIM / 2)[lane];
        x.low[0] = low_float(low);
        x.high[0] = low_float(high);
        x.low[Pairs<DIM>::N - 1] = high_float(low);
        x.high[Pairs<DIM>::N - 1] = high_float(high);
    } else {
        x.low[0] = to_float(head[lane]);
        x.high[0] = to_float(head[DIM / 2 + lane]);
    }
    return x;
}

template <u32 DIM>
__device__ __forceinline__ void write_head(bf16* head, const Pairs<DIM>& x) {
    const u32 lane = threadIdx.x % WARP;
    if (DIM == 128) {
        constexpr u32 LAST = Pairs<DIM>::N - 1;
        reinterpret_cast<u32*>(head)[lane] = pack_bf16(x.low[0], x.low[LAST]);
        reinterpret_cast<u32*>(head + DIM / 2)[lane] = pack_bf16(x.high[0], x.high[LAST]);
    } else {
        head[lane] = to_bf16(x.low[0]);
        head[DIM / 2 + lane] = to_bf16(x.high[0]);
    }
}

// Turns the pairs by the angles of a position, or back.
template <u32 DIM>
__device__ __forceinline__ void rotate(Pairs<DIM>& x, const float* table, u32 position,
                                       float direction) {
    const float* row = table + size_t(position) * DIM;
#pragma unroll
    for (u32 n = 0; n < Pairs<DIM>::N; n++) {
        const u32 i = threadIdx.x % WARP * Pairs<DIM>::N + n;
        const float cosine = row[i], sine = row[DIM / 2 + i] * direction;
        const float low = x.low[n], high = x.high[n];
        x.low[n] = fmaf(low, cosine, -(high * sine));
        x.high[n] = fmaf(high, cosine, low * sine);
    }
}

template <u32 DIM>
__device__ __forceinline__ void forward(const bf16* qkv, const bf16* gains, const u32* positions,
                                        const float* table, bf16* out, float* rstd, int t,
                                        int n_heads, int n_kv_heads, float eps) {
    const u32 n_normed = u32(n_heads + n_kv_heads), n_all = n_normed + u32(n_kv_heads);
    const u64 item = u64(blockIdx.x) * 8 + threadIdx.x / WARP;
    if (item >= u64(t) * n_all) {
        return;
    }
    const u32 token = u32(item / n_all), head = u32(item % n_all);
    Pairs<DIM> x = read_head<DIM>(qkv + item * DIM);
    if (head < n_normed) {
        const Pairs<DIM> gain = read_head<DIM>(gains + (head < u32(n_heads) ? 0 : DIM));
        float squares = 0.0f;
#pragma unroll
        for (u32 n = 0; n < Pairs<DIM>::N; n++) {
            squares = fmaf(x.low[n], x.low[n], squares);
            squares = fmaf(x.high[n], x.high[n], squares);
        }
        const float by = 1.0f / sqrtf(warp_sum(squares) / float(DIM) + eps);
        if (threadIdx.x % WARP == 0) {
            rstd[size_t(token) * n_normed + head] = by;
        }
#pragma unroll
        for (u32 n = 0; n < Pairs<DIM>::N; n++) {
            x.low[n] = x.low[n] * by * gain.low[n];
            x.high[n] = x.high[n] * by * gain.high[n];
        }
        rotate<DIM>(x, table, positions[token], 1.0f);
    }
    write_head<DIM>(out + item * DIM, x);
}

template <u32 DIM>
__device__ __forceinline__ void backward(const bf16* d_out, const bf16* qkv, const bf16* gains,
                                         const u32* positions, const float* table,
                                         const float* rstd, bf16* d_qkv, float* d_gains, int t,
                                         int n_heads, int n_kv_heads) {
    constexpr u32 N = Pairs<DIM>::N;
    const u32 n_normed = u32(n_heads + n_kv_heads), n_all = n_normed + u32(n_kv_heads);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u64 n_items = u64(t) * n_all;
    Pairs<DIM> d_gain[2] = {};
    for (u64 item = u64(blockIdx.x) * 8 + warp; item < n_items; item += u64(gridDim.x) * 8) {
        const u32 token = u32(item / n_all), head = u32(item % n_all);
        Pairs<DIM> d = read_head<DIM>(d_out + item * DIM);
        if (head < n_normed) {
            const bool is_key = head >= u32(n_heads);
            const Pairs<DIM> x = read_head<DIM>(qkv + item * DIM);
            const Pairs<DIM> gain = read_head<DIM>(gains + (is_key ? DIM : 0));
            const float by = rstd[size_t(token) * n_normed + head];
            rotate<DIM>(d, table, positions[token], -1.0f);
            float dot = 0.0f;
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                const float low = d.low[n] * x.low[n] * by, high = d.high[n] * x.high[n] * by;
#pragma unroll
                for (u32 which = 0; which < 2; which++) {
                    d_gain[which].low[n] += is_key == (which == 1) ? low : 0.0f;
                    d_gain[which].high[n] += is_key == (which == 1) ? high : 0.0f;
                }
                dot = fmaf(d.low[n] * gain.low[n], x.low[n], dot);
                dot = fmaf(d.high[n] * gain.high[n], x.high[n], dot);
            }
            const float slope = warp_sum(dot) / float(DIM) * by * by;
#pragma unroll
            for (u32 n = 0; n < N; n++) {
                d.low[n] = by * fmaf(-x.low[n], slope, d.low[n] * gain.low[n]);
                d.high[n] = by * fmaf(-x.high[n], slope, d.high[n] * gain.high[n]);
            }
        }
        write_head<DIM>(d_qkv + item * DIM, d);
    }
    // [warp][query or key][DIM]
    float* shares = reinterpret_cast<float*>(shared);
#pragma unroll
    for (u32 which = 0; which < 2; which++) {
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            const u32 at = (warp * 2 + which) * DIM + lane * N + n;
            shares[at] = d_gain[which].low[n];
            shares[at + DIM / 2] = d_gain[which].high[n];
        }
    }
    __syncthreads();
    if (threadIdx.x < 2 * DIM) {
        float sum = 0.0f;
        for (u32 i = 0; i < 8; i++) {
            sum += shares[i * 2 * DIM + threadIdx.x];
        }
        d_gains[size_t(blockIdx.x) * 2 * DIM + threadIdx.x] = sum;
    }
}

#define QK_NORM_ROPE(DIM)                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                             \
    qk_norm_rope_##DIM(const bf16* qkv, const bf16* gains, const u32* positions,                  \
                       const float* table, bf16* out, float* rstd, int t, int n_heads,            \
                       int n_kv_heads, float eps) {                                               \
        forward<DIM>(qkv, gains, positions, table, out, rstd, t, n_heads, n_kv_heads, eps);        \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                             \
    qk_norm_rope_backward_##DIM(const bf16* d_out, const bf16* qkv, const bf16* gains,            \
                                const u32* positions, const float* table, const float* rstd,      \
                                bf16* d_qkv, float* d_gains, int t, int n_heads,                  \
                                int n_kv_heads) {                                                 \
        backward<DIM>(d_out, qkv, gains, positions, table, rstd, d_qkv, d_gains, t, n_heads,       \
                      n_kv_heads);                                                                \
    }

QK_NORM_ROPE(64)
QK_NORM_ROPE(128)
