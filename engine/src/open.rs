//! The engine: a store and a ledger, open.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::cost::{Machine, NodeCost};
use crate::digest::Digest;
use crate::external;
use crate::graph::{Pipeline, Place};
use crate::ledger::{self, Ledger, Location, Owner};
use crate::plan::{self, Mode, Plan, Resolver, Targets, UnknownTarget, blocking};
use crate::run::{Observer, Silent};
use crate::store::{self, Store};

/// Where the engine keeps things.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of store, checkpoints and, by default, ledger: usually `.sbp`.
    pub dir: PathBuf,
    /// `postgres://…` or the path of a `SQLite` file; `None` for `ledger.db` in `dir`.
    pub ledger: Option<String>,
    /// How long a claimed node stays claimed without a sign of life.
    pub lease: Duration,
    /// The program, with version and commit, as the ledger keeps it with what was made by it.
    pub build: String,
    /// The time; tests hold it still.
    pub clock: Clock,
}

impl Settings {
    /// Everything in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            ledger: None,
            lease: Duration::from_mins(1),
            build: String::new(),
            clock: Clock::default(),
        }
    }
}

/// The engine cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A node's external files cannot be found or read.
    #[error("node `{node}` ({place}): {source}")]
    External {
        /// The node.
        node: String,
        /// Where its entry stands.
        place: Place,
        /// What is wrong.
        source: external::Error,
    },
    /// A target is no node of the pipeline.
    #[error(transparent)]
    Target(#[from] UnknownTarget),
    /// A node asks for more of a resource than the whole run has.
    #[error("node `{node}` ({place}) needs {needs} of `{resource}`, and the run has {has}")]
    Resource {
        /// The node.
        node: String,
        /// Where its entry stands.
        place: Place,
        /// `gpu`, or a pool's name.
        resource: String,
        /// What it needs.
        needs: u64,
        /// What there is.
        has: u64,
    },
}

impl Error {
    /// What to do about it, when that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.help().map(str::to_owned),
            Self::Ledger(error) => error.help().map(str::to_owned),
            Self::Target(error) => Some(format!("the nodes are {}", error.known.join(", "))),
            Self::Resource { resource, needs, .. } => Some(match resource.as_str() {
                "gpu" => format!("`--gpu {needs}` where the machine has them"),
                "memory (bytes)" => "ask for less, or allow more with `--mem SIZE`".to_owned(),
                pool => format!("`--pool {pool}={needs}` gives the run so many"),
            }),
            Self::External { source, .. } => source.help().map(str::to_owned),
        }
    }

    /// Whether store or ledger are in trouble, rather than the pipeline or the command wrong.
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Ledger(error) => !matches!(
                error,
                ledger::Error::NoRunYet
                    | ledger::Error::NoSuchRun(_)
                    | ledger::Error::AmbiguousRun { .. }
                    | ledger::Error::NoSuchNode { .. }
                    | ledger::Error::NotParked { .. }
                    | ledger::Error::RunIsOver { .. }
                    | ledger::Error::RunUnderWay { .. }
                    | ledger::Error::OwnerLives { .. }
                    | ledger::Error::OtherStore { .. }
            ),
            Self::External { .. } | Self::Target(_) | Self::Resource { .. } => false,
        }
    }
}

/// A store and a ledger, open.
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) clock: Clock,
    pub(crate) lease: Duration,
    pub(crate) owner: Owner,
    pub(crate) build: String,
}

/// Tells owners in one process apart.
static N_ENGINES: AtomicU64 = AtomicU64::new(0);

impl Engine {
    /// Opens store and ledger, and makes them when missing.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::Ledger`]: read-only, damaged, made by a newer program, on a
    /// network file system, unreachable.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let Settings { dir, ledger, lease, build, clock } = settings;
        let salt = N_ENGINES.fetch_add(1, Ordering::Relaxed);
        let owner = Owner::this_process(clock.now_us(), salt);
        let fresh_id = Digest::of(format!("store {}", owner.id).as_bytes()).short();
        let store = blocking(|| Store::open(&dir, &fresh_id))?;
        let location = location(ledger, &store);
        let ledger = Arc::new(Ledger::open(&location, &clock).await?);
        Ok(Self { store, ledger, clock, lease, owner, build })
    }

    /// Opens store and ledger for questions: [`Engine::plan`] and the operators' views. Makes
    /// nothing; a missing store or ledger is an empty one, and a read-only one will do.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::Ledger`]: damaged, made by a newer program, unreachable.
    pub async fn look(settings: Settings) -> Result<Self, Error> {
        let Settings { dir, ledger, lease, build, clock } = settings;
        let salt = N_ENGINES.fetch_add(1, Ordering::Relaxed);
        let owner = Owner::this_process(clock.now_us(), salt);
        let store = blocking(|| Store::look(&dir))?;
        let location = location(ledger, &store);
        let ledger = Arc::new(Ledger::look(&location, &clock).await?);
        Ok(Self { store, ledger, clock, lease, owner, build })
    }

    /// Tidies up behind the last run: with `SQLite`, the whole ledger is then in its one file, unless
    /// another process uses it too. Without this nothing is lost, but the next program opens it slower.
    pub async fn close(self) {
        self.ledger.close().await;
    }

    /// Says what a run would do, and why, and what it will probably take: as past attempts did, and
    /// without a past what `costs` says of the node ([`crate::cost::estimate`] of all nodes), as fast
    /// as `machine` is. Changes nothing.
    ///
    /// # Errors
    /// When a target is unknown, external files cannot be read, or the ledger is in trouble.
    pub async fn plan(
        &self,
        pipeline: &Pipeline,
        targets: &Targets,
        costs: &[NodeCost],
        machine: &Machine,
    ) -> Result<Plan, Error> {
        let covered = targets.closure(pipeline)?;
        let mut resolver = self.resolver(pipeline, Mode::Look, Arc::new(Silent));
        let results = resolver.all(&covered).await?;
        let history = self.ledger.history(&pipeline.name).await?;
        let mut plan = plan::assemble(&resolver, &self.store, &covered, &results);
        plan.foresee(pipeline, &history, costs, machine);
        Ok(plan)
    }

    pub(crate) fn resolver<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        mode: Mode,
        observer: Arc<dyn Observer>,
    ) -> Resolver<'a> {
        Resolver::new(pipeline, &self.ledger, &self.store, &self.clock, mode, observer)
    }

    /// The artifact folder.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

fn location(ledger: Option<String>, store: &Store) -> Location {
    match ledger {
        Some(text) => Location::parse(&text),
        None => Location::Sqlite(store.dir().join("ledger.db")),
    }
}
