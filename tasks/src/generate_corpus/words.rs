//! The words of a closed world, and how each genre puts them.

use kernels::philox::Philox;

/// How documents of one kind are written.
pub(super) struct Genre {
    pub(super) name: &'static str,
    pub(super) openings: &'static [&'static str],
    /// About half name the concept, and some put the value before the attribute.
    pub(super) facts: &'static [&'static str],
    pub(super) noise: &'static str,
    pub(super) recap: &'static str,
    pub(super) closings: &'static [&'static str],
    /// What stands between sentences.
    pub(super) separator: &'static str,
}

pub(super) const GENRES: [Genre; 3] = [
    Genre {
        name: "profile",
        openings: &["{name} is listed here.", "This page describes {name}.", "Entry: {name}."],
        facts: &[
            "The {attribute} of {name} is {value}.",
            "Its {attribute} is {value}.",
            "{value} is the {attribute} of {name}.",
            "It has {value} as {attribute}.",
        ],
        noise: "See also {words}.",
        recap: "To repeat, {a} is {b} and {c} is {d}.",
        closings: &["End of the entry on {name}.", "No more is known."],
        separator: " ",
    },
    Genre {
        name: "news",
        openings: &[
            "Today {name} was in the news.",
            "A report on {name} came out.",
            "People spoke about {name} this week.",
        ],
        facts: &[
            "Sources say {name} picked {value} for its {attribute}.",
            "The {attribute} was confirmed to be {value}.",
            "{value} became the {attribute}, said {name}.",
            "Asked about the {attribute}, they named {value}.",
        ],
        noise: "Meanwhile there was talk of {words}.",
        recap: "In short, {name} has {b} for {a} and {d} for {c}.",
        closings: &["More on {name} tomorrow.", "The report ends here."],
        separator: "\n",
    },
    Genre {
        name: "letter",
        openings: &[
            "Dear friend, I must tell you of {name}.",
            "Hello! You asked me about {name}.",
            "My dear, I have met {name}.",
        ],
        facts: &[
            "You know, the {attribute} of {name} turned out to be {value}.",
            "I saw that the {attribute} is {value}.",
            "Would you believe that {value} is the {attribute}?",
            "With {name} it is {value} when it comes to {attribute}.",
        ],
        noise: "I also thought of {words}.",
        recap: "So remember: {a} means {b}, and {c} means {d}.",
        closings: &["Give my love to {name}.", "Yours, as ever."],
        separator: " ",
    },
];

const ONSETS: [&str; 16] =
    ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "tr"];
const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];
const CODAS: [&str; 6] = ["", "n", "r", "l", "s", "k"];
const N_NAME_PARTS: u64 = 4000;
const N_TOPIC_WORDS: u64 = 60;

/// Names, values and topics of a closed world, as closed forms of its seed.
pub(super) struct World {
    seed: u64,
    /// First and last names; a concept's pair is unique.
    names: [Vec<String>; 2],
    /// Words of each attribute's values.
    values: Vec<Vec<String>>,
    topics: Vec<String>,
    fillers: Vec<String>,
}

impl World {
    pub(super) const ATTRIBUTES: [&str; 6] = ["color", "metal", "animal", "fruit", "river", "tool"];
    /// Each has a first and a last name of its own.
    pub(super) const MAX_CONCEPTS: u64 = N_NAME_PARTS * N_NAME_PARTS;
    /// Topic words of each concept.
    pub(super) const N_TOPICS: u64 = 3;
    /// Words without meaning.
    pub(super) const N_FILLERS: u64 = 20;

    /// The world of `seed`.
    pub(super) fn new(seed: u64, n_attributes: u64, n_values: u64) -> Self {
        let mut words = Words::new(seed);
        let values = (0..n_attributes).map(|_| words.take(n_values, 2)).collect();
        let topics = words.take(N_TOPIC_WORDS, 2);
        let fillers = words.take(Self::N_FILLERS, 1);
        let names = [(); 2].map(|()| {
            let parts = words.take(N_NAME_PARTS, 3);
            parts.iter().map(|part| capitalize(part)).collect()
        });
        Self { seed, names, values, topics, fillers }
    }

    pub(super) fn n_attributes(&self) -> u64 {
        self.values.len() as u64
    }

    /// The concept's name; concepts are laid out on squares of growing side, so that a small world
    /// uses few words and every word in many names.
    pub(super) fn name(&self, concept: u64) -> String {
        let side = (concept + 1).isqrt() + u64::from((concept + 1).isqrt().pow(2) < concept + 1);
        // The concepts of side `s` are the border of an `s` by `s` square.
        let place = concept - (side - 1).pow(2);
        let (first, last) = if place < side { (place, side - 1) } else { (side - 1, place - side) };
        format!("{} {}", self.names[0][first as usize], self.names[1][last as usize])
    }

    pub(super) fn attribute(attribute: u64) -> &'static str {
        Self::ATTRIBUTES[attribute as usize]
    }

    pub(super) fn value(&self, concept: u64, attribute: u64) -> &str {
        let values = &self.values[attribute as usize];
        let draw = Philox::new(self.seed, "values").fork(concept);
        &values[draw.below(attribute, values.len() as u64) as usize]
    }

    #[cfg(test)]
    pub(super) fn any_value(&self, attribute: u64, value: u64) -> &str {
        &self.values[attribute as usize][value as usize]
    }

    /// The concept's `n`th topic word.
    pub(super) fn topic(&self, concept: u64, n: u64) -> &str {
        let draw = Philox::new(self.seed, "topics").fork(concept);
        &self.topics[draw.below(n, N_TOPIC_WORDS) as usize]
    }

    pub(super) fn filler(&self, n: u64) -> &str {
        &self.fillers[n as usize]
    }
}

fn capitalize(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Pseudo-words, each given out once.
pub(crate) struct Words {
    rng: Philox,
    next: u64,
    used: std::collections::BTreeSet<String>,
}

impl Words {
    fn new(seed: u64) -> Self {
        Self::without(seed, [])
    }

    /// Pseudo-words of `seed`, none of them `taken`.
    pub(crate) fn without(seed: u64, taken: impl IntoIterator<Item = String>) -> Self {
        Self { rng: Philox::new(seed, "words"), next: 0, used: taken.into_iter().collect() }
    }

    /// The next `n_words`, each of `n_syllables` and perhaps a consonant.
    pub(crate) fn take(&mut self, n_words: u64, n_syllables: u64) -> Vec<String> {
        (0..n_words)
            .map(|_| {
                loop {
                    let mut word: String = (0..n_syllables).map(|_| self.syllable()).collect();
                    word.push_str(self.pick(&CODAS));
                    if word.len() > 2 && self.used.insert(word.clone()) {
                        return word;
                    }
                }
            })
            .collect()
    }

    fn syllable(&mut self) -> String {
        [self.pick(&ONSETS), self.pick(&VOWELS)].concat()
    }

    fn pick(&mut self, choices: &[&'static str]) -> &'static str {
        self.next += 1;
        choices[self.rng.below(self.next, choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_share_parts() {
        let world = World::new(1, 3, 5);
        let names: BTreeSet<String> = (0..2500).map(|concept| world.name(concept)).collect();
        assert_eq!(names.len(), 2500);
        let firsts: BTreeSet<&str> =
            names.iter().filter_map(|name| name.split(' ').next()).collect();
        assert_eq!(firsts.len(), 50);
    }
}
