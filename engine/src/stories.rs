//! What riders, drivers and rides do, told as stories.

mod airports;
mod drivers;
mod growth;
mod holds;
mod language;
mod life;
mod market;
mod marks;
mod riders;
mod swaps;
