//! The third judge.
