//! Values packed for the register tiles.

use super::cpu::Lane;
use super::{PANEL_VALUES, Rows};
use crate::Pool;

/// A slot of a panel that holds no value.
pub(super) const NO_ROW: u32 = u32::MAX;

/// Values packed for [`search`](super::search).
pub struct Values {
    /// `[n_panels, n_groups, 3]` lanes; lane `j` of group `g` holds columns `4g..4g + 4` of values
    /// `16j..16j + 16` of the panel, offset by 128 into `u8`.
    lanes: Vec<Lane>,
    /// NaN in slots without a value: it reaches no threshold.
    scales: Vec<f32>,
    ids: Vec<u32>,
    n_groups: usize,
    columns: usize,
}

impl Values {
    /// Packs rows.
    ///
    /// # Panics
    /// When a length, a value or a scale is out of its range.
    pub fn pack(pool: &Pool, rows: Rows<'_>) -> Self {
        let slots: Vec<u32> = (0..rows.n() as u32).collect();
        Self::pack_slots(pool, rows, slots)
    }

    /// Packs the rows that `slots` name, [`NO_ROW`] for none, in this order.
    pub(super) fn pack_slots(pool: &Pool, rows: Rows<'_>, mut slots: Vec<u32>) -> Self {
        rows.check();
        let n_groups = rows.columns.div_ceil(4);
        let n_panels = slots.len().div_ceil(PANEL_VALUES);
        slots.resize(n_panels * PANEL_VALUES, NO_ROW);
        let mut lanes = vec![Lane([128; 64]); n_panels * n_groups * 3];
        pool.for_chunks(&mut lanes, n_groups * 3, |panel, lanes| {
            for (i, &slot) in slots[panel * PANEL_VALUES..][..PANEL_VALUES].iter().enumerate() {
                if slot == NO_ROW {
                    continue;
                }
                let at = i % 16 * 4;
                let (words, rest) = rows.row(slot as usize).as_chunks::<4>();
                for (lane, word) in lanes[i / 16..].iter_mut().step_by(3).zip(words) {
                    // Offset binary: -127..=127 becomes 1..=255.
                    lane.0[at..at + 4].copy_from_slice(&word.map(|value| value as u8 ^ 0x80));
                }
                for (column, &value) in rest.iter().enumerate() {
                    lanes[words.len() * 3 + i / 16].0[at + column] = value as u8 ^ 0x80;
                }
            }
        });
        let scales = slots
            .iter()
            .map(|&slot| if slot == NO_ROW { f32::NAN } else { rows.scales[slot as usize] })
            .collect();
        let ids = slots.iter().map(|&slot| slot.wrapping_add(rows.first_id)).collect();
        Self { lanes, scales, ids, n_groups, columns: rows.columns }
    }

    pub(super) fn n_panels(&self) -> usize {
        self.ids.len() / PANEL_VALUES
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn panel(&self, panel: usize) -> Panel<'_> {
        let n_lanes = self.n_groups * 3;
        let whole = "scales and ids are padded to whole panels";
        Panel {
            lanes: &self.lanes[panel * n_lanes..][..n_lanes],
            scales: self.scales[panel * PANEL_VALUES..].first_chunk().expect(whole),
            ids: self.ids[panel * PANEL_VALUES..].first_chunk().expect(whole),
        }
    }
}

/// 48 values.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) lanes: &'a [Lane],
    pub(super) scales: &'a [f32; PANEL_VALUES],
    pub(super) ids: &'a [u32; PANEL_VALUES],
}
