//! Who may run a guest, in two engines: `master` for the pool as a whole, `keeper` for one guest on one host.

pub mod keeper;
pub mod master;
