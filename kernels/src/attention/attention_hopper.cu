// attention_hopper: the forward pass of attention.cu with what Hopper has for it: products of whole
// warpgroups from shared memory, and a copy engine that fills it
//
//   qkv      in   bf16 [t, qkv_width]  as a TensorMap of boxes of 128 rows; rows [q heads | k heads | v
//                                      heads], 16-byte aligned
//   starts   in   u32  [t]             first token of each token's document, not decreasing
//   out      out  bf16 [t, q_width]    16-byte aligned
//   lse      out  f32  [t, n_heads]    logarithm of the softmax's denominator
//
// Needs      t > 0; head_dim 64 or 128 (one kernel each); n_heads a multiple of n_kv_heads; scale > 0.
//            Checked in attention/cuda.rs, not here.
// Launch     grid = (t / 128, rounded up; n_heads), block = (384), shared memory five tiles of 128 x
//            head_dim bf16 and 80 bytes. sm_90a alone.
// Moves      as attention.cu: keys and values once per 128 queries that can see them, mostly from L2;
//            4 * head_dim FLOP per pair seen. Compute-bound.
// Numbers    As of attention.cu, with keys taken 128 at a time. One thread of the first warpgroup keeps two
//            stages of keys and values filled; each of the two others has 64 queries, and adds the values of
//            one tile while the scores of the next are made and softened. Every output element is owned by
//            one thread, and its sum runs over tiles in order: two launches give the same bits.
// Source     Dao, FlashAttention-2, arXiv 2307.08691, algorithm 1; Shah et al., FlashAttention-3,
//            arXiv 2407.08608, algorithm 2, for the order of products within a warpgroup. CPU twin:
//            attention/cpu.rs.

#include "device.cuh"
#include "softmax.cuh"
#include "hopper.cuh"

// Rows of every tile: queries of a block, or keys.
constexpr u32 TILE = 128;
constexpr u32 STAGES = 2;
constexpr u32 THREADS = 3 * WARPGROUP;
constexpr u32 PANEL_BYTES = TILE * PANEL * sizeof(bf16);
// Of a panel: a row, and eight rows, after which the swizzle repeats.
constexpr u32 ROW_BYTES = PANEL * sizeof(bf16);
constexpr u32 GROUP_BYTES = 8 * ROW_BYTES;
// Bytes of 16 columns of a row, which a product takes at once.
constexpr u32 STEP_BYTES = 16 * sizeof(bf16);

// Where things lie in the block's shared memory.
template <u32 DIM>
struct Tiles {
    static constexpr u32 BYTES = DIM / PANEL * PANEL_BYTES;

    static __device__ __forceinline__ u8* queries() { return shared; }
    static __device__ __forceinline__ u8* keys(u32 stage) { return shared + (1 + stage) * BYTES; }
    static __device__ __forceinline__ u8* values(u32 stage) {
        return shared + (1 + STAGES + stage) * BYTES;
    }
};

// Tells when a stage is full, and when all warps that read it are done with it.
struct Stage {
    Barrier full, empty;
};

struct Barriers {
    Stage keys[STAGES], values[STAGES];
    Barrier queries;
};

template <u32 DIM>
__device__ __forceinline__ Barriers& barriers() {
    return *reinterpret_cast<Barriers*>(shared + (1 + 2 * STAGES) * Tiles<DIM>::BYTES);
}

// What a block computes.
struct Work {
    u32 first, last, head;
    // Columns of the head's queries, and of the keys and values that it reads.
    u32 q_column, k_column, v_column;
    u32 tile_start, tile_end;
};

template <u32 DIM>
__device__ __forceinline__ Work work(const u32* starts, u32 n_rows, u32 n_heads, u32 n_kv_heads) {
    const u32 head = blockIdx.y, kv_head = head / (n_heads / n_kv_heads);
    // The last tiles see most keys and go first, so that no block is left for the end.
    const u32 first = (gridDim.x - 1 - blockIdx.x) * TILE, last = min(first + TILE, n_rows) - 1;
    return {first,
            last,
            head,
            head * DIM,
            (n_heads + kv_head) * DIM,
            (n_heads + n_kv_heads + kv_head) * DIM,
            starts[first] / TILE,
            last / TILE + 1};
}

