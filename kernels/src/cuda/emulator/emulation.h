// Runs kernels on a CPU as the CUDA programming model allows them to run, at its most hostile.
//
// Threads are fibers. A warp runs as far as it can before another one gets a turn, so a missing
// barrier shows: who reads too early reads poison, who writes too late is overtaken. The schedule
// says which warps and lanes go first; a kernel that is right gives the same bits under all. Shared
// memory starts as poison in every block, and an asynchronous copy leaves poison where it goes until
// it is waited for. A barrier that some threads never reach, and a warp-wide function that some lanes
// skip or call elsewhere, is an error.
//
// The layouts of mma and ldmatrix fragments are those of the PTX ISA, "Matrix fragments for
// mma.m16n8k16" and "mma.m16n8k32", written from the manual's formulas.

#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    u32 x, y, z;
};
struct __attribute__((aligned(16))) uint4 {
    u32 x, y, z, w;
};
struct __attribute__((aligned(8))) uint2 {
    u32 x, y;
};
struct __attribute__((aligned(16))) float4 {
    float x, y, z, w;
};
struct __attribute__((aligned(8))) float2 {
    float x, y;
};
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr u32 WARP = 32;
constexpr size_t SHARED_MAX = 227 * 1024;
constexpr size_t SHARED_GUARD = 4096;
__attribute__((aligned(1024), visibility("hidden"))) u8 shared[SHARED_MAX + SHARED_GUARD];

namespace emulation {

constexpr u32 THREADS_MAX = 1024;
constexpr size_t STACK = 64 << 10;
// As a float and as a bf16 this is a NaN, as an int -1.
constexpr u8 POISON = 0xff;

// What a thread waits for; ASLEEP, for what only other threads or copies can bring about.
enum State { READY, AT_WARP, AT_BLOCK, ASLEEP, DONE };

struct Copy {
    void* to;
    const void* from;
    bool wanted;
    u32 group;
};

struct Fiber {
    void* stack_pointer;
    State state;
    // Which warp-wide function it waits in, and how many it has passed.
    const void* place;
    u32 n_exchanges;
    Copy copies[512];
    u32 n_copies, group;
    // What ends a sleep.
    bool (*is_over)(const void* what, u32 which);
    const void* what;
    u32 which;
};

// What the lanes of a warp show each other; two of them, because a lane may be one call ahead.
struct __attribute__((aligned(64))) Board {
    u8 slot[2][WARP][64];
};

static Fiber fibers[THREADS_MAX];
static Board boards[THREADS_MAX / WARP];
static u8* stacks;
static void* scheduler;
static u32 current;
// Counts blocks, so that what is kept for one is known from what another left.
static u64 n_blocks_begun;
// What is under way beside the threads: finishes a part of it, the newest or the oldest; false when
// there is none. Called only when no thread can go on, which is the latest that hardware may be.
static bool (*advance)(bool newest);
// Looks at what a thread leaves behind at its end.
static void (*check_end)();
static void (*kernel)(void**);
static void** arguments;
static char* message;
static size_t message_size;

extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** save, void* load);
#if defined(__x86_64__)
__asm__(
    ".text\n.hidden emulation_switch\n.globl emulation_switch\n"
    ".type emulation_switch, @function\nemulation_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size emulation_switch, .-emulation_switch\n");
constexpr size_t SAVED = 6;
constexpr size_t ENTRY = 6;
#elif defined(__aarch64__)
__asm__(
    ".text\n.hidden emulation_switch\n.globl emulation_switch\n"
    ".type emulation_switch, %function\nemulation_switch:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\nmov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n");
constexpr size_t SAVED = 20;
constexpr size_t ENTRY = 11;
#else
#error "the emulation switches stacks on x86-64 and aarch64 only"
#endif

static void wait(State state) {
    fibers[current].state = state;
    emulation_switch(&fibers[current].stack_pointer, scheduler);
}

// A kernel that breaks a rule ends here; what its threads were doing is abandoned.
[[noreturn]] static void fail(const char* text) {
    if (message[0] == 0) {
        snprintf(message, message_size, "%s in thread %u of block (%u, %u, %u)", text, current,
                 blockIdx.x, blockIdx.y, blockIdx.z);
    }
    wait(DONE);
    abort();
}

static void enter() {
    kernel(arguments);
    if (check_end != nullptr) {
        check_end();
    }
    wait(DONE);
    abort();
}

// Shows `mine` to the warp and waits for the others. Lane `i`'s is at 64 i of the result.
template <class T>
static const u8* exchange(const T& mine, const void* place) {
    static_assert(sizeof(T) <= 64);
    Fiber& fiber = fibers[current];
    u8(*slots)[64] = boards[current / WARP].slot[fiber.n_exchanges++ & 1];
    memcpy(slots[current % WARP], &mine, sizeof(T));
    fiber.place = place;
    wait(AT_WARP);
    return slots[0];
}

