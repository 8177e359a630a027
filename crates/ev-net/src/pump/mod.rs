//! Carries frames between one NIC of a guest (QEMU's stream socket) and its TAP, on a thread of its own.
//!
//! ```text
//!   guest ─ QEMU ══ stream socket ══► FrameReader ─► Outbound ─ gate? ─► TAP ─ bridge ─ network
//!                                                     │ ▲
//!                                                  HeldFrames (Level 3, until their epoch is complete)
//!   guest ─ QEMU ◄═ stream socket ═══ ToGuest ◄───────────────────────── TAP ─ bridge ─ network
//! ```
//!
//! On the socket a frame is its length (u32, big endian) and its bytes (QEMU's `-netdev stream`). QEMU listens; the
//! pump connects, and connects again whenever the connection is lost.

mod counters;
mod held;
mod outbound;
mod stream;
mod thread;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ev_core::ids::MacAddress;
use rustix::event::EventfdFlags;

use crate::gate::FrameGate;
use crate::hold::OutputHold;
use crate::tap::Tap;
use counters::Shared;

pub use counters::PumpCounters;
pub use held::HELD_BYTES_MAX;
pub use outbound::Outbound;

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
    /// Which frames wait for their epoch: shared by all NICs of a guest.
    pub hold: Arc<OutputHold>,
}

/// A running pump. Dropping it ends its thread, and waits for that: no frame leaves afterwards.
pub struct NicPump {
    shared: Arc<Shared>,
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for NicPump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NicPump").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl NicPump {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start(spec: NicPumpSpec) -> io::Result<Self> {
        let shared = Arc::new(Shared { learned: Mutex::new(BTreeSet::new()), ..Shared::default() });
        let end = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let name = spec.name.clone();
        let verdicts = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        spec.hold.register(&verdicts);
        let pump = thread::Pump::new(spec, Arc::clone(&shared), thread::Orders { end: Arc::clone(&end), verdicts });
        let thread = std::thread::Builder::new().name(name).spawn(move || pump.run())?;
        Ok(Self { shared, end, thread: Some(thread) })
    }

    /// What went through.
    #[must_use]
    pub fn counters(&self) -> PumpCounters {
        self.shared.counters()
    }

    /// Addresses that the guest was seen to claim.
    #[must_use]
    pub fn learned(&self) -> BTreeSet<IpAddr> {
        self.shared.learned()
    }

    /// Whether QEMU is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.is_connected()
    }
}

impl Drop for NicPump {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.end, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "could not tell a NIC's thread to end");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a NIC's thread had panicked");
        }
    }
}
