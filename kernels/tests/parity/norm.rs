use kernels::norm;

use crate::common::{assert_close, f64s, normal, on_each_path};

#[test]
fn sum_of_squares_matches() {
    for len in [0, 1, 15, 1025, 100_003] {
        let x = normal("x", len);
        let exact = norm::reference(&f64s(&x));
        on_each_path(
            |pool| vec![vec![norm::sum_of_squares(pool, &x) as f32]],
            |result| assert_close("sum of squares", &result[0], &[exact], 4.0),
        );
    }
}
