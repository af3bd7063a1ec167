// What hopper.cuh has for a CPU: from the PTX ISA's definitions, and as hostile as they allow.
//
// A copy leaves poison where it goes at once and brings its bytes when no thread can go on without
// them, the oldest or the newest first: who reads before the barrier's phase has ended reads poison,
// and who lets a panel be filled while it is still read finds poison in it. A product takes its
// operands when it is started, and they must be the same when it is waited for; until then its sums
// are poison. Products need products_begin before them after every wait, warps of a warpgroup start
// the same products, and a barrier must be made, and shown to the copy engine.
//
// Not played: writes of threads that a product or copy reads (fence.proxy.async), which no kernel has.

#pragma once

namespace emulation {

// What the 32-bit addresses of shared memory begin with; the hardware keeps the first KiB, too.
constexpr u32 SHARED_BASE = 1024;

// A barrier in its 8 bytes.
struct Phases {
    u64 mark : 8, parity : 1, is_shown : 1, expected : 11, pending : 11;
    int64_t bytes : 32;
};
static_assert(sizeof(Phases) == sizeof(Barrier));
constexpr u64 BARRIER_MARK = 0x5b;

static Phases& phases(const void* barrier) {
    u8* at = static_cast<u8*>(const_cast<void*>(barrier));
    if (at < shared || at + sizeof(Phases) > shared + SHARED_MAX ||
        reinterpret_cast<uintptr_t>(at) % 8 != 0) {
        fail("no 8 aligned bytes of shared memory");
    }
    Phases& found = *reinterpret_cast<Phases*>(at);
    if (found.mark != BARRIER_MARK) {
        fail("no barrier was made here");
    }
    return found;
}

static void end_phase(Phases& phases) {
    if (phases.pending == 0 && phases.bytes == 0) {
        phases.parity ^= 1;
        phases.pending = phases.expected;
    }
}

static void arrive(Barrier* barrier) {
    Phases& found = phases(barrier);
    if (found.pending == 0) {
        fail("more arrivals than the barrier expects");
    }
    found.pending--;
    end_phase(found);
}

// Asked beside the threads, too, so a barrier that was written over is for the one who waits to find.
static bool phase_is_over(const void* barrier, u32 parity) {
    Phases found;
    memcpy(&found, barrier, sizeof(found));
    return found.mark != BARRIER_MARK || found.parity != parity;
}

// Barriers that were made and not shown to the copy engine.
static Barrier* made[64];
static u32 n_made;
static u64 block_of_made;

// A copy under way.
struct Transfer {
    u8* panel;
    TensorMap map;
    u32 column, row;
    Barrier* barrier;
};

// As `Emulator::tensor_map` fills them.
struct Matrix {
    u64 address, n_columns, n_rows, stride_bytes, box_columns, box_rows, mark;
};
constexpr u64 MATRIX_MARK = 0x7465'6e73'6f72;

static Matrix matrix(const TensorMap& map) {
    Matrix found;
    static_assert(sizeof(found) <= sizeof(map));
    memcpy(&found, &map, sizeof(found));
    return found;
}

static Transfer transfers[256];
static u32 n_transfers;
static u64 block_of_transfers;

// The 16-byte pieces of 128-byte rows, turned by the row.
static u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

static bool finish_transfer(bool newest) {
    if (n_transfers == 0) {
        return false;
    }
    const u32 at = newest ? n_transfers - 1 : 0;
    const Transfer transfer = transfers[at];
    n_transfers--;
    memmove(transfers + at, transfers + at + 1, (n_transfers - at) * sizeof(Transfer));
    const Matrix from = matrix(transfer.map);
    for (u32 r = 0; r < from.box_rows; r++) {
        for (u32 c = 0; c < from.box_columns; c++) {
            const u64 row = u64(transfer.row) + r, column = u64(transfer.column) + c;
            bf16 x = 0;
            if (row < from.n_rows && column < from.n_columns) {
                memcpy(&x, reinterpret_cast<const u8*>(from.address) + row * from.stride_bytes + 2 * column,
                       sizeof(x));
            }
            const u32 to = u32(transfer.panel - shared) + r * 128 + c * 2;
            memcpy(shared + swizzled(to), &x, sizeof(x));
        }
    }
    Phases& found = *reinterpret_cast<Phases*>(transfer.barrier);
    if (found.mark != BARRIER_MARK) {
        snprintf(message, message_size, "a barrier is written over while a copy counts on it");
        return true;
    }
    found.bytes -= int64_t(from.box_rows * from.box_columns * 2);
    end_phase(found);
    return true;
}

// Sums of a thread that products add to.
struct Sums {
    float* place;
    u32 n_blocks, n_under_way;
    float values[64];
};

struct Multiplication {
    u32 sums, n_blocks, group;
    bool adds;
    // The first operand's descriptor, or its registers and what they held.
    u64 a;
    const u32* registers;
    u32 held[4];
    u64 b;
    u64 operands;
    float product[64];
};

// Products that a thread has started.
struct Products {
    u64 block;
    Sums sums[4];
    Multiplication queue[32];
    u32 n, group, n_started;
    bool is_begun;
};
static Products all_products[THREADS_MAX];

// Second operands of the products of each warpgroup, in order, to see that its warps agree.
static u64 started[THREADS_MAX / WARPGROUP][256];
static u32 n_started[THREADS_MAX / WARPGROUP];
static u64 block_of_started;

static void leave_nothing();

static Products& products() {
    Products& mine = all_products[current];
    if (mine.block != n_blocks_begun) {
        memset(&mine, 0, sizeof(mine));
        mine.block = n_blocks_begun;
        check_end = leave_nothing;
    }
    return mine;
}

static void leave_nothing() {
    if (products().n != 0) {
        fail("a thread ends with products under way");
    }
}

// Element (row, k) of an operand whose rows lie along the rows of panels, or along their columns:
// PTX ISA, "Shared memory matrix layout" and "Strides", for 16-bit elements.
static bf16 operand(u64 descriptor, u32 row, u32 k, bool is_along_rows) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
        fail("a product's operand is not swizzled by 128 bytes from a multiple of 1024 on");
    }
    const auto bytes = [&](u32 from) { return u32(descriptor >> from & 0x3fff) << 4; };
    const u32 start = bytes(0), leading = bytes(16), stride = bytes(32);
    const u32 offset = is_along_rows
                           ? row / 8 * stride + row % 8 * 128 + k * 2
                           : row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * 128;
    const u32 address = swizzled(start + offset);
    if (address < SHARED_BASE || address - SHARED_BASE + sizeof(bf16) > SHARED_MAX) {
        fail("a product's operand is outside the shared memory");
    }
    bf16 x;
    memcpy(&x, shared + (address - SHARED_BASE), sizeof(x));
    return x;
}

