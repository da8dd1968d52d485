//! The host's sampler and its settings; the greatest logit.

use crate::{abi, actor, Result};

/// Settings and random state of the host's sampler.
pub type Sampler = abi::Sampler;

impl abi::Sampler {
    /// Reads the options temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n and seed.
    /// Without a seed the actor's own chance decides.
    pub fn by_option() -> Result<Self> {
        let mut random = [0; 8];
        actor::random(&mut random)?;
        Ok(Sampler {
            temperature: actor::option_or("temperature", 0.7)?,
            top_k: actor::option_or("top_k", 40)?,
            top_p: actor::option_or("top_p", 0.95)?,
            min_p: actor::option_or("min_p", 0.05)?,
            repeat_penalty: actor::option_or("repeat_penalty", 1.1)?,
            repeat_last_n: actor::option_or("repeat_last_n", 64)?,
            rng_state: actor::option_or("seed", i64::from_le_bytes(random))? as u64,
        })
    }
}

/// Where the greatest logit is, the first one if there are several.
pub fn argmax(logits: &[f32]) -> i32 {
    let mut best = 0;
    for (at, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = at;
        }
    }
    best as i32
}
