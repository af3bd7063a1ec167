//! The numbers that an item of a task leaves for the stage after it: a container of named sections.
//!
//! An item's folder is checked as a whole before it is used again, and is gone once its node is
//! done, so that this has no summary and no other readers.

use std::path::Path;

use super::Error;
use super::container::{Container, Element, Writer};

const FILE: &str = "part.sbp";
const KIND: &str = "part";
const VERSION: u32 = 1;

/// Writes the sections of a part.
pub(crate) struct PartWriter(Writer);

impl PartWriter {
    /// Starts the part in the folder `dir`.
    pub(crate) fn create(dir: &Path) -> Result<Self, Error> {
        Ok(Self(Writer::create(&dir.join(FILE), KIND, VERSION)?))
    }

    /// Adds a section.
    pub(crate) fn section<T: Element>(mut self, name: &str, values: &[T]) -> Result<Self, Error> {
        self.0.section(name, values)?;
        Ok(self)
    }

    /// Completes the part.
    pub(crate) fn finish(self) -> Result<(), Error> {
        self.0.finish(&VERSION)
    }
}

/// A part, mapped into memory.
pub(crate) struct Part(Container);

impl Part {
    /// Opens the part in the folder `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self(Container::open(&dir.join(FILE), KIND, VERSION)?))
    }

    /// A section of it.
    pub(crate) fn section<T: Element>(&self, name: &str) -> Result<&[T], Error> {
        self.0.section(name)
    }
}
