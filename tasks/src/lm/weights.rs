//! The numbers of a model, in one arena with named parts.
//!
//! The arena holds, in order: the embedding table, every block, the final gain, and the output
//! matrix of an untied model. Inside a block the query, key and value projections are one matrix,
//! and so are gate and up, because each is one product in the forward pass. Gradients and moments
//! are arenas of the same layout.

use std::ops::Range;

use super::Config;

/// What a part of the arena is; decides its initial values and whether weight decay applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The embedding table, one row a token id.
    Embedding,
    /// A matrix whose product enters a norm, an activation or the softmax.
    Matrix,
    /// A matrix whose product is added to the residual stream.
    Residual,
    /// The gains of a norm.
    Gain,
}

impl PartKind {
    /// Whether weight decay pulls on it: matrices only, neither gains nor the embedding table.
    pub fn decays(self) -> bool {
        matches!(self, Self::Matrix | Self::Residual)
    }
}

/// One named part of the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name: a block's parts are `layers.I.NAME`.
    pub name: String,
    /// What it is.
    pub kind: PartKind,
    /// Rows; 1 for gains.
    pub rows: usize,
    /// Columns: the inputs of a matrix.
    pub cols: usize,
    /// Where it lies in the arena.
    pub range: Range<usize>,
}

/// Sizes of a block's parts in arena order: input norm, qkv, q norm, k norm, o, post norm,
/// gate and up, down.
fn block_parts(config: &Config) -> [(&'static str, PartKind, usize, usize); 8] {
    let (d, hd) = (config.d_model, config.head_dim);
    [
        ("input_norm", PartKind::Gain, 1, d),
        ("qkv", PartKind::Matrix, config.qkv_width(), d),
        ("q_norm", PartKind::Gain, 1, hd),
        ("k_norm", PartKind::Gain, 1, hd),
        ("o", PartKind::Residual, d, config.q_width()),
        ("post_norm", PartKind::Gain, 1, d),
        ("gate_up", PartKind::Matrix, 2 * config.d_ffn, d),
        ("down", PartKind::Residual, d, config.d_ffn),
    ]
}

/// A block's parts.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Gain before attention, `[d_model]`.
    pub input_norm: &'a [f32],
    /// Query, key and value projections, `[qkv_width, d_model]`.
    pub qkv: &'a [f32],
    /// Gain of each query head, `[head_dim]`.
    pub q_norm: &'a [f32],
    /// Gain of each key head, `[head_dim]`.
    pub k_norm: &'a [f32],
    /// Projection of the heads' outputs, `[d_model, q_width]`.
    pub o: &'a [f32],
    /// Gain before the feed-forward layer, `[d_model]`.
    pub post_norm: &'a [f32],
    /// Gate and up projections, `[2 * d_ffn, d_model]`.
    pub gate_up: &'a [f32],
    /// Down projection, `[d_model, d_ffn]`.
    pub down: &'a [f32],
}

/// A block's parts, to be written; fields as in [`Block`].
#[derive(Debug)]
pub struct BlockMut<'a> {
    /// See [`Block::input_norm`].
    pub input_norm: &'a mut [f32],
    /// See [`Block::qkv`].
    pub qkv: &'a mut [f32],
    /// See [`Block::q_norm`].
    pub q_norm: &'a mut [f32],
    /// See [`Block::k_norm`].
    pub k_norm: &'a mut [f32],
    /// See [`Block::o`].
    pub o: &'a mut [f32],
    /// See [`Block::post_norm`].
    pub post_norm: &'a mut [f32],
    /// See [`Block::gate_up`].
    pub gate_up: &'a mut [f32],
    /// See [`Block::down`].
    pub down: &'a mut [f32],
}

/// The numbers of a model, or their gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    config: Config,
    data: Vec<f32>,
}

impl Weights {
    /// All zeros.
    ///
    /// # Panics
    /// When the config fails [`Config::check`].
    pub fn zeros(config: &Config) -> Self {
        config.check().unwrap_or_else(|error| panic!("the config was checked before: {error}"));
        Self { config: config.clone(), data: vec![0.0; config.n_parameters() as usize] }
    }

    /// The shape that the arena follows.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the longest sequence, which no tensor depends on.
    pub fn set_context(&mut self, context: usize) {
        self.config.context = context;
    }

