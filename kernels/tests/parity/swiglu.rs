use kernels::swiglu::{self, reference};

use crate::common::{assert_close, assert_gradient, dot, f64s, normal, on_each_path};

fn check(gate_up: &[f32], n_hidden: usize) {
    let d_out = normal("d_out", gate_up.len() / 2);
    let exact = reference::forward(&f64s(gate_up), n_hidden);
    let d_exact = reference::backward(&f64s(&d_out), &f64s(gate_up), n_hidden);
    on_each_path(
        |pool| {
            let (mut out, mut d) = (vec![f32::NAN; d_out.len()], vec![f32::NAN; gate_up.len()]);
            swiglu::forward(pool, gate_up, n_hidden, &mut out);
            swiglu::backward(pool, &d_out, gate_up, n_hidden, &mut d);
            vec![out, d]
        },
        |result| {
            assert_close("out", &result[0], &exact, 4.0);
            assert_close("d_gate_up", &result[1], &d_exact, 8.0);
        },
    );
}

#[test]
fn shapes_match() {
    for (n_rows, n_hidden) in [(1, 1), (3, 17), (33, 64), (70, 705)] {
        check(&normal("gate_up", 2 * n_rows * n_hidden), n_hidden);
    }
}

#[test]
fn extreme_gates_match() {
    let gates = [0.0, -0.0, 50.0, -50.0, 100.0, -100.0, 1e4, -1e4, 1e-30, -1e-30];
    let mut gate_up = gates.to_vec();
    gate_up.extend(gates.map(|_| 1.0));
    check(&gate_up, gates.len());
}

#[test]
fn reference_gradient_is_the_derivative() {
    let (gate_up, d_out) = (f64s(&normal("x", 40)), f64s(&normal("d", 20)));
    let gradient = reference::backward(&d_out, &gate_up, 10);
    assert_gradient("gate_up", &gate_up, &gradient, |x| dot(&d_out, &reference::forward(x, 10)));
}
