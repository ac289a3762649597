//! What riders, drivers and rides do, told as stories.

mod drivers;
mod holds;
mod language;
mod life;
mod market;
mod marks;
mod riders;
mod swaps;
