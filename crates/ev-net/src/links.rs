//! The host's network interfaces through rtnetlink: bridges, their uplinks, TAP devices on them.

use std::io;
use std::net::IpAddr;

use ev_core::ids::MacAddress;
use futures::TryStreamExt;
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec};

use crate::name::is_name;
use crate::tap::Tap;

/// Largest MTU that guests' frames may have, in bytes; QEMU's stream carries 68 KiB.
pub const MTU_BYTES_MAX: u32 = 65_535;

/// Why an interface could not be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LinksError {
    #[error("could not open a netlink socket: {0}; run as root")]
    Socket(io::Error),
    #[error("there is no network interface {name}; `ip link` lists those that exist")]
    NoSuchLink { name: String },
    #[error("{name} exists and is no bridge; name another one, or remove it (ip link del {name})")]
    NotABridge { name: String },
    #[error("{name:?} is no name for a network interface: 1 to 15 bytes, no slash, colon, percent sign or space")]
    BadName { name: String },
    #[error("could not {action} {name}: {source}; look at it with `ip -d link show {name}`")]
    Kernel { action: Action, name: String, source: io::Error },
}

/// What the kernel was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    LookAt,
    Create,
    Configure,
    Remove,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LookAt => "look at",
            Self::Create => "create",
            Self::Configure => "configure",
            Self::Remove => "remove",
        })
    }
}

/// What is asked of the kernel about an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub mtu: u32,
    pub kind: Option<InfoKind>,
    pub controller: Option<u32>,
}

/// A connection to the kernel's interfaces, in the network namespace of the thread that opened it. Needs a tokio
/// runtime.
#[derive(Debug, Clone)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens it.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn open() -> Result<Self, LinksError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinksError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes sure that a bridge of this name exists, is up and has this MTU (bytes). `true` if it was made now.
    ///
    /// # Errors
    /// Something else has the name; not root.
    pub async fn ensure_bridge(&self, name: &str, mtu: u32) -> Result<bool, LinksError> {
        let (bridge, made) = match self.find(name).await? {
            Some(link) => (link, false),
            None => {
                // Guests' neighbour discovery is multicast: snooping without a querier forgets who listens.
                let bridge = LinkBridge::new(name).mcast_snooping(false).build();
                let added = self.handle.link().add(bridge).execute().await;
                added.map_err(kernel(Action::Create, name))?;
                (self.get(name).await?, true)
            }
        };
        if bridge.kind != Some(InfoKind::Bridge) {
            return Err(LinksError::NotABridge { name: name.to_owned() });
        }
        let settings = LinkUnspec::new_with_index(bridge.index).mtu(mtu).up();
        self.configure(settings, name).await?;
        Ok(made)
    }

    /// Puts the host's own interface `uplink` on the bridge and sets it up. One that is there already stays.
    ///
    /// # Errors
    /// One of them does not exist; not root.
    pub async fn attach_uplink(&self, bridge: &str, uplink: &str) -> Result<(), LinksError> {
        let controller = self.get(bridge).await?.index;
        let link = self.get(uplink).await?;
        let mut settings = LinkUnspec::new_with_index(link.index).up();
        if link.controller != Some(controller) {
            settings = settings.controller(controller);
        }
        self.configure(settings, uplink).await
    }

    /// Puts a guest's TAP on the bridge, with the bridge's MTU, and sets it up. The TAP's own hardware address is
    /// derived from the guest's, with a first byte that is larger than any other's: a bridge without an address of
    /// its own takes the smallest of its ports', and must not change it as guests come and go.
    ///
    /// # Errors
    /// No such bridge; not root.
    pub async fn plug(&self, tap: &Tap, bridge: &str, mac: MacAddress) -> Result<(), LinksError> {
        let bridge = self.get(bridge).await?;
        let link = self.get(tap.name()).await?;
        quiet_ipv6(tap.name());
        let mut address = mac.0;
        address[0] = 0xfe;
        let settings = LinkUnspec::new_with_index(link.index).address(address.to_vec()).mtu(bridge.mtu);
        self.configure(settings, tap.name()).await?;
        let settings = LinkUnspec::new_with_index(link.index).controller(bridge.index).up();
        self.configure(settings, tap.name()).await
    }

    /// Removes an interface; one that is gone already is no error.
    ///
    /// # Errors
    /// Not root.
    pub async fn remove(&self, name: &str) -> Result<(), LinksError> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        match self.handle.link().del(link.index).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if is_absent(&error) => Ok(()),
            other => other.map_err(kernel(Action::Remove, name)),
        }
    }

    /// The host's own addresses, without loopback and link-local ones, with the interface each is on.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn addresses(&self) -> Result<Vec<(String, IpAddr)>, LinksError> {
        let look = kernel(Action::LookAt, "the host's interfaces");
        let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.map_err(look)?;
        let look = kernel(Action::LookAt, "the host's addresses");
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(look)?;
        let name = |index: u32| {
            let link = links.iter().find(|link| link.header.index == index)?;
            link_name(link)
        };
        let mut found = Vec::new();
        for address in addresses.iter().filter(|address| address.header.scope == AddressScope::Universe) {
            let ip = address.attributes.iter().find_map(|attribute| match attribute {
                // The own address; `Address` is the peer's on a point-to-point link.
                AddressAttribute::Local(ip) => Some(*ip),
                AddressAttribute::Address(ip) if address.header.family == AddressFamily::Inet6 => Some(*ip),
                _ => None,
            });
            if let (Some(ip), Some(name)) = (ip, name(address.header.index)) {
                found.push((name, ip));
            }
        }
        Ok(found)
    }

    async fn configure(&self, settings: LinkMessageBuilder<LinkUnspec>, name: &str) -> Result<(), LinksError> {
        self.handle.link().set(settings.build()).execute().await.map_err(kernel(Action::Configure, name))
    }

    async fn get(&self, name: &str) -> Result<Link, LinksError> {
        self.find(name).await?.ok_or_else(|| LinksError::NoSuchLink { name: name.to_owned() })
    }

    async fn find(&self, name: &str) -> Result<Option<Link>, LinksError> {
        if !is_name(name) {
            return Err(LinksError::BadName { name: name.to_owned() });
        }
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(message) => Ok(message.map(|message| read_link(&message))),
            Err(rtnetlink::Error::NetlinkError(error)) if is_absent(&error) => Ok(None),
            Err(error) => Err(kernel(Action::LookAt, name)(error)),
        }
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, mtu: 0, kind: None, controller: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// Name of an interface in a message about it.
pub(crate) fn link_name(message: &LinkMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn is_absent(error: &ErrorMessage) -> bool {
    error.raw_code() == -libc::ENODEV
}

fn kernel(action: Action, name: &str) -> impl FnOnce(rtnetlink::Error) -> LinksError {
    let name = name.to_owned();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(error) => io::Error::from_raw_os_error(-error.raw_code()),
            other => io::Error::other(other.to_string()),
        };
        LinksError::Kernel { action, name, source }
    }
}

/// The host must not speak IPv6 on a guest's TAP. A kernel without IPv6 has no such file.
fn quiet_ipv6(name: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::write(&path, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path, %error, "could not switch IPv6 off on a guest's TAP; the host may answer there");
        }
        Ok(()) | Err(_) => {}
    }
}
