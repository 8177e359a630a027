//! Guests for the tests and the demo, made from Debian packages and cached below `target/guests`.

pub mod debian;