template <class T>
static T shown(const u8* slots, u32 lane) {
    T value;
    memcpy(&value, slots + 64 * (lane % WARP), sizeof(T));
    return value;
}

// Lets the others run until `is_over(what, which)`.
static void sleep_until(bool (*is_over)(const void*, u32), const void* what, u32 which) {
    if (!is_over(what, which)) {
        Fiber& fiber = fibers[current];
        fiber.is_over = is_over;
        fiber.what = what;
        fiber.which = which;
        wait(ASLEEP);
    }
}

// Gives every other warp a turn.
static void let_others_run() {
    fibers[current].is_over = [](const void*, u32) { return true; };
    wait(ASLEEP);
}

static void start_fiber(u32 i) {
    u8* top = stacks + (i + 1) * STACK;
    void** frame = reinterpret_cast<void**>(top) - (SAVED + 4);
    memset(frame, 0, (SAVED + 4) * sizeof(void*));
    frame[ENTRY] = reinterpret_cast<void*>(&enter);
#if defined(__x86_64__)
    // After the return into `enter` the stack must look as after a call.
    if ((reinterpret_cast<uintptr_t>(frame + SAVED + 1) & 15) != 8) {
        memmove(frame - 1, frame, (SAVED + 2) * sizeof(void*));
        frame -= 1;
    }
#endif
    fibers[i].stack_pointer = frame;
    fibers[i].state = READY;
    fibers[i].n_exchanges = fibers[i].n_copies = fibers[i].group = 0;
}

static void resume(u32 i) {
    current = i;
    const u32 plane = blockDim.x * blockDim.y;
    threadIdx = {i % blockDim.x, i % plane / blockDim.x, i / plane};
    emulation_switch(&scheduler, fibers[i].stack_pointer);
}

// Runs a warp until all of its lanes wait for the block, for something else, or are done.
static bool run_warp(u32 warp, u32 schedule) {
    Fiber* lanes = fibers + warp * WARP;
    bool moved = false;
    for (;;) {
        for (u32 i = 0; i < WARP; i++) {
            const u32 lane = schedule & 2 ? WARP - 1 - i : i;
            Fiber& fiber = lanes[lane];
            if (fiber.state == ASLEEP && fiber.is_over(fiber.what, fiber.which)) {
                fiber.state = READY;
            }
            if (fiber.state == READY) {
                moved = true;
                resume(warp * WARP + lane);
                if (message[0] != 0) {
                    return false;
                }
            }
        }
        u32 n_waiting = 0, n_together = 0, n_asleep = 0;
        for (u32 lane = 0; lane < WARP; lane++) {
            n_waiting += lanes[lane].state == AT_WARP;
            n_together += lanes[lane].state == AT_WARP && lanes[lane].place == lanes[0].place;
            n_asleep += lanes[lane].state == ASLEEP;
        }
        if (n_together == WARP) {
            for (u32 lane = 0; lane < WARP; lane++) {
                lanes[lane].state = READY;
            }
            continue;
        }
        if (n_waiting != 0 && n_asleep == 0) {
            snprintf(message, message_size,
                     "%u lanes of warp %u of block (%u, %u, %u) call a warp-wide function",
                     n_together, warp, blockIdx.x, blockIdx.y, blockIdx.z);
            return false;
        }
        return moved;
    }
}

static void run_block(u32 n_threads, u32 schedule) {
    n_blocks_begun++;
    advance = nullptr;
    check_end = nullptr;
    for (u32 i = 0; i < n_threads; i++) {
        start_fiber(i);
    }
    const u32 n_warps = n_threads / WARP;
    for (;;) {
        bool moved = false;
        for (u32 i = 0; i < n_warps; i++) {
            moved |= run_warp(schedule & 1 ? n_warps - 1 - i : i, schedule);
            if (message[0] != 0) {
                return;
            }
        }
        u32 n_done = 0, n_asleep = 0;
        for (u32 i = 0; i < n_threads; i++) {
            n_done += fibers[i].state == DONE;
            n_asleep += fibers[i].state == ASLEEP;
        }
        if (n_done == n_threads) {
            return;
        }
        if (n_asleep != 0) {
            if (moved || (advance != nullptr && advance(schedule & 2))) {
                continue;
            }
            snprintf(message, message_size,
                     "%u threads of block (%u, %u, %u) wait for what nothing brings about", n_asleep,
                     blockIdx.x, blockIdx.y, blockIdx.z);
            return;
        }
        if (n_done != 0) {
            snprintf(message, message_size, "%u of %u threads of block (%u, %u, %u) miss a barrier",
                     n_done, n_threads, blockIdx.x, blockIdx.y, blockIdx.z);
            return;
        }
        for (u32 i = 0; i < n_threads; i++) {
            fibers[i].state = READY;
        }
    }
}

