//! Which IP addresses the guest uses, learned from the frames that it sends.
