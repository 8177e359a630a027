//! Links to the partner's AM: listening, connecting, noticing silence, and handing connected streams to the disks.

pub mod board;
