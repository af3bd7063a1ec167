//! Writes and questions about items: parts of a node's work with leases of their own.

use std::collections::{BTreeMap, BTreeSet};

use super::database::{Bind, Database};
use super::record::{Writer, insert_events, json};
use super::{Error, EventRow};
use crate::item::{Call, Claim, End, ItemKey, Publish, State, Status};
use crate::key::NodeKey;
use crate::task::FailureKind;

/// A call of one attempt's items.
#[derive(Debug)]
pub(crate) struct ItemCall {
    pub(crate) node: String,
    pub(crate) node_key: NodeKey,
    /// Who claims: an attempt, which is more exact than its process.
    pub(crate) holder: String,
    pub(crate) call: Call,
}

const INSERT_ITEMS: &str = "
    INSERT INTO item (key, store, name, state, epoch, lease_until_us, n_failed, created_us)
    SELECT r.key, $2, r.name, 'missing', 0, 0, 0, $3 FROM {rows: key TEXT, name TEXT} AS r
     WHERE true
    ON CONFLICT (key, store) DO NOTHING";
const INSERT_NODE_ITEMS: &str = "
    INSERT INTO node_item (node_key, stage, ordinal, item)
    SELECT r.node_key, r.stage, r.ordinal, r.item
      FROM {rows: node_key TEXT, stage TEXT, ordinal BIGINT, item TEXT} AS r WHERE true
    ON CONFLICT (node_key, stage, ordinal) DO NOTHING";

/// As for nodes: an item whose epoch has not moved since it was found free, or whose lease was seen
/// to stand still; and a claim that is sent again finds itself granted.
const CLAIM_ITEMS: &str = "
    UPDATE item
       SET state = 'running', owner = $2, holder = r.holder, epoch = r.epoch + 1,
           lease_until_us = $3, started_us = $4, ended_us = NULL
      FROM {rows: key TEXT, epoch BIGINT, stale_lease_us BIGINT, holder TEXT} AS r
     WHERE item.key = r.key AND item.store = $5
       AND ((item.epoch = r.epoch
             AND (item.state IN ('missing', 'collected')
                  OR (item.state = 'running' AND item.lease_until_us = r.stale_lease_us)))
            OR (item.epoch = r.epoch + 1 AND item.state = 'running' AND item.holder = r.holder))";
const PUBLISH_ITEMS: &str = "
    UPDATE item
       SET state = 'done', lease_until_us = 0, digest = r.digest, size_bytes = r.size_bytes,
           ended_us = $2, failure = NULL
      FROM {rows: key TEXT, epoch BIGINT, holder TEXT, digest TEXT, size_bytes BIGINT} AS r
     WHERE item.key = r.key AND item.store = $3 AND item.epoch = r.epoch
       AND item.holder = r.holder AND item.state IN ('running', 'done')
    RETURNING item.key";
const END_ITEMS: &str = "
    UPDATE item
       SET state = 'missing', lease_until_us = 0, ended_us = $2,
           n_failed = item.n_failed + r.n_failed, failure = coalesce(r.failure, item.failure)
      FROM {rows: key TEXT, epoch BIGINT, holder TEXT, n_failed BIGINT, failure TEXT} AS r
     WHERE item.key = r.key AND item.store = $3 AND item.epoch = r.epoch
       AND item.holder = r.holder AND item.state = 'running'";
const SPOIL_ITEMS: &str = "
    UPDATE item SET state = 'missing', digest = NULL
      FROM {rows: key TEXT, epoch BIGINT} AS r
     WHERE item.key = r.key AND item.store = $2 AND item.epoch = r.epoch AND item.state = 'done'";
const ITEM_STATES: &str = "
    SELECT i.key, i.state, i.epoch, i.holder, i.lease_until_us, i.digest
      FROM {rows: key TEXT} AS r JOIN item AS i ON i.key = r.key AND i.store = $2";

/// Once a node is done its items are of no use, except to other nodes that are not.
const COLLECT_ITEMS: &str = "
    UPDATE item SET state = 'collected', digest = NULL
     WHERE item.store = $2 AND item.state = 'done'
       AND item.key IN (SELECT n.item FROM {rows: key TEXT} AS r
                          JOIN node_item AS n ON n.node_key = r.key)
       AND NOT EXISTS (SELECT 1 FROM node_item AS o JOIN node_key AS k ON k.key = o.node_key
                        WHERE o.item = item.key AND k.state <> 'done')
    RETURNING item.key, item.epoch";
const HEARTBEAT_ITEMS: &str =
    "UPDATE item SET lease_until_us = $2 WHERE owner = $1 AND state = 'running'";

