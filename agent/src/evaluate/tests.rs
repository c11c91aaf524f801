//! The oracle against what the APIs' texts and their suites say, a file per topic.

mod explaining;
mod isolation;
mod peers;
mod ports;
mod recipes;
mod tiers;
mod upstream;
