//! Two disks that are each other's partner, links over the loopback with TLS, and a pool that commits every record
//! that is asked for, when the test lets it.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::{DiskId, Generation, HostId, MemberId, PoolId, VmId};
use ev_core::report::DiskReport;
use ev_mirror::{Disk, DiskEvent, DiskRole, DiskSpec, Gate, Initial, LinkStream, LinkTls, MarkError};
use ev_wire::identity::{self, Identity, Peer, PoolAuthority, Role};
use uuid::Uuid;

pub const A: HostId = MemberId(1);
pub const B: HostId = MemberId(2);
/// How long anything that is waited for may take.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any side is kept from its thread, by a busy processor or by storage that is slow to flush.
const PARTNER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a test that waits until the partner is given up.
const PARTNER_TIMEOUT_SHORT: Duration = Duration::from_secs(2);
/// How often is looked whether a flush is over, while events are waited for.
const EVENT_PAUSE: Duration = Duration::from_millis(10);
/// How often a report is looked at.
const REPORT_PAUSE: Duration = Duration::from_millis(5);

/// One host's side.
pub struct Side {
    pub spec: DiskSpec,
    papers: Identity,
    pub disk: Option<Disk>,
    events: Option<Receiver<DiskEvent>>,
    /// Events that were taken from the channel and not looked at yet.
    taken: RefCell<VecDeque<DiskEvent>>,
    /// Open, unless the test closes it.
    pub gate: Arc<Gate>,
    /// What the channel of events holds from the next opening on.
    pub events_max: usize,
}

/// Both sides and the record.
pub struct Pair {
    _folder: tempfile::TempDir,
    pub a: Side,
    pub b: Side,
    pub generation: Generation,
    pub good: BTreeSet<HostId>,
    /// Other ends of the sockets of the present link, to cut it.
    link: Option<[TcpStream; 2]>,
}

impl Side {
    fn new(folder: &Path, authority: &PoolAuthority, host: HostId, size_bytes: u64) -> Self {
        let folder = folder.join(format!("host-{host}"));
        std::fs::create_dir(&folder).unwrap();
        let key = identity::new_key_and_request().unwrap();
        let peer = Peer { pool: authority.pool(), role: Role::Host, member: host };
        let certificate = identity::sign_request(authority, &key.request_pem, peer, "host", &[]).unwrap();
        let papers = Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap();
        let spec = DiskSpec {
            pool: authority.pool(),
            vm: VmId(Uuid::from_u128(2)),
            disk: DiskId(Uuid::from_u128(3)),
            host,
            size_bytes,
            replica: folder.join("disk-0.raw"),
            metadata: folder.join("disk-0.meta"),
            nbd_socket: Some(folder.join("nbd-0.sock")),
            copy_rate_limit: None,
            partner_timeout: PARTNER_TIMEOUT,
        };
        let gate = Arc::new(Gate::new());
        gate.open_always();
        Self { spec, papers, disk: None, events: None, taken: RefCell::default(), gate, events_max: 64 }
    }

    pub fn open(&mut self) {
        let (sender, events) = sync_channel(self.events_max);
        self.disk = Some(Disk::open(self.spec.clone(), Arc::clone(&self.gate), sender).unwrap());
        self.events = Some(events);
        self.taken.take();
    }

    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the disk is open")
    }

    /// As if its process were killed.
    pub fn kill(&mut self) {
        self.disk = None;
        self.events = None;
    }

    pub fn socket(&self) -> PathBuf {
        self.spec.nbd_socket.clone().unwrap()
    }

    /// Takes its events until one is as wanted.
    pub fn until_event(&self, what: &str, wanted: impl Fn(&DiskEvent) -> bool) -> DiskEvent {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.next_event(left).unwrap_or_else(|| panic!("{what} did not come"));
            if wanted(&event) {
                return event;
            }
        }
    }

    /// `None` when none comes in time.
    fn next_event(&self, time: Duration) -> Option<DiskEvent> {
        let taken = self.taken.borrow_mut().pop_front();
        taken.or_else(|| self.events.as_ref().expect("the disk is open").recv_timeout(time).ok())
    }

    /// Leaves out that a link was wanted before `disk`, which is this side's, had the one that it was just given. Should that one be lost
    /// already, it asks again.
    fn leave_out_old_wishes_for_a_link(&self, disk: &Disk) {
        // It obeys in order, so that it has the link when it refuses this.
        let no_mark = disk.mark_epoch(Session(0), Epoch(0)).unwrap().wait(WAIT_TIMEOUT);
        assert!(matches!(no_mark, Err(MarkError::OutOfOrder | MarkError::NotInStep)), "{no_mark:?}");
        let events = self.events.as_ref().expect("the disk is open");
        let others = events.try_iter().filter(|event| !matches!(event, DiskEvent::LinkDown { .. }));
        self.taken.borrow_mut().extend(others);
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.spec.replica).unwrap()
    }
}