/// What an attempt held that ended in the middle of it; its own process still lives, so that no
/// lease would ever end.
const FREE_ITEMS: &str = "
    UPDATE item SET state = 'missing', lease_until_us = 0
     WHERE item.state = 'running' AND item.owner = $2
       AND item.holder IN (SELECT r.holder FROM {rows: holder TEXT} AS r)";

/// Frees the items that attempts of this process left behind.
pub(super) async fn free(
    database: &mut Database,
    writer: &Writer<'_>,
    holders: &[String],
) -> Result<(), Error> {
    if !holders.is_empty() {
        let rows: Vec<[&str; 1]> = holders.iter().map(|holder| [holder.as_str()]).collect();
        let binds = [Bind::Text(&json(&rows)?), Bind::Text(&writer.owner.id)];
        database.run(FREE_ITEMS, &binds).await?;
    }
    Ok(())
}

/// Obeys the calls, in order; gives the states of the items that each mentions.
pub(super) async fn obey(
    database: &mut Database,
    writer: &Writer<'_>,
    calls: &[ItemCall],
    now_us: i64,
    is_first: bool,
) -> Result<Vec<Vec<State>>, Error> {
    if calls.is_empty() {
        return Ok(Vec::new());
    }
    list(database, writer, calls, now_us).await?;
    let published = publish(database, writer, calls, now_us).await?;
    end(database, writer, calls, now_us).await?;
    claim(database, writer, calls, now_us).await?;
    if is_first {
        insert_events(database, writer.run, &events(calls, &published, now_us)).await?;
    }
    states(database, writer, calls).await
}

async fn list(
    database: &mut Database,
    writer: &Writer<'_>,
    calls: &[ItemCall],
    now_us: i64,
) -> Result<(), Error> {
    let listed = || calls.iter().flat_map(|call| call.call.list.iter().map(move |row| (call, row)));
    let items: BTreeMap<_, _> = listed().map(|(_, row)| (row.key, &row.name)).collect();
    if items.is_empty() {
        return Ok(());
    }
    let items: Vec<_> = items.into_iter().collect();
    let binds = [Bind::Text(&json(&items)?), Bind::Text(writer.store), Bind::Int(now_us)];
    database.run(INSERT_ITEMS, &binds).await?;
    let places: BTreeMap<_, _> =
        listed().map(|(call, row)| ((call.node_key, &row.stage, row.ordinal), row.key)).collect();
    let places: Vec<_> =
        places.iter().map(|((node, stage, ordinal), item)| (node, stage, ordinal, item)).collect();
    database.run(INSERT_NODE_ITEMS, &[Bind::Text(&json(&places)?)]).await?;
    Ok(())
}

async fn publish(
    database: &mut Database,
    writer: &Writer<'_>,
    calls: &[ItemCall],
    now_us: i64,
) -> Result<BTreeSet<ItemKey>, Error> {
    let mut rows = Vec::new();
    for call in calls {
        for Publish { key, epoch, digest, size_bytes, .. } in &call.call.publishes {
            rows.push((key, epoch, &call.holder, digest, size_bytes));
        }
    }
    let mut published = BTreeSet::new();
    if !rows.is_empty() {
        let binds = [Bind::Text(&json(&rows)?), Bind::Int(now_us), Bind::Text(writer.store)];
        for mut row in database.fetch(PUBLISH_ITEMS, &binds).await? {
            published.insert(ItemKey(row.text(0).parse().map_err(Error::value)?));
        }
    }
    Ok(published)
}

async fn end(
    database: &mut Database,
    writer: &Writer<'_>,
    calls: &[ItemCall],
    now_us: i64,
) -> Result<(), Error> {
    let mut ends = Vec::new();
    let mut spoiled: Vec<&(ItemKey, i64)> = Vec::new();
    for call in calls {
        for End { key, epoch, failure, .. } in &call.call.ends {
            let is_failure = failure.kind != FailureKind::Cancelled;
            let message = is_failure.then_some(&failure.message);
            ends.push((key, epoch, &call.holder, i64::from(is_failure), message));
        }
        spoiled.extend(call.call.spoiled.iter());
    }
    if !ends.is_empty() {
        let binds = [Bind::Text(&json(&ends)?), Bind::Int(now_us), Bind::Text(writer.store)];
        database.run(END_ITEMS, &binds).await?;
    }
    if !spoiled.is_empty() {
        database
            .run(SPOIL_ITEMS, &[Bind::Text(&json(&spoiled)?), Bind::Text(writer.store)])
            .await?;
    }
    Ok(())
}

