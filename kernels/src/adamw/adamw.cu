// adamw: one step of AdamW on f32 weights, with the bf16 copy that the products read
//
//   params   in/out  f32  [len]  the weights, 16-byte aligned
//   rounded  out     bf16 [len]  params rounded to nearest even, 8-byte aligned
//   grads    in      f32  [len]  16-byte aligned
//   m, v     in/out  f32  [len]  moments, 16-byte aligned
//   factors  in      [1]         what the step multiplies by: kernels::adamw::Factors
//
// Needs      len % 4 == 0. Checked in adamw/cuda.rs, not here.
// Launch     grid = (any), block = (256), no shared memory. sm_80 or newer.
// Moves      16 bytes read and 14 written a weight. Memory-bound.
// Numbers    f32, the operations of the CPU in their order; square roots and quotients are rounded
//            correctly, so results equal the CPU's bit for bit.
// Source     Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. CPU twin: adamw.rs.

#include "device.cuh"

struct Factors {
    float grad_scale, keep, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, step_size,
        root_correction;
};

__device__ __forceinline__ void update(float& p, float g, float& m, float& v, const Factors& by) {
    const float grad = g * by.grad_scale;
    const float m_new = fmaf(by.beta1, m, by.one_minus_beta1 * grad);
    const float v_new = fmaf(by.beta2, v, by.one_minus_beta2 * grad * grad);
    const float root = fmaf(sqrtf(v_new), by.root_correction, by.eps);
    m = m_new;
    v = v_new;
    p = fmaf(-by.step_size, m_new / root, by.keep * p);
}

extern "C" __global__ void __launch_bounds__(256)
adamw_f32(float* params, bf16* rounded, const float* grads, float* m, float* v, u64 len,
          const Factors* factors) {
    const Factors by = *factors;
    const u64 stride = u64(gridDim.x) * 256;
    for (u64 i = u64(blockIdx.x) * 256 + threadIdx.x; i < len / 4; i += stride) {
        float4 p = reinterpret_cast<float4*>(params)[i];
        const float4 g = reinterpret_cast<const float4*>(grads)[i];
        float4 m4 = reinterpret_cast<float4*>(m)[i];
        float4 v4 = reinterpret_cast<float4*>(v)[i];
        update(p.x, g.x, m4.x, v4.x, by);
        update(p.y, g.y, m4.y, v4.y, by);
        update(p.z, g.z, m4.z, v4.z, by);
        update(p.w, g.w, m4.w, v4.w, by);
        reinterpret_cast<float4*>(params)[i] = p;
        reinterpret_cast<float4*>(m)[i] = m4;
        reinterpret_cast<float4*>(v)[i] = v4;
        reinterpret_cast<uint2*>(rounded)[i] =
            make_uint2(pack_bf16(p.x, p.y), pack_bf16(p.z, p.w));
    }
}