// Runs a whole grid; an empty message is success.
static void run(void (*body)(void**), void** args, const u32* grid, u32 n_threads,
                size_t shared_bytes, u32 schedule, char* text, size_t text_size) {
    if (stacks == nullptr) {
        stacks = static_cast<u8*>(aligned_alloc(4096, THREADS_MAX * STACK));
    }
    kernel = body;
    arguments = args;
    message = text;
    message_size = text_size;
    message[0] = 0;
    if (n_threads == 0 || n_threads % WARP != 0 || n_threads > THREADS_MAX ||
        shared_bytes > SHARED_MAX) {
        snprintf(message, message_size, "no such launch: %u threads, %zu bytes of shared memory",
                 n_threads, shared_bytes);
        return;
    }
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {n_threads, 1, 1};
    const u32 n_blocks = grid[0] * grid[1] * grid[2];
    for (u32 i = 0; i < n_blocks; i++) {
        // Hardware promises no order of blocks.
        const u32 block = schedule & 1 ? n_blocks - 1 - i : i;
        blockIdx = {block % grid[0], block / grid[0] % grid[1], block / (grid[0] * grid[1])};
        memset(shared, POISON, shared_bytes);
        memset(shared + shared_bytes, POISON, SHARED_GUARD);
        run_block(n_threads, schedule);
        for (size_t at = shared_bytes; message[0] == 0 && at < shared_bytes + SHARED_GUARD; at++) {
            if (shared[at] != POISON) {
                snprintf(message, message_size,
                         "block (%u, %u, %u) writes byte %zu of %zu of shared memory", blockIdx.x,
                         blockIdx.y, blockIdx.z, at, shared_bytes);
            }
        }
        if (message[0] != 0) {
            return;
        }
    }
}

// Calls a kernel with its arguments.
template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <size_t... I>
struct MakeIndices<0, I...> {
    typedef Indices<I...> Type;
};
template <class... P, size_t... I>
static void call(void (*function)(P...), void** args, Indices<I...>) {
    function(*static_cast<typename std::remove_const<P>::type*>(args[I])...);
}
template <class... P>
static void call(void (*function)(P...), void** args) {
    call(function, args, typename MakeIndices<sizeof...(P)>::Type());
}

}  // namespace emulation

static inline void __syncthreads() { emulation::wait(emulation::AT_BLOCK); }

static inline void __syncwarp() { emulation::exchange(0, "syncwarp"); }

template <class T>
static inline T __shfl_sync(u32, T x, u32 lane) {
    return emulation::shown<T>(emulation::exchange(x, "shfl"), lane);
}
template <class T>
static inline T __shfl_xor_sync(u32, T x, u32 mask) {
    const u32 lane = emulation::current % WARP;
    return emulation::shown<T>(emulation::exchange(x, "shfl_xor"), lane ^ mask);
}
template <class T>
static inline T __shfl_up_sync(u32, T x, u32 distance) {
    const u32 lane = emulation::current % WARP;
    const u8* slots = emulation::exchange(x, "shfl_up");
    return lane < distance ? x : emulation::shown<T>(slots, lane - distance);
}
template <class T>
static inline T __shfl_down_sync(u32, T x, u32 distance) {
    const u32 lane = emulation::current % WARP;
    const u8* slots = emulation::exchange(x, "shfl_down");
    return lane + distance >= WARP ? x : emulation::shown<T>(slots, lane + distance);
}
static inline u32 __ballot_sync(u32, bool vote) {
    const u8* slots = emulation::exchange(vote, "ballot");
    u32 votes = 0;
    for (u32 lane = 0; lane < WARP; lane++) {
        votes |= u32(emulation::shown<bool>(slots, lane)) << lane;
    }
    return votes;
}
static inline bool __any_sync(u32, bool vote) { return __ballot_sync(0xffffffffu, vote); }

template <class T>
static inline T atomicAdd(T* at, T x) {
    static_assert(std::is_integral<T>::value, "sums of floats have a fixed order");
    const T old = *at;
    *at += x;
    return old;
}
template <class T>
static inline T atomicMax(T* at, T x) {
    const T old = *at;
    *at = x > old ? x : old;
    return old;
}
template <class T>
static inline T atomicMin(T* at, T x) {
    const T old = *at;
    *at = x < old ? x : old;
    return old;
}

