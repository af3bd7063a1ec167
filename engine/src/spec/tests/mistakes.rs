//! The mistakes that users make, as they see them.
