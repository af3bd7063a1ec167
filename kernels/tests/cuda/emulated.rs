//! Every kernel executed on the CPU under three schedules, against its `f64` reference.

use std::path::Path;

use half::bf16;
use kernels::attention::cuda::{Documents, Tier, hopper};
use kernels::attention::{self, Heads};
use kernels::cuda::emulator::{Mutation, Schedule};
use kernels::cuda::parity::{self, Case, Effort};
use kernels::cuda::{Buffer, Emulator, Error};

fn emulator(schedule: Schedule) -> Emulator {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    Emulator::new(&dir, schedule).of_arch("sm_90a")
}

/// Runs cases under every schedule: outputs are right, and have the same bits.
fn check(op: &str) {
    let cases: Vec<Case> =
        parity::cases(Effort::Emulated).into_iter().filter(|case| case.op == op).collect();
    assert!(!cases.is_empty(), "there are cases of {op}");
    let emulators = Schedule::ALL.map(emulator);
    for case in &cases {
        let mut digests = Vec::new();
        for emulator in &emulators {
            let checks =
                (case.run)(emulator).unwrap_or_else(|error| panic!("{op} {}: {error}", case.shape));
            for check in &checks {
                let (what, error, limit) = (check.what, check.error, check.limit);
                let shape = &case.shape;
                assert!(check.holds(), "{op} {shape}: {what} is off by {error:e}, limit {limit:e}");
            }
            digests.push(checks.iter().map(|check| check.digest).collect::<Vec<_>>());
        }
        assert!(digests.windows(2).all(|two| two[0] == two[1]), "{op} {} is a race", case.shape);
    }
}

macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        $(#[test]
        fn $op() {
            check(stringify!($op));
        })*

        #[test]
        fn every_op_is_checked() {
            let named = [$(stringify!($op)),*];
            for case in parity::cases(Effort::Emulated) {
                assert!(named.contains(&case.op), "`{}` has no test", case.op);
            }
        }
    };
}

ops!(
    adamw,
    attention,
    attention_hopper,
    cross_entropy,
    decode,
    embedding,
    int8_search,
    norm,
    qk_norm_rope,
    rms_norm,
    sampling,
    swiglu
);

/// Whether some case of `op` fails under some schedule, or schedules give different bits. A changed
/// kernel that does not compile shows nothing.
fn notices(op: &str, mutation: Mutation) -> bool {
    let emulators = Schedule::ALL.map(|schedule| emulator(schedule).mutated(mutation));
    parity::cases(Effort::Emulated).into_iter().filter(|case| case.op == op).any(|case| {
        let results = emulators.each_ref().map(|emulator| (case.run)(emulator));
        let digests: Vec<Option<Vec<_>>> = results
            .into_iter()
            .map(|result| {
                let checks = match result {
                    Ok(checks) => checks,
                    Err(Error::Emulation { .. }) => return None,
                    Err(error) => panic!("{mutation:?}: {error}"),
                };
                let right = checks.iter().all(parity::Check::holds);
                right.then(|| checks.iter().map(|check| check.digest).collect())
            })
            .collect();
        digests.iter().any(|digest| digest.is_none() || *digest != digests[0])
    })
}

