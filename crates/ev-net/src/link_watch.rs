//! Watches the host's interfaces: which are there, and which can carry frames.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::links::{LinksError, link_name};

/// How often all interfaces are read anew, as the kernel drops messages when many come at once.
const REREAD_INTERVAL: Duration = Duration::from_secs(5);

/// An interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It can carry frames.
    Up,
    /// It is switched on but has no carrier: cable, switch or other end.
    NoCarrier,
    /// It is switched off.
    Down,
}

/// A task that keeps the state of all interfaces; ends when dropped.
#[derive(Debug)]
pub struct LinkWatch {
    states: watch::Receiver<BTreeMap<String, LinkState>>,
    task: JoinHandle<()>,
}

impl LinkWatch {
    /// Starts watching the network namespace of this thread.
    ///
    /// # Errors
    /// No netlink socket.
    pub async fn start() -> Result<Self, LinksError> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(LinksError::Socket)?;
        tokio::spawn(connection);
        let first = read_all(&handle).await.map_err(LinksError::Socket)?;
        let (sender, states) = watch::channel(first);
        let task = tokio::spawn(async move {
            let mut rereads = tokio::time::interval(REREAD_INTERVAL);
            loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some((message, _)) => apply(&sender, message.payload),
                        None => break,
                    },
                    _ = rereads.tick() => match read_all(&handle).await {
                        Ok(all) => { sender.send_if_modified(|states| replace(states, all)); }
                        Err(error) => tracing::warn!(%error, "could not read the host's interfaces"),
                    },
                }
            }
        });
        Ok(Self { states, task })
    }

    /// The state by name, and each change of it. An interface that is missing in it does not exist.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<BTreeMap<String, LinkState>> {
        self.states.clone()
    }
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type States = BTreeMap<String, LinkState>;

fn replace(states: &mut States, all: States) -> bool {
    let changed = *states != all;
    *states = all;
    changed
}

async fn read_all(handle: &Handle) -> io::Result<States> {
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(|error| io::Error::other(error.to_string()))?;
    Ok(links.iter().filter_map(|link| Some((link_name(link)?, state(link)))).collect())
}

fn apply(sender: &watch::Sender<States>, payload: NetlinkPayload<RouteNetlinkMessage>) {
    let NetlinkPayload::InnerMessage(message) = payload else { return };
    // Bridges tell of their ports in messages of their own family: one says that a port is "gone" when it leaves.
    let own = |link: &LinkMessage| link.header.interface_family == AddressFamily::Unspec;
    sender.send_if_modified(|states| match &message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) if !own(link) => false,
        RouteNetlinkMessage::NewLink(link) => {
            let Some(name) = link_name(link) else { return false };
            states.insert(name, state(link)) != Some(state(link))
        }
        RouteNetlinkMessage::DelLink(link) => link_name(link).is_some_and(|name| states.remove(&name).is_some()),
        _ => false,
    });
}

fn state(link: &LinkMessage) -> LinkState {
    if !link.header.flags.contains(LinkFlags::Up) {
        return LinkState::Down;
    }
    let operational = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::OperState(state) => Some(*state),
        _ => None,
    });
    match operational {
        // Unknown: drivers that don't tell, loopback among them.
        Some(State::Up | State::Unknown) | None => LinkState::Up,
        Some(_) => LinkState::NoCarrier,
    }
}
