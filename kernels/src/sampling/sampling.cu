// sampling: chooses a token from each row of logits: penalties, then the likeliest, or a draw by
// temperature, then top-k, then top-p
//
//   logits      in   f32 [rows, stride]  sampling_adjust changes them in place
//   suppressed  in   u32 [n_suppressed]  ids that are never chosen
//   seen        in   u32 [ends[rows]]    ids that are penalized, row after row, each once in a row
//   ends        in   u32 [rows + 1]      where each row's ids end in `seen`, after a 0
//   streams     in   u64 [rows, 2]  a Philox stream: key, then the stream half of the counter
//   positions   in   u64 [rows]     index of each row's number in its stream
//   tokens      out  u32 [rows]     the token chosen; 2^32 - 1 when the logits give no distribution
//
// Needs      vocab > 0; ids below vocab; temperature > 0; 0 < top_p <= 1; top_k 0 for all; penalty > 0.
//            Checked in sampling/cuda.rs, not here.
// Launch     grid = (rows). sampling_adjust: block = (256). sampling_greedy: block = (512), shared memory
//            128 bytes. sampling_draw: block = (512), shared memory 7,192 bytes. sm_80 or newer.
// Moves      sampling_draw: a row up to 20 times, after the first from L2; sampling_greedy once.
//            Latency-bound.
// Numbers    Weights are integers in units of 2^-40, so sums are exact in any order, and e^x is computed
//            as on the CPU: tokens equal those of kernels::sampling::Sampler bit for bit, and so do
//            penalized logits.
// Source     Holtzman et al., arXiv 1904.09751, section 3.1; Keskar et al., CTRL, arXiv 1909.05858,
//            section 4.1, for the penalty; Salmon et al., SC 2011, for the numbers. CPU twin: sampling.rs.

#include "device.cuh"

constexpr u32 THREADS = 512;
constexpr u32 DIGITS = 256;
constexpr float ONE = 1099511627776.0f;

// kernels::philox::Philox::u64.
__device__ __forceinline__ u64 random_u64(u64 key, u64 stream, u64 index) {
    u32 counter[4] = {u32(index), u32(index >> 32), u32(stream), u32(stream >> 32)};
    u32 keys[2] = {u32(key), u32(key >> 32)};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 left = u64(counter[0]) * 0xD2511F53u, right = u64(counter[2]) * 0xCD9E8D57u;
        counter[0] = u32(right >> 32) ^ counter[1] ^ keys[0];
        counter[1] = u32(right);
        counter[2] = u32(left >> 32) ^ counter[3] ^ keys[1];
        counter[3] = u32(left);
        keys[0] += 0x9E3779B9u;
        keys[1] += 0xBB67AE85u;
    }
    return u64(counter[0]) | u64(counter[1]) << 32;
}

struct Row {
    const float* logits;
    u32 vocab;
    float highest, scale;

    __device__ __forceinline__ u64 weight(u32 id) const {
        return u64(exp_exact((logits[id] - highest) * scale) * ONE);
    }
};

// Order of tokens: weight, then id. The last one that stays.
struct Cut {
    u64 weight;
    u32 id;

    __device__ __forceinline__ bool keeps(u64 other, u32 other_id) const {
        return other > 0 && (other > weight || (other == weight && other_id <= id));
    }
};

struct Scratch {
    u64 masses[DIGITS];
    u32 counts[DIGITS];
    u64 sums[THREADS];
    u64 chosen_mass;
    u64 chosen_prefix;
    u32 chosen_count;
    u32 token;
};

// What a prefix of the order may hold: at most `tokens` tokens, and mass before each below `mass`.
struct Limit {
    u32 tokens;
    u64 mass;

    __device__ __forceinline__ bool stays(u64 mass_before, u32 n_before) const {
        return mass_before < mass && n_before < tokens;
    }
};

// Sums of a number over the threads before this one; a thread's own is not in it.
__device__ __forceinline__ u64 sum_before(u64 x, u64* sums) {
    __syncthreads();
    sums[threadIdx.x] = x;
    __syncthreads();
    for (u32 distance = 1; distance < THREADS; distance *= 2) {
        const u64 other = threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
        __syncthreads();
        sums[threadIdx.x] += other;
        __syncthreads();
    }
    return sums[threadIdx.x] - x;
}

