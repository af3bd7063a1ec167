// attention: out[i] = sum_j softmax_j(q[i] . k[j] * scale) v[j] over j in starts[i]..=i, for each head
//
//   qkv      in   bf16 [t, qkv_width]  rows [q heads | k heads | v heads], 16-byte aligned
//   starts   in   u32  [t]             first token of each token's document, not decreasing
//   out      out  bf16 [t, q_width]    16-byte aligned
//   lse      out  f32  [t, n_heads]    logarithm of the softmax's denominator
//   d_out    in   bf16 [t, q_width]    backward passes
//   delta    out, in  f32 [t, n_heads] sum_c out * d_out, written by attention_delta
//   ends     in   u32  [t]             one past the last token of each token's document
//   d_qkv    out  bf16 [t, qkv_width]  overwritten: queries by attention_backward_q, the rest by _kv
//
// Needs      t > 0; head_dim 64 or 128 (one kernel each); n_heads a multiple of n_kv_heads; scale > 0.
//            Checked in attention/cuda.rs, not here.
// Launch     forward: grid = (t / 128, rounded up; n_heads). _q: (t / 64; n_heads). _kv: (t / 64;
//            n_kv_heads). block = (128). Shared memory in tiles of 64 x head_dim bf16: 6, 5, and for _kv
//            six (head_dim 64) or four and 6 words a query. _delta: grid = (t), block = (128). sm_80 or
//            newer.
// Moves      forward: a head's queries and outputs once, keys and values once per 128 queries that can
//            see them, mostly from L2; 4 * head_dim FLOP per pair seen. Compute-bound. backward: 14.
// Numbers    Products of bf16 with f32 sums; probabilities are rounded to bf16 before they multiply;
//            softmax in f32 with running maxima. Every output element is owned by one thread, and its
//            sum runs over tiles in order: no atomics, two launches give the same bits.
// Source     Dao, FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2; the backward pass is split in
//            two so that neither half needs atomics. CPU twin: attention/cpu.rs.

#include "device.cuh"
#include "softmax.cuh"

// Rows of every tile: queries or keys.
constexpr u32 TILE = 64;
constexpr u32 THREADS = 128;

struct Heads {
    u32 n_heads, n_kv_heads, qkv_width, q_width;
};

template <u32 DIM>
__device__ __forceinline__ Heads heads(int n_heads, int n_kv_heads) {
    return {u32(n_heads), u32(n_kv_heads), u32(n_heads + 2 * n_kv_heads) * DIM, u32(n_heads) * DIM};
}

// Where element (row, column) of a [TILE, DIM] tile lies. The eight 16-byte pieces that ldmatrix
// reads together are of eight rows, so pieces are turned by the row to lie in different banks.
template <u32 DIM>
__device__ __forceinline__ u32 place(u32 row, u32 column) {
    return row * DIM + (((column / 8) ^ (row % 8)) * 8);
}

// Starts to copy rows first.. of a matrix to a tile; rows from n_rows on become zeros.
template <u32 DIM, u32 ROWS = TILE>
__device__ __forceinline__ void load_tile(bf16* tile, const bf16* from, u32 stride, u32 first,
                                          u32 n_rows) {
    constexpr u32 PIECES = DIM / 8;
#pragma unroll
    for (u32 n = 0; n < ROWS * PIECES / THREADS; n++) {
        const u32 i = n * THREADS + threadIdx.x;
        const u32 row = i / PIECES, column = i % PIECES * 8;
        const bool wanted = first + row < n_rows;
        const size_t at = size_t(wanted ? first + row : 0) * stride + column;
        copy_start(tile + place<DIM>(row, column), from + at, wanted);
    }
}

// Fragments of mma's first operand: rows row.. + 16, columns column.. + 16 of a tile.
template <u32 DIM>
__device__ __forceinline__ void load_a(u32 (&a)[4], const bf16* tile, u32 row, u32 column) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(a, tile + place<DIM>(row + lane % 16, column + lane / 16 * 8));
}

