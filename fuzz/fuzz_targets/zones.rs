//! Files of zones (GeoJSON). What they draw is found by the tree as by a look at each zone.
#![no_main]
use cabrank_gateway::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| fuzzing::zones(text));
