//! A NIC's pump between a socket like QEMU's and a TAP on a bridge; another TAP on the bridge is the network.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ev_core::ids::MacAddress;
use ev_net::{Links, NicPump, NicPumpSpec, OpenGate, OutputHold, Tap, announce};
use support::{PATIENCE, in_namespace, ip};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

const GUEST: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
const PEER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);

/// A frame of an experimental type, so that it can be told from what the kernel sends.
fn frame(from: MacAddress, number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from.0);
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(length, 0x5a);
    frame
}

struct Place {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    tap: Tap,
    network: tokio::io::unix::AsyncFd<OwnedFd>,
    gate: Arc<AtomicBool>,
}

impl Place {
    async fn new() -> Self {
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
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nic.sock");
        Self { _folder: folder, socket, tap, network: packet_socket("up1"), gate: Arc::new(AtomicBool::new(true)) }
    }

    fn pump(&self) -> NicPump {
        let gate = Arc::clone(&self.gate);
        let gate = Arc::new(move || gate.load(Ordering::SeqCst));
        let (socket, tap) = (self.socket.clone(), self.tap.clone());
        NicPump::start(NicPumpSpec { name: "nic-0".to_owned(), socket, tap, mac: GUEST, gate, hold: OutputHold::new() })
            .unwrap()
    }

    /// The next frame on the network for which `wanted` has an answer.
    async fn seen<T>(&self, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
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

    fn send(&self, frame: &[u8]) {
        rustix::net::send(self.network.get_ref(), frame, rustix::net::SendFlags::empty()).unwrap();
    }
}

/// Number in one of our frames from the guest.
fn number(frame: &[u8]) -> Option<u32> {
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

async fn accept(listener: &UnixListener) -> UnixStream {
    timeout(PATIENCE, listener.accept()).await.expect("the pump connects").unwrap().0
}

async fn send(qemu: &mut UnixStream, frame: &[u8]) {
    qemu.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).await.unwrap();
    qemu.write_all(frame).await.unwrap();
}

/// The next of our frames that QEMU gets.
async fn receive(qemu: &mut UnixStream) -> u32 {
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

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

#[test]
fn frames_pass_both_ways_and_a_lost_connection_is_made_anew() {
    in_namespace(|| async {
        let place = Place::new().await;
        // The pump is there before QEMU.
        let pump = place.pump();
        let listener = UnixListener::bind(&place.socket).unwrap();
        for round in 0..3 {
            let mut qemu = accept(&listener).await;
            for (step, length) in [(1, 60), (2, 1514), (3, 100)] {
                send(&mut qemu, &frame(GUEST, round * 10 + step, length)).await;
                assert_eq!(place.seen(number).await, round * 10 + step);
            }
            until("the connection", || pump.is_connected()).await;
            place.send(&frame(PEER, 7, 60));
            place.send(&frame(PEER, 8, 1514));
            assert_eq!((receive(&mut qemu).await, receive(&mut qemu).await), (7, 8));
            // Half a frame, and away.
            qemu.write_all(&[0, 0, 0, 60, 1, 2]).await.unwrap();
            drop(qemu);
        }
        let counters = pump.counters();
        assert_eq!((counters.sent_frames, counters.sent_bytes), (9, 3 * (60 + 1514 + 100)));
        assert!(counters.connections >= 3 && counters.received_frames >= 6);
        assert_eq!(counters.dropped_gate_closed, 0);
    });
}

#[test]
fn nothing_leaves_through_a_closed_gate() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        send(&mut qemu, &frame(GUEST, 1, 60)).await;
        assert_eq!(place.seen(number).await, 1);
        place.gate.store(false, Ordering::SeqCst);
        for other in 2..12 {
            send(&mut qemu, &frame(GUEST, other, 60)).await;
        }
        until("the drops", || pump.counters().dropped_gate_closed == 10).await;
        announce(&place.tap, GUEST, &[], &|| false).await.unwrap();
        // What comes in still does.
        place.send(&frame(PEER, 20, 60));
        assert_eq!(receive(&mut qemu).await, 20);
        place.gate.store(true, Ordering::SeqCst);
        send(&mut qemu, &frame(GUEST, 12, 60)).await;
        let next = |frame: &[u8]| (frame[6..12] == GUEST.0).then(|| number(frame));
        assert_eq!(place.seen(next).await, Some(12), "neither an announcement nor an earlier frame");
        assert_eq!(pump.counters().sent_frames, 2);
    });
}

#[test]
fn a_qemu_out_of_step_is_connected_anew() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let _pump = place.pump();
        let mut qemu = accept(&listener).await;
        qemu.write_all(&[0xff; 64]).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, qemu.read_to_end(&mut rest)).await.expect("it hangs up");
        assert!(closed.is_ok() || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
        let mut qemu = accept(&listener).await;
        send(&mut qemu, &frame(GUEST, 1, 60)).await;
        assert_eq!(place.seen(number).await, 1);
    });
}

#[test]
fn a_qemu_that_does_not_read_costs_frames_and_no_memory() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        until("the connection", || pump.is_connected()).await;
        for other in 0..5_000 {
            place.send(&frame(PEER, other, 1514));
        }
        // The other direction goes on.
        send(&mut qemu, &frame(GUEST, 1, 60)).await;
        assert_eq!(place.seen(number).await, 1);
        // The buffers (ours, the socket's) hold less than all; what comes is in order, from the first on.
        let buffered = pump.counters().received_frames;
        assert!(buffered < 5_000, "{buffered}");
        for number in 0..u32::try_from(buffered).unwrap() / 2 {
            assert_eq!(receive(&mut qemu).await, number);
        }
    });
}

#[test]
fn addresses_are_learned_and_announced() {
    in_namespace(|| async {
        let place = Place::new().await;
        let listener = UnixListener::bind(&place.socket).unwrap();
        let pump = place.pump();
        let mut qemu = accept(&listener).await;
        let mut arp = vec![0xff; 6];
        arp.extend(GUEST.0);
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend(GUEST.0);
        arp.extend([192, 0, 2, 7]);
        arp.resize(60, 0);
        send(&mut qemu, &arp).await;
        until("the address", || !pump.learned().is_empty()).await;
        let learned = pump.learned();
        assert_eq!(learned, BTreeSet::from(["192.0.2.7".parse::<IpAddr>().unwrap()]));

        let mut addresses: Vec<IpAddr> = learned.into_iter().collect();
        addresses.push("2001:db8::7".parse().unwrap());
        drop(pump);
        let announced = tokio::join!(announce(&place.tap, GUEST, &addresses, &OpenGate), async {
            // At least two rounds of each.
            for _ in 0..2 {
                for ethertype in [[0x80, 0x35], [0x08, 0x06], [0x86, 0xdd]] {
                    place.seen(|frame| (frame[6..12] == GUEST.0 && frame[12..14] == ethertype).then_some(())).await;
                }
            }
        });
        announced.0.unwrap();
        // The bridge knows the way to the guest now.
        assert!(
            String::from_utf8(
                std::process::Command::new("bridge").args(["fdb", "show", "dev", "tap0"]).output().unwrap().stdout
            )
            .unwrap()
            .contains(&GUEST.to_string())
        );
    });
}