struct Operands {
    // The lane's two rows of the first operand; its two columns in each block of the second.
    bf16 a[2][16], b[16][2][16];
};

static u64 digest(const Operands& operands, u32 n_blocks) {
    u64 hash = 0xcbf29ce484222325u;
    const auto add = [&](bf16 x) { hash = (hash ^ x) * 0x100000001b3u; };
    for (u32 k = 0; k < 16; k++) {
        add(operands.a[0][k]);
        add(operands.a[1][k]);
        for (u32 n = 0; n < n_blocks; n++) {
            add(operands.b[n][0][k]);
            add(operands.b[n][1][k]);
        }
    }
    return hash;
}

static void read_shared(Operands& operands, const Multiplication& m) {
    const u32 lane = current % WARP, warp = current % WARPGROUP / WARP;
    for (u32 k = 0; k < 16; k++) {
        for (u32 half = 0; half < 2 && m.registers == nullptr; half++) {
            operands.a[half][k] = operand(m.a, warp * 16 + half * 8 + lane / 4, k, true);
        }
        for (u32 n = 0; n < m.n_blocks; n++) {
            for (u32 i = 0; i < 2; i++) {
                operands.b[n][i][k] =
                    operand(m.b, n * 8 + lane % 4 * 2 + i, k, m.registers == nullptr);
            }
        }
    }
}

