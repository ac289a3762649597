//! The business beside the engine: orders, payments, forecasts. They consume the rides and change nothing of them.
//!
//! - [`consumer`]: consuming exactly once in effect; the shape to copy for another service. [`source`]: where messages come
//!   from. [`database`]: where a service keeps what it knows. [`gauges`]: how far behind it is. [`kafka`]: the same over
//!   topics.
//! - [`order`]: the read model of rides and the saga of their money. [`payment`]: the provider, called safely.
//! - [`steps`]: what is traced.
//!
//! Each service has a database of its own and talks to the others by messages alone.

#![forbid(unsafe_code)]

pub mod audit;
pub mod consumer;
pub mod database;
pub mod forecast;
pub mod gauges;
pub mod host;
pub mod kafka;
pub mod openapi;
pub mod order;
pub mod payment;
pub mod provider_sim;
pub mod source;
pub mod steps;
pub mod web;
