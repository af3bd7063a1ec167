use kernels::matmul::{Accumulate, nn, nt, reference, tn};

use crate::common::{assert_close, f64s, normal, on_each_path};

fn check(m: usize, n: usize, k: usize) {
    let (a, b, c) = (normal("a", m * k), normal("b", k * n), normal("c", m * n));
    let (a64, b64) = (f64s(&a), f64s(&b));
    let exact = [
        reference::nt(&a64, &b64, m, n, k),
        reference::nn(&a64, &b64, m, n, k),
        reference::tn(&a64, &b64, m, n, k),
    ];
    let added = exact.clone().map(|x| x.iter().zip(&c).map(|(x, &c)| x + f64::from(c)).collect());
    on_each_path(
        |pool| {
            let mut results = Vec::new();
            for accumulate in [Accumulate::Overwrite, Accumulate::Add] {
                for product in [nt, nn, tn] {
                    let mut c = c.clone();
                    product(pool, &mut c, &a, &b, m, n, k, accumulate);
                    results.push(c);
                }
            }
            results
        },
        |results| {
            let exact: Vec<Vec<f64>> = exact.iter().cloned().chain(added.clone()).collect();
            for (fast, exact) in results.iter().zip(&exact) {
                let what = format!("[{m}, {n}, {k}]");
                assert_close(&what, fast, exact, 2.0 + (k as f64).sqrt());
            }
        },
    );
}

#[test]
fn products_match() {
    for (m, n, k) in [
        (1, 1, 1),
        (1, 7, 5),
        (7, 1, 64),
        (3, 5, 2),
        (17, 33, 1),
        (65, 31, 129),
        (2, 600, 3),
        (257, 513, 40),
        (300, 20, 700),
        (130, 1040, 65),
        // Rows a page apart, which are packed.
        (50, 70, 1024),
        (1024, 34, 30),
    ] {
        check(m, n, k);
    }
}

#[test]
fn empty_sums_are_zero_or_nothing() {
    check(3, 4, 0);
    check(0, 4, 3);
    check(3, 0, 4);
}
