//! Clients and judges: phones that drive a server over its sockets, and the audit of what it wrote.

pub mod audit;
pub mod report;
pub mod sse;
pub mod trace;
