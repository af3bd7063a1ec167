use kernels::embedding;

use crate::common::{assert_close, normal, on_each_path};

#[test]
fn rows_and_gradients_match() {
    for (n_rows, width, n_ids) in [(1, 1, 1), (10, 7, 0), (50, 64, 300), (33, 129, 517)] {
        let table = normal("table", n_rows * width);
        let d_out = normal("d_out", n_ids * width);
        let ids: Vec<u32> = (0..n_ids).map(|t| (t * 7 % n_rows) as u32).collect();
        let row = |t: usize, c: usize| ids[t] as usize * width + c;
        let mut exact = vec![0.0; n_ids * width];
        let mut d_exact: Vec<f64> = table.iter().map(|&x| f64::from(x)).collect();
        for t in 0..n_ids {
            for c in 0..width {
                exact[t * width + c] = f64::from(table[row(t, c)]);
                d_exact[row(t, c)] += f64::from(d_out[t * width + c]);
            }
        }
        on_each_path(
            |pool| {
                let (mut out, mut d_table) = (vec![f32::NAN; n_ids * width], table.clone());
                embedding::forward(pool, &table, &ids, &mut out);
                embedding::backward(pool, &ids, &d_out, &mut d_table);
                vec![out, d_table]
            },
            |result| {
                assert_close("out", &result[0], &exact, 0.0);
                assert_close("d_table", &result[1], &d_exact, 8.0);
            },
        );
    }
}
