//! Seeds: printed by every random test, replayed from the environment.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The seed of this run: `SENDENSE_TEST_SEED` where it is set, else a fresh one. Printed.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("SENDENSE_TEST_SEED") {
        Ok(text) => text
            .parse()
            .expect("SENDENSE_TEST_SEED is a decimal number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    eprintln!("{test}: SENDENSE_TEST_SEED={seed}");
    seed
}

/// A generator started from [`seed`].
#[must_use]
pub fn rng(test: &str) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed(test))
}
