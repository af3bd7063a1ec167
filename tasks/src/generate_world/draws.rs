//! Draws documents, questions and pairs, none of them twice.

use std::collections::BTreeSet;

use engine::task::Failure;
use kernels::philox::Philox;

use crate::corpus::document_id;
use crate::generate_corpus::Draw;
use crate::world::{DocumentRow, HeldoutRow, Kind, PairRow, Posterior, QuestionRow, Reader, World};

/// Tries to draw a text that is new before the world counts as exhausted.
const ATTEMPTS_MAX: u64 = 1000;

/// A document of one of the outputs.
pub(super) struct Drawn {
    pub(super) id: u64,
    pub(super) concept: usize,
    pub(super) genre: usize,
    pub(super) kind: Option<Kind>,
    pub(super) text: String,
}

impl Drawn {
    pub(super) fn document_row(&self) -> DocumentRow {
        let Self { id, concept, genre, .. } = *self;
        DocumentRow { id, concept, genre, text: self.text.clone() }
    }
}

/// Draws from a world; every output has a stream of its own.
pub(super) struct Draws<'a> {
    world: &'a World,
    reader: Reader<'a>,
    posterior: Posterior<'a>,
    rng: Philox,
    /// Texts given out.
    used: BTreeSet<String>,
    /// One entry a training document: its concept.
    prior: Vec<usize>,
}

impl<'a> Draws<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        let counts = world.told().iter().enumerate();
        let prior = counts.flat_map(|(i, concept)| vec![i; concept.genres.len()]).collect();
        Self {
            world,
            reader: Reader::new(world),
            posterior: Posterior::new(world),
            rng: Philox::new(world.spec.seed, "world documents"),
            used: BTreeSet::new(),
            prior,
        }
    }

    /// The numbers of item `index` of a stream.
    fn draw(&self, stream: u64, index: u64) -> Draw {
        Draw::new(self.rng.fork(stream).fork(index))
    }

    /// A new text, of a concept and genre that `choose` draws each time again.
    fn text(
        &mut self,
        name: &str,
        index: u64,
        draw: &mut Draw,
        mut choose: impl FnMut(&World, &mut Draw) -> (usize, usize),
    ) -> Result<Drawn, Failure> {
        for _ in 0..ATTEMPTS_MAX {
            let (concept, genre) = choose(self.world, draw);
            let text = self.world.write(concept, &self.world.draft(concept, genre, draw));
            if self.used.insert(text.clone()) {
                let place = format!("world/{}/{name}", self.world.spec.seed);
                let id = document_id(&place, index);
                return Ok(Drawn { id, concept, genre, kind: None, text });
            }
        }
        Err(Failure::permanent(format!(
            "document {index} of `{name}`: none of {ATTEMPTS_MAX} texts was new"
        ))
        .help("lower `pool_factor`, or raise `n_attributes`: there are too few ways to tell a concept"))
    }

    pub(super) fn train(&mut self) -> Result<Vec<Drawn>, Failure> {
        let mut texts = Vec::new();
        for (concept, about) in self.world.told().iter().enumerate() {
            for &genre in &about.genres {
                let index = texts.len() as u64;
                let mut draw = self.draw(0, index);
                texts.push(self.text("train", index, &mut draw, |_, _| (concept, genre))?);
            }
        }
        Ok(texts)
    }

    pub(super) fn validation(&mut self) -> Result<Vec<Drawn>, Failure> {
        let prior = self.prior.clone();
        (0..self.world.spec.n_validation)
            .map(|index| {
                let mut draw = self.draw(1, index);
                self.text("validation", index, &mut draw, |world, draw| {
                    like_training(&prior, world, draw)
                })
            })
            .collect()
    }

    pub(super) fn heldout(&mut self) -> Result<Vec<Drawn>, Failure> {
        let mut texts = Vec::new();
        let prior = self.prior.clone();
        for kind in Kind::ALL {
            let concepts = self.concepts(kind);
            if concepts.is_empty() {
                continue;
            }
            for i in 0..self.world.spec.n_heldout {
                let mut draw = self.draw(2 + kind as u64, i);
                let index = texts.len() as u64;
                let text = self.text("heldout", index, &mut draw, |world, draw| match kind {
                    Kind::Any => like_training(&prior, world, draw),
                    kind => of_kind(kind, &concepts, world, draw),
                })?;
                texts.push(Drawn { kind: Some(kind), ..text });
            }
        }
        Ok(texts)
    }

    /// The rows of held-out texts.
    pub(super) fn heldout_rows(&self, texts: &[Drawn]) -> Vec<HeldoutRow> {
        let row = |text: &Drawn| {
            let reading = self.reader.read(&text.text).expect("the world reads what it writes");
            let ln_p = self.posterior.ln_marginal(&reading);
            HeldoutRow {
                id: text.id,
                kind: text.kind.expect("held-out texts have a kind"),
                concept: text.concept,
                genre: text.genre,
                text: text.text.clone(),
                ln_p: ln_p.is_finite().then_some(ln_p),
            }
        };
        texts.iter().map(row).collect()
    }

    pub(super) fn questions(&self) -> Vec<QuestionRow> {
        let mut rows = Vec::new();
        for kind in [Kind::SingleCross, Kind::SingleSame, Kind::Multi] {
            let concepts = self.concepts(kind);
            if concepts.is_empty() {
                continue;
            }
            for i in 0..self.world.spec.n_questions {
                let mut draw = self.draw(8 + kind as u64, i);
                let (concept, genre) = of_kind(kind, &concepts, self.world, &mut draw);
                let cloze = self.world.cloze(concept, genre, &mut draw);
                rows.push(QuestionRow {
                    id: rows.len() as u64,
                    kind,
                    concept,
                    attribute: cloze.attribute,
                    genre,
                    prompt: cloze.prompt,
                    options: self.world.values[cloze.attribute].clone(),
                    answer: self.world.concepts[concept].values[cloze.attribute],
                });
            }
        }
        rows
    }

    /// Pairs of a training document, first of concepts told of once, then of others, and a new one.
    pub(super) fn pairs(&mut self, train: &[Drawn]) -> Result<Vec<PairRow>, Failure> {
        let mut rows = Vec::new();
        for unpaired in [true, false] {
            let of_kind: Vec<&Drawn> = train
                .iter()
                .filter(|text| self.world.is_single(text.concept) == unpaired)
                .collect();
            if of_kind.is_empty() {
                continue;
            }
            for i in 0..self.world.spec.n_pairs {
                let mut draw = self.draw(16 + u64::from(unpaired), i);
                let d1 = of_kind[draw.below(of_kind.len() as u64) as usize];
                let others: Vec<&Drawn> =
                    train.iter().filter(|text| text.concept != d1.concept).collect();
                let unrelated = others[draw.below(others.len() as u64) as usize];
                rows.push(self.pair(rows.len() as u64, unpaired, [d1, unrelated], &mut draw)?);
            }
        }
        Ok(rows)
    }

    fn pair(
        &mut self,
        id: u64,
        unpaired: bool,
        [d1, unrelated]: [&Drawn; 2],
        draw: &mut Draw,
    ) -> Result<PairRow, Failure> {
        let read = |text: &str| self.reader.read(text).expect("the world reads what it writes");
        let first = read(&d1.text);
        let posterior = self.posterior.of(&first);
        let d2 = self.text("pairs", id, draw, |world, draw| {
            let concept = pick(&posterior, draw);
            let n_genres = world.genres.len();
            let genre = match world.spec.style {
                crate::world::Style::Brief => another(n_genres, d1.genre, draw),
                crate::world::Style::Rich => draw.below(n_genres as u64) as usize,
            };
            (concept, genre)
        })?;
        let second = self.reader.read(&d2.text).expect("the world reads what it writes");
        Ok(PairRow {
            id,
            unpaired,
            d1: d1.text.clone(),
            unrelated: unrelated.text.clone(),
            ln_p: self.posterior.ln_conditional(&first, &second),
            ln_marginal: self.posterior.ln_marginal(&second),
            d2: d2.text,
        })
    }

    /// Documents for the oracle: as many of each concept as its share of the training documents.
    pub(super) fn pool(&mut self) -> Result<Vec<Drawn>, Failure> {
        let mut texts = Vec::new();
        for concept in self.prior.clone() {
            for _ in 0..self.world.spec.pool_factor {
                let index = texts.len() as u64;
                let mut draw = self.draw(32, index);
                texts.push(self.text("pool", index, &mut draw, |world, draw| {
                    (concept, draw.below(world.genres.len() as u64) as usize)
                })?);
            }
        }
        Ok(texts)
    }

    /// The concepts that a kind is about.
    fn concepts(&self, kind: Kind) -> Vec<usize> {
        let n_documents = |concept: &usize| self.world.concepts[*concept].genres.len();
        let all = 0..self.world.concepts.len();
        match kind {
            Kind::SingleCross | Kind::SingleSame => all.filter(|c| n_documents(c) == 1).collect(),
            Kind::Multi => all.filter(|c| n_documents(c) > 1).collect(),
            Kind::Any => all.filter(|c| n_documents(c) > 0).collect(),
            Kind::New => all.filter(|c| n_documents(c) == 0).collect(),
        }
    }
}

