//! The master's decisions, one table each.