static inline float __uint_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline u32 __float_as_uint(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline u64 __umul64hi(u64 a, u64 b) { return u64((unsigned __int128)a * b >> 64); }
static inline u32 __umulhi(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(u32(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __popc(u32 x) { return __builtin_popcount(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
static inline u32 max(u32 a, u32 b) { return a > b ? a : b; }

static inline u32 bf16_bits(float x) {
    const u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline u32 pack_bf16(float low, float high) {
    return bf16_bits(low) | bf16_bits(high) << 16;
}

static inline float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

namespace emulation {

struct Fragments {
    u32 a[4], b[2];
};

// Element (row, k) of the first matrix and (k, column) of the second, of 16-bit elements.
static inline float a_bf16(const u8* slots, u32 row, u32 k) {
    const Fragments held = shown<Fragments>(slots, row % 8 * 4 + k % 8 / 2);
    return __uint_as_float((held.a[row / 8 + k / 8 * 2] >> 16 * (k % 2)) << 16);
}
static inline float b_bf16(const u8* slots, u32 k, u32 column) {
    const Fragments held = shown<Fragments>(slots, column * 4 + k % 8 / 2);
    return __uint_as_float((held.b[k / 8] >> 16 * (k % 2)) << 16);
}
static inline int a_s8(const u8* slots, u32 row, u32 k) {
    const Fragments held = shown<Fragments>(slots, row % 8 * 4 + k % 16 / 4);
    return int8_t(held.a[row / 8 + k / 16 * 2] >> 8 * (k % 4));
}
static inline int b_s8(const u8* slots, u32 k, u32 column) {
    const Fragments held = shown<Fragments>(slots, column * 4 + k % 16 / 4);
    return int8_t(held.b[k / 16] >> 8 * (k % 4));
}

}  // namespace emulation

static inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const emulation::Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const u8* slots = emulation::exchange(mine, "mma_bf16");
    const u32 lane = emulation::current % WARP;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < 16; k++) {
            d[i] += emulation::a_bf16(slots, row, k) * emulation::b_bf16(slots, k, column);
        }
    }
}

static inline void mma_s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const emulation::Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const u8* slots = emulation::exchange(mine, "mma_s8");
    const u32 lane = emulation::current % WARP;
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < 32; k++) {
            d[i] += emulation::a_s8(slots, row, k) * emulation::b_s8(slots, k, column);
        }
    }
}

namespace emulation {

static inline void check_shared(const void* p) {
    const u8* at = static_cast<const u8*>(p);
    if (at < shared || at + 16 > shared + SHARED_MAX || reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        fail("no 16 aligned bytes of shared memory");
    }
}

// The rows are read before the lanes meet, so that a row another lane has only just written is
// caught without __syncwarp.
struct Row {
    u16 elements[8];
};
static inline Row read_row(const void* row) {
    check_shared(row);
    Row read;
    memcpy(&read, row, sizeof(read));
    return read;
}
static inline u32 element(const u8* slots, u32 matrix, u32 row, u32 column) {
    return shown<Row>(slots, matrix * 8 + row).elements[column];
}

}  // namespace emulation

static inline void load_matrices(u32 (&r)[4], const void* row) {
    const u8* slots = emulation::exchange(emulation::read_row(row), "load_matrices");
    const u32 lane = emulation::current % WARP, column = lane % 4 * 2;
    for (u32 i = 0; i < 4; i++) {
        r[i] = emulation::element(slots, i, lane / 4, column) |
               emulation::element(slots, i, lane / 4, column + 1) << 16;
    }
}

static inline void load_matrices_transposed(u32 (&r)[4], const void* row) {
    const u8* slots = emulation::exchange(emulation::read_row(row), "load_matrices_transposed");
    const u32 lane = emulation::current % WARP, column = lane % 4 * 2;
    for (u32 i = 0; i < 4; i++) {
        r[i] = emulation::element(slots, i, column, lane / 4) |
               emulation::element(slots, i, column + 1, lane / 4) << 16;
    }
}

static inline void copy_start(void* to, const void* from, bool wanted) {
    emulation::check_shared(to);
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        emulation::fail("a copy from an address that is not a multiple of 16");
    }
    emulation::Fiber& fiber = emulation::fibers[emulation::current];
    if (fiber.n_copies == sizeof(fiber.copies) / sizeof(fiber.copies[0])) {
        emulation::fail("too many copies under way");
    }
    memset(to, emulation::POISON, 16);
    fiber.copies[fiber.n_copies++] = {to, from, wanted, fiber.group};
}

static inline void copies_commit() { emulation::fibers[emulation::current].group++; }

template <int NEWER>
static inline void copies_wait() {
    emulation::Fiber& fiber = emulation::fibers[emulation::current];
    u32 n_left = 0;
    for (u32 i = 0; i < fiber.n_copies; i++) {
        const emulation::Copy copy = fiber.copies[i];
        if (copy.group + NEWER >= fiber.group) {
            fiber.copies[n_left++] = copy;
        } else if (copy.wanted) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    fiber.n_copies = n_left;
}
