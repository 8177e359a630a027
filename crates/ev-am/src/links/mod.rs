//! Links to the partner's AM: listening, connecting, noticing silence, and handing connected streams to the disks and to Level 3.
//!
//! The active side dials, the other one accepts. On every path there is a control link, which shows whether the path
//! works; each stream goes over the best path that does ([`board`] decides).

pub mod board;
pub mod dial;
mod hub;
pub mod message;
mod pulse;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ev_core::ids::{DiskId, HostId, VmId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use dial::{Stream, Tls};
pub use message::Channel;

/// Orders and notices that may wait; the sender then waits.
const QUEUE_MAX: usize = 64;

/// What links there are to be.
#[derive(Clone)]
pub struct LinksSpec {
    pub tls: Tls,
    pub vm: VmId,
    pub partner: HostId,
    /// Own addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// The partner's addresses, best first.
    pub dial: Vec<SocketAddr>,
    pub disks: Vec<DiskId>,
}

impl LinksSpec {
    /// All streams that there are to be.
    fn channels(&self) -> impl Iterator<Item = Channel> {
        self.disks.iter().copied().map(Channel::Disk).chain([Channel::Lane, Channel::Memory])
    }
}

/// Which part this AM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It is the active one: it connects.
    Dials,
    /// It holds the other replica: it waits for connections.
    Accepts,
}

/// What the AM asks of its links.
#[derive(Debug)]
enum Order {
    StreamDown(Channel),
    Learned { nic: u16, addresses: Vec<IpAddr> },
}

/// What the links tell the AM.
#[derive(Debug)]
pub enum LinkNotice {
    /// A stream to the partner stands; it replaces an older one.
    Stream { channel: Channel, stream: Box<Stream> },
    /// The partner began, or ceased, to be heard on any path.
    PartnerHeard(bool),
    /// The active partner: its guest's NIC uses these addresses.
    Learned { nic: u16, addresses: Vec<IpAddr> },
}

/// The links. All end when this is dropped, but for streams that were handed over.
#[derive(Debug)]
pub struct Links {
    partner: HostId,
    side: watch::Sender<Side>,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Links {
    /// Starts them; notices go to `notices`.
    #[must_use]
    pub fn start(spec: LinksSpec, side: Side, notices: mpsc::Sender<LinkNotice>) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        let (side, sides) = watch::channel(side);
        Self { partner: spec.partner, side, orders, task: tokio::spawn(hub::run(spec, sides, queue, notices)) }
    }

    #[must_use]
    pub fn partner(&self) -> HostId {
        self.partner
    }

    pub fn set_side(&self, side: Side) {
        self.side.send_if_modified(|present| std::mem::replace(present, side) != side);
    }

    /// Whoever had this stream gave it up, or found it ended.
    pub fn stream_down(&self, channel: Channel) {
        self.order(Order::StreamDown(channel));
    }

    /// Tells the partner which addresses the guest uses.
    pub fn learned(&self, nic: u16, addresses: Vec<IpAddr>) {
        self.order(Order::Learned { nic, addresses });
    }

    /// Never waits: the links' task may itself be waiting for the AM to take a notice.
    fn order(&self, order: Order) {
        if let Err(error) = self.orders.try_send(order) {
            tracing::warn!(%error, "the links are too busy to be told");
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}