static float widened(bf16 x) { return __uint_as_float(u32(x) << 16); }

// The sums at a place, poison there from now on.
static u32 sums_at(Products& mine, float* place, u32 n_blocks) {
    u32 unused = 4;
    for (u32 i = 0; i < 4; i++) {
        if (mine.sums[i].n_under_way == 0) {
            unused = i;
        } else if (mine.sums[i].place == place) {
            return i;
        }
    }
    if (unused == 4) {
        fail("products on more sums than are kept");
    }
    Sums& sums = mine.sums[unused];
    sums.place = place;
    sums.n_blocks = n_blocks;
    memcpy(sums.values, place, n_blocks * 16);
    memset(static_cast<void*>(place), POISON, n_blocks * 16);
    return unused;
}

struct Shown {
    u32 a[4];
    u64 a_descriptor, b;
};

static void start(float* place, u32 n_blocks, const u32* registers, u64 a, u64 b, bool adds) {
    Shown shows = {{}, a, b};
    if (registers != nullptr) {
        memcpy(shows.a, registers, sizeof(shows.a));
    }
    const u8* slots = exchange(shows, "multiply");
    Products& mine = products();
    if (!mine.is_begun) {
        fail("products_begin is missing before a product");
    }
    if (mine.n == sizeof(mine.queue) / sizeof(mine.queue[0])) {
        fail("too many products under way");
    }
    const u32 lane = current % WARP, group = current / WARPGROUP;
    if (block_of_started != n_blocks_begun) {
        block_of_started = n_blocks_begun;
        memset(n_started, 0, sizeof(n_started));
    }
    const u64 name = a * 31 + b * 7 + n_blocks;
    u64& agreed = started[group][mine.n_started % 256];
    if (mine.n_started == n_started[group]) {
        n_started[group]++;
        agreed = name;
    } else if (agreed != name) {
        fail("warps of a warpgroup start different products");
    }
    mine.n_started++;

    Multiplication& m = mine.queue[mine.n++];
    m.sums = sums_at(mine, place, n_blocks);
    m.n_blocks = n_blocks;
    m.group = mine.group;
    m.adds = adds;
    m.a = a;
    m.b = b;
    m.registers = registers;
    memcpy(m.held, shows.a, sizeof(m.held));
    mine.sums[m.sums].n_under_way++;

    Operands operands = {};
    read_shared(operands, m);
    m.operands = digest(operands, n_blocks);
    for (u32 k = 0; k < 16 && registers != nullptr; k++) {
        const Shown held = shown<Shown>(slots, lane / 4 * 4 + k % 8 / 2);
        for (u32 half = 0; half < 2; half++) {
            operands.a[half][k] = bf16(held.a[half + k / 8 * 2] >> 16 * (k % 2));
        }
    }
    for (u32 n = 0; n < n_blocks; n++) {
        for (u32 i = 0; i < 4; i++) {
            float& sum = m.product[n * 4 + i];
            sum = 0.0f;
            for (u32 k = 0; k < 16; k++) {
                sum += widened(operands.a[i / 2][k]) * widened(operands.b[n][i % 2][k]);
            }
        }
    }
}

static void finish(Products& mine, const Multiplication& m) {
    Operands operands = {};
    read_shared(operands, m);
    if (digest(operands, m.n_blocks) != m.operands) {
        fail("an operand of a product changes while it is read");
    }
    if (m.registers != nullptr && memcmp(m.registers, m.held, sizeof(m.held)) != 0) {
        fail("a register of a product changes while it is read");
    }
    Sums& sums = mine.sums[m.sums];
    for (u32 i = 0; i < m.n_blocks * 4; i++) {
        sums.values[i] = (m.adds ? sums.values[i] : 0.0f) + m.product[i];
    }
    if (--sums.n_under_way == 0) {
        memcpy(sums.place, sums.values, sums.n_blocks * 16);
    }
}

}  // namespace emulation

