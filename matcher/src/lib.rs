//! A node: hosts shards, feeds the index, runs rounds, commits.

pub mod api;