// Announces a tile and starts to copy its panels.
template <u32 DIM>
__device__ __forceinline__ void fetch(u8* tile, const TensorMap& qkv, u32 column, u32 row,
                                      Barrier* full) {
    barrier_expect(full, Tiles<DIM>::BYTES);
#pragma unroll
    for (u32 panel = 0; panel < DIM / PANEL; panel++) {
        tensor_copy(tile + panel * PANEL_BYTES, qkv, column + panel * PANEL, row, full);
    }
}

// Keeps the stages full; for one thread.
template <u32 DIM>
__device__ __forceinline__ void produce(const TensorMap& qkv, const Work& work) {
    Barriers& bars = barriers<DIM>();
    fetch<DIM>(Tiles<DIM>::queries(), qkv, work.q_column, work.first, &bars.queries);
    for (u32 tile = work.tile_start; tile < work.tile_end; tile++) {
        const u32 n = tile - work.tile_start, stage = n % STAGES, round = n / STAGES % 2;
        barrier_wait(&bars.keys[stage].empty, round ^ 1);
        fetch<DIM>(Tiles<DIM>::keys(stage), qkv, work.k_column, tile * TILE, &bars.keys[stage].full);
        barrier_wait(&bars.values[stage].empty, round ^ 1);
        fetch<DIM>(Tiles<DIM>::values(stage), qkv, work.v_column, tile * TILE,
                   &bars.values[stage].full);
    }
}

// A warp has read a stage.
__device__ __forceinline__ void release(Stage& stage) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) {
        barrier_arrive(&stage.empty);
    }
}

// Starts s[64, TILE] = queries[64, DIM] * keys[TILE, DIM]^T.
template <u32 DIM>
__device__ __forceinline__ void start_scores(float (&s)[TILE / 8][4], const u8* queries,
                                             const u8* keys) {
#pragma unroll
    for (u32 step = 0; step < DIM / 16; step++) {
        const u32 at = step / 4 * PANEL_BYTES + step % 4 * STEP_BYTES;
        multiply_nt(s, descriptor(queries + at, GROUP_BYTES, 16),
                    descriptor(keys + at, GROUP_BYTES, 16), step > 0);
    }
    products_commit();
}

// Starts sum[64, DIM] += p[64, TILE] * values[TILE, DIM].
template <u32 DIM>
__device__ __forceinline__ void start_sums(float (&sum)[DIM / 8][4], const u32 (&p)[TILE / 16][4],
                                           const u8* values) {
#pragma unroll
    for (u32 step = 0; step < TILE / 16; step++) {
        multiply_nn(sum, p[step],
                    descriptor(values + step * 2 * GROUP_BYTES, GROUP_BYTES, PANEL_BYTES));
    }
    products_commit();
}

// Weights rounded to bf16, as products take them.
__device__ __forceinline__ void pack(u32 (&p)[TILE / 16][4], const float (&s)[TILE / 8][4]) {
#pragma unroll
    for (u32 step = 0; step < TILE / 16; step++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float(&block)[4] = s[2 * step + i / 2];
            p[step][i] = pack_bf16(block[i % 2 * 2], block[i % 2 * 2 + 1]);
        }
    }
}

// Lane t of a quad gets word t of each of its lanes, in their order.
__device__ __forceinline__ void transpose_quad(u32 (&x)[4]) {
#pragma unroll
    for (u32 distance = 1; distance < 4; distance *= 2) {
        const bool upper = threadIdx.x & distance;
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            u32 &low = x[distance == 1 ? 2 * n : n], &high = x[distance == 1 ? 2 * n + 1 : n + 2];
            const u32 got = __shfl_xor_sync(ALL_LANES, upper ? low : high, distance);
            (upper ? low : high) = got;
        }
    }
}