    /// The whole arena.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The whole arena, to be written.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Every part, in arena order.
    pub fn parts(&self) -> Vec<Part> {
        let config = &self.config;
        let (v, d) = (config.vocab_size, config.d_model);
        let mut parts = Vec::with_capacity(8 * config.n_layers + 3);
        let mut at = 0;
        let mut push = |name: String, kind, rows: usize, cols: usize| {
            let range = at..at + rows * cols;
            at = range.end;
            parts.push(Part { name, kind, rows, cols, range });
        };
        push("embedding".to_owned(), PartKind::Embedding, v, d);
        for layer in 0..config.n_layers {
            for (name, kind, rows, cols) in block_parts(config) {
                push(format!("layers.{layer}.{name}"), kind, rows, cols);
            }
        }
        push("final_norm".to_owned(), PartKind::Gain, 1, d);
        if !config.tie_embeddings {
            push("output".to_owned(), PartKind::Matrix, v, d);
        }
        debug_assert_eq!(at, self.data.len());
        parts
    }

    fn table_len(&self) -> usize {
        self.config.vocab_size * self.config.d_model
    }

    fn block_range(&self, layer: usize) -> Range<usize> {
        assert!(layer < self.config.n_layers, "layer {layer} of {}", self.config.n_layers);
        let len: usize = block_parts(&self.config).iter().map(|(_, _, r, c)| r * c).sum();
        let start = self.table_len() + layer * len;
        start..start + len
    }

    fn final_norm_range(&self) -> Range<usize> {
        let start = self.block_range(self.config.n_layers - 1).end;
        start..start + self.config.d_model
    }

    fn output_range(&self) -> Range<usize> {
        if self.config.tie_embeddings {
            0..self.table_len()
        } else {
            self.final_norm_range().end..self.data.len()
        }
    }

    /// The embedding table, `[vocab_size, d_model]`.
    pub fn embedding(&self) -> &[f32] {
        &self.data[..self.table_len()]
    }

    /// The embedding table, to be written.
    pub fn embedding_mut(&mut self) -> &mut [f32] {
        let len = self.table_len();
        &mut self.data[..len]
    }

    /// The gain before the output matrix, `[d_model]`.
    pub fn final_norm(&self) -> &[f32] {
        &self.data[self.final_norm_range()]
    }

    /// The final gain, to be written.
    pub fn final_norm_mut(&mut self) -> &mut [f32] {
        let range = self.final_norm_range();
        &mut self.data[range]
    }

    /// The output matrix, `[vocab_size, d_model]`: the embedding table of a tied model.
    pub fn output(&self) -> &[f32] {
        &self.data[self.output_range()]
    }

    /// The output matrix, to be written.
    pub fn output_mut(&mut self) -> &mut [f32] {
        let range = self.output_range();
        &mut self.data[range]
    }

    /// The parts of block `layer`.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block(&self, layer: usize) -> Block<'_> {
        let mut rest = &self.data[self.block_range(layer)];
        let [input_norm, qkv, q_norm, k_norm, o, post_norm, gate_up, down] =
            block_parts(&self.config).map(|(_, _, rows, cols)| {
                let (part, tail) = rest.split_at(rows * cols);
                rest = tail;
                part
            });
        Block { input_norm, qkv, q_norm, k_norm, o, post_norm, gate_up, down }
    }

    /// The parts of block `layer`, to be written.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn block_mut(&mut self, layer: usize) -> BlockMut<'_> {
        let range = self.block_range(layer);
        let sizes = block_parts(&self.config);
        let mut rest = &mut self.data[range];
        let [input_norm, qkv, q_norm, k_norm, o, post_norm, gate_up, down] =
            sizes.map(|(_, _, rows, cols)| {
                let (part, tail) = std::mem::take(&mut rest).split_at_mut(rows * cols);
                rest = tail;
                part
            });
        BlockMut { input_norm, qkv, q_norm, k_norm, o, post_norm, gate_up, down }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::Preset;

    #[test]
    fn parts_tile_the_arena_and_views_agree() {
        for tied in [true, false] {
            let mut config = Preset::Smoke.config();
            config.tie_embeddings = tied;
            let mut weights = Weights::zeros(&config);
            let parts = weights.parts();
            assert_eq!(parts[0].range.start, 0);
            assert!(parts.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
            assert_eq!(parts.last().unwrap().range.end as u64, config.n_parameters());
            for (i, x) in weights.data_mut().iter_mut().enumerate() {
                *x = i as f32;
            }
            let start = |name: &str| parts.iter().find(|p| p.name == name).unwrap().range.start;
            let check = |view: &[f32], name: &str| assert_eq!(view[0] as usize, start(name));
            check(weights.block(1).qkv, "layers.1.qkv");
            check(weights.block(1).down, "layers.1.down");
            check(weights.block_mut(0).k_norm, "layers.0.k_norm");
            check(weights.final_norm(), "final_norm");
            check(weights.output(), if tied { "embedding" } else { "output" });
        }
    }
}