/// Broken on purpose: an index, a barrier, a bound.
#[test]
fn mistakes_are_noticed() {
    let hopper = |from, to| ("attention_hopper", "attention_hopper.cu", from, to);
    let mistakes = [
        ("rms_norm", "rms_norm.cu", "if (i < n_vectors) {", "if (i <= n_vectors) {"),
        ("rms_norm", "rms_norm.cu", "squares = add_squares(squares, kept[n]);", ""),
        ("rms_norm", "rms_norm.cu", "again[i], gains[i]", "again[i], gains[n_vectors - 1 - i]"),
        ("rms_norm", "sum_rows.cu", "    __syncthreads();\n", ""),
        ("rms_norm", "sum_rows.cu", "row += 8", "row += 9"),
        ("swiglu", "swiglu.cu", "up[8];\n    unpack8(row[i]", "up[8];\n    unpack8(row[i ^ 1]"),
        ("adamw", "adamw.cu", "i < len / 4", "i <= len / 4"),
        ("norm", "norm.cu", "i += 1024) {\n        if", "i += 2048) {\n        if"),
        ("embedding", "embedding.cu", "order[n]", "order[n] * 0 + n"),
        ("attention", "attention.cu", "key <= row[i / 2]", "key < row[i / 2]"),
        ("attention", "softmax.cuh", "key <= row + i / 2 * 8", "key <= row"),
        ("attention", "softmax.cuh", "key >= row_start[i / 2]", "key + 1 >= row_start[i / 2]"),
        ("attention", "attention.cu", "copies_wait<1>();\n        __syncthreads();", ""),
        ("attention", "attention.cu", "n + lane / 16 * 8 + lane % 8", "n + lane % 16"),
        hopper("n_heads + n_kv_heads + kv_head", "n_heads + kv_head"),
        hopper("group * 64 * ROW_BYTES", "group * 0 * ROW_BYTES"),
        hopper("barrier_wait(&bars.values[stage].full, round);", "(void)round;"),
        hopper("barrier_wait(&bars.keys[next_stage].full, next_round);", "(void)next_round;"),
        hopper("barrier_wait(&bars.keys[stage].empty, round ^ 1);", ""),
        hopper("barrier_wait(&bars.queries, 0);", ""),
        hopper("n / STAGES % 2", "0"),
        hopper("barrier_expect(full, Tiles<DIM>::BYTES)", "barrier_expect(full, PANEL_BYTES)"),
        hopper("keys[stage].empty, 2 * WARPGROUP", "keys[stage].empty, WARPGROUP"),
        hopper(
            "products_wait<0>(sum);\n        release(bars.values[stage]);",
            "release(bars.values[stage]);\n        products_wait<0>(sum);",
        ),
        hopper("products_wait<0>(sum);\n        release", "release"),
        hopper("products_begin();", ""),
        hopper("barriers_ready();", ""),
        hopper("descriptor(keys + at, GROUP_BYTES", "descriptor(keys + at, 2 * GROUP_BYTES"),
        hopper("GROUP_BYTES, PANEL_BYTES)", "GROUP_BYTES, GROUP_BYTES)"),
        hopper("step / 4 * PANEL_BYTES", "step / 4 * GROUP_BYTES"),
        (
            "attention_hopper",
            "hopper.cuh",
            "u64(group_bytes >> 4) << 32",
            "u64(group_bytes >> 4) << 33",
        ),
        ("cross_entropy", "cross_entropy.cu", "4 * i + j == target", "4 * i == target"),
        (
            "cross_entropy",
            "cross_entropy.cu",
            "    __syncthreads();\n    float row_top",
            "    float row_top",
        ),
        ("decode", "decode.cu", "n * PAGE + offset < count", "true"),
        ("decode", "decode.cu", "        __syncthreads();\n        float top", "        float top"),
        ("qk_norm_rope", "qk_norm_rope.cu", "head < u32(n_heads) ? 0 : DIM", "0"),
        ("sampling", "sampling.cu", "other_id <= id", "other_id < id"),
        ("sampling", "sampling.cu", "row[suppressed[i]] = -INF", "row[suppressed[0]] = -INF"),
        ("sampling", "sampling.cu", "u32(~id);", "id;"),
        ("sampling", "sampling.cu", "ends[blockIdx.x] +", "ends[0] +"),
        ("sampling", "sampling.cu", "keys[1] += 0xBB67AE85u", "keys[1] += 0xBB67AE86u"),
        ("int8_search", "int8_search.cu", "copies_wait<STAGES - 2>", "copies_wait<STAGES - 1>"),
        ("int8_search", "int8_search.cu", "score >= threshold", "score > threshold"),
        ("int8_search", "int8_search.cu", "            __syncthreads();\n", ""),
        ("int8_search", "int8_search.cu", "u32(~id)", "id"),
    ];
    for (op, source, from, to) in mistakes {
        let mutation = Mutation { source, from, to };
        assert!(notices(op, mutation), "nobody notices {mutation:?}");
    }
}

/// Of the attention's forward pass, a device has the kernels of its architecture, and `fault` finds what
/// is wrong with those of one alone.
#[test]
fn kernels_of_one_architecture_are_offered_there_and_tried_anywhere() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let device = |arch| Emulator::new(&dir, Schedule::Backward).of_arch(arch);
    let offered =
        |arch| parity::cases(Effort::Emulated).iter().all(|case| case.is_for(&device(arch)));
    assert_eq!([Tier::of(&device("sm_80")), Tier::of(&device("sm_90"))], [Tier::Warp; 2]);
    assert_eq!(Tier::of(&device("sm_90a")), Tier::Warpgroup);
    assert_eq!(["sm_80", "sm_90a"].map(offered), [false, true]);

    let fault = |device: &Emulator| parity::fault(device, &hopper::SOURCE, Effort::Emulated);
    assert_eq!(fault(&device("sm_80")), Ok(None));
    let mutation = |from, to| Mutation { source: hopper::SOURCE.name, from, to };
    let wrong = mutation("highest[half] * scale + logf", "highest[half] + logf");
    let found = fault(&device("sm_90a").mutated(wrong)).unwrap().unwrap();
    assert!(found.contains("`lse` of attention_hopper, 1/1 heads of 64"), "{found}");
    let broken = mutation("barriers_ready();", "");
    let found = fault(&device("sm_90a").mutated(broken));
    assert!(matches!(found, Err(Error::Emulation { .. })), "{found:?}");

    // What is offered is used.
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 64 };
    let forward = |device: &Emulator| {
        let scratch = [(); 2].map(|()| Buffer::poisoned(device, 1).unwrap());
        let documents = Documents::new(device, &[0], [&scratch[0], &scratch[1]])?;
        let qkv = Buffer::of(device, &vec![bf16::ONE; heads.qkv_width()])?;
        let (out, lse) = (Buffer::poisoned(device, 64)?, Buffer::poisoned(device, 1)?);
        attention::cuda::forward(device, &qkv, heads, &documents, &out, &lse)
    };
    assert_eq!(forward(&device("sm_80").mutated(broken)), Ok(()));
    assert!(matches!(forward(&device("sm_90a").mutated(broken)), Err(Error::Emulation { .. })));
}