// Writes the lane's part of rows `row` and `row + 8`, 16 bytes at a time.
template <u32 DIM>
__device__ __forceinline__ void store(const float (&sum)[DIM / 8][4], bf16* out, u32 q_width, u32 row,
                                      u32 n_rows) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll
        for (u32 n = 0; n < DIM / 8; n += 4) {
            u32 words[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                words[i] = pack_bf16(sum[n + i][2 * half], sum[n + i][2 * half + 1]);
            }
            transpose_quad(words);
            if (row + half * 8 < n_rows) {
                bf16* to = out + size_t(row + half * 8) * q_width + n * 8 + lane % 4 * 8;
                *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
}

// The outputs of the block's 64 queries from 64 * `group` on, by a warpgroup.
template <u32 DIM>
__device__ __forceinline__ void consume(const Work& work, u32 group, const u32* starts, bf16* out,
                                        float* lse, u32 n_rows, u32 n_heads, float scale) {
    Barriers& bars = barriers<DIM>();
    const u32 warp = threadIdx.x % WARPGROUP / WARP;
    const u32 first = work.first + group * 64, row = first + warp * 16 + threadIdx.x % WARP / 4;
    const u32 last_start = starts[min(first + 63, work.last)];
    const u8* queries = Tiles<DIM>::queries() + group * 64 * ROW_BYTES;
    const float scale_log2 = scale * LOG2_E;
    float s[TILE / 8][4], sum[DIM / 8][4] = {};
    float highest[2] = {-INFINITY, -INFINITY}, mass[2] = {}, rescale[2];
    u32 p[TILE / 16][4];

    const auto soften_tile = [&](u32 tile) {
        if (tile * TILE + TILE > first || tile * TILE < last_start) {
            mask(s, tile * TILE, row, starts, n_rows);
        }
        soften(s, highest, mass, rescale, scale_log2);
    };

    barrier_wait(&bars.queries, 0);
    barrier_wait(&bars.keys[0].full, 0);
    products_begin();
    start_scores<DIM>(s, queries, Tiles<DIM>::keys(0));
    products_wait<0>(s);
    release(bars.keys[0]);
    soften_tile(work.tile_start);
    pack(p, s);
    const u32 n_tiles = work.tile_end - work.tile_start;
    for (u32 n = 0; n + 1 < n_tiles; n++) {
        const u32 stage = n % STAGES, round = n / STAGES % 2;
        const u32 next_stage = (n + 1) % STAGES, next_round = (n + 1) / STAGES % 2;
        barrier_wait(&bars.keys[next_stage].full, next_round);
        barrier_wait(&bars.values[stage].full, round);
        hold(sum);
        products_begin();
        start_scores<DIM>(s, queries, Tiles<DIM>::keys(next_stage));
        start_sums<DIM>(sum, p, Tiles<DIM>::values(stage));
        products_wait<1>(s);
        release(bars.keys[next_stage]);
        soften_tile(work.tile_start + n + 1);
        products_wait<0>(sum);
        release(bars.values[stage]);
        scale_rows(sum, rescale);
        pack(p, s);
    }
    const u32 stage = (n_tiles - 1) % STAGES, round = (n_tiles - 1) / STAGES % 2;
    barrier_wait(&bars.values[stage].full, round);
    hold(sum);
    products_begin();
    start_sums<DIM>(sum, p, Tiles<DIM>::values(stage));
    products_wait<0>(sum);

    float by_mass[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const float total = quad_sum(mass[half]);
        by_mass[half] = 1.0f / total;
        if (threadIdx.x % 4 == 0 && row + half * 8 < n_rows) {
            lse[size_t(row + half * 8) * n_heads + work.head] = highest[half] * scale + logf(total);
        }
    }
    scale_rows(sum, by_mass);
    store<DIM>(sum, out + work.q_column, n_heads * DIM, row, n_rows);
}

template <u32 DIM>
__device__ __forceinline__ void forward(const TensorMap& qkv, const u32* starts, bf16* out, float* lse,
                                        int t, int n_heads, int n_kv_heads, float scale) {
    Barriers& bars = barriers<DIM>();
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_make(&bars.keys[stage].full, 1);
            barrier_make(&bars.values[stage].full, 1);
            barrier_make(&bars.keys[stage].empty, 2 * WARPGROUP / WARP);
            barrier_make(&bars.values[stage].empty, 2 * WARPGROUP / WARP);
        }
        barrier_make(&bars.queries, 1);
        barriers_ready();
    }
    __syncthreads();
    const Work mine = work<DIM>(starts, u32(t), u32(n_heads), u32(n_kv_heads));
    const u32 warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        registers_give<24>();
        if (threadIdx.x == 0) {
            produce<DIM>(qkv, mine);
        }
    } else {
        registers_take<240>();
        consume<DIM>(mine, warpgroup - 1, starts, out, lse, u32(t), u32(n_heads), scale);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_hopper_64(const __grid_constant__ TensorMap qkv, const u32* starts, bf16* out, float* lse,
                    int t, int n_heads, int n_kv_heads, float scale) {
    forward<64>(qkv, starts, out, lse, t, n_heads, n_kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_hopper_128(const __grid_constant__ TensorMap qkv, const u32* starts, bf16* out, float* lse,
                     int t, int n_heads, int n_kv_heads, float scale) {
    forward<128>(qkv, starts, out, lse, t, n_heads, n_kv_heads, scale);
}
