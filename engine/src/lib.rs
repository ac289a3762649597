//! The dispatch core.

pub mod ingest;
