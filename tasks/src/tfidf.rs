//! TF-IDF: documents as sparse unit vectors over words or token ids.
//!
//! The weight of a term is `(1 + ln tf) * idf` with `idf = 1 + ln((1 + N) / (1 + df))`, which is
//! positive for every term, so only a document without terms has the zero vector.

use std::collections::HashMap;

use crate::words;

/// Terms of a document with their counts, sorted by term.
pub type Counts = Vec<(u64, u32)>;
/// Terms of a document with weights of unit length, sorted by term.
pub type Weights = Vec<(u64, f32)>;

/// Counts the words of a text by a 64-bit hash.
///
/// Two of a million words collide with a chance of 3 in 100 million, and would then count as one.
pub fn words(text: &str) -> Counts {
    let mut terms = Vec::new();
    words::read(text, |word| terms.push(hash(word)));
    count(terms)
}

/// Counts token ids.
pub fn tokens(ids: &[u32]) -> Counts {
    count(ids.iter().map(|&id| u64::from(id)).collect())
}

/// FNV-1a over the characters, finished by a multiplication that mixes the upper bits. Sums are over
/// terms in the order of this hash, so another one would change the last bits of vectors.
fn hash(word: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for c in word.chars() {
        hash = (hash ^ u64::from(c)).wrapping_mul(0x100_0000_01b3);
    }
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn count(mut terms: Vec<u64>) -> Counts {
    terms.sort_unstable();
    terms.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32)).collect()
}

/// In how many documents each term occurs.
#[derive(Default)]
pub struct Frequencies {
    documents: HashMap<u64, u32>,
    n_documents: u32,
}

impl Frequencies {
    /// Counts over documents.
    pub fn of<'a>(documents: impl IntoIterator<Item = &'a Counts>) -> Self {
        let mut frequencies = Self::default();
        for counts in documents {
            frequencies.add(1, counts.iter().map(|&(term, _)| (term, 1)));
        }
        frequencies
    }

    /// Adds `n` documents, given how many of them have each of their terms.
    pub fn add(&mut self, n: u32, terms: impl IntoIterator<Item = (u64, u32)>) {
        self.n_documents += n;
        for (term, n) in terms {
            *self.documents.entry(term).or_insert(0) += n;
        }
    }

    /// Every term with its documents, in the order of terms.
    pub fn sorted(&self) -> Vec<(u64, u32)> {
        let mut terms: Vec<_> = self.documents.iter().map(|(term, n)| (*term, *n)).collect();
        terms.sort_unstable();
        terms
    }

    /// Documents counted.
    pub fn n_documents(&self) -> u32 {
        self.n_documents
    }

    /// Distinct terms.
    pub fn n_terms(&self) -> usize {
        self.documents.len()
    }

    /// Documents with the term.
    pub fn documents(&self, term: u64) -> u32 {
        self.documents.get(&term).copied().unwrap_or(0)
    }

    /// See the module.
    pub fn idf(&self, term: u64) -> f64 {
        let (n, df) = (f64::from(self.n_documents), f64::from(self.documents(term)));
        1.0 + ((1.0 + n) / (1.0 + df)).ln()
    }

    /// Weights of a document's terms that `keep` accepts, of unit length; empty when there is none.
    pub fn weigh(&self, counts: &Counts, keep: impl Fn(u64) -> bool) -> Weights {
        let weight = |&(term, n): &(u64, u32)| (1.0 + f64::from(n).ln()) * self.idf(term);
        let kept: Vec<_> = counts.iter().filter(|(term, _)| keep(*term)).collect();
        let norm = kept.iter().map(|counted| weight(counted).powi(2)).sum::<f64>().sqrt();
        kept.iter().map(|counted| (counted.0, (weight(counted) / norm) as f32)).collect()
    }
}

/// Cosine of two documents' weights.
pub fn cosine(a: &Weights, b: &Weights) -> f64 {
    let (mut i, mut j, mut sum) = (0, 0, 0.0);
    while let (Some(&(left, x)), Some(&(right, y))) = (a.get(i), b.get(j)) {
        match left.cmp(&right) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                sum += f64::from(x) * f64::from(y);
                i += 1;
                j += 1;
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_ignore_case_and_punctuation() {
        assert_eq!(words("The cat; THE dog!"), words("dog, the-cat the"));
        assert_eq!(words("The cat; the dog!").iter().map(|term| term.1).max(), Some(2));
        assert_eq!(words("Straße ÜNÏ"), words("straße ünï"));
        assert!(words("... --- !").is_empty());
    }

    #[test]
    fn cosine_follows_the_formula() {
        let documents = [words("a a b"), words("b c"), words("c c c d")];
        let frequencies = Frequencies::of(&documents);
        let [x, y, z] = [0, 1, 2].map(|i: usize| frequencies.weigh(&documents[i], |_| true));
        let (rare, common) = (1.0 + 2.0_f64.ln(), 1.0 + (4.0_f64 / 3.0).ln());
        let x_norm = (((1.0 + 2.0_f64.ln()) * rare).powi(2) + common * common).sqrt();
        let y_norm = (2.0 * common * common).sqrt();
        assert!((cosine(&x, &y) - common * common / (x_norm * y_norm)).abs() < 1e-6);
        assert!((cosine(&x, &x) - 1.0).abs() < 1e-6);
        assert!(cosine(&x, &z).abs() < 1e-12);
        assert!(frequencies.weigh(&Vec::new(), |_| true).is_empty());
    }
}
