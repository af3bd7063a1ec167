//! Exact probabilities of texts: P(d | c), P(c | d) and P(d2 | d1).

use std::collections::BTreeMap;

use super::World;
use super::text::{ASIDE, ASIDE_WORDS, AsideWord, Reading, TOPIC, n_slots};

/// How a document's genre is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GenreLaw {
    /// Uniformly.
    Any,
    /// Uniformly among all but this one.
    Not(usize),
}

/// Bayes' rule over the concepts of a world that training documents tell of.
///
/// The prior of a concept is its share of the training documents.
pub(crate) struct Posterior<'a> {
    world: &'a World,
    by_name: BTreeMap<[usize; 2], Vec<usize>>,
    n_documents: f64,
}

impl<'a> Posterior<'a> {
    /// The posterior of `world`.
    pub(crate) fn new(world: &'a World) -> Self {
        let mut by_name: BTreeMap<[usize; 2], Vec<usize>> = BTreeMap::new();
        let mut n_documents = 0;
        for (i, concept) in world.told().iter().enumerate() {
            by_name.entry(concept.name).or_default().push(i);
            n_documents += concept.genres.len();
        }
        Self { world, by_name, n_documents: n_documents as f64 }
    }

    /// The concepts of a name that training documents tell of.
    pub(crate) fn named(&self, name: [usize; 2]) -> &[usize] {
        self.by_name.get(&name).map_or(&[], Vec::as_slice)
    }

    fn ln_prior(&self, concept: usize) -> f64 {
        (self.world.concepts[concept].genres.len() as f64 / self.n_documents).ln()
    }

    /// ln P(d | c), or minus infinity.
    pub(crate) fn ln_likelihood(&self, text: &Reading, concept: usize, law: GenreLaw) -> f64 {
        let about = &self.world.concepts[concept];
        let agrees = text.values.iter().all(|(&attribute, &v)| about.values[attribute] == v);
        if about.name != text.name || !agrees {
            return f64::NEG_INFINITY;
        }
        let (draft, kind) = (&text.draft, &self.world.genres[text.draft.genre]);
        let n_genres = self.world.genres.len() as f64;
        let ln_genre = match law {
            GenreLaw::Any => -n_genres.ln(),
            GenreLaw::Not(other) if other == draft.genre => f64::NEG_INFINITY,
            GenreLaw::Not(_) => -(n_genres - 1.0).ln(),
        };
        let (least, most) = self.world.n_facts();
        let n_facts = draft.facts.len();
        let structure = ln_genre
            - (kind.openings.len() as f64).ln()
            - ((most - least + 1) as f64).ln()
            - ln_orders(self.world.attributes.len(), n_facts)
            - n_facts as f64 * (kind.facts.len() as f64).ln()
            - ln_orders(n_facts, n_slots(&kind.recap, "{V}"))
            - (kind.closings.len().max(1) as f64).ln();
        let asides: f64 = match kind.aside {
            None => 0.0,
            Some(_) => draft.asides.iter().map(|words| self.ln_aside(words, &about.topics)).sum(),
        };
        structure + asides
    }

    fn ln_aside(&self, words: &[AsideWord], topics: &[usize]) -> f64 {
        if words.is_empty() {
            return (1.0 - ASIDE).ln();
        }
        let (least, most) = ASIDE_WORDS;
        let n_fillers = self.world.fillers.len() as f64;
        let of_word = |word: &AsideWord| match word {
            AsideWord::Topic(topic) => {
                let n = topics.iter().filter(|other| *other == topic).count();
                TOPIC * n as f64 / topics.len() as f64
            }
            AsideWord::Filler(_) => (1.0 - TOPIC) / n_fillers,
        };
        let words: f64 = words.iter().map(|word| of_word(word).ln()).sum();
        ASIDE.ln() - ((most - least + 1) as f64).ln() + words
    }

    /// The concepts that a text can be about, with ln P(c, d).
    fn joint(&self, text: &Reading) -> Vec<(usize, f64)> {
        let named = self.named(text.name).iter();
        let joint = named.map(|&concept| {
            (concept, self.ln_prior(concept) + self.ln_likelihood(text, concept, GenreLaw::Any))
        });
        joint.filter(|(_, ln)| ln.is_finite()).collect()
    }

    /// ln P(d), minus infinity for a text about no concept with training documents.
    pub(crate) fn ln_marginal(&self, text: &Reading) -> f64 {
        ln_sum(self.joint(text).into_iter().map(|(_, ln)| ln))
    }

    /// P(c | d), in the order of the concepts; empty when P(d) is 0.
    pub(crate) fn of(&self, text: &Reading) -> Vec<(usize, f64)> {
        let joint = self.joint(text);
        let total = ln_sum(joint.iter().map(|(_, ln)| *ln));
        joint.into_iter().map(|(concept, ln)| (concept, (ln - total).exp())).collect()
    }

    /// ln P(d2 | d1) for a d2 whose genre is drawn as that of another document of d1's concept.
    pub(crate) fn ln_conditional(&self, d1: &Reading, d2: &Reading) -> f64 {
        let law = self.world.genre_of_pair(d1.draft.genre);
        let terms = self.of(d1).into_iter();
        ln_sum(terms.map(|(concept, p)| p.ln() + self.ln_likelihood(d2, concept, law)))
    }
}

/// ln of the number of ordered choices of `n` among `of`.
fn ln_orders(of: usize, n: usize) -> f64 {
    (of + 1 - n..=of).map(|i| (i as f64).ln()).sum()
}

/// ln of a sum of numbers given by their logarithms.
fn ln_sum(terms: impl Iterator<Item = f64>) -> f64 {
    let terms: Vec<f64> = terms.collect();
    let highest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if highest == f64::NEG_INFINITY {
        return highest;
    }
    highest + terms.iter().map(|term| (term - highest).exp()).sum::<f64>().ln()
}
