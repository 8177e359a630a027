//! The keeper's edges, one test each.
