// int8_search: for each query the values with the highest score, best first
//   score[q, v] = (dot[q, v] * value_scale[v]) * query_scale[q], dot = sum_c query[q, c] * value[v, c]
//
//   queries     in      s8   [n_queries, columns]   16-byte aligned
//   values      in      s8   [n_values, columns]    16-byte aligned
//   *_scales    in      f32  [n_queries], [n_values]
//   thresholds  in/out  f32  [n_queries]  lower scores cannot be among the best
//   hits        in/out  u64  [n_queries, capacity]  candidates: the score's bits in order, then ~id
//   counts      in/out  u32  [n_queries]  candidates found; beyond capacity they are counted only
//   kept        out     u32  [n_queries]  counts after a selection
//   overflow    in/out  u32  [1]          1 when a count is beyond capacity
//
// Needs      columns % 64 == 0, padded with zeros; capacity a power of two; k <= capacity.
//            Checked in int8_search/cuda.rs, not here.
// Launch     _tiles: grid = (query tiles * value tiles), block = (256), 96 KiB of shared memory. _overflow:
//            grid = (n_queries / 256, rounded up), block = (256). _select: grid = (n_queries), block =
//            (256), shared memory 8 bytes a candidate. sm_80 or newer.
// Moves      queries once per 256 values and values once per 128 queries, from L2; 2 * columns OP per pair.
//            Compute-bound: scores never reach memory, only the few above their query's threshold do.
// Numbers    Exact integers, then two roundings: the bits of the CPU's scores. Candidates arrive in any
//            order, through an integer atomic; their selection is by (score, id), so results are equal.
// Source     none. CPU twin: int8_search.rs.

#include "device.cuh"

constexpr u32 QUERIES = 128;
constexpr u32 VALUES = 256;
// Columns of a slice: four 16-byte pieces.
constexpr u32 SLICE = 64;
constexpr u32 STAGES = 4;
constexpr u32 THREADS = 256;
constexpr u32 STAGE_BYTES = (QUERIES + VALUES) * SLICE;

// Where piece `piece` of row `row` of a slice lies: eight rows read together are in different banks.
__device__ __forceinline__ u32 place(u32 row, u32 piece) {
    return row * SLICE + ((piece ^ (row / 2 % 4)) * 16);
}

template <u32 ROWS>
__device__ __forceinline__ void load_slice(u8* to, const signed char* from, u32 first, u32 n_rows,
                                           u32 columns, u32 column) {
#pragma unroll
    for (u32 n = 0; n < ROWS * 4 / THREADS; n++) {
        const u32 i = n * THREADS + threadIdx.x, row = i / 4, piece = i % 4;
        const bool wanted = first + row < n_rows;
        const size_t at = size_t(wanted ? first + row : 0) * columns + column + piece * 16;
        copy_start(to + place(row, piece), from + at, wanted);
    }
}

