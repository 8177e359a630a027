//! What this host does for the VMs that the pool gave it.

pub mod process;
