//! Talking to the pool master, wherever it is: reports that renew the lease, and proposals for the record.

pub mod finder;
