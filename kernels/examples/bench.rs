//! Prints the speed of every training op at the reference sizes:
//! `cargo run --release -p kernels --example bench [threads] [runs]`.

#![expect(clippy::print_stdout, reason = "the table is the output")]

use std::time::Instant;

use kernels::Pool;
use kernels::bench::{PEAK_SIZE, Sizes, peak_gflops, training_ops};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|x| x.parse().expect("a whole number"));
    let n_threads = arguments.next().unwrap_or(2);
    let n_runs = arguments.next().unwrap_or(20);
    let pool = Pool::new(n_threads);
    let peak = peak_gflops(&pool, n_runs);
    let yardstick = gemm_crate_gflops(&pool, n_runs);
    println!(
        "{n_threads} threads, {}; {PEAK_SIZE}^3 product {peak:.0} GFLOP/s, `gemm` crate {yardstick:.0}",
        pool.isa().name()
    );
    println!("{:<30} {:>9} {:>9} {:>7} {:>8}", "op", "ms", "GFLOP/s", "of peak", "GB/s");
    let figures = training_ops(&pool, Sizes::REFERENCE, n_runs);
    for f in &figures {
        println!(
            "{:<30} {:>9.3} {:>9.1} {:>6.0}% {:>8.1}",
            f.op,
            f.seconds * 1e3,
            f.gflops(),
            100.0 * f.gflops() / peak,
            f.gigabytes_per_s()
        );
    }
    let seconds: f64 = figures.iter().map(|f| f.seconds * f.n_calls as f64).sum();
    let flop: f64 = figures.iter().map(|f| f.flop * f.n_calls as f64).sum();
    println!(
        "a step of {} tokens: {:.0} ms, {:.0} tokens/s, {:.0} GFLOP/s, {:.0}% of peak",
        Sizes::REFERENCE.n_tokens(),
        seconds * 1e3,
        Sizes::REFERENCE.n_tokens() as f64 / seconds,
        flop / seconds / 1e9,
        100.0 * flop / seconds / 1e9 / peak
    );
}

/// GFLOP/s of the same product by the `gemm` crate, in tiles of 128 rows on the threads of `pool`.
fn gemm_crate_gflops(pool: &Pool, n_runs: usize) -> f64 {
    const SIZE: usize = PEAK_SIZE;
    let (a, b) = (vec![0.5_f32; SIZE * SIZE], vec![0.25_f32; SIZE * SIZE]);
    let mut c = vec![0.0_f32; SIZE * SIZE];
    let mut fastest = f64::INFINITY;
    for _ in 0..=n_runs {
        let start = Instant::now();
        pool.for_chunks(&mut c, 128 * SIZE, |tile, c| {
            let (m, row) = (c.len() / SIZE, SIZE as isize);
            let a = a[tile * 128 * SIZE..].as_ptr();
            // SAFETY: The three matrices are contiguous and hold `m`, `SIZE` and `m` whole rows.
            unsafe {
                gemm::gemm(
                    m,
                    SIZE,
                    SIZE,
                    c.as_mut_ptr(),
                    1,
                    row,
                    false,
                    a,
                    1,
                    row,
                    b.as_ptr(),
                    1,
                    row,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        });
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    2.0 * (SIZE as f64).powi(3) / fastest / 1e9
}
