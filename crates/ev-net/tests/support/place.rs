//! A TAP on a bridge with another interface, which is the network, and a pump for the TAP.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ev_core::ids::MacAddress;
use ev_net::{Links, NicPump, NicPumpSpec, OutputHold, Tap};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{PATIENCE, ip};

pub const GUEST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
pub const PEER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

/// A frame of an experimental type, so that it can be told from what the kernel sends.
pub fn frame(from: MacAddress, number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from.0);
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(length, 0x5a);
    frame
}

pub struct Place {
    _folder: tempfile::TempDir,
    pub socket: PathBuf,
    pub tap: Tap,
    network: tokio::io::unix::AsyncFd<OwnedFd>,
    pub gate: Arc<AtomicBool>,
    pub hold: Arc<OutputHold>,
}

impl Place {
    pub async fn new() -> Self {
        let links = Links::open().unwrap();
        links.ensure_bridge("br0", 1500).await.unwrap();
        ip("link add up0 type veth peer name up1");
        for up in ["up0", "up1"] {
            // No word of its own on the wire.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{up}/disable_ipv6"), "1");
        }
        ip("link set up1 up");
        links.attach_uplink("br0", "up0").await.unwrap();
        let tap = Tap::create("tap0").unwrap();
        links.plug(&tap, "br0", GUEST).await.unwrap();
        // A port takes part some time after it is up: the kernel sees to its carrier later.
        for port in ["up0", "tap0"] {
            until("the port", || ip(&format!("-d link show {port}")).contains(" state forwarding ")).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nic.sock");
        Self {
            _folder: folder,
            socket,
            tap,
            network: packet_socket("up1"),
            gate: Arc::new(AtomicBool::new(true)),
            hold: OutputHold::new(),
        }
    }

    pub fn pump(&self) -> NicPump {
        let gate = Arc::clone(&self.gate);
        let gate = Arc::new(move || gate.load(Ordering::SeqCst));
        let (socket, tap) = (self.socket.clone(), self.tap.clone());
        NicPump::start(NicPumpSpec {
            name: "nic-0".to_owned(),
            socket,
            tap,
            mac: GUEST,
            gate,
            hold: Arc::clone(&self.hold),
        })
        .unwrap()
    }

    /// The next frame on the network for which `wanted` has an answer.
    pub async fn seen<T>(&self, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let wait = async {
            let mut bytes = vec![0; 65_536];
            loop {
                let mut ready = self.network.readable().await.unwrap();
                match rustix::net::recv(self.network.get_ref(), &mut bytes, rustix::net::RecvFlags::empty()) {
                    Ok((length, _)) => {
                        if let Some(found) = wanted(&bytes[..length]) {
                            return found;
                        }
                    }
                    Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("the frame did not come")
    }

    pub fn send(&self, frame: &[u8]) {
        rustix::net::send(self.network.get_ref(), frame, rustix::net::SendFlags::empty()).unwrap();
    }
}

/// Number in one of our frames from the guest.
pub fn number(frame: &[u8]) -> Option<u32> {
    let ours = frame.get(6..14)? == [&GUEST.0[..], &[0x88, 0xb5]].concat();
    ours.then(|| u32::from_be_bytes(frame[14..18].try_into().unwrap()))
}

fn packet_socket(interface: &str) -> tokio::io::unix::AsyncFd<OwnedFd> {
    let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
    let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain numbers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, flags, all) };
    assert!(raw >= 0);
    // SAFETY: just opened, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // A burst must not be lost here.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, 64 << 20).unwrap();
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: a string that lives across the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: an all-zero `sockaddr_ll` is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    address.sll_ifindex = i32::try_from(index).unwrap();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: the address lives across the call and has this length.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    assert_eq!(bound, 0);
    // SAFETY: an owned descriptor that nobody else has.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.unwrap()
}

pub async fn accept(listener: &UnixListener) -> UnixStream {
    timeout(PATIENCE, listener.accept()).await.expect("the pump connects").unwrap().0
}

pub async fn send(qemu: &mut (impl AsyncWrite + Unpin), frame: &[u8]) {
    qemu.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).await.unwrap();
    qemu.write_all(frame).await.unwrap();
}

/// The next of our frames that QEMU gets.
pub async fn receive(qemu: &mut (impl AsyncRead + Unpin)) -> u32 {
    let wait = async {
        loop {
            let mut length = [0; 4];
            qemu.read_exact(&mut length).await.unwrap();
            let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
            qemu.read_exact(&mut frame).await.unwrap();
            if frame[12..14] == [0x88, 0xb5] {
                return u32::from_be_bytes(frame[14..18].try_into().unwrap());
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("QEMU got no frame")
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}