// Fragments of mma's second operand for two blocks of eight: b[n][k] is in a tile's row n.
template <u32 DIM>
__device__ __forceinline__ void load_b(u32 (&b)[4], const bf16* tile, u32 n, u32 k) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(b, tile + place<DIM>(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
}

// The same where b[n][k] is in a tile's row k.
template <u32 DIM>
__device__ __forceinline__ void load_b_transposed(u32 (&b)[4], const bf16* tile, u32 n, u32 k) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices_transposed(b,
                             tile + place<DIM>(k + lane % 16, n + lane / 16 * 8));
}

// s[16 M, 8 BLOCKS] = a[16 M, DIM] * tile[8 BLOCKS, DIM]^T, the first operand from rows row.. of
// another tile. More rows a warp share each load of the second operand.
template <u32 DIM, u32 M, u32 BLOCKS>
__device__ __forceinline__ void scores(float (&s)[M][BLOCKS][4], const bf16* a_tile, u32 row,
                                       const bf16* b_tile) {
#pragma unroll
    for (u32 m = 0; m < M; m++) {
#pragma unroll
        for (u32 n = 0; n < BLOCKS; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                s[m][n][i] = 0.0f;
            }
        }
    }
#pragma unroll
    for (u32 k = 0; k < DIM; k += 16) {
        u32 a[M][4];
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            load_a<DIM>(a[m], a_tile, row + m * 16, k);
        }
