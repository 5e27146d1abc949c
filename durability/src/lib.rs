//! What the durability benchmark knows of durability, whatever cluster it looks
//! at: the [`history`] of a run is what clients were told and what they saw;
//! the [`judge`] says which promises it shows broken, [`availability`] how well
//! the producers were served. Both know nothing but the history.

pub mod availability;
pub mod history;
pub mod judge;
pub mod record;
