//! Taking a quorum server into a pool's service.
