//! What the durability benchmark knows of durability, whatever cluster it looks
//! at: the [`history`] of a run is what clients were told and what they saw;
//! the [`judge`] says which promises it shows broken, [`availability`] how well
//! the producers were served. Both know nothing but the history. [`linearizable`]
//! is how the judge looks at calls about metadata and groups. A [`report`]
//! says what came of all scenarios of a run, for machines and for people; a
//! [`saved`] history can be judged again. The [`disk`] and the [`network`] are for
//! faults: one loses power, and what was not synced with it, the other one packets.

pub mod availability;
pub mod disk;
pub mod file;
pub mod history;
pub mod judge;
pub mod linearizable;
pub mod network;
pub mod operation;
pub mod record;
pub mod report;
pub mod saved;