#pragma unroll
        for (u32 n = 0; n < BLOCKS * 8; n += 16) {
            u32 b[4];
            load_b<DIM>(b, b_tile, n, k);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                mma_bf16(s[m][n / 8], a[m], b[0], b[1]);
                mma_bf16(s[m][n / 8 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// sum[16 M, DIM] += p[16 M, 8 BLOCKS] * tile[8 BLOCKS, DIM], with p rounded to bf16.
template <u32 DIM, u32 M, u32 BLOCKS>
__device__ __forceinline__ void add_product(float (&sum)[M][DIM / 8][4],
                                            const float (&p)[M][BLOCKS][4], const bf16* tile) {
#pragma unroll
    for (u32 k = 0; k < BLOCKS * 8; k += 16) {
        u32 a[M][4];
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            // The layout of two neighbouring results is that of one first operand.
            const float(&left)[4] = p[m][k / 8], (&right)[4] = p[m][k / 8 + 1];
            a[m][0] = pack_bf16(left[0], left[1]);
            a[m][1] = pack_bf16(left[2], left[3]);
            a[m][2] = pack_bf16(right[0], right[1]);
            a[m][3] = pack_bf16(right[2], right[3]);
        }
#pragma unroll
        for (u32 n = 0; n < DIM; n += 16) {
            u32 b[4];
            load_b_transposed<DIM>(b, tile, n, k);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                mma_bf16(sum[m][n / 8], a[m], b[0], b[1]);
                mma_bf16(sum[m][n / 8 + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Writes a warp's [16, DIM] result times a factor for each half of its rows, through rows from.. of a
// tile that only this warp uses.
template <u32 DIM>
__device__ __forceinline__ void store_rows(const float (&sum)[DIM / 8][4], const float (&by)[2],
                                           bf16* tile, u32 from, bf16* to, u32 stride, u32 first,
                                           u32 n_rows) {
    const u32 lane = threadIdx.x % WARP;
    __syncwarp();
#pragma unroll
    for (u32 n = 0; n < DIM / 8; n++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = from + half * 8 + lane / 4;
            const u32 pair = pack_bf16(sum[n][2 * half] * by[half], sum[n][2 * half + 1] * by[half]);
            *reinterpret_cast<u32*>(tile + place<DIM>(row, n * 8) + lane % 4 * 2) = pair;
        }
    }
    __syncwarp();
    constexpr u32 PIECES = DIM / 8;
#pragma unroll
    for (u32 i = lane; i < 16 * PIECES; i += WARP) {
        const u32 row = from + i / PIECES, column = i % PIECES * 8;
        if (first + row < n_rows) {
            *reinterpret_cast<uint4*>(to + size_t(first + row) * stride + column) =
                *reinterpret_cast<const uint4*>(tile + place<DIM>(row, column));
        }
    }
}

template <u32 DIM>
__device__ __forceinline__ void forward(const bf16* qkv, const u32* starts, bf16* out, float* lse,
                                        int t, int n_heads, int n_kv_heads, float scale) {
    // Queries of a block: two blocks of 16 a warp.
    constexpr u32 M = 2, QUERIES = 2 * TILE;
    // Keys whose scores are held at a time; more would not fit in the registers.
    constexpr u32 KEYS = DIM == 64 ? TILE : TILE / 2;
    const Heads by = heads<DIM>(n_heads, n_kv_heads);
    const u32 n_rows = u32(t), head = blockIdx.y, kv_head = head / (by.n_heads / by.n_kv_heads);
    // The last tiles see most keys and go first, so that no block is left for the end.
    const u32 first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    const bf16* keys = qkv + by.q_width + kv_head * DIM;
    const bf16* values = keys + by.n_kv_heads * DIM;

    bf16* q_tile = reinterpret_cast<bf16*>(shared);
    bf16* k_tiles = q_tile + QUERIES * DIM;
    bf16* v_tiles = k_tiles + 2 * TILE * DIM;

    const u32 last = min(first + QUERIES, n_rows) - 1;
    const u32 tile_start = starts[first] / TILE, tile_end = last / TILE + 1;
    const u32 last_start = starts[last];
    load_tile<DIM, QUERIES>(q_tile, qkv + head * DIM, by.qkv_width, first, n_rows);
    load_tile<DIM>(k_tiles, keys, by.qkv_width, tile_start * TILE, n_rows);
    copies_commit();
    load_tile<DIM>(v_tiles, values, by.qkv_width, tile_start * TILE, n_rows);
    copies_commit();

    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warp_row = warp * 16 * M;
    const float scale_log2 = scale * LOG2_E;
    float sum[M][DIM / 8][4] = {};
    float highest[M][2], mass[M][2] = {};
#pragma unroll
    for (u32 m = 0; m < M; m++) {
        highest[m][0] = highest[m][1] = -INFINITY;
    }

    for (u32 tile = tile_start; tile < tile_end; tile++) {
        const u32 stage = (tile - tile_start) % 2;
        copies_wait<1>();
        __syncthreads();
        // The other stage's tiles were read before this barrier, so they may be replaced.
        const bool more = tile + 1 < tile_end;
        if (more) {
            load_tile<DIM>(k_tiles + (1 - stage) * TILE * DIM, keys, by.qkv_width, (tile + 1) * TILE,
                           n_rows);
        }
        copies_commit();
        const bf16* k_tile = k_tiles + stage * TILE * DIM;
        const bf16* v_tile = v_tiles + stage * TILE * DIM;
        const bool masked = tile * TILE + TILE > first || tile * TILE < last_start;
#pragma unroll 1
        for (u32 part = 0; part < TILE; part += KEYS) {
            float s[M][KEYS / 8][4];
            scores<DIM>(s, q_tile, warp_row, k_tile + part * DIM);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
                const u32 row = first + warp_row + m * 16 + lane / 4;
                if (masked) {
                    mask(s[m], tile * TILE + part, row, starts, n_rows);
                }
                float rescale[2];
                soften(s[m], highest[m], mass[m], rescale, scale_log2);
                scale_rows(sum[m], rescale);
            }
            if (part == 0) {
                copies_wait<1>();
                __syncthreads();
                if (more) {
                    load_tile<DIM>(v_tiles + (1 - stage) * TILE * DIM, values, by.qkv_width,
                                   (tile + 1) * TILE, n_rows);
                }
                copies_commit();
            }
            add_product<DIM>(sum, s, v_tile + part * DIM);
        }
    }
#pragma unroll
    for (u32 m = 0; m < M; m++) {
        float by_mass[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float total = quad_sum(mass[m][half]);
            const u32 row = first + warp_row + m * 16 + half * 8 + lane / 4;
            by_mass[half] = 1.0f / total;
            if (lane % 4 == 0 && row < n_rows) {
                lse[size_t(row) * by.n_heads + head] = highest[m][half] * scale + logf(total);
            }
        }
        const u32 from = warp_row + m * 16;
        store_rows<DIM>(sum[m], by_mass, q_tile, from, out + head * DIM, by.q_width, first, n_rows);
    }
}

template <u32 DIM>
__device__ __forceinline__ void backward_q(const bf16* d_out, const bf16* qkv, const float* lse,
                                           const float* delta, const u32* starts, bf16* d_qkv,
                                           int t, int n_heads, int n_kv_heads, float scale) {
    const Heads by = heads<DIM>(n_heads, n_kv_heads);
    const u32 n_rows = u32(t), head = blockIdx.y, kv_head = head / (by.n_heads / by.n_kv_heads);
    const u32 first = (gridDim.x - 1 - blockIdx.x) * TILE;
    const bf16* keys = qkv + by.q_width + kv_head * DIM;
    const bf16* values = keys + by.n_kv_heads * DIM;

    bf16* q_tile = reinterpret_cast<bf16*>(shared);
    bf16* d_tile = q_tile + TILE * DIM;
    bf16* k_tiles = d_tile + TILE * DIM;
    bf16* v_tile = k_tiles + 2 * TILE * DIM;

    const u32 last = min(first + TILE, n_rows) - 1;
    const u32 tile_start = starts[first] / TILE, tile_end = last / TILE + 1;
    load_tile<DIM>(q_tile, qkv + head * DIM, by.qkv_width, first, n_rows);
    load_tile<DIM>(d_tile, d_out + head * DIM, by.q_width, first, n_rows);
    load_tile<DIM>(k_tiles, keys, by.qkv_width, tile_start * TILE, n_rows);
    copies_commit();

    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 row[2], row_start[2];
    float row_lse[2], row_delta[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        row[half] = first + warp * 16 + half * 8 + lane / 4;
        const bool real = row[half] < n_rows;
        row_start[half] = real ? starts[row[half]] : 0xffffffffu;
        const size_t at = size_t(row[half]) * by.n_heads + head;
        row_lse[half] = real ? lse[at] * LOG2_E : 0.0f;
        row_delta[half] = real ? delta[at] : 0.0f;
    }
    const float scale_log2 = scale * LOG2_E;
    float sum[1][DIM / 8][4] = {};

    for (u32 tile = tile_start; tile < tile_end; tile++) {
        const u32 stage = (tile - tile_start) % 2;
        bf16* k_tile = k_tiles + stage * TILE * DIM;
        // The value tile was read before the barrier that ended the iteration before.
        load_tile<DIM>(v_tile, values, by.qkv_width, tile * TILE, n_rows);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        float s[1][TILE / 8][4], d_p[1][TILE / 8][4];
        scores<DIM>(s, q_tile, warp * 16, k_tile);
        copies_wait<0>();
        __syncthreads();
        if (tile + 1 < tile_end) {
            load_tile<DIM>(k_tiles + (1 - stage) * TILE * DIM, keys, by.qkv_width,
                           (tile + 1) * TILE, n_rows);
        }
        copies_commit();
        scores<DIM>(d_p, d_tile, warp * 16, v_tile);
#pragma unroll
        for (u32 n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 key = tile * TILE + n * 8 + lane % 4 * 2 + i % 2;
                const bool seen = key <= row[i / 2] && key >= row_start[i / 2];
                const float p = exp2_fast(fmaf(s[0][n][i], scale_log2, -row_lse[i / 2]));
                s[0][n][i] = seen ? p * (d_p[0][n][i] - row_delta[i / 2]) : 0.0f;
            }
        }
        add_product<DIM>(sum, s, k_tile);
        __syncthreads();
    }
    copies_wait<0>();
    const float factors[2] = {scale, scale};
    store_rows<DIM>(sum[0], factors, q_tile, warp * 16, d_qkv + head * DIM, by.qkv_width, first,
                    n_rows);
}

// One block owns 64 keys and values of one key head and goes through all queries that see them. Rows
// of its products are keys, so probabilities stay in registers as first operands.
template <u32 DIM>
__device__ __forceinline__ void backward_kv(const bf16* d_out, const bf16* qkv, const float* lse,
                                            const float* delta, const u32* starts, const u32* ends,
                                            bf16* d_qkv, int t, int n_heads, int n_kv_heads,
                                            float scale) {
    // Queries of a step: more of them would not fit in the registers.
    constexpr u32 QUERIES = DIM == 64 ? 64 : 32;
    const Heads by = heads<DIM>(n_heads, n_kv_heads);
    const u32 n_rows = u32(t), kv_head = blockIdx.y, group = by.n_heads / by.n_kv_heads;
    // The first keys are seen by most queries.
    const u32 first = blockIdx.x * TILE;
    const size_t k_at = by.q_width + kv_head * DIM, v_at = k_at + by.n_kv_heads * DIM;

    bf16* k_tile = reinterpret_cast<bf16*>(shared);
    bf16* v_tile = k_tile + TILE * DIM;
    bf16* q_tiles = v_tile + TILE * DIM;
    bf16* d_tiles = q_tiles + 2 * QUERIES * DIM;
    // lse * log2(e), delta and starts of each query of a stage.
    float* lses = reinterpret_cast<float*>(d_tiles + 2 * QUERIES * DIM);
    float* deltas = lses + 2 * QUERIES;
    u32* query_starts = reinterpret_cast<u32*>(deltas + 2 * QUERIES);

    const u32 last = min(first + TILE, n_rows) - 1;
    const u32 tile_start = first / QUERIES;
    const u32 n_tiles = (ends[last] - 1) / QUERIES + 1 - tile_start;
    const auto load_queries = [&](u32 step, u32 stage) {
        const u32 head = kv_head * group + step / n_tiles;
        const u32 query = (tile_start + step % n_tiles) * QUERIES;
        const u32 at = stage * QUERIES * DIM;
        load_tile<DIM, QUERIES>(q_tiles + at, qkv + head * DIM, by.qkv_width, query, n_rows);
        load_tile<DIM, QUERIES>(d_tiles + at, d_out + head * DIM, by.q_width, query, n_rows);
        if (threadIdx.x < QUERIES) {
            const u32 i = query + threadIdx.x;
            const bool real = i < n_rows;
            const size_t at = size_t(i) * by.n_heads + head;
            lses[stage * QUERIES + threadIdx.x] = real ? lse[at] * LOG2_E : 0.0f;
            deltas[stage * QUERIES + threadIdx.x] = real ? delta[at] : 0.0f;
            // A query that is not there starts after every key.
            query_starts[stage * QUERIES + threadIdx.x] = real ? starts[i] : 0xffffffffu;
        }
    };
    load_tile<DIM>(k_tile, qkv + k_at, by.qkv_width, first, n_rows);
    load_tile<DIM>(v_tile, qkv + v_at, by.qkv_width, first, n_rows);
    load_queries(0, 0);
    copies_commit();

    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 key = first + warp * 16 + lane / 4;
    const float scale_log2 = scale * LOG2_E;
    float d_k[1][DIM / 8][4] = {}, d_v[1][DIM / 8][4] = {};

    for (u32 step = 0; step < group * n_tiles; step++) {
        const u32 stage = step % 2;
        copies_wait<0>();
        __syncthreads();
        // The other stage was read before this barrier.
        if (step + 1 < group * n_tiles) {
            load_queries(step + 1, 1 - stage);
        }
        copies_commit();
        const bf16* q_tile = q_tiles + stage * QUERIES * DIM;
        const bf16* d_tile = d_tiles + stage * QUERIES * DIM;
        const u32 query = (tile_start + step % n_tiles) * QUERIES;
        float s[1][QUERIES / 8][4];
        scores<DIM>(s, k_tile, warp * 16, q_tile);
#pragma unroll
        for (u32 n = 0; n < QUERIES / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = n * 8 + lane % 4 * 2 + i % 2, own = key + i / 2 * 8;
                const bool seen = own <= query + at && own >= query_starts[stage * QUERIES + at];
                const float p = exp2_fast(fmaf(s[0][n][i], scale_log2, -lses[stage * QUERIES + at]));
                s[0][n][i] = seen ? p : 0.0f;
            }
        }
        add_product<DIM>(d_v, s, d_tile);
        float d_p[1][QUERIES / 8][4];
        scores<DIM>(d_p, v_tile, warp * 16, d_tile);
#pragma unroll
        for (u32 n = 0; n < QUERIES / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 at = n * 8 + lane % 4 * 2 + i % 2;
                s[0][n][i] *= d_p[0][n][i] - deltas[stage * QUERIES + at];
            }
        }
        add_product<DIM>(d_k, s, q_tile);
    }
    copies_wait<0>();
    __syncthreads();
    const float by_scale[2] = {scale, scale}, by_one[2] = {1.0f, 1.0f};
    store_rows<DIM>(d_k[0], by_scale, k_tile, warp * 16, d_qkv + k_at, by.qkv_width, first, n_rows);
    store_rows<DIM>(d_v[0], by_one, v_tile, warp * 16, d_qkv + v_at, by.qkv_width, first, n_rows);
}

extern "C" __global__ void __launch_bounds__(128)
attention_delta(const bf16* out, const bf16* d_out, float* delta, int n_heads, int head_dim) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = u32(head_dim);
    const size_t row = size_t(blockIdx.x) * u32(n_heads);
    for (u32 head = warp; head < u32(n_heads); head += 4) {
        const size_t start = (row + head) * dim;
        float dot = 0.0f;
        for (u32 i = lane * 2; i < dim; i += 2 * WARP) {
            const u32 a = *reinterpret_cast<const u32*>(out + start + i);
            const u32 b = *reinterpret_cast<const u32*>(d_out + start + i);
            dot = fmaf(low_float(a), low_float(b), dot);
            dot = fmaf(high_float(a), high_float(b), dot);
        }
        dot = warp_sum(dot);
        if (lane == 0) {
            delta[row + head] = dot;
        }
    }
}

#define ATTENTION(DIM)                                                                            \
    extern "C" __global__ void __launch_bounds__(128)                                             \
    attention_##DIM(const bf16* qkv, const u32* starts, bf16* out, float* lse, int t, int n_heads,  \
                    int n_kv_heads, float scale) {                                                \
        forward<DIM>(qkv, starts, out, lse, t, n_heads, n_kv_heads, scale);                       \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                             \
    attention_backward_q_##DIM(const bf16* d_out, const bf16* qkv, const float* lse,              \
                               const float* delta, const u32* starts, bf16* d_qkv, int t,         \
                               int n_heads, int n_kv_heads, float scale) {                        \
        backward_q<DIM>(d_out, qkv, lse, delta, starts, d_qkv, t, n_heads, n_kv_heads, scale);     \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                             \
    attention_backward_kv_##DIM(const bf16* d_out, const bf16* qkv, const float* lse,             \
                                const float* delta, const u32* starts, const u32* ends,           \
                                bf16* d_qkv, int t, int n_heads, int n_kv_heads, float scale) {   \
        backward_kv<DIM>(d_out, qkv, lse, delta, starts, ends, d_qkv, t, n_heads, n_kv_heads,      \
                         scale);                                                                  \
    }

ATTENTION(64)
ATTENTION(128)
