use kernels::cross_entropy::{self, IGNORE, Loss, reference};

use crate::common::{assert_close, assert_gradient, f64s, normal, on_each_path};

fn targets(n_tokens: usize, n_vocab: usize) -> Vec<u32> {
    let target = |t: usize| if t % 5 == 3 { IGNORE } else { (t * 31 % n_vocab) as u32 };
    (0..n_tokens).map(target).collect()
}

fn check(n_tokens: usize, d: usize, n_vocab: usize, magnitude: f32) {
    let x: Vec<f32> = normal("x", n_tokens * d).iter().map(|x| x * magnitude).collect();
    let (w, d_w0) = (normal("w", n_vocab * d), normal("d_w", n_vocab * d));
    let targets = targets(n_tokens, n_vocab);
    let loss = Loss { z_loss: 1e-3, scale: 0.25 };
    let (nll, lse) = reference::forward(&f64s(&x), &f64s(&w), &targets);
    let (d_x, mut d_w) =
        reference::backward(&f64s(&x), &f64s(&w), &targets, f64::from(loss.z_loss), 0.25);
    for (d_w, &start) in d_w.iter_mut().zip(&d_w0) {
        *d_w += f64::from(start);
    }
    let sums = [nll.iter().sum(), lse.iter().map(|x| x * x).sum::<f64>()];
    let n_counted = targets.iter().filter(|&&t| t != IGNORE).count();
    // The error of a logit, relative to the largest, becomes one of a probability.
    let logit = f64::from(magnitude) * (d as f64).sqrt() * 4.0;
    on_each_path(
        |pool| {
            let mut scratch = vec![f32::NAN; cross_entropy::scratch_len(n_tokens, n_vocab)];
            let (mut d_x, mut d_w) = (vec![f32::NAN; x.len()], d_w0.clone());
            let sums = cross_entropy::linear(
                pool,
                &x,
                &w,
                &targets,
                loss,
                &mut d_x,
                &mut d_w,
                &mut scratch,
            );
            assert_eq!(sums.n_tokens, n_counted);
            let mut nll = vec![f32::NAN; n_tokens];
            cross_entropy::linear_forward(pool, &x, &w, &targets, &mut nll, &mut scratch);
            vec![d_x, d_w, nll, vec![sums.nll as f32], vec![sums.z as f32]]
        },
        |result| {
            let what = |name| format!("{name} of [{n_tokens}, {d}, {n_vocab}] times {magnitude}");
            assert_close(&what("d_x"), &result[0], &d_x, 16.0 + 2.0 * logit);
            assert_close(&what("d_w"), &result[1], &d_w, 16.0 + 2.0 * logit);
            assert_close(&what("nll"), &result[2], &nll, 16.0);
            assert_close(&what("sum of nll"), &result[3], &sums[..1], 16.0);
            assert_close(&what("sum of z"), &result[4], &sums[1..], 16.0);
        },
    );
}

#[test]
fn shapes_match() {
    for (n_tokens, d, n_vocab) in [(1, 1, 1), (1, 8, 100), (9, 5, 17), (70, 32, 301)] {
        check(n_tokens, d, n_vocab, 1.0);
    }
}

#[test]
fn chunks_match() {
    // More rows than one chunk of this vocabulary holds.
    check(1100, 3, 5, 1.0);
    check(150, 2, 33_000, 1.0);
}

#[test]
fn extreme_logits_match() {
    check(20, 16, 50, 0.0);
    check(20, 16, 50, 300.0);
}

#[test]
fn no_target_no_loss() {
    let (x, w) = (normal("x", 12), normal("w", 20));
    on_each_path(
        |pool| {
            let loss = Loss { z_loss: 1.0, scale: 1.0 };
            let (mut d_x, mut d_w) = (vec![1.0; 12], vec![1.0; 20]);
            let sums = cross_entropy::linear(
                pool,
                &x,
                &w,
                &[IGNORE; 3],
                loss,
                &mut d_x,
                &mut d_w,
                &mut vec![0.0; cross_entropy::scratch_len(3, 5)],
            );
            assert_eq!(sums, cross_entropy::LossSums::default());
            vec![d_x, d_w]
        },
        |result| assert_eq!(result, [vec![0.0; 12], vec![1.0; 20]]),
    );
}

#[test]
fn reference_gradients_are_derivatives() {
    let (x, w) = (f64s(&normal("x", 7 * 3)), f64s(&normal("w", 5 * 3)));
    let targets = targets(7, 5);
    let loss = |x: &[f64], w: &[f64]| {
        let (nll, lse) = reference::forward(x, w, &targets);
        0.5 * (nll.iter().sum::<f64>() + 0.1 * lse.iter().map(|x| x * x).sum::<f64>())
    };
    let (d_x, d_w) = reference::backward(&x, &w, &targets, 0.1, 0.5);
    assert_gradient("x", &x, &d_x, |x| loss(x, &w));
    assert_gradient("w", &w, &d_w, |w| loss(&x, w));
}
