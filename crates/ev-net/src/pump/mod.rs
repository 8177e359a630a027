//! Carries frames between one NIC of a guest (QEMU's stream socket) and its TAP, on a thread of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ev_core::ids::MacAddress;

use crate::gate::FrameGate;
use crate::tap::Tap;

/// What a pump connects.
pub struct NicPumpSpec {
    /// Name of the thread, such as `nic-0`.
    pub name: String,
    /// The socket on which QEMU listens; it need not exist yet, and may come and go.
    pub socket: PathBuf,
    /// The host's end.
    pub tap: Tap,
    /// The guest's address.
    pub mac: MacAddress,
    /// Whether frames may leave.
    pub gate: Arc<dyn FrameGate>,
}

/// What went through since the pump was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PumpCounters {
    /// From the guest to the network.
    pub sent_frames: u64,
    /// From the guest to the network.
    pub sent_bytes: u64,
    /// From the network to the guest.
    pub received_frames: u64,
    /// From the network to the guest.
    pub received_bytes: u64,
    /// Frames of the guest that came while the gate was closed.
    pub dropped_gate_closed: u64,
    /// Frames of the guest that the TAP did not take.
    pub dropped_by_tap: u64,
    /// Frames for the guest that found its buffer full or no connection.
    pub dropped_to_guest: u64,
    /// Connections to QEMU so far.
    pub connections: u64,
}

/// A running pump. Dropping it ends its thread.
#[derive(Debug)]
pub struct NicPump {}

impl NicPump {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start(spec: NicPumpSpec) -> std::io::Result<Self> {
        let _ = spec;
        unimplemented!()
    }

    /// What went through.
    #[must_use]
    pub fn counters(&self) -> PumpCounters {
        unimplemented!()
    }

    /// Addresses that the guest was seen to use.
    #[must_use]
    pub fn learned(&self) -> BTreeSet<IpAddr> {
        unimplemented!()
    }

    /// Whether QEMU is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        unimplemented!()
    }
}
