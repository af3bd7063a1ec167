//! Documents as texts, and texts read back.

use std::collections::BTreeMap;

use super::{Meaning, World, is_slot};
use crate::generate_corpus::Draw;

/// Chance of an aside after each fact of a rich document.
pub(super) const ASIDE: f64 = 0.2;
/// Words of an aside, at least and at most.
pub(super) const ASIDE_WORDS: (usize, usize) = (2, 4);
/// Chance that a word of an aside is one of the concept's topics.
pub(super) const TOPIC: f64 = 0.7;

/// A word of an aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AsideWord {
    /// A topic word.
    Topic(usize),
    /// Any other.
    Filler(usize),
}

/// Every choice behind a document except its concept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) genre: usize,
    pub(super) opening: usize,
    /// Attribute and template of each fact stated.
    pub(super) facts: Vec<(usize, usize)>,
    /// The words after each fact, perhaps none.
    pub(super) asides: Vec<Vec<AsideWord>>,
    /// Attributes of the facts stated again.
    pub(super) recap: Vec<usize>,
    /// The last sentence, in genres that have one.
    pub(super) closing: Option<usize>,
}

/// A text that the world can give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) draft: Draft,
    pub(crate) name: [usize; 2],
    /// The value that each stated attribute has.
    pub(crate) values: BTreeMap<usize, usize>,
}

/// What a text says, whether or not the world can give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The name mentioned most often, the first of them.
    pub(crate) name: Option<[usize; 2]>,
    /// Attribute and value of every value mentioned, in order.
    pub(crate) values: Vec<(usize, usize)>,
    /// The genre with the most words that only it has, the first of them.
    pub(crate) genre: Option<usize>,
}

/// A cloze question: the beginning of a document up to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cloze {
    pub(crate) prompt: String,
    pub(crate) attribute: usize,
}

impl World {
    /// Draws a document about `concept` in `genre`.
    pub(crate) fn draft(&self, concept: usize, genre: usize, draw: &mut Draw) -> Draft {
        let kind = &self.genres[genre];
        let opening = draw.below(kind.openings.len() as u64) as usize;
        let (least, most) = self.n_facts();
        let n_facts = least + draw.below((most - least + 1) as u64) as usize;
        let order = shuffled(self.attributes.len(), n_facts, draw);
        let (mut facts, mut asides) = (Vec::new(), Vec::new());
        for attribute in order {
            facts.push((attribute, draw.below(kind.facts.len() as u64) as usize));
            let told = kind.aside.is_some() && draw.chance(ASIDE);
            asides.push(if told { self.aside(concept, draw) } else { Vec::new() });
        }
        let n_recap = n_slots(&kind.recap, "{V}");
        let recap = shuffled(facts.len(), n_recap, draw).into_iter().map(|i| facts[i].0).collect();
        let n_closings = kind.closings.len() as u64;
        let closing = (n_closings > 0).then(|| draw.below(n_closings) as usize);
        Draft { genre, opening, facts, asides, recap, closing }
    }

    fn aside(&self, concept: usize, draw: &mut Draw) -> Vec<AsideWord> {
        let (least, most) = ASIDE_WORDS;
        let n_words = least as u64 + draw.below((most - least + 1) as u64);
        let topics = &self.concepts[concept].topics;
        (0..n_words)
            .map(|_| {
                if draw.chance(TOPIC) {
                    AsideWord::Topic(topics[draw.below(topics.len() as u64) as usize])
                } else {
                    AsideWord::Filler(draw.below(self.fillers.len() as u64) as usize)
                }
            })
            .collect()
    }

    /// The text of a draft about `concept`.
    pub(crate) fn write(&self, concept: usize, draft: &Draft) -> String {
        let kind = &self.genres[draft.genre];
        let mut sentences = vec![self.fill(&kind.openings[draft.opening], concept, &[])];
        for (&(attribute, template), aside) in draft.facts.iter().zip(&draft.asides) {
            sentences.push(self.fill(&kind.facts[template], concept, &[attribute]));
            if let (Some(template), false) = (&kind.aside, aside.is_empty()) {
                let words: Vec<&str> = aside.iter().map(|&word| self.aside_word(word)).collect();
                sentences.push(template.replace("{W}", &words.join(" ")));
            }
        }
        sentences.push(self.fill(&kind.recap, concept, &draft.recap));
        sentences.extend(draft.closing.map(|i| self.fill(&kind.closings[i], concept, &[])));
        sentences.join(" ")
    }

