// decode: attention of single queries over a paged cache of keys and values
//
//   qkv     in      bf16 [rows, width]  rows [q heads | k heads | v heads], rotated; 16-byte aligned
//   keys    in/out  bf16 [pages, n_kv_heads, 16, head_dim]  of one layer, 16-byte aligned
//   values  in/out  bf16 [pages, n_kv_heads, 16, head_dim]
//   slots   in      u32  [rows]         where a row's key and value go: page * 16 + offset
//   tables  in      u32  [rows, table_width]  pages of a row's sequence in order
//   counts  in      u32  [rows]         positions that a row attends to, its own included; at least 1
//   out     out     bf16 [rows, q_width]
//
// Needs      head_dim 64 or 128 (one kernel each); pages and slots
//            inside the cache; the key and value of every position written before. Checked in
//            decode/cuda.rs, not here.
// Launch     decode_write: grid = (rows), block = (128). decode_attend: grid = (rows; n_kv_heads), block =
//            (256), shared memory 64 * (head_dim + 2) floats. sm_80 or newer.
// Moves      decode_attend: every key and value of a row's sequence once for the query heads that share
//            them; 4 * head_dim FLOP per pair. Memory-bound.
// Numbers    f32 inside; eight warps take every eighth page with running maxima, and are merged in order:
//            what a row gets does not depend on the other rows. One rounding at the store.
// Source     Kwon et al., PagedAttention, arXiv 2309.06180, for the cache. CPU twin: decode/attention.rs.

#include "device.cuh"

constexpr u32 PAGE = 16;
constexpr u32 WARPS = 8;
constexpr float LOG2_E = 1.4426950408889634f;

extern "C" __global__ void __launch_bounds__(128)
decode_write(const bf16* qkv, const u32* slots, bf16* keys, bf16* values, int n_heads,
             int n_kv_heads, int head_dim) {
    const u32 pieces = u32(head_dim) / 8, slot = slots[blockIdx.x];
    const u32 width = u32(n_heads + 2 * n_kv_heads) * pieces;
    const uint4* row = reinterpret_cast<const uint4*>(qkv) + size_t(blockIdx.x) * width;
    const u32 n = u32(n_kv_heads) * pieces;
    for (u32 i = threadIdx.x; i < 2 * n; i += 128) {
        const u32 head = i % n / pieces, piece = i % pieces;
        const size_t at =
            ((size_t(slot / PAGE) * u32(n_kv_heads) + head) * PAGE + slot % PAGE) * pieces + piece;
        reinterpret_cast<uint4*>(i < n ? keys : values)[at] = row[u32(n_heads) * pieces + i];
    }
}

// Elements c.. + 8 of a query, key or value of a lane; DIM / 8 lanes share a position.
template <u32 DIM>
__device__ __forceinline__ void attend(const bf16* qkv, const bf16* keys, const bf16* values,
                                       const u32* tables, const u32* counts, bf16* out, int n_heads,
                                       int n_kv_heads, int table_width, float scale) {
    constexpr u32 LANES = DIM / 8;
    constexpr u32 AT_ONCE = WARP / LANES;
    const u32 row = blockIdx.x, kv_head = blockIdx.y, group = u32(n_heads / n_kv_heads);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 column = lane % LANES * 8, which = lane / LANES;
    const u32 count = counts[row], n_pages = (count + PAGE - 1) / PAGE;
    const u32* table = tables + size_t(row) * u32(table_width);
    const bf16* q_row = qkv + size_t(row) * u32(n_heads + 2 * n_kv_heads) * DIM + kv_head * group * DIM;
    float* merged = reinterpret_cast<float*>(shared);

    // One query head at a time, so that registers do not depend on the group; pages come from L1.
    for (u32 head = 0; head < group; head++) {
        float q[8], sum[8] = {};
        unpack8(*reinterpret_cast<const uint4*>(q_row + head * DIM + column), q);
        float highest = -INFINITY, mass = 0.0f;
        for (u32 n = warp; n < n_pages; n += WARPS) {
            const size_t page = (size_t(table[n]) * u32(n_kv_heads) + kv_head) * PAGE * DIM;
#pragma unroll
            for (u32 first = 0; first < PAGE; first += AT_ONCE) {
                const u32 offset = first + which;
                const bool seen = n * PAGE + offset < count;
                float k[8], v[8];
                // What is not seen may never have been written.
                const uint4 zero = make_uint4(0, 0, 0, 0);
                const size_t at = page + offset * DIM + column;
                unpack8(seen ? *reinterpret_cast<const uint4*>(keys + at) : zero, k);
                unpack8(seen ? *reinterpret_cast<const uint4*>(values + at) : zero, v);
                float score = 0.0f;
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    score = fmaf(q[i], k[i], score);
                }
#pragma unroll
                for (u32 distance = LANES / 2; distance > 0; distance /= 2) {
                    score += __shfl_xor_sync(ALL_LANES, score, distance);
                }
                if (seen) {
                    score *= scale * LOG2_E;
                    const float top = fmaxf(highest, score);
                    const float rescale = exp2_fast(highest - top), p = exp2_fast(score - top);
                    highest = top;
                    mass = fmaf(mass, rescale, p);
#pragma unroll
                    for (u32 i = 0; i < 8; i++) {
                        sum[i] = fmaf(sum[i], rescale, p * v[i]);
                    }
                }
            }
        }
        // Each (warp, position lane) leaves its sums; one warp merges them in order.
        const u32 slot = warp * AT_ONCE + which;
        float* own = merged + slot * (DIM + 2);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            own[column + i] = sum[i];
        }
        if (lane % LANES == 0) {
            own[DIM] = highest;
            own[DIM + 1] = mass;
        }
        __syncthreads();
        float top = -INFINITY;
        for (u32 i = 0; i < WARPS * AT_ONCE; i++) {
            top = fmaxf(top, merged[i * (DIM + 2) + DIM]);
        }
        if (threadIdx.x < DIM) {
            float total = 0.0f, value = 0.0f;
            for (u32 i = 0; i < WARPS * AT_ONCE; i++) {
                const float* part = merged + i * (DIM + 2);
                const float by = exp2_fast(part[DIM] - top);
                total = fmaf(part[DIM + 1], by, total);
                value = fmaf(part[threadIdx.x], by, value);
            }
            const size_t at = (size_t(row) * u32(n_heads) + kv_head * group + head) * DIM;
            out[at + threadIdx.x] = to_bf16(value / total);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256)
decode_attend_64(const bf16* qkv, const bf16* keys, const bf16* values, const u32* tables,
                 const u32* counts, bf16* out, int n_heads, int n_kv_heads, int table_width,
                 float scale) {
    attend<64>(qkv, keys, values, tables, counts, out, n_heads, n_kv_heads, table_width, scale);
}

extern "C" __global__ void __launch_bounds__(256)
decode_attend_128(const bf16* qkv, const bf16* keys, const bf16* values, const u32* tables,
                  const u32* counts, bf16* out, int n_heads, int n_kv_heads, int table_width,
                  float scale) {
    attend<128>(qkv, keys, values, tables, counts, out, n_heads, n_kv_heads, table_width, scale);
}