static inline u32 shared_address(const void* p) {
    return u32(static_cast<const u8*>(p) - shared) + emulation::SHARED_BASE;
}

static inline void barrier_make(Barrier* barrier, u32 n_arrivals) {
    using namespace emulation;
    if (block_of_made != n_blocks_begun) {
        block_of_made = n_blocks_begun;
        n_made = 0;
    }
    if (n_made == sizeof(made) / sizeof(made[0])) {
        fail("too many barriers");
    }
    made[n_made++] = barrier;
    Phases found = {BARRIER_MARK, 0, 0, n_arrivals, n_arrivals, 0};
    memcpy(barrier, &found, sizeof(found));
}

static inline void barriers_ready() {
    for (u32 i = 0; i < emulation::n_made; i++) {
        emulation::phases(emulation::made[i]).is_shown = 1;
    }
    emulation::n_made = 0;
}

// What an arrival allows happens before the thread goes on.
static inline void barrier_arrive(Barrier* barrier) {
    emulation::arrive(barrier);
    emulation::let_others_run();
}

static inline void barrier_expect(Barrier* barrier, u32 n_bytes) {
    emulation::phases(barrier).bytes += n_bytes;
    emulation::arrive(barrier);
}

static inline void barrier_wait(Barrier* barrier, u32 parity) {
    emulation::phases(barrier);
    emulation::sleep_until(emulation::phase_is_over, barrier, parity);
    emulation::phases(barrier);
}

static inline void tensor_copy(void* panel, const TensorMap& map, u32 column, u32 row,
                               Barrier* barrier) {
    using namespace emulation;
    u8* to = static_cast<u8*>(panel);
    const Matrix from = matrix(map);
    if (from.mark != MATRIX_MARK || from.box_columns * 2 != 128) {
        fail("no tensor map of boxes of 64 columns");
    }
    const size_t n_bytes = from.box_rows * 128;
    if (to < shared || to + n_bytes > shared + SHARED_MAX || (to - shared) % 1024 != 0) {
        fail("no panel of shared memory at a multiple of 1024");
    }
    if (!phases(barrier).is_shown) {
        fail("the copy engine does not know the barrier");
    }
    if (block_of_transfers != n_blocks_begun) {
        block_of_transfers = n_blocks_begun;
        n_transfers = 0;
    }
    if (n_transfers == sizeof(transfers) / sizeof(transfers[0])) {
        fail("too many copies under way");
    }
    advance = finish_transfer;
    memset(to, POISON, n_bytes);
    transfers[n_transfers++] = {to, map, column, row, barrier};
}

template <int N>
static inline void registers_give() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}
template <int N>
static inline void registers_take() {
    registers_give<N>();
}

static inline void products_begin() {
    emulation::exchange(0, "products_begin");
    emulation::products().is_begun = true;
}

static inline void products_commit() {
    emulation::exchange(0, "products_commit");
    emulation::products().group++;
}

template <u32 BLOCKS>
static inline void hold(float (&)[BLOCKS][4]) {}

template <int NEWER, u32 BLOCKS>
static inline void products_wait(float (&)[BLOCKS][4]) {
    emulation::exchange(0, "products_wait");
    emulation::Products& mine = emulation::products();
    u32 n_left = 0;
    for (u32 i = 0; i < mine.n; i++) {
        if (mine.queue[i].group + NEWER >= mine.group) {
            mine.queue[n_left++] = mine.queue[i];
        } else {
            emulation::finish(mine, mine.queue[i]);
        }
    }
    mine.n = n_left;
    mine.is_begun = false;
}

static inline void multiply_nt(float (&d)[16][4], u64 a, u64 b, bool adds) {
    emulation::start(d[0], 16, nullptr, a, b, adds);
}
template <u32 BLOCKS>
static inline void multiply_nn(float (&d)[BLOCKS][4], const u32 (&a)[4], u64 b) {
    emulation::start(d[0], BLOCKS, a, 0, b, true);
}