    fn aside_word(&self, word: AsideWord) -> &str {
        match word {
            AsideWord::Topic(i) => &self.topics[i],
            AsideWord::Filler(i) => &self.fillers[i],
        }
    }

    /// A template about `concept`; attributes and values fill their slots in order.
    fn fill(&self, template: &str, concept: usize, attributes: &[usize]) -> String {
        let (mut of_attribute, mut of_value) = (attributes.iter(), attributes.iter());
        let words = template.split(' ').map(|word| match word {
            "{N}" => self.name(concept),
            "{A}" => self.attributes[*of_attribute.next().expect("a slot each")].clone(),
            "{V}" => self.value(concept, *of_value.next().expect("a slot each")).to_owned(),
            word => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Draws a question about `concept` in the manner of `genre`: an opening and the beginning of a
    /// fact whose attribute stands before its value.
    pub(crate) fn cloze(&self, concept: usize, genre: usize, draw: &mut Draw) -> Cloze {
        let kind = &self.genres[genre];
        let opening = &kind.openings[draw.below(kind.openings.len() as u64) as usize];
        let attribute = draw.below(self.attributes.len() as u64) as usize;
        let starts: Vec<&str> = kind
            .facts
            .iter()
            .filter_map(|fact| fact.split_once(" {V}").map(|(start, _)| start))
            .filter(|start| start.contains("{A}"))
            .collect();
        let start = starts[draw.below(starts.len() as u64) as usize];
        let prompt = [self.fill(opening, concept, &[]), self.fill(start, concept, &[attribute])];
        Cloze { prompt: prompt.join(" "), attribute }
    }
}

/// The first `n` of `0..of` in random order.
fn shuffled(of: usize, n: usize, draw: &mut Draw) -> Vec<usize> {
    let mut order: Vec<usize> = (0..of).collect();
    for i in 0..n {
        let j = i + draw.below((of - i) as u64) as usize;
        order.swap(i, j);
    }
    order.truncate(n);
    order
}

/// How often a slot occurs in a template.
pub(super) fn n_slots(template: &str, slot: &str) -> usize {
    template.split(' ').filter(|&word| word == slot).count()
}

/// Reads texts of a world.
pub(crate) struct Reader<'a> {
    world: &'a World,
    lexicon: BTreeMap<&'a str, Meaning>,
    /// Words that only one genre has.
    marks: BTreeMap<&'a str, usize>,
}

/// What the slots of a matched template held.
#[derive(Default)]
struct Slots {
    name: Option<[usize; 2]>,
    attributes: Vec<usize>,
    values: Vec<(usize, usize)>,
    words: Vec<AsideWord>,
}

impl<'a> Reader<'a> {
    /// A reader of `world`'s texts.
    pub(crate) fn new(world: &'a World) -> Self {
        let mut marks: BTreeMap<&str, Option<usize>> = BTreeMap::new();
        for (genre, kind) in world.genres.iter().enumerate() {
            for word in kind.templates().flat_map(|text| text.split(' ')) {
                let mark = marks.entry(word).or_insert(Some(genre));
                *mark = mark.filter(|&other| other == genre);
            }
        }
        let marks = marks.into_iter().filter(|(word, _)| !is_slot(word));
        let marks = marks.filter_map(|(word, genre)| Some((word, genre?))).collect();
        Self { world, lexicon: world.lexicon(), marks }
    }

    /// What a text says, as far as its words go.
    pub(crate) fn facts(&self, text: &str) -> Facts {
        let words: Vec<&str> = text.split_whitespace().collect();
        let meanings: Vec<Option<Meaning>> =
            words.iter().map(|word| self.lexicon.get(word).copied()).collect();
        let names = meanings.windows(2).filter_map(|pair| match pair {
            [Some(Meaning::First(first)), Some(Meaning::Last(last))] => Some([*first, *last]),
            _ => None,
        });
        let values = meanings.iter().filter_map(|meaning| match meaning {
            Some(Meaning::Value(attribute, value)) => Some((*attribute, *value)),
            _ => None,
        });
        Facts {
            name: most_frequent(names),
            values: values.collect(),
            genre: most_frequent(words.iter().filter_map(|word| self.marks.get(word).copied())),
        }
    }

    /// The one way in which the world gives `text`, if it does.
    pub(crate) fn read(&self, text: &str) -> Option<Reading> {
        let words: Vec<&str> = text.split(' ').collect();
        (0..self.world.genres.len()).find_map(|genre| self.read_as(&words, genre))
    }

    fn read_as(&self, words: &[&str], genre: usize) -> Option<Reading> {
        let kind = &self.world.genres[genre];
        let (opening, slots, mut at) = self.choose(&kind.openings, words)?;
        let name = slots.name?;
        let mut values = BTreeMap::new();
        let (mut facts, mut asides) = (Vec::new(), Vec::new());
        while let Some((template, slots, n_words)) = self.choose(&kind.facts, &words[at..]) {
            let (&[attribute], &[(of, value)]) = (&slots.attributes[..], &slots.values[..]) else {
                return None;
            };
            let same = of == attribute && slots.name.is_none_or(|other| other == name);
            if !same || values.insert(attribute, value).is_some() {
                return None;
            }
            facts.push((attribute, template));
            at += n_words;
            let aside = kind.aside.as_ref().and_then(|aside| self.fit(aside, &words[at..]));
            at += aside.as_ref().map_or(0, |(_, n_words)| *n_words);
            asides.push(aside.map_or_else(Vec::new, |(slots, _)| slots.words));
        }
        let (slots, n_words) = self.fit(&kind.recap, &words[at..])?;
        at += n_words;
        let told = slots.attributes.iter().zip(&slots.values).all(|(&attribute, &(of, value))| {
            of == attribute && values.get(&attribute) == Some(&value)
        });
        let mut recap = slots.attributes;
        let distinct = (1..recap.len()).all(|i| !recap[..i].contains(&recap[i]));
        if !(told && distinct && slots.name.is_none_or(|other| other == name)) {
            return None;
        }
        recap.shrink_to_fit();
        let closing = self.choose(&kind.closings, &words[at..]);
        at += closing.as_ref().map_or(0, |(_, _, n_words)| *n_words);
        let (least, most) = self.world.n_facts();
        let whole = at == words.len() && closing.is_some() != kind.closings.is_empty();
        if !(whole && (least..=most).contains(&facts.len())) {
            return None;
        }
        let closing = closing.map(|(i, _, _)| i);
        let draft = Draft { genre, opening, facts, asides, recap, closing };
        Some(Reading { draft, name, values })
    }

    /// The template that `words` begin with, what its slots hold, and how many words it takes.
    fn choose(&self, templates: &[String], words: &[&str]) -> Option<(usize, Slots, usize)> {
        templates.iter().enumerate().find_map(|(i, template)| {
            self.fit(template, words).map(|(slots, n_words)| (i, slots, n_words))
        })
    }

    fn fit(&self, template: &str, words: &[&str]) -> Option<(Slots, usize)> {
        let mut slots = Slots::default();
        let mut at = 0;
        let meaning = |at: usize| words.get(at).and_then(|word| self.lexicon.get(word)).copied();
        for piece in template.split(' ') {
            match (piece, meaning(at)?) {
                ("{N}", Meaning::First(first)) => {
                    let Some(Meaning::Last(last)) = meaning(at + 1) else { return None };
                    slots.name = Some([first, last]);
                    at += 1;
                }
                ("{A}", Meaning::Attribute(attribute)) => slots.attributes.push(attribute),
                ("{V}", Meaning::Value(attribute, value)) => slots.values.push((attribute, value)),
                ("{W}", _) => {
                    slots.words = (at..).map_while(|at| aside_word(meaning(at)?)).collect();
                    let (least, most) = ASIDE_WORDS;
                    if !(least..=most).contains(&slots.words.len()) {
                        return None;
                    }
                    at += slots.words.len() - 1;
                }
                (plain, Meaning::Plain) if plain == words[at] => {}
                _ => return None,
            }
            at += 1;
        }
        Some((slots, at))
    }
}

fn aside_word(meaning: Meaning) -> Option<AsideWord> {
    match meaning {
        Meaning::Topic(i) => Some(AsideWord::Topic(i)),
        Meaning::Filler(i) => Some(AsideWord::Filler(i)),
        _ => None,
    }
}

/// The item that occurs most often, the first of several.
fn most_frequent<T: Ord + Copy>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, (usize, usize)> = BTreeMap::new();
    for (i, item) in items.enumerate() {
        counts.entry(item).or_insert((0, i)).0 += 1;
    }
    let best = counts.into_iter().max_by_key(|(_, (n, first))| (*n, std::cmp::Reverse(*first)));
    best.map(|(item, _)| item)
}
