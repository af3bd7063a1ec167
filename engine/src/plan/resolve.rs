//! From nodes with known inputs to keys, and from keys to results or the reason why there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::reason::{Reason, changes};
use crate::Error;
use crate::clock::Clock;
use crate::digest::Digest;
use crate::external::{self, Hashing, Resolved, StatCache};
use crate::graph::{Node, Pipeline};
use crate::key::{Components, InputPart, NodeKey, is_labelled};
use crate::ledger::{KeyState, KeyStates, KeyStatus, LastAttempt, Ledger, Ruling};
use crate::run::{Observer, RunEvent};
use crate::store::{Damage, Manifest, Store};

/// Digests of a finished node's artifacts by port.
pub(crate) type Outputs = BTreeMap<String, Digest>;

/// What is known of a node whose inputs are known.
#[derive(Clone, Debug)]
pub(crate) struct NodeResult {
    pub(crate) key: NodeKey,
    /// What the key is made of; `None` for a result that is there and was not looked up, since nobody
    /// asks any more.
    pub(crate) components: Option<Box<Components>>,
    pub(crate) verdict: Verdict,
    /// Its external files.
    pub(crate) external: Option<Arc<Resolved>>,
    /// What an operator decided on the key, unless its result is there.
    pub(crate) ruling: Option<Box<Ruling>>,
}

/// Whether a node's result is there.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// It is.
    Cached(Outputs),
    /// It is not; `epoch` is the key's newest attempt.
    Missing { epoch: i64, reason: Reason },
    /// An attempt of `owner` is under way.
    Running { epoch: i64, owner: String, lease_until_us: i64 },
}

/// What to do with damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Say what is wrong and leave everything as it is.
    Look,
    /// Move damaged artifacts to quarantine.
    Act,
}