/// A concept and a genre as training documents have them.
fn like_training(prior: &[usize], world: &World, draw: &mut Draw) -> (usize, usize) {
    let concept = prior[draw.below(prior.len() as u64) as usize];
    (concept, draw.below(world.genres.len() as u64) as usize)
}

/// One of `concepts`, and a genre that fits the kind.
fn of_kind(kind: Kind, concepts: &[usize], world: &World, draw: &mut Draw) -> (usize, usize) {
    let concept = concepts[draw.below(concepts.len() as u64) as usize];
    let n_genres = world.genres.len();
    let genre = match kind {
        Kind::SingleCross => another(n_genres, world.concepts[concept].genres[0], draw),
        Kind::SingleSame => world.concepts[concept].genres[0],
        Kind::Multi | Kind::Any | Kind::New => draw.below(n_genres as u64) as usize,
    };
    (concept, genre)
}

/// A genre other than `genre`, uniformly.
fn another(n_genres: usize, genre: usize, draw: &mut Draw) -> usize {
    let other = draw.below(n_genres as u64 - 1) as usize;
    other + usize::from(other >= genre)
}

/// A concept drawn from a posterior.
fn pick(posterior: &[(usize, f64)], draw: &mut Draw) -> usize {
    let mut left = draw.uniform();
    let last = posterior.last().expect("a training document has a concept").0;
    let found = posterior.iter().find(|(_, p)| {
        left -= p;
        left < 0.0
    });
    found.map_or(last, |(concept, _)| *concept)
}
