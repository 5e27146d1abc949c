//! What the durability benchmark knows of durability, whatever cluster it looks
//! at: the [`history`] of a run is what clients were told and what they saw;
//! it is judged later, from the history alone.

pub mod history;
pub mod record;
