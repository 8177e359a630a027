//! Links to the partner's AM: listening, connecting, noticing silence, and handing connected streams to the disks.
//!
//! The active side dials, the other one accepts. On every path there is a control link, which shows whether the path
//! works; each disk's stream goes over the best path that does ([`board`] decides).

pub mod board;
pub mod dial;
mod hub;
pub mod message;
mod pulse;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ev_core::ids::{DiskId, HostId, VmId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use dial::{Stream, Tls};

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
    Side(Side),
    StreamDown(DiskId),
    Learned { nic: u16, addresses: Vec<IpAddr> },
}

/// What the links tell the AM.
#[derive(Debug)]
pub enum LinkNotice {
    /// A stream to the partner's replica of this disk stands; it replaces an older one.
    Stream { disk: DiskId, stream: Box<Stream>, side: Side },
    /// The partner began, or ceased, to be heard on any path.
    PartnerHeard(bool),
    /// The active partner: its guest's NIC uses these addresses.
    Learned { nic: u16, addresses: Vec<IpAddr> },
}

/// The links. All end when this is dropped, but for streams that were handed over.
#[derive(Debug)]
pub struct Links {
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Links {
    /// Starts them; notices go to `notices`.
    #[must_use]
    pub fn start(spec: LinksSpec, side: Side, notices: mpsc::Sender<LinkNotice>) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        Self { orders, task: tokio::spawn(hub::run(spec, side, queue, notices)) }
    }

    pub async fn set_side(&self, side: Side) {
        self.order(Order::Side(side)).await;
    }

    /// A disk gave up its stream, or found it ended.
    pub async fn stream_down(&self, disk: DiskId) {
        self.order(Order::StreamDown(disk)).await;
    }

    /// Tells the partner which addresses the guest uses.
    pub async fn learned(&self, nic: u16, addresses: Vec<IpAddr>) {
        self.order(Order::Learned { nic, addresses }).await;
    }

    async fn order(&self, order: Order) {
        self.orders.send(order).await.expect("the links' task lives as long as this value");
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}
