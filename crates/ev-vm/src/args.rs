//! From a [`GuestSpec`] to QEMU's command line.
