//! Helpers of the end-to-end scenarios.
