//! Keys and values of the tokens seen so far, in pages that sequences can share.
//!
//! A page holds 16 positions of every layer. A prompt's pages serve all sequences forked from it;
//! only a partly filled last page is copied.

use super::linear::Line;

/// Positions of a page.
pub(super) const PAGE: usize = 16;

/// What a cache holds of one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers of the model.
    pub n_layers: usize,
    /// Key-value heads of a layer.
    pub n_kv_heads: usize,
    /// Numbers in a key or a value.
    pub head_dim: usize,
}

impl Shape {
    /// Lines of the values of one position: `head_dim` numbers, padded to whole lines.
    pub(super) fn value_lines(self) -> usize {
        self.head_dim.div_ceil(16)
    }

    /// Lines of one head of a page: keys `[head_dim][PAGE]`, then values `[PAGE][value_lines]`.
    pub(super) fn head_lines(self) -> usize {
        self.head_dim + PAGE * self.value_lines()
    }

    fn page_lines(self) -> usize {
        self.n_layers * self.n_kv_heads * self.head_lines()
    }
}

/// Which sequences hold which pages, wherever their numbers are.
pub struct Pages {
    /// How many sequences hold each page that was ever taken.
    holders: Vec<u32>,
    free: Vec<u32>,
    n_max: usize,
}

/// Pages of keys and values in this machine's memory.
pub struct Cache {
    shape: Shape,
    data: Vec<Box<[Line]>>,
    pages: Pages,
}

/// The pages of one sequence. Give it back with `release`.
#[derive(Debug)]
pub struct Sequence {
    pub(super) pages: Vec<u32>,
    len: usize,
}

impl Sequence {
    /// Its pages, in order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Positions that have room, whether written or not.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no position yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The cache has no free page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Pages {
    /// At most `n_max` pages, none of them taken.
    pub fn new(n_max: usize) -> Self {
        Self { holders: Vec::new(), free: Vec::new(), n_max }
    }

    /// A sequence without positions.
    pub fn start(&self) -> Sequence {
        Sequence { pages: Vec::new(), len: 0 }
    }

    /// Makes room for `n` more positions.
    ///
    /// # Errors
    /// [`Full`] when there are not enough pages; the sequence is then unchanged.
    pub fn extend(&mut self, sequence: &mut Sequence, n: usize) -> Result<(), Full> {
        let n_new = (sequence.len + n).div_ceil(PAGE) - sequence.pages.len();
        if n_new > self.free.len() + self.n_max - self.holders.len() {
            return Err(Full);
        }
        sequence.pages.extend((0..n_new).map(|_| self.take()));
        sequence.len += n;
        Ok(())
    }

    /// A sequence that begins with all positions of `sequence`, and, when the last page is partly
    /// filled, that page and the new one into which it is to be copied.
    ///
    /// # Errors
    /// [`Full`] when there is no page for that copy.
    pub fn fork(&mut self, sequence: &Sequence) -> Result<(Sequence, Option<[u32; 2]>), Full> {
        let (n_shared, rest) = (sequence.len / PAGE, sequence.len % PAGE);
        let mut fork =
            Sequence { pages: sequence.pages[..n_shared].to_vec(), len: n_shared * PAGE };
        let mut copy = None;
        if rest > 0 {
            self.extend(&mut fork, rest)?;
            copy = Some([sequence.pages[n_shared], fork.pages[n_shared]]);
        }
        for &page in &fork.pages[..n_shared] {
            self.holders[page as usize] += 1;
        }
        Ok((fork, copy))
    }

    /// Gives up a sequence; pages that no other sequence holds become free.
    pub fn release(&mut self, sequence: Sequence) {
        for page in sequence.pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }

    fn take(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| {
            self.holders.push(0);
            self.holders.len() as u32 - 1
        });
        self.holders[page as usize] = 1;
        page
    }
}

impl Cache {
    /// A cache of at most `n_pages_max` pages, allocated as they are needed.
    pub fn new(shape: Shape, n_pages_max: usize) -> Self {
        Self { shape, data: Vec::new(), pages: Pages::new(n_pages_max) }
    }

