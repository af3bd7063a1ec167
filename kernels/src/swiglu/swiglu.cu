// swiglu: out[t, i] = silu(gate[t, i]) * up[t, i] with silu(x) = x / (1 + e^-x)
//
//   gate_up    in   bf16 [t, 2 * n_hidden]  gate first; 16-byte aligned
//   out        out  bf16 [t, n_hidden]      16-byte aligned
//   d_out      in   bf16 [t, n_hidden]      swiglu_backward_bf16
//   d_gate_up  out  bf16 [t, 2 * n_hidden]  overwritten; may be gate_up (in place)
//
// Needs      n_hidden % 8 == 0. Checked in swiglu/cuda.rs, not here.
// Launch     grid = (n_hidden / 8 / 256, rounded up; t), block = (256), no shared memory. sm_80 or newer.
// Moves      forward: 2 reads, 1 write. backward: 3 reads, 2 writes. Memory-bound.
// Numbers    f32 inside, one rounding to bf16 at each store. No sums.
// Source     Shazeer, arXiv 2002.05202. CPU twin: swiglu.rs.

#include "device.cuh"

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + exp2_fast(-1.44269504f * x));
}

extern "C" __global__ void __launch_bounds__(256)
swiglu_bf16(const bf16* gate_up, bf16* out, int n_hidden) {
    const u32 n_vectors = u32(n_hidden) / 8;
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n_vectors) {
        return;
    }
    const uint4* row = reinterpret_cast<const uint4*>(gate_up) + size_t(blockIdx.y) * 2 * n_vectors;
    float gate[8], up[8];
    unpack8(row[i], gate);
    unpack8(row[n_vectors + i], up);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        gate[j] = gate[j] * sigmoid(gate[j]) * up[j];
    }
    reinterpret_cast<uint4*>(out)[size_t(blockIdx.y) * n_vectors + i] = pack8(gate);
}

extern "C" __global__ void __launch_bounds__(256)
swiglu_backward_bf16(const bf16* d_out, const bf16* gate_up, bf16* d_gate_up, int n_hidden) {
    const u32 n_vectors = u32(n_hidden) / 8;
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n_vectors) {
        return;
    }
    const size_t start = size_t(blockIdx.y) * 2 * n_vectors;
    const uint4* row = reinterpret_cast<const uint4*>(gate_up) + start;
    float gate[8], up[8], d[8], d_gate[8], d_up[8];
    unpack8(row[i], gate);
    unpack8(row[n_vectors + i], up);
    unpack8(reinterpret_cast<const uint4*>(d_out)[size_t(blockIdx.y) * n_vectors + i], d);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float s = sigmoid(gate[j]);
        const float silu = gate[j] * s;
        d_gate[j] = d[j] * up[j] * fmaf(silu, 1.0f - s, s);
        d_up[j] = d[j] * silu;
    }
    uint4* d_row = reinterpret_cast<uint4*>(d_gate_up) + start;
    d_row[i] = pack8(d_gate);
    d_row[n_vectors + i] = pack8(d_up);
}