// The last token of the order that `stays`, among those that `all` keeps. Six digits of eight bits,
// from the highest: in each, the last digit value that is reached; then the id among equal weights.
__device__ __forceinline__ Cut find_cut(const Row& row, Cut all, Limit limit, Scratch& scratch) {
    u64 prefix = 0, mass = 0;
    u32 count = 0;
    // A weight of 2^40, that of the likeliest, needs a digit of its own.
    for (int shift = 40; shift >= 0; shift -= 8) {
        for (u32 i = threadIdx.x; i < DIGITS; i += THREADS) {
            scratch.masses[i] = 0;
            scratch.counts[i] = 0;
        }
        __syncthreads();
        for (u32 id = threadIdx.x; id < row.vocab; id += THREADS) {
            const u64 weight = row.weight(id);
            if (all.keeps(weight, id) && weight >> shift >> 8 == prefix) {
                atomicAdd(scratch.masses + (weight >> shift & 255), weight);
                atomicAdd(scratch.counts + (weight >> shift & 255), 1u);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 digit_mass = mass;
            u32 digit_count = count;
            for (int digit = DIGITS - 1; digit >= 0; digit--) {
                if (scratch.counts[digit] == 0) {
                    continue;
                }
                if (!limit.stays(digit_mass, digit_count)) {
                    break;
                }
                scratch.chosen_prefix = prefix << 8 | u64(digit);
                scratch.chosen_mass = digit_mass;
                scratch.chosen_count = digit_count;
                digit_mass += scratch.masses[digit];
                digit_count += scratch.counts[digit];
            }
        }
        __syncthreads();
        prefix = scratch.chosen_prefix;
        mass = scratch.chosen_mass;
        count = scratch.chosen_count;
        __syncthreads();
    }
    // Tokens of this very weight stay in the order of their ids; each thread has a range of ids.
    const u32 width = (row.vocab + THREADS - 1) / THREADS;
    const u32 first = min(threadIdx.x * width, row.vocab), end = min(first + width, row.vocab);
    u64 n_equal = 0;
    for (u32 id = first; id < end; id++) {
        const u64 weight = row.weight(id);
        n_equal += weight == prefix && all.keeps(weight, id);
    }
    u64 before = sum_before(n_equal, scratch.sums);
    if (threadIdx.x == 0) {
        scratch.token = 0;
    }
    __syncthreads();
    for (u32 id = first; id < end && n_equal > 0; id++) {
        const u64 weight = row.weight(id);
        if (weight == prefix && all.keeps(weight, id)) {
            if (limit.stays(mass + before * prefix, count + u32(before))) {
                atomicMax(&scratch.token, id);
            }
            before += 1;
        }
    }
    __syncthreads();
    const Cut cut = {prefix, scratch.token};
    __syncthreads();
    return cut;
}

__device__ __forceinline__ u64 mass_kept(const Row& row, Cut cut, Scratch& scratch) {
    u64 sum = 0;
    for (u32 id = threadIdx.x; id < row.vocab; id += THREADS) {
        const u64 weight = row.weight(id);
        sum += cut.keeps(weight, id) ? weight : 0;
    }
    return block_sum(sum, scratch.sums);
}

extern "C" __global__ void __launch_bounds__(256)
sampling_adjust(float* logits, const u32* suppressed, const u32* seen, const u32* ends,
                int n_suppressed, int stride, float penalty) {
    float* row = logits + size_t(blockIdx.x) * u32(stride);
    for (u32 i = threadIdx.x; i < u32(n_suppressed); i += 256) {
        row[suppressed[i]] = -INFINITY;
    }
    // An id may be both, and then its penalty must not read it before it is suppressed.
    __syncthreads();
    const u32 end = ends[blockIdx.x + 1];
    for (u32 i = ends[blockIdx.x] + threadIdx.x; i < end; i += 256) {
        float& logit = row[seen[i]];
        logit = logit > 0.0f ? logit / penalty : logit * penalty;
    }
}

// Logits as integers of the same order; a NaN or +inf above all, so that it is found, and the first of
// equals above the others. 0 is below -inf.
__device__ __forceinline__ u64 rank(float x, u32 id) {
    const u32 bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    const u32 order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return u64(x < INFINITY ? order : 0xffffffffu) << 32 | u32(~id);
}

extern "C" __global__ void __launch_bounds__(512)
sampling_greedy(const float* logits, u32* tokens, int vocab, int stride) {
    const float* row = logits + size_t(blockIdx.x) * u32(stride);
    u64 best = 0;
    for (u32 id = threadIdx.x; id < u32(vocab); id += THREADS) {
        const u64 other = rank(row[id], id);
        best = other > best ? other : best;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const u64 other = __shfl_xor_sync(ALL_LANES, best, distance);
        best = other > best ? other : best;
    }
    u64* tops = reinterpret_cast<u64*>(shared);
    if (threadIdx.x % WARP == 0) {
        tops[threadIdx.x / WARP] = best;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 warp = 1; warp < THREADS / WARP; warp++) {
            best = tops[warp] > best ? tops[warp] : best;
        }
        const u32 order = u32(best >> 32);
        const bool is_finite = order != 0xffffffffu && order > 0x007fffffu;
        tokens[blockIdx.x] = is_finite ? ~u32(best) : 0xffffffffu;
    }
}

