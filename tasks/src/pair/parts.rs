//! What the items of a search leave in their folders: hits, and lists.

use std::path::Path;

use engine::task::Failure;
use kernels::int8_search::{Cut, Hit, Reach};

use crate::format::part::{Part, PartWriter};

/// Leaves the hits of each query.
pub(super) fn leave_hits(dir: &Path, hits: &[Vec<Hit>]) -> Result<(), Failure> {
    let lengths: Vec<u32> = hits.iter().map(|hits| hits.len() as u32).collect();
    let ids: Vec<u32> = hits.iter().flatten().map(|hit| hit.id).collect();
    let scores: Vec<f32> = hits.iter().flatten().map(|hit| hit.score).collect();
    let part = PartWriter::create(dir)?.section("lengths", &lengths)?;
    Ok(part.section("ids", &ids)?.section("scores", &scores)?.finish()?)
}

/// Adds the hits that an item left to those of each query.
pub(super) fn read_hits(dir: &Path, hits: &mut [Vec<Hit>]) -> Result<(), Failure> {
    let part = Part::open(dir)?;
    let (ids, scores) = (part.section::<u32>("ids")?, part.section::<f32>("scores")?);
    let mut rest = ids.iter().zip(scores).map(|(&id, &score)| Hit { id, score });
    for (hits, n) in hits.iter_mut().zip(part.section::<u32>("lengths")?) {
        hits.extend(rest.by_ref().take(*n as usize));
    }
    Ok(())
}

/// Leaves how a shard is cut into lists, and how far queries look.
pub(super) fn leave_lists(dir: &Path, cut: &Cut, reach: Reach) -> Result<(), Failure> {
    let Cut { directions, scales, order, assigned } = cut;
    let part = PartWriter::create(dir)?.section("directions", directions)?;
    let part = part.section("scales", scales)?.section("order", order)?;
    let part = part.section("assigned", assigned)?.section("reach", &[reach.reach])?;
    Ok(part.section("n_first", &[reach.n_first as u64])?.finish()?)
}

/// How a shard is cut into lists.
pub(super) fn read_cut(dir: &Path) -> Result<Cut, Failure> {
    let part = Part::open(dir)?;
    Ok(Cut {
        directions: part.section("directions")?.to_vec(),
        scales: part.section("scales")?.to_vec(),
        order: part.section("order")?.to_vec(),
        assigned: part.section("assigned")?.to_vec(),
    })
}

/// How many lists an item left, and how far queries look.
pub(super) fn read_reach(dir: &Path) -> Result<(usize, Reach), Failure> {
    let part = Part::open(dir)?;
    let (first, reach) = (part.section::<u64>("n_first")?, part.section::<f32>("reach")?);
    let reach = Reach { n_first: first[0] as usize, reach: reach[0] };
    Ok((part.section::<u32>("order")?.len(), reach))
}
