//! Integration tests over the real `sbp`.
