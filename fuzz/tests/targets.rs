//! Runs every target over its seeds and over mutations of them, from one printed seed.

use std::time::{Duration, Instant};

use wirevault_fuzz::{TARGETS, mutate::mutate, seeds};
use wirevault_media::sim::SplitMix64;

/// Inputs a target gets at least, however slow the machine.
const INPUTS_MIN: u32 = 2_000;
/// Time a target gets beyond that.
const TIME: Duration = Duration::from_secs(4);
const SEED: u64 = 0x5eed;

#[test]
fn no_target_panics_on_its_seeds_or_on_mutations_of_them() {
    for (name, target) in TARGETS {
        let seeds = seeds::of(name);
        assert!(!seeds.is_empty(), "target {name} has no seeds");
        seeds.iter().for_each(|seed| target(seed));
        let mut random = SplitMix64::new(SEED);
        let started = Instant::now();
        let mut inputs = 0;
        while inputs < INPUTS_MIN || started.elapsed() < TIME {
            let mut input = seeds[random.below(seeds.len() as u64) as usize].clone();
            mutate(&mut input, &mut random);
            target(&input);
            inputs += 1;
        }
        println!("{name}: {inputs} inputs from seed {SEED:#x}");
    }
}
