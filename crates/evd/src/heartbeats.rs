//! Heartbeats: sent to every other host on every network ten times a second, and noted when they arrive.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ev_core::ids::{HostId, PoolId};
use ev_core::time::Instant;
use ev_wire::heartbeat::{HEARTBEAT_BYTES, Heartbeat, HeartbeatKey};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock;

/// Between two heartbeats on one path.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// A path on which nothing came for so long is shown as silent.
pub const SILENCE: Duration = Duration::from_millis(1000);
/// After a failed bind (the address is not there yet, as a rule).
const BIND_RETRY: Duration = Duration::from_secs(1);
/// After a failed receive, so that the loop does not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// A path: 0 is the management network, n the n-th private link.
pub type Path = u16;

/// The network's name as users see it.
#[must_use]
pub fn path_name(path: Path) -> String {
    if path == 0 { "management".to_owned() } else { format!("private{path}") }
}

/// Where each other host listens, by path.
pub type Targets = BTreeMap<HostId, Vec<SocketAddr>>;

#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    run: u64,
    sequence: u64,
    at: Instant,
}

/// What arrived, by sender and path.
#[derive(Debug, Default)]
pub struct Ear {
    heard: Mutex<BTreeMap<(HostId, Path), Heard>>,
}

impl Ear {
    /// Notes a heartbeat; one that is a duplicate, late or played back proves nothing.
    fn note(&self, beat: &Heartbeat, path: Path, at: Instant) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let last = heard.entry((beat.host, path)).or_default();
        if beat.run != last.run || beat.sequence > last.sequence {
            *last = Heard { run: beat.run, sequence: beat.sequence, at };
        }
    }

    /// When each host was last heard on each path.
    #[must_use]
    pub fn last(&self) -> BTreeMap<(HostId, Path), Instant> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().map(|(key, heard)| (*key, heard.at)).collect()
    }

    /// Forgets hosts that left.
    pub fn retain(&self, keep: impl Fn(HostId) -> bool) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).retain(|(host, _), _| keep(*host));
    }
}

/// What a beating heart needs.
#[derive(Clone)]
pub struct Heart {
    pub pool: PoolId,
    pub host: HostId,
    pub key: HeartbeatKey,
    /// Own addresses by path, and the port.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// The other hosts; followed as the pool changes.
    pub targets: watch::Receiver<Targets>,
    pub ear: Arc<Ear>,
}

/// Sends and receives on every path until the set is dropped.
#[must_use]
pub fn start(heart: &Heart) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (index, address) in heart.addresses.iter().enumerate() {
        let path = Path::try_from(index).expect("a host has few addresses");
        tasks.spawn(run(heart.clone(), path, SocketAddr::new(*address, heart.port)));
    }
    tasks
}

async fn run(heart: Heart, path: Path, own: SocketAddr) {
    let run = uuid::Uuid::new_v4().as_u64_pair().0;
    let mut sequence = 0;
    loop {
        match UdpSocket::bind(own).await {
            Ok(socket) => {
                let send = send(&heart, &socket, path, run, &mut sequence);
                tokio::select! {
                    () = send => {}
                    () = receive(&heart, &socket, path) => {}
                }
            }
            Err(error) => {
                tracing::warn!(%own, %error, "cannot listen for heartbeats; is the address on this host?");
                tokio::time::sleep(BIND_RETRY).await;
            }
        }
    }
}

async fn send(heart: &Heart, socket: &UdpSocket, path: Path, run: u64, sequence: &mut u64) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        *sequence += 1;
        let beat = Heartbeat { pool: heart.pool, host: heart.host, path, run, sequence: *sequence };
        let datagram = beat.encode(&heart.key);
        let targets: Vec<SocketAddr> =
            heart.targets.borrow().values().filter_map(|addresses| addresses.get(usize::from(path)).copied()).collect();
        for target in targets {
            // A network that is down is what heartbeats are there to find out.
            let _ = socket.send_to(&datagram, target).await;
        }
    }
}

async fn receive(heart: &Heart, socket: &UdpSocket, path: Path) {
    // One byte more, so that a longer datagram is seen to be longer.
    let mut datagram = [0; HEARTBEAT_BYTES + 1];
    loop {
        let Ok((length, _)) = socket.recv_from(&mut datagram).await else {
            tokio::time::sleep(RECEIVE_PAUSE).await;
            continue;
        };
        match Heartbeat::decode(&datagram[..length], &heart.key) {
            Ok(beat) if beat.pool == heart.pool && beat.host != heart.host => heart.ear.note(&beat, path, clock::now()),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a datagram on the heartbeat port was not taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ev_core::ids::MemberId;

    fn beat(run: u64, sequence: u64) -> Heartbeat {
        Heartbeat { pool: PoolId(uuid::Uuid::nil()), host: MemberId(2), path: 0, run, sequence }
    }

    #[test]
    fn only_a_higher_sequence_or_a_new_run_is_a_sign_of_life() {
        let ear = Ear::default();
        let at = |ear: &Ear| ear.last()[&(MemberId(2), 0)].0;
        ear.note(&beat(7, 5), 0, Instant(100));
        assert_eq!(at(&ear), 100);
        ear.note(&beat(7, 5), 0, Instant(200));
        ear.note(&beat(7, 4), 0, Instant(300));
        assert_eq!(at(&ear), 100);
        ear.note(&beat(7, 6), 0, Instant(400));
        assert_eq!(at(&ear), 400);
        ear.note(&beat(8, 1), 0, Instant(500));
        assert_eq!(at(&ear), 500);
        ear.retain(|host| host != MemberId(2));
        assert!(ear.last().is_empty());
    }
}