impl Pair {
    /// A new disk: `A` has the data, `B` has nothing yet. Nothing is open.
    pub fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = identity::create_authority(PoolId(Uuid::from_u128(1))).unwrap();
        let a = Side::new(folder.path(), &authority, A, size_bytes);
        let b = Side::new(folder.path(), &authority, B, size_bytes);
        Disk::create(&a.spec, Initial::Source).unwrap();
        Disk::create(&b.spec, Initial::Target).unwrap();
        Self { _folder: folder, a, b, generation: Generation(1), good: BTreeSet::from([A]), link: None }
    }

    /// A disk that is served by `A` and in step on both.
    pub fn in_step(size_bytes: u64) -> Self {
        Self::new(size_bytes).into_step()
    }

    /// The same, of a new disk.
    pub fn into_step(self) -> Self {
        let mut pair = self;
        pair.a.open();
        pair.b.open();
        pair.commit();
        pair.connect();
        pair.until_good(&[A, B]);
        // The copy has left its regions in the write-intent log, for as long as the disk is not idle.
        pair.flush();
        pair
    }

    /// As [`Pair::in_step`], and a partner that is silent or cut off is given up soon.
    pub fn in_step_with_short_timeout(size_bytes: u64) -> Self {
        let mut pair = Self::new(size_bytes);
        pair.shorten_timeout();
        pair.into_step()
    }

    /// For disks that are not open yet.
    pub fn shorten_timeout(&mut self) {
        for side in [&mut self.a, &mut self.b] {
            side.spec.partner_timeout = PARTNER_TIMEOUT_SHORT;
        }
    }

    /// Tells both sides the record.
    pub fn commit(&mut self) {
        let role = DiskRole::Coordinator { partner: Some(B), good: self.good.clone() };
        if let Some(disk) = &self.a.disk {
            disk.role(self.generation, role, false).unwrap();
        }
        if let Some(disk) = &self.b.disk {
            disk.role(self.generation, DiskRole::Replica { coordinator: A }, false).unwrap();
        }
    }

    /// Connects both sides.
    pub fn connect(&mut self) {
        let a = self.a.disk.take().expect("the disk on A is open");
        self.connect_to(&a);
        self.a.disk = Some(a);
    }

    fn connect_to(&mut self, a: &Disk) {
        let (to_a, server, to_b, client) = self.shake_hands();
        self.link = Some([to_a.try_clone().unwrap(), to_b.try_clone().unwrap()]);
        a.link(LinkStream { socket: to_b, tls: LinkTls::Client(Box::new(client)), peer: B }).unwrap();
        self.b.disk().link(LinkStream { socket: to_a, tls: LinkTls::Server(Box::new(server)), peer: A }).unwrap();
        self.a.leave_out_old_wishes_for_a_link(a);
    }

    /// Gives `A` a link whose other end, with `B`'s papers, is the test's.
    pub fn connect_by_hand(&mut self) -> rustls::StreamOwned<rustls::ServerConnection, TcpStream> {
        let (to_a, server, to_b, client) = self.shake_hands();
        self.a.disk().link(LinkStream { socket: to_b, tls: LinkTls::Client(Box::new(client)), peer: B }).unwrap();
        to_a.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        rustls::StreamOwned::new(server, to_a)
    }

    fn shake_hands(&self) -> (TcpStream, rustls::ServerConnection, TcpStream, rustls::ClientConnection) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut to_b = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut to_a, _) = listener.accept().unwrap();
        to_a.set_nodelay(true).unwrap();
        to_b.set_nodelay(true).unwrap();
        let name = identity::server_name(self.a.papers.peer().pool);
        let mut client = rustls::ClientConnection::new(self.a.papers.client_config(), name).unwrap();
        let mut server = rustls::ServerConnection::new(self.b.papers.server_config()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while client.is_handshaking() {
                    client.complete_io(&mut to_b).unwrap();
                }
            });
            while server.is_handshaking() {
                server.complete_io(&mut to_a).unwrap();
            }
        });
        (to_a, server, to_b, client)
    }

    /// Cuts the link.
    pub fn cut(&mut self) {
        for socket in self.link.take().into_iter().flatten() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Commits what the disk on `A` asks for until the record calls exactly these good.
    pub fn until_good(&mut self, good: &[HostId]) {
        let good: BTreeSet<_> = good.iter().copied().collect();
        self.until_record(|pair| pair.good == good);
    }

    /// A coordinator's first record does not rule out that an earlier process has proposed more: it asks for another one.
    pub fn until_confirmed(&mut self) {
        let first = self.generation;
        self.until_record(|pair| pair.generation > first);
    }

    fn until_record(&mut self, wanted: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while !wanted(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.a.next_event(left).expect("the disk asks for the record in time");
            eprintln!("{event:?}");
            match event {
                DiskEvent::ReplicaLost { host, seen, .. } if seen == self.generation => self.good.remove(&host),
                DiskEvent::ReplicaGood { host, seen, .. } if seen == self.generation => self.good.insert(host),
                // A host that has heard of the newest record closes the link to one that has not: it is made again.
                DiskEvent::LinkDown { .. } if self.link.is_some() => {
                    self.connect();
                    continue;
                }
                DiskEvent::ReplicaLost { .. }
                | DiskEvent::ReplicaGood { .. }
                | DiskEvent::LinkDown { .. }
                | DiskEvent::LinkUp { .. }
                | DiskEvent::Trouble { .. }
                | DiskEvent::EpochStaged { .. }
                | DiskEvent::EpochApplied { .. }
                | DiskEvent::EpochsLost { .. }
                | DiskEvent::AheadStuck { .. } => continue,
            };
            self.generation = self.generation.next();
            self.commit();
        }
    }

    /// Takes `A`'s events until one is as wanted.
    pub fn until_event(&self, what: &str, wanted: impl Fn(&DiskEvent) -> bool) -> DiskEvent {
        self.a.until_event(what, wanted)
    }

    /// Looks at `A`'s report until it is as wanted.
    pub fn until_report(&self, what: &str, wanted: impl Fn(&DiskReport) -> bool) -> DiskReport {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let report = self.a.disk().report();
            if wanted(&report) {
                return report;
            }
            assert!(Instant::now() < deadline, "{what} did not come: {report:?}");
            std::thread::sleep(REPORT_PAUSE);
        }
    }

    /// Flushes both. A link that is lost meanwhile is made again: it was made before the newest record was known on both sides, or the
    /// machine was busy for so long that a side was not heard.
    fn flush(&mut self) {
        let disk = self.a.disk.take().unwrap();
        std::thread::scope(|scope| {
            let flushed = scope.spawn(|| disk.flush());
            while !flushed.is_finished() {
                if let Some(DiskEvent::LinkDown { .. }) = self.a.next_event(EVENT_PAUSE)
                    && self.link.is_some()
                {
                    self.connect_to(&disk);
                }
            }
            flushed.join().expect("it does not panic").unwrap();
        });
        self.a.disk = Some(disk);
    }

    /// Flushes and closes both, and checks that the replicas are the same.
    pub fn close_and_compare(mut self) -> Vec<u8> {
        self.flush();
        drop(self.a.disk.take());
        drop(self.b.disk.take());
        let (a, b) = (self.a.bytes(), self.b.bytes());
        assert!(a == b, "the replicas differ first at {:?}", a.iter().zip(&b).position(|(a, b)| a != b));
        a
    }
}
