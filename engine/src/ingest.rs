//! Which pings are believed.