extern "C" __global__ void __launch_bounds__(512)
sampling_draw(const float* logits, const u64* streams, const u64* positions, u32* tokens, int vocab,
              int stride, float temperature, int top_k, double top_p) {
    Scratch& scratch = *reinterpret_cast<Scratch*>(shared);
    Row row = {logits + size_t(blockIdx.x) * u32(stride), u32(vocab), -INFINITY, 1.0f / temperature};
    u32 n_nan = 0;
    for (u32 id = threadIdx.x; id < row.vocab; id += THREADS) {
        const float x = row.logits[id];
        n_nan += x != x;
        row.highest = x > row.highest ? x : row.highest;
    }
    float* tops = reinterpret_cast<float*>(scratch.masses);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, row.highest, distance);
        row.highest = other > row.highest ? other : row.highest;
    }
    if (threadIdx.x % WARP == 0) {
        tops[threadIdx.x / WARP] = row.highest;
    }
    __syncthreads();
    for (u32 i = 0; i < THREADS / WARP; i++) {
        row.highest = tops[i] > row.highest ? tops[i] : row.highest;
    }
    n_nan = block_sum(n_nan, scratch.counts);
    __syncthreads();
    if (n_nan != 0 || row.highest == INFINITY || row.highest == -INFINITY) {
        if (threadIdx.x == 0) {
            tokens[blockIdx.x] = 0xffffffffu;
        }
        return;
    }

    Cut cut = {0, 0xffffffffu};
    if (top_k > 0) {
        cut = find_cut(row, cut, {u32(top_k), ~u64(0)}, scratch);
    }
    u64 total = mass_kept(row, cut, scratch);
    if (top_p < 1.0) {
        const u64 mass = u64(ceil(top_p * double(total)));
        cut = find_cut(row, cut, {0xffffffffu, mass > 1 ? mass : 1}, scratch);
        total = mass_kept(row, cut, scratch);
    }
    const u64 random = random_u64(streams[2 * blockIdx.x], streams[2 * blockIdx.x + 1],
                                  positions[blockIdx.x]);
    const u64 left = __umul64hi(random, total);
    // The token whose share of the mass, in the order of ids, holds `left`.
    const u32 width = (row.vocab + THREADS - 1) / THREADS;
    const u32 first = min(threadIdx.x * width, row.vocab), end = min(first + width, row.vocab);
    u64 own = 0;
    for (u32 id = first; id < end; id++) {
        const u64 weight = row.weight(id);
        own += cut.keeps(weight, id) ? weight : 0;
    }
    u64 before = sum_before(own, scratch.sums);
    if (before <= left && left < before + own) {
        for (u32 id = first; id < end; id++) {
            const u64 weight = row.weight(id);
            if (cut.keeps(weight, id)) {
                if (left < before + weight) {
                    tokens[blockIdx.x] = id;
                    break;
                }
                before += weight;
            }
        }
    }
}
