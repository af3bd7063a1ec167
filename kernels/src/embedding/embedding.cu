// embedding: out[t] = table[ids[t]], and the gradient of the table
//
//   table    in      bf16 [v, cols]   16-byte aligned
//   ids      in      u32  [t]
//   out      out     bf16 [t, cols]   16-byte aligned
//   d_out    in      bf16 [t, cols]   embedding_backward_bf16
//   order    in      u32  [t]         tokens by id, those of one id ascending
//   groups   in      u32  [t, 3]      (id, start, end): a range of order whose tokens have that id; empty
//                                     where there are fewer ids than tokens
//   d_table  in/out  f32  [v, cols]   += ; 16-byte aligned
//
// Needs      cols % 8 == 0; ids < v; each id in one group that is not empty. Checked in embedding/cuda.rs,
//            not here.
// Launch     forward: grid = (t), block = (128). backward: grid = (t; cols / 8 / 64, rounded up),
//            block = (64). No shared memory. sm_80 or newer.
// Moves      2 bytes read and written an element; backward: 2 bytes a token, 8 a touched row of the table.
// Numbers    backward: f32, tokens in ascending order whatever the launch. No atomics.
// Source     none. CPU twin: embedding.rs.

#include "device.cuh"

extern "C" __global__ void __launch_bounds__(128)
embedding_bf16(const bf16* table, const u32* ids, bf16* out, int cols) {
    const u32 n_vectors = u32(cols) / 8;
    const uint4* row = reinterpret_cast<const uint4*>(table) + size_t(ids[blockIdx.x]) * n_vectors;
    uint4* target = reinterpret_cast<uint4*>(out) + size_t(blockIdx.x) * n_vectors;
    for (u32 i = threadIdx.x; i < n_vectors; i += 128) {
        target[i] = row[i];
    }
}

extern "C" __global__ void __launch_bounds__(64)
embedding_backward_bf16(const bf16* d_out, const u32* order, const u32* groups, float* d_table,
                        int cols) {
    const u32 n_vectors = u32(cols) / 8;
    const u32 i = blockIdx.y * 64 + threadIdx.x;
    if (i >= n_vectors) {
        return;
    }
    const u32 id = groups[3 * blockIdx.x];
    const u32 start = groups[3 * blockIdx.x + 1], end = groups[3 * blockIdx.x + 2];
    // The row of an empty group is another block's, whose sums it would undo.
    if (start == end) {
        return;
    }
    float4* row = reinterpret_cast<float4*>(d_table) + (size_t(id) * n_vectors + i) * 2;
    float4 low = row[0], high = row[1];
#pragma unroll 4
    for (u32 n = start; n < end; n++) {
        float d[8];
        unpack8(reinterpret_cast<const uint4*>(d_out)[size_t(order[n]) * n_vectors + i], d);
        low = make_float4(low.x + d[0], low.y + d[1], low.z + d[2], low.w + d[3]);
        high = make_float4(high.x + d[4], high.y + d[5], high.z + d[6], high.w + d[7]);
    }
    row[0] = low;
    row[1] = high;
}