// Bits that are in the order of the floats.
__device__ __forceinline__ u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(u32 bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

extern "C" __global__ void __launch_bounds__(256)
int8_search_tiles(const signed char* queries, const float* query_scales, const signed char* values,
                  const float* value_scales, const float* thresholds, u64* hits, u32* counts,
                  int n_queries, int n_values, int columns, int capacity, u32 first_query,
                  u32 first_value, int exclude_own) {
    const u32 query_tiles = (u32(n_queries) + QUERIES - 1) / QUERIES;
    // Neighbouring blocks share a tile of values.
    const u32 query0 = blockIdx.x % query_tiles * QUERIES;
    const u32 value0 = blockIdx.x / query_tiles * VALUES;
    const u32 n_slices = u32(columns) / SLICE;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warp_row = warp / 4 * 64, warp_column = warp % 4 * 64;

    const auto load = [&](u32 slice) {
        u8* stage = shared + slice % STAGES * STAGE_BYTES;
        const u32 column = slice * SLICE;
        load_slice<QUERIES>(stage, queries, query0, u32(n_queries), u32(columns), column);
        load_slice<VALUES>(stage + QUERIES * SLICE, values, value0, u32(n_values), u32(columns),
                           column);
    };
#pragma unroll
    for (u32 slice = 0; slice < STAGES - 1; slice++) {
        if (slice < n_slices) {
            load(slice);
        }
        copies_commit();
    }
    int dots[4][8][4] = {};
    for (u32 slice = 0; slice < n_slices; slice++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        // The stage that is filled now was read before this barrier.
        if (slice + STAGES - 1 < n_slices) {
            load(slice + STAGES - 1);
        }
        copies_commit();
        const u8* query_slice = shared + slice % STAGES * STAGE_BYTES;
        const u8* value_slice = query_slice + QUERIES * SLICE;
#pragma unroll
        for (u32 piece = 0; piece < 4; piece += 2) {
            u32 a[4][4];
#pragma unroll
            for (u32 m = 0; m < 4; m++) {
                load_matrices(a[m], query_slice + place(warp_row + m * 16 + lane % 16,
                                                        piece + lane / 16));
            }
#pragma unroll
            for (u32 n = 0; n < 8; n += 2) {
                u32 b[4];
                load_matrices(b, value_slice + place(warp_column + n * 8 + lane / 16 * 8 + lane % 8,
                                                     piece + lane / 8 % 2));
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
                    mma_s8(dots[m][n], a[m], b[0], b[1]);
                    mma_s8(dots[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // NaN lets nothing pass: rows and columns that are not there.
    const float none = __uint_as_float(0x7fc00000u);
    float column_scales[8][2];
#pragma unroll
    for (u32 n = 0; n < 8; n++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 value = value0 + warp_column + n * 8 + lane % 4 * 2 + i;
            column_scales[n][i] = value < u32(n_values) ? value_scales[value] : none;
        }
    }
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 query = query0 + warp_row + m * 16 + half * 8 + lane / 4;
            const bool real = query < u32(n_queries);
            const float threshold = real ? thresholds[query] : none;
            const float scale = real ? query_scales[query] : 0.0f;
#pragma unroll
            for (u32 n = 0; n < 8; n++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const int dot = dots[m][n][2 * half + i];
                    const float score = (float(dot) * column_scales[n][i]) * scale;
                    if (score >= threshold) {
                        const u32 value = value0 + warp_column + n * 8 + lane % 4 * 2 + i;
                        const u32 id = first_value + value;
                        if (exclude_own == 0 || id != first_query + query) {
                            const u32 slot = atomicAdd(counts + query, 1u);
                            if (slot < u32(capacity)) {
                                hits[size_t(query) * u32(capacity) + slot] =
                                    u64(ordered(score)) << 32 | u32(~id);
                            }
                        }
                    }
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
int8_search_overflow(const u32* counts, u32* overflow, int n_queries, int capacity) {
    const u32 query = blockIdx.x * 256 + threadIdx.x;
    if (query < u32(n_queries) && counts[query] > u32(capacity)) {
        overflow[0] = 1;
    }
}

extern "C" __global__ void __launch_bounds__(256)
int8_search_select(u64* hits, u32* counts, u32* kept, float* thresholds, int capacity, int k) {
    u64* keys = reinterpret_cast<u64*>(shared);
    u64* bucket = hits + size_t(blockIdx.x) * u32(capacity);
    const u32 n = counts[blockIdx.x];
    u32 size = 1;
    while (size < n) {
        size *= 2;
    }
    // A key of 0 is below all hits: its id would be 2^32 - 1.
    for (u32 i = threadIdx.x; i < size; i += 256) {
        keys[i] = i < n ? bucket[i] : 0;
    }
    // Batcher's bitonic sort, descending.
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 distance = run / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < size / 2; i += 256) {
                const u32 low = i / distance * 2 * distance + i % distance;
                const u64 a = keys[low], b = keys[low + distance];
                if ((a < b) == ((low & run) == 0)) {
                    keys[low] = b;
                    keys[low + distance] = a;
                }
            }
        }
    }
    __syncthreads();
    const u32 n_kept = min(n, u32(k));
    for (u32 i = threadIdx.x; i < n_kept; i += 256) {
        bucket[i] = keys[i];
    }
    if (threadIdx.x == 0) {
        counts[blockIdx.x] = n_kept;
        kept[blockIdx.x] = n_kept;
        if (n_kept == u32(k)) {
            thresholds[blockIdx.x] = unordered(u32(keys[n_kept - 1] >> 32));
        }
    }
}
