//! The guest's NICs: a TAP on the network's bridge for each, frames carried under the gate, neighbours told.

pub mod learned;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ev_core::ids::MacAddress;
use ev_core::vm::{NicConfig, Vm};
use ev_net::{FrameGate, Links, LinksError, NicPump, NicPumpSpec, OutputHold, Tap, TapError, announce};
use ev_vm::GuestPaths;

use learned::Learned;

/// Why a NIC is not connected.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Links(#[from] LinksError),
    #[error("cannot start the thread that carries frames: {0}")]
    Pump(#[from] std::io::Error),
}

/// All NICs of a guest that runs here. Dropping this takes the TAPs away.
pub struct Nics {
    places: Vec<Place>,
    ways_out: WaysOut,
}

/// What decides about the guest's frames.
#[derive(Clone)]
struct WaysOut {
    gate: Arc<dyn FrameGate>,
    hold: Arc<OutputHold>,
}

struct Place {
    config: NicConfig,
    tap_name: String,
    socket: std::path::PathBuf,
    state: Result<Connected, NicError>,
    /// What the guest was last seen to use, so that only changes are told.
    told: BTreeSet<IpAddr>,
}

struct Connected {
    tap: Tap,
    pump: NicPump,
}

impl Nics {
    /// Connects all NICs of `vm`. One that can't be is left out for now ([`Self::mend`]): the guest runs without it, as
    /// it would with a pulled cable.
    pub async fn connect(vm: &Vm, paths: &GuestPaths, gate: Arc<dyn FrameGate>, hold: Arc<OutputHold>) -> Self {
        let ways_out = WaysOut { gate, hold };
        let mut places = Vec::new();
        for (index, config) in vm.config.nics.iter().enumerate() {
            let (socket, tap_name) = (paths.nic(index), tap_name(vm.number, index));
            let state = connect(config, index, &tap_name, &socket, &ways_out).await;
            if let Err(error) = &state {
                tracing::error!(nic = index, %error, "a NIC is not connected; the guest runs without it for now");
            }
            places.push(Place { config: config.clone(), tap_name, socket, state, told: BTreeSet::new() });
        }
        Self { places, ways_out }
    }

    /// Tries again to connect what is not.
    pub async fn mend(&mut self) {
        for (index, place) in self.places.iter_mut().enumerate() {
            if place.state.is_err() {
                place.state = connect(&place.config, index, &place.tap_name, &place.socket, &self.ways_out).await;
                if place.state.is_ok() {
                    tracing::info!(nic = index, "the NIC is connected now");
                }
            }
        }
    }

    /// What is wrong, for people.
    pub fn troubles(&self) -> Vec<String> {
        let trouble = |(index, place): (usize, &Place)| {
            place.state.as_ref().err().map(|error| format!("NIC {index} is not connected: {error}"))
        };
        self.places.iter().enumerate().filter_map(trouble).collect()
    }

    /// The addresses that the guest was seen to use, for the NICs where that changed since the last call.
    pub fn newly_learned(&mut self) -> Vec<(usize, BTreeSet<IpAddr>)> {
        let mut news = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            let Ok(connected) = &place.state else { continue };
            let seen = connected.pump.learned();
            if !seen.is_empty() && seen != place.told {
                place.told.clone_from(&seen);
                news.push((index, seen));
            }
        }
        news
    }

    /// Tells neighbours where the guest is now. Runs by itself for about two seconds.
    pub fn announce(&self, learned: &Learned) {
        for (index, place) in self.places.iter().enumerate() {
            let Ok(connected) = &place.state else { continue };
            tokio::spawn(tell(
                connected.tap.clone(),
                place.config.mac,
                learned.of(index),
                Arc::clone(&self.ways_out.gate),
            ));
        }
    }
}

async fn tell(tap: Tap, mac: MacAddress, addresses: Vec<IpAddr>, gate: Arc<dyn FrameGate>) {
    if let Err(error) = announce(&tap, mac, &addresses, &*gate).await {
        tracing::warn!(%mac, %error, "could not tell neighbours where the guest is now; they learn it from its next frame");
    }
}

/// At most 15 bytes, and unique on the host: the VM's number is unique in the pool.
fn tap_name(vm_number: u16, nic: usize) -> String {
    format!("ev{vm_number}n{nic}")
}

async fn connect(
    config: &NicConfig,
    index: usize,
    tap_name: &str,
    socket: &std::path::Path,
    ways_out: &WaysOut,
) -> Result<Connected, NicError> {
    let tap = Tap::create(tap_name)?;
    Links::open()?.plug(&tap, &config.bridge, config.mac).await?;
    let pump = NicPump::start(NicPumpSpec {
        name: format!("nic-{index}"),
        socket: socket.to_owned(),
        tap: tap.clone(),
        mac: config.mac,
        gate: Arc::clone(&ways_out.gate),
        hold: Arc::clone(&ways_out.hold),
    })?;
    Ok(Connected { tap, pump })
}

#[cfg(test)]
mod tests {
    #[test]
    fn tap_names_fit_the_kernel() {
        assert!(super::tap_name(u16::MAX, ev_core::vm::NICS_MAX).len() <= 15);
    }
}