async fn claim(
    database: &mut Database,
    writer: &Writer<'_>,
    calls: &[ItemCall],
    now_us: i64,
) -> Result<(), Error> {
    // Two attempts of one process may want the same item: the first one gets it.
    let mut claims: BTreeMap<ItemKey, (&Claim, &str)> = BTreeMap::new();
    for call in calls {
        for claim in &call.call.claims {
            claims.entry(claim.key).or_insert((claim, &call.holder));
        }
    }
    if claims.is_empty() {
        return Ok(());
    }
    let row = |(claim, holder): &(&Claim, &str)| {
        (claim.key, claim.epoch, claim.stale_lease_us, (*holder).to_owned())
    };
    let rows: Vec<_> = claims.values().map(row).collect();
    let binds = [
        Bind::Text(&json(&rows)?),
        Bind::Text(&writer.owner.id),
        Bind::Int(writer.lease_until_us),
        Bind::Int(now_us),
        Bind::Text(writer.store),
    ];
    database.run(CLAIM_ITEMS, &binds).await?;
    Ok(())
}

fn events(calls: &[ItemCall], published: &BTreeSet<ItemKey>, at_us: i64) -> Vec<EventRow> {
    let mut events = Vec::new();
    for ItemCall { node, node_key, call, .. } in calls {
        let mut push = |kind, detail| {
            let (node, key) = (Some(node.clone()), Some(*node_key));
            events.push(EventRow { at_us, node, key, epoch: None, kind, detail: Some(detail) });
        };
        for publish in call.publishes.iter().filter(|publish| published.contains(&publish.key)) {
            push("item_done", publish.name.clone());
        }
        for End { name, failure, .. } in &call.ends {
            if failure.kind != FailureKind::Cancelled {
                push("item_failed", format!("{name}: {}", failure.message));
            }
        }
        for (key, _) in &call.spoiled {
            push("item_spoiled", key.to_string());
        }
    }
    events
}

async fn states(
    database: &mut Database,
    writer: &Writer<'_>,
    calls: &[ItemCall],
) -> Result<Vec<Vec<State>>, Error> {
    let mentioned: Vec<BTreeSet<ItemKey>> =
        calls.iter().map(|call| call.call.mentioned()).collect();
    let all: BTreeSet<ItemKey> = mentioned.iter().flatten().copied().collect();
    let rows: Vec<[ItemKey; 1]> = all.into_iter().map(|key| [key]).collect();
    let binds = [Bind::Text(&json(&rows)?), Bind::Text(writer.store)];
    let mut found = BTreeMap::new();
    for mut row in database.fetch(ITEM_STATES, &binds).await? {
        let key = ItemKey(row.text(0).parse().map_err(Error::value)?);
        let (state, holder, digest) = (row.text(1), row.text(3), row.opt_text(5));
        let digest = digest.map(|text| text.parse()).transpose().map_err(Error::value)?;
        found.insert(key, (state, row.int(2), holder, row.int(4), digest));
    }
    let answer = |(call, keys): (&ItemCall, &BTreeSet<ItemKey>)| {
        let state = |key: &ItemKey| {
            let (state, epoch, holder, lease_until_us, digest) = found.get(key)?;
            let is_mine = *holder == call.holder;
            let status = match (state.as_str(), digest) {
                ("running", _) => Status::Running { is_mine, lease_until_us: *lease_until_us },
                ("done", Some(digest)) => Status::Done { is_mine, digest: *digest },
                ("collected", _) => Status::Collected,
                _ => Status::Missing,
            };
            Some(State { key: *key, epoch: *epoch, status })
        };
        keys.iter().filter_map(state).collect()
    };
    Ok(calls.iter().zip(&mentioned).map(answer).collect())
}

/// Gives up the items of nodes that were just published; gives key and epoch of each.
pub(super) async fn collect(
    database: &mut Database,
    writer: &Writer<'_>,
    nodes: &[NodeKey],
) -> Result<Vec<(ItemKey, i64)>, Error> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<[NodeKey; 1]> = nodes.iter().map(|key| [*key]).collect();
    let binds = [Bind::Text(&json(&rows)?), Bind::Text(writer.store)];
    let mut collected = Vec::new();
    for mut row in database.fetch(COLLECT_ITEMS, &binds).await? {
        collected.push((ItemKey(row.text(0).parse().map_err(Error::value)?), row.int(1)));
    }
    Ok(collected)
}

/// Prolongs the leases of every item that this process holds.
pub(super) async fn heartbeat(
    database: &mut Database,
    owner: &str,
    until_us: i64,
) -> Result<(), Error> {
    let binds = [Bind::Text(owner), Bind::Int(until_us)];
    database.run(HEARTBEAT_ITEMS, &binds).await?;
    Ok(())
}