/// Answers what the ledger, the store and the external files say of nodes; remembers what it read.
pub(crate) struct Resolver<'a> {
    pub(crate) pipeline: &'a Pipeline,
    ledger: &'a Ledger,
    store: &'a Store,
    clock: &'a Clock,
    mode: Mode,
    /// Hears of what takes long.
    observer: Arc<dyn Observer>,
    known: KeyStates,
    manifests: BTreeMap<Digest, Manifest>,
    health: BTreeMap<Digest, Result<(), String>>,
    externals: BTreeMap<usize, Arc<Resolved>>,
    /// Nodes whose external files are not there, and which; only while looking.
    pub(crate) without_files: BTreeMap<usize, String>,
    stats: BTreeMap<String, StatCache>,
    /// Artifacts that were read in full and are what was published.
    whole: BTreeSet<Digest>,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(
        pipeline: &'a Pipeline,
        ledger: &'a Ledger,
        store: &'a Store,
        clock: &'a Clock,
        mode: Mode,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            pipeline,
            ledger,
            store,
            clock,
            mode,
            observer,
            known: KeyStates::new(),
            manifests: BTreeMap::new(),
            health: BTreeMap::new(),
            externals: BTreeMap::new(),
            without_files: BTreeMap::new(),
            stats: BTreeMap::new(),
            whole: BTreeSet::new(),
        }
    }

    /// Resolves every covered node whose inputs are known; `None` for the others.
    pub(crate) async fn all(&mut self, covered: &[bool]) -> Result<Vec<Option<NodeResult>>, Error> {
        self.read_externals(covered).await?;
        let n_nodes = self.pipeline.nodes.len();
        self.known = self.ledger.keys_of_last_run(&self.pipeline.name, n_nodes).await?;
        let digests = outputs_of(self.known.values());
        self.read_manifests(digests).await?;
        let mut results: Vec<Option<NodeResult>> = vec![None; n_nodes];
        let mut outputs: Vec<Option<Outputs>> = vec![None; n_nodes];
        loop {
            let ask = blocking(|| self.pass(covered, &mut results, &mut outputs));
            if ask.is_empty() {
                // From here on the ledger is asked about few keys at a time.
                self.known = KeyStates::new();
                return Ok(results);
            }
            for (index, result) in self.ask(ask).await? {
                if let Verdict::Cached(made) = &result.verdict {
                    outputs[index] = Some(made.clone());
                }
                results[index] = Some(result);
            }
        }
    }

    /// Goes through the nodes once; gives those whose keys are new to this resolver.
    fn pass(
        &mut self,
        covered: &[bool],
        results: &mut [Option<NodeResult>],
        outputs: &mut [Option<Outputs>],
    ) -> Vec<(usize, Components)> {
        let mut ask = Vec::new();
        for index in 0..results.len() {
            if !covered[index] || results[index].is_some() {
                continue;
            }
            if self.without_files.contains_key(&index) {
                continue;
            }
            let Some(inputs) = self.inputs(index, outputs) else { continue };
            let external = self.externals.get(&index).map(|resolved| resolved.digest);
            let node = &self.pipeline.nodes[index];
            let key = NodeKey::of(node, &inputs, external);
            let done = match self.known.get(&key) {
                Some(state) if state.status == KeyStatus::Done => Some(state.outputs.clone()),
                _ => None,
            };
            match done {
                Some(made) if self.problem(index, &made).is_none() => {
                    outputs[index] = Some(made.clone());
                    let verdict = Verdict::Cached(made);
                    let external = self.external(index);
                    let (components, ruling) = (None, None);
                    results[index] =
                        Some(NodeResult { key, components, verdict, external, ruling });
                }
                _ => ask.push((index, Components::of(node, inputs, external))),
            }
        }
        ask
    }

    /// The files of an artifact that was looked at.
    pub(crate) fn manifest(&self, digest: &Digest) -> Option<&Manifest> {
        self.manifests.get(digest)
    }

    /// The components of a node; `None` while an input is unknown.
    pub(crate) fn components(
        &self,
        index: usize,
        outputs: &[Option<Outputs>],
    ) -> Option<Components> {
        let inputs = self.inputs(index, outputs)?;
        let external = self.externals.get(&index).map(|resolved| resolved.digest);
        Some(Components::of(&self.pipeline.nodes[index], inputs, external))
    }

    /// The artifacts that a node is given; `None` while one is unknown.
    fn inputs(
        &self,
        index: usize,
        outputs: &[Option<Outputs>],
    ) -> Option<BTreeMap<String, Vec<InputPart>>> {
        let node = &self.pipeline.nodes[index];
        let mut inputs = BTreeMap::new();
        for (port, sources) in &node.inputs {
            let labelled = is_labelled(node, port);
            let mut parts = Vec::with_capacity(sources.len());
            for source in sources {
                let digest = *outputs[source.node].as_ref()?.get(&source.port)?;
                let label = if labelled {
                    self.pipeline.nodes[source.node].name.clone()
                } else {
                    String::new()
                };
                parts.push(InputPart { digest, label });
            }
            inputs.insert(port.clone(), parts);
        }
        Some(inputs)
    }

    /// Asks the ledger about nodes with these components.
    pub(crate) async fn ask(
        &mut self,
        ask: Vec<(usize, Components)>,
    ) -> Result<Vec<(usize, NodeResult)>, Error> {
        let keyed: Vec<(usize, NodeKey, Components)> = ask
            .into_iter()
            .map(|(index, components)| (index, components.key(), components))
            .collect();
        let states = self.ledger.keys(keyed.iter().map(|(_, key, _)| *key)).await?;
        self.read_manifests(outputs_of(states.values())).await?;
        let mut results = Vec::with_capacity(keyed.len());
        let mut missing: Vec<(usize, NodeKey, Option<Reason>)> = Vec::new();
        for (index, key, components) in keyed {
            let verdict = match states.get(&key) {
                Some(state) if state.status == KeyStatus::Done => {
                    let problem = blocking(|| self.problem(index, &state.outputs));
                    match problem {
                        None => Verdict::Cached(state.outputs.clone()),
                        Some(reason) => {
                            if self.mode == Mode::Act {
                                self.quarantine(&state.outputs).await?;
                            }
                            missing.push((results.len(), key, Some(reason)));
                            Verdict::Missing { epoch: state.epoch, reason: Reason::NeverRan }
                        }
                    }
                }
                Some(state) if state.status == KeyStatus::Running => Verdict::Running {
                    epoch: state.epoch,
                    owner: state.owner.clone(),
                    lease_until_us: state.lease_until_us,
                },
                state => {
                    missing.push((results.len(), key, None));
                    let epoch = state.map_or(0, |state| state.epoch);
                    Verdict::Missing { epoch, reason: Reason::NeverRan }
                }
            };
            let external = self.external(index);
            let (components, ruling) = (Some(Box::new(components)), None);
            results.push((index, NodeResult { key, components, verdict, external, ruling }));
        }
        self.explain(&mut results, missing).await?;
        Ok(results)
    }

    /// Fills in why each missing result is missing, and what operators decided on those that are not
    /// there.
    async fn explain(
        &self,
        results: &mut [(usize, NodeResult)],
        missing: Vec<(usize, NodeKey, Option<Reason>)>,
    ) -> Result<(), Error> {
        let nodes = &self.pipeline.nodes;
        let tried = results.iter().filter(|(_, result)| match result.verdict {
            Verdict::Cached(_) => false,
            Verdict::Missing { epoch, .. } | Verdict::Running { epoch, .. } => epoch > 0,
        });
        let tried: Vec<NodeKey> = tried.map(|(_, result)| result.key).collect();
        let ends = if tried.is_empty() {
            BTreeMap::new()
        } else {
            self.ledger.last_attempts(tried.into_iter()).await?
        };
        for (_, result) in results.iter_mut() {
            result.ruling = ends.get(&result.key).and_then(|end| end.ruling.clone()).map(Box::new);
        }
        let asked: Vec<(usize, &str, NodeKey)> = missing
            .iter()
            .filter(|(_, key, reason)| reason.is_none() && !ends.contains_key(key))
            .map(|(at, key, _)| (*at, nodes[results[*at].0].name.as_str(), *key))
            .collect();
        let mut earlier = if asked.is_empty() {
            BTreeMap::new()
        } else {
            self.ledger.earlier(&self.pipeline.name, &asked).await?
        };
        for (at, key, known) in missing {
            let (index, result) = &mut results[at];
            let because = if let Some(reason) = known {
                reason
            } else if let Some(LastAttempt { state, message, ruling }) = ends.get(&key) {
                let (last, message) = (state.clone(), message.clone());
                match ruling.clone() {
                    Some(ruling) => Reason::Ruled { ruling },
                    None => Reason::Unfinished { last, message },
                }
            } else if let Some(earlier) = earlier.remove(&at) {
                let sources = self.source_names(&nodes[*index]);
                let list = result.external.as_ref().map(|found| found.list()).unwrap_or_default();
                let now = result.components.as_deref().expect("what is missing was looked up");
                let changes = changes(&nodes[*index], &sources, now, &list, &earlier);
                Reason::Changed { since: earlier.key, run: earlier.run, changes }
            } else {
                Reason::NeverRan
            };
            if let Verdict::Missing { reason, .. } = &mut result.verdict {
                *reason = because;
            }
        }
        Ok(())
    }

    fn source_names(&self, node: &Node) -> BTreeMap<String, Vec<String>> {
        let name = |index: usize| self.pipeline.nodes[index].name.clone();
        let names = |sources: &Vec<crate::graph::Source>| {
            sources.iter().map(|source| name(source.node)).collect()
        };
        node.inputs.iter().map(|(port, sources)| (port.clone(), names(sources))).collect()
    }

    /// Why a result that the ledger has cannot be used; `None` when it can.
    fn problem(&mut self, index: usize, outputs: &Outputs) -> Option<Reason> {
        for port in self.pipeline.nodes[index].task.outputs() {
            let port = port.name.to_owned();
            let Some(digest) = outputs.get(&port) else { return Some(Reason::NotInStore { port }) };
            if let Some(Err(problem)) = self.health.get(digest) {
                return Some(Reason::Damaged { port, problem: problem.clone() });
            }
            let Some(manifest) = self.manifests.get(digest) else {
                return Some(Reason::NotInStore { port });
            };
            if !self.health.contains_key(digest) {
                let health = check(manifest, self.store, digest);
                self.health.insert(*digest, health);
            }
            if let Some(Err(problem)) = self.health.get(digest) {
                return Some(Reason::Damaged { port, problem: problem.clone() });
            }
        }
        None
    }

    /// Reads in full what nodes that may run are given, since sizes and times tell nothing of a disk
    /// that loses bits. Moves the damaged ones away; gives whether there were none.
    pub(crate) async fn inputs_are_whole(
        &mut self,
        covered: &[bool],
        results: &[Option<NodeResult>],
    ) -> Result<bool, Error> {
        let cached = |index: usize| match &results[index].as_ref()?.verdict {
            Verdict::Cached(outputs) => Some(outputs),
            Verdict::Missing { .. } | Verdict::Running { .. } => None,
        };
        let mut given = BTreeMap::new();
        for (index, node) in self.pipeline.nodes.iter().enumerate() {
            if !covered[index] || cached(index).is_some() {
                continue;
            }
            for source in node.inputs.values().flatten() {
                let Some(outputs) = cached(source.node) else { continue };
                let Some(digest) = outputs.get(&source.port) else { continue };
                if !self.whole.contains(digest) {
                    given.insert(*digest, outputs);
                }
            }
        }
        if given.is_empty() {
            return Ok(true);
        }
        let sizes = given.keys().filter_map(|digest| self.manifests.get(digest));
        let size_bytes = sizes.map(Manifest::size_bytes).sum();
        self.observer.observe(&RunEvent::ReadsInputs { n_artifacts: given.len(), size_bytes });
        let (store, digests) = (self.store.clone(), given.keys().copied().collect::<Vec<_>>());
        let read = tokio::task::spawn_blocking(move || store.verify_all(&digests));
        let problems = read.await.expect("reading files does not panic");
        self.whole.extend(given.keys().filter(|digest| !problems.contains_key(*digest)));
        for (digest, problem) in &problems {
            self.health.insert(*digest, Err(problem.clone()));
            self.quarantine(given[digest]).await?;
        }
        Ok(problems.is_empty())
    }

    /// Moves the damaged ones among `outputs` away.
    async fn quarantine(&mut self, outputs: &Outputs) -> Result<(), Error> {
        for digest in outputs.values() {
            if matches!(self.health.get(digest), Some(Err(_))) {
                self.store.quarantine(digest, self.clock.now_us())?;
                self.ledger.mark_damaged(self.store.id(), digest).await?;
                self.manifests.remove(digest);
            }
        }
        Ok(())
    }

    /// Reads those of the manifests that were not read yet.
    async fn read_manifests(&mut self, digests: BTreeSet<Digest>) -> Result<(), Error> {
        let fresh: Vec<Digest> =
            digests.into_iter().filter(|digest| !self.manifests.contains_key(digest)).collect();
        if !fresh.is_empty() {
            let read = self.ledger.manifests(self.store.id(), fresh.iter().copied()).await?;
            for digest in read.keys() {
                // It was published anew since it was last looked at.
                self.health.remove(digest);
            }
            self.manifests.extend(read);
        }
        Ok(())
    }

    /// Finds and hashes the external files of all covered nodes.
    async fn read_externals(&mut self, covered: &[bool]) -> Result<(), Error> {
        for (index, covered) in covered.iter().enumerate() {
            if !*covered || self.pipeline.nodes[index].external.is_empty() {
                continue;
            }
            match self.read_external(index).await {
                // A plan is still worth seeing where the files are on another machine.
                Err(Error::External { source, .. })
                    if self.mode == Mode::Look && source.is_absence() =>
                {
                    self.without_files.insert(index, source.to_string());
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Finds and hashes the external files of a node again.
    pub(crate) async fn read_external(&mut self, index: usize) -> Result<(), Error> {
        let node = &self.pipeline.nodes[index];
        for pattern in node.external.iter().filter(|pattern| external::has_path(pattern)) {
            let base = external::base(pattern);
            if !self.stats.contains_key(&base) {
                let stats = self.ledger.file_stats(&base).await?;
                self.stats.insert(base, stats);
            }
        }
        let mut dirty = Vec::new();
        let keep = (self.mode == Mode::Act).then(|| self.store.dir().join("work"));
        let (patterns, stats) = (&node.external, &mut self.stats);
        let observer = &*self.observer;
        let told = |hashing: Hashing| {
            let Hashing { n_files, size_bytes, read_bytes } = hashing;
            let node = node.name.clone();
            observer.observe(&RunEvent::HashesFiles { node, n_files, size_bytes, read_bytes });
        };
        let resolved = blocking(|| {
            let now_us = self.clock.now_us();
            external::resolve(patterns, stats, &mut dirty, keep.as_deref(), now_us, &told)
        });
        let dirty = if self.ledger.is_read_only() { Vec::new() } else { dirty };
        for base in dirty {
            self.ledger.write_file_stats(&base, &self.stats[&base]).await?;
        }
        let resolved = resolved.map_err(|source| Error::External {
            node: node.name.clone(),
            place: node.place.clone(),
            source,
        })?;
        self.externals.insert(index, Arc::new(resolved));
        Ok(())
    }

    /// The external files of a node.
    pub(crate) fn external(&self, index: usize) -> Option<Arc<Resolved>> {
        self.externals.get(&index).cloned()
    }
}

/// The artifacts of keys in these states.
fn outputs_of<'k>(states: impl Iterator<Item = &'k KeyState>) -> BTreeSet<Digest> {
    states.flat_map(|state| state.outputs.values()).copied().collect()
}

/// Whether the artifact is what was published. A file that was only touched is read in full.
fn check(manifest: &Manifest, store: &Store, digest: &Digest) -> Result<(), String> {
    let dir = store.path(digest);
    match manifest.check_quick(&dir) {
        Ok(()) => Ok(()),
        Err(damage @ Damage::Missing) => Err(damage.to_string()),
        Err(Damage::File { .. }) => {
            manifest.verify(&dir).map(|_| ()).map_err(|damage| damage.to_string())
        }
    }
}

/// Runs what may take long on this thread without holding up the runtime's other work.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
