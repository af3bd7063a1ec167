//! What is on its way to the ledger: one transaction, then the questions that follow it.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::upstream;
use crate::item::State;
use crate::key::{Components, NodeKey};
use crate::ledger::{self, Batch, Ledger, Owner, Reply, Writer};
use crate::open::{Engine, Error};
use crate::plan::{NodeResult, Resolver};
use crate::task::Upstream;

/// A ledger that cannot be reached for longer ends the run; it can be resumed.
const PATIENCE: Duration = Duration::from_mins(10);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A node to resolve.
pub(super) struct Ask {
    pub(super) node: usize,
    pub(super) components: Components,
    /// Whether its external files must be looked at again first.
    pub(super) external: bool,
}

/// What comes back.
pub(super) struct Landing<'a> {
    pub(super) resolver: Resolver<'a>,
    pub(super) batch: Batch,
    pub(super) reply: Reply,
    pub(super) resolved: Vec<(usize, NodeResult)>,
    /// Nodes whose external files cannot be read any more.
    pub(super) unreadable: Vec<(usize, String)>,
    /// Who waits for an answer about items, in the order of the batch.
    pub(super) desks: Vec<Sender<Vec<State>>>,
    /// Nodes that an operator wants stopped; `None` stands for the run.
    pub(super) cancels: Vec<Option<String>>,
    /// What nodes that asked for it are told of those upstream.
    pub(super) upstream: Vec<(usize, Vec<Upstream>)>,
}

/// A flight under way.
pub(super) type Flight<'a> = Pin<Box<dyn Future<Output = Result<Landing<'a>, Error>> + Send + 'a>>;

/// What a flight carries.
pub(super) struct Cargo<'a> {
    pub(super) resolver: Resolver<'a>,
    pub(super) batch: Batch,
    pub(super) asks: Vec<Ask>,
    /// Nodes to tell of those upstream, with what stands there.
    pub(super) about: Vec<(usize, Vec<(usize, NodeKey)>)>,
    /// Whether to look for dead owners first.
    pub(super) recover: bool,
    /// Whether to ask what operators want stopped.
    pub(super) listen: bool,
    pub(super) run: String,
    pub(super) lease_until_us: i64,
    pub(super) sequence: i64,
    pub(super) peak_memory_bytes: i64,
    pub(super) trouble: UnboundedSender<String>,
    pub(super) desks: Vec<Sender<Vec<State>>>,
}

/// Sends the cargo off.
pub(super) async fn fly<'a>(engine: &'a Engine, cargo: Cargo<'a>) -> Result<Landing<'a>, Error> {
    let Cargo { mut resolver, batch, asks, about, recover, listen, run, trouble, desks, .. } =
        cargo;
    let (ledger, owner): (&Ledger, &Owner) = (&engine.ledger, &engine.owner);
    let writer = Writer {
        owner,
        run: &run,
        store: engine.store.id(),
        lease_until_us: cargo.lease_until_us,
        sequence: cargo.sequence,
        peak_memory_bytes: cargo.peak_memory_bytes,
    };
    let mut reply = Reply::default();
    if recover {
        patiently(ledger, &trouble, || ledger.recover(owner)).await?;
    }
    if !batch.is_empty() {
        reply = patiently(ledger, &trouble, || ledger.commit(&writer, &batch)).await?;
    }
    let mut cancels = Vec::new();
    if listen {
        cancels = patiently(ledger, &trouble, || ledger.take_cancel_requests(&run)).await?;
    }
    let mut unreadable = Vec::new();
    let mut questions = Vec::with_capacity(asks.len());
    for Ask { node, mut components, external } in asks {
        if external {
            match resolver.read_external(node).await {
                Ok(()) => {}
                Err(Error::External { source, .. }) => {
                    unreadable.push((node, source.to_string()));
                    continue;
                }
                Err(error) => return Err(error),
            }
            components.external = resolver.external(node).map(|resolved| resolved.digest);
        }
        questions.push((node, components));
    }
    let mut resolved = Vec::new();
    if !questions.is_empty() {
        let mut pause = Pause::default();
        resolved = loop {
            match resolver.ask(questions.clone()).await {
                Err(Error::Ledger(error)) if error.is_transient() => {
                    pause.after(error, ledger, &trouble).await?;
                }
                done => break done?,
            }
        };
    }
    let mut upstream = Vec::with_capacity(about.len());
    for (node, above) in about {
        let told = || upstream::look(ledger, resolver.pipeline, &above);
        upstream.push((node, patiently(ledger, &trouble, told).await?));
    }
    Ok(Landing { resolver, batch, reply, resolved, unreadable, desks, cancels, upstream })
}

/// Calls `attempt` until it succeeds, fails for good, or patience ends.
pub(super) async fn patiently<T, F: Future<Output = Result<T, ledger::Error>>>(
    ledger: &Ledger,
    trouble: &UnboundedSender<String>,
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    let mut pause = Pause::default();
    loop {
        match attempt().await {
            Err(error) if error.is_transient() => pause.after(error, ledger, trouble).await?,
            done => return Ok(done?),
        }
    }
}

#[derive(Default)]
struct Pause {
    waited: Duration,
    next: Duration,
}

impl Pause {
    async fn after(
        &mut self,
        error: ledger::Error,
        ledger: &Ledger,
        trouble: &UnboundedSender<String>,
    ) -> Result<(), Error> {
        if self.waited >= PATIENCE {
            return Err(error.into());
        }
        // The loop may be gone already, and then nobody needs to know.
        let _ = trouble.send(error.to_string());
        self.next = (self.next * 2).clamp(Duration::from_millis(100), PAUSE_MAX);
        self.waited += self.next;
        tokio::time::sleep(self.next).await;
        ledger.reconnect().await;
        Ok(())
    }
}