    /// Pages that `n_positions` take.
    pub fn pages_for(n_positions: usize) -> usize {
        n_positions.div_ceil(PAGE)
    }

    /// Bytes of one page.
    pub fn page_bytes(shape: Shape) -> usize {
        shape.page_lines() * size_of::<Line>()
    }

    /// What a position holds.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// As [`Pages::start`].
    pub fn start(&self) -> Sequence {
        self.pages.start()
    }

    /// As [`Pages::extend`].
    ///
    /// # Errors
    /// [`Full`] when there are not enough pages; the sequence is then unchanged.
    pub fn extend(&mut self, sequence: &mut Sequence, n: usize) -> Result<(), Full> {
        self.pages.extend(sequence, n)?;
        self.allocate();
        Ok(())
    }

    /// A sequence that begins with all positions of `sequence`.
    ///
    /// # Errors
    /// [`Full`] when the partly filled last page cannot be copied.
    pub fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, Full> {
        let (fork, copy) = self.pages.fork(sequence)?;
        self.allocate();
        if let Some(pages) = copy {
            let [source, copy] = self
                .data
                .get_disjoint_mut(pages.map(|page| page as usize))
                .expect("a page just taken differs from one in use");
            copy.copy_from_slice(source);
        }
        Ok(fork)
    }

    /// As [`Pages::release`].
    pub fn release(&mut self, sequence: Sequence) {
        self.pages.release(sequence);
    }

    /// Whether one sequence alone holds a page, so that it may be written.
    pub(super) fn is_private(&self, page: u32) -> bool {
        self.pages.holders[page as usize] == 1
    }

    /// Takes memory for the pages that were taken for the first time.
    fn allocate(&mut self) {
        let page = || vec![Line([0.0; 16]); self.shape.page_lines()].into_boxed_slice();
        self.data.resize_with(self.pages.holders.len(), page);
    }

    /// The lines of one head of a page.
    pub(super) fn head(&self, page: u32, layer: usize, kv_head: usize) -> &[Line] {
        let (first, n) = self.head_range(layer, kv_head);
        &self.data[page as usize][first..first + n]
    }

    /// As [`Self::head`], to write.
    pub(super) fn head_mut(&mut self, page: u32, layer: usize, kv_head: usize) -> &mut [Line] {
        let (first, n) = self.head_range(layer, kv_head);
        &mut self.data[page as usize][first..first + n]
    }

    fn head_range(&self, layer: usize, kv_head: usize) -> (usize, usize) {
        let n = self.shape.head_lines();
        ((layer * self.shape.n_kv_heads + kv_head) * n, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { n_layers: 2, n_kv_heads: 1, head_dim: 4 };

    #[test]
    fn pages_are_shared_and_come_back() {
        let mut cache = Cache::new(SHAPE, 5);
        let mut prompt = cache.start();
        cache.extend(&mut prompt, 20).unwrap();
        assert_eq!(prompt.pages.len(), 2);
        let mut fork = cache.fork(&prompt).unwrap();
        assert_eq!((fork.pages[0], fork.len()), (prompt.pages[0], 20));
        assert_ne!(fork.pages[1], prompt.pages[1]);
        assert!(!cache.is_private(fork.pages[0]) && cache.is_private(fork.pages[1]));

        assert_eq!(cache.extend(&mut fork, 45), Err(Full));
        cache.extend(&mut fork, 44).unwrap();
        assert_eq!(cache.fork(&prompt).unwrap_err(), Full);
        cache.release(prompt);
        assert!(cache.is_private(fork.pages[0]));
        cache.release(fork);
        assert_eq!(cache.pages.free.len(), 5);
    }

    #[test]
    fn a_fork_keeps_what_was_written() {
        let mut cache = Cache::new(SHAPE, 4);
        let mut prompt = cache.start();
        cache.extend(&mut prompt, 3).unwrap();
        cache.head_mut(prompt.pages[0], 1, 0)[2].0[1] = 7.0;
        let fork = cache.fork(&prompt).unwrap();
        cache.head_mut(prompt.pages[0], 1, 0)[2].0[1] = 8.0;
        assert_eq!(cache.head(fork.pages[0], 1, 0)[2].0[1].to_bits(), 7.0_f32.to_bits());
    }
}
