//! The task that owns all links of one AM and carries out what the [`Board`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::board::{Board, LinkAction, LinkEvent};
use super::dial::{self, Stream};
use super::message::{Channel, Control, LinkHello, LinkReply, Purpose, Refusal};
use super::{LinkNotice, LinksSpec, Order, QUEUE_MAX, Side, pulse};
use ev_mirror::gate::boot_time;

/// How often the board is asked whether something is due.
const TICK: Duration = Duration::from_millis(50);
/// Pause before a path is dialled again.
const DIAL_PAUSE: Duration = Duration::from_millis(150);
/// Pause before an address is bound again: it may be missing while its network is down.
const BIND_PAUSE: Duration = Duration::from_millis(500);
/// Most handshakes at once; more connections wait in the kernel.
const HANDSHAKES_MAX: usize = 16;
/// Messages that may wait for a control link; more are dropped, they are repeated.
const CONTROL_QUEUE_MAX: usize = 16;

/// What the tasks of paths and handshakes tell the hub.
enum Inner {
    /// A control link that this side dialled stands.
    ControlUp {
        path: usize,
        outgoing: mpsc::Sender<Control>,
    },
    ControlDown {
        path: usize,
    },
    Dialled {
        channel: Channel,
        path: usize,
        result: Result<Box<Stream>, dial::DialError>,
    },
    /// The partner dialled and said what for; not answered yet.
    Incoming {
        path: usize,
        stream: Box<Stream>,
        hello: LinkHello,
    },
    /// A control link that the partner dialled ended.
    IncomingControlDown {
        session: u64,
    },
    /// A stream that the partner dialled was welcomed.
    Welcomed {
        channel: Channel,
        stream: Box<Stream>,
    },
}

/// A handle by which a stream that was handed over can still be broken.
struct Cut(std::net::TcpStream);

impl Cut {
    fn of(stream: &Stream) -> std::io::Result<Self> {
        let descriptor = stream.get_ref().0.as_fd().try_clone_to_owned()?;
        Ok(Self(descriptor.into()))
    }

    fn cut(self) {
        // Fails only when the stream is broken already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

struct Hub {
    spec: LinksSpec,
    side: Side,
    board: Board,
    notices: mpsc::Sender<LinkNotice>,
    inner: mpsc::Sender<Inner>,
    /// Dialling side: tasks of the paths and of dialled streams. Replaced when the side changes.
    dialling: JoinSet<()>,
    /// Listeners, handshakes and incoming control links.
    accepting: JoinSet<()>,
    controls: BTreeMap<usize, mpsc::Sender<Control>>,
    /// The streams handed over, with the control session that they came under (accepting side).
    cuts: BTreeMap<Channel, (u64, Cut)>,
    /// Newest control session of each path (accepting side).
    sessions: BTreeMap<usize, u64>,
    session_last: u64,
    learned: BTreeMap<u16, Vec<IpAddr>>,
    heard: bool,
}

/// Runs until its orders end or it is aborted.
pub async fn run(
    spec: LinksSpec,
    mut sides: watch::Receiver<Side>,
    mut orders: mpsc::Receiver<Order>,
    notices: mpsc::Sender<LinkNotice>,
) {
    let (inner, mut events) = mpsc::channel(QUEUE_MAX);
    let board = Board::new(spec.dial.len(), spec.channels());
    let side = *sides.borrow_and_update();
    let mut hub = Hub {
        spec,
        side,
        board,
        notices,
        inner,
        dialling: JoinSet::new(),
        accepting: JoinSet::new(),
        controls: BTreeMap::new(),
        cuts: BTreeMap::new(),
        sessions: BTreeMap::new(),
        session_last: 0,
        learned: BTreeMap::new(),
        heard: false,
    };
    hub.listen();
    hub.begin();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => hub.order(order),
                None => return,
            },
            Ok(()) = sides.changed() => hub.change_side(*sides.borrow_and_update()),
            Some(event) = events.recv() => hub.event(event).await,
            _ = tick.tick() => hub.board_step(LinkEvent::Tick),
        }
        while hub.dialling.try_join_next().is_some() {}
        while hub.accepting.try_join_next().is_some() {}
        hub.tell_heard().await;
    }
}

impl Hub {
    fn order(&mut self, order: Order) {
        match order {
            Order::StreamDown(channel) => {
                self.cuts.remove(&channel);
                self.board_step(LinkEvent::StreamDown { channel });
            }
            Order::Learned { nic, addresses } => {
                for control in self.controls.values() {
                    drop(control.try_send(Control::Learned { nic, addresses: addresses.clone() }));
                }
                self.learned.insert(nic, addresses);
            }
        }
    }

    fn change_side(&mut self, side: Side) {
        if side == self.side {
            return;
        }
        self.side = side;
        self.dialling = JoinSet::new();
        self.controls.clear();
        self.sessions.clear();
        for (_, (_, cut)) in std::mem::take(&mut self.cuts) {
            cut.cut();
        }
        self.begin();
    }

    async fn event(&mut self, event: Inner) {
        match event {
            Inner::ControlUp { path, outgoing } => {
                tracing::info!(address = %self.spec.dial[path], "the partner answers on this path");
                for (nic, addresses) in &self.learned {
                    drop(outgoing.try_send(Control::Learned { nic: *nic, addresses: addresses.clone() }));
                }
                self.controls.insert(path, outgoing);
                self.board_step(LinkEvent::PathUp(path));
            }
            Inner::ControlDown { path } => {
                self.controls.remove(&path);
                self.board_step(LinkEvent::PathDown(path));
            }
            Inner::Dialled { channel, path, result } => self.dialled(channel, path, result).await,
            Inner::Incoming { path, stream, hello } => self.incoming(path, stream, hello),
            Inner::IncomingControlDown { session } => self.incoming_control_down(session),
            Inner::Welcomed { channel, stream } => {
                // Its handle may be gone because the side changed meanwhile: then the stream is broken already.
                if self.side == Side::Accepts {
                    self.notify(LinkNotice::Stream { channel, stream }).await;
                }
            }
        }
    }

    async fn notify(&self, notice: LinkNotice) {
        // The AM is ending when nobody listens.
        let _ = self.notices.send(notice).await;
    }

    async fn tell_heard(&mut self) {
        let heard = match self.side {
            Side::Dials => self.board.partner_heard(),
            Side::Accepts => !self.sessions.is_empty(),
        };
        if heard != self.heard {
            self.heard = heard;
            self.notify(LinkNotice::PartnerHeard(heard)).await;
        }
    }

    /// Starts what the present side does.
    fn begin(&mut self) {
        self.board = Board::new(self.spec.dial.len(), self.spec.channels());
        if self.side == Side::Dials {
            for path in 0..self.spec.dial.len() {
                let (spec, inner, learned) = (self.spec.clone(), self.inner.clone(), self.notices.clone());
                self.dialling.spawn(keep_control(spec, path, inner, learned));
            }
        }
    }

    fn board_step(&mut self, event: LinkEvent) {
        if self.side == Side::Accepts {
            return;
        }
        let mut actions = Vec::new();
        self.board.step(boot_time(), event, &mut actions);
        for action in actions {
            match action {
                LinkAction::Connect { channel, path } => {
                    let (spec, inner) = (self.spec.clone(), self.inner.clone());
                    self.dialling.spawn(async move {
                        let hello = LinkHello { vm: spec.vm, purpose: channel.purpose() };
                        let result = dial::dial(&spec.tls, spec.dial[path], spec.partner, hello).await;
                        let _ = inner.send(Inner::Dialled { channel, path, result: result.map(Box::new) }).await;
                    });
                }
                LinkAction::Cut { channel } => {
                    if let Some((_, cut)) = self.cuts.remove(&channel) {
                        cut.cut();
                    }
                }
            }
        }
    }

    async fn dialled(&mut self, channel: Channel, path: usize, result: Result<Box<Stream>, dial::DialError>) {
        if self.side == Side::Accepts {
            return;
        }
        let made = result.and_then(|stream| Ok((Cut::of(&stream)?, stream)));
        match made {
            Ok((cut, stream)) => {
                self.cuts.insert(channel, (0, cut));
                self.board_step(LinkEvent::Connected { channel, path });
                self.notify(LinkNotice::Stream { channel, stream }).await;
            }
            Err(error) => {
                tracing::debug!(?channel, address = %self.spec.dial[path], %error, "no stream to the partner");
                self.board_step(LinkEvent::Refused { channel, path });
            }
        }
    }

    /// Judges what the partner asks for, and answers.
    fn incoming(&mut self, path: usize, mut stream: Box<Stream>, hello: LinkHello) {
        let refusal = if hello.vm != self.spec.vm {
            Some(Refusal::OtherVm)
        } else if self.side == Side::Dials {
            Some(Refusal::NotStandby)
        } else {
            match hello.purpose {
                Purpose::Disk(disk) if !self.spec.disks.contains(&disk) => Some(Refusal::NoSuchDisk),
                Purpose::Disk(_) | Purpose::Lane | Purpose::Memory | Purpose::Control => None,
            }
        };
        if let Some(refusal) = refusal {
            self.accepting.spawn(async move {
                let _ = dial::reply(&mut stream, LinkReply::Refused(refusal)).await;
            });
            return;
        }
        match hello.purpose {
            Purpose::Control => self.incoming_control(path, stream),
            Purpose::Disk(disk) => self.incoming_channel(path, stream, Channel::Disk(disk)),
            Purpose::Lane => self.incoming_channel(path, stream, Channel::Lane),
            Purpose::Memory => self.incoming_channel(path, stream, Channel::Memory),
        }
    }

    fn incoming_control(&mut self, path: usize, mut stream: Box<Stream>) {
        self.session_last += 1;
        let session = self.session_last;
        self.sessions.insert(path, session);
        let (notices, spec, inner) = (self.notices.clone(), self.spec.clone(), self.inner.clone());
        self.accepting.spawn(async move {
            if dial::reply(&mut stream, LinkReply::Welcome).await.is_ok() {
                let (_keep, outgoing) = mpsc::channel(1);
                let end = pulse_with_notices(*stream, outgoing, notices).await;
                tracing::info!(address = %spec.listen[path], %end, "the partner's control link ended");
            }
            let _ = inner.send(Inner::IncomingControlDown { session }).await;
        });
    }

    fn incoming_channel(&mut self, path: usize, mut stream: Box<Stream>, channel: Channel) {
        let Ok(cut) = Cut::of(&stream) else { return };
        let session = self.sessions.get(&path).copied().unwrap_or(0);
        self.cuts.insert(channel, (session, cut));
        let inner = self.inner.clone();
        self.accepting.spawn(async move {
            if dial::reply(&mut stream, LinkReply::Welcome).await.is_ok() {
                let _ = inner.send(Inner::Welcomed { channel, stream }).await;
            }
        });
    }

    /// The streams that came under this control session are as dead as it is; newer ones are not.
    fn incoming_control_down(&mut self, session: u64) {
        self.sessions.retain(|_, newest| *newest != session);
        let dead = self.cuts.iter().filter(|(_, (of, _))| *of == session).map(|(channel, _)| *channel);
        for channel in dead.collect::<Vec<_>>() {
            if let Some((_, cut)) = self.cuts.remove(&channel) {
                cut.cut();
            }
        }
    }

    fn listen(&mut self) {
        for (path, address) in self.spec.listen.iter().copied().enumerate() {
            self.accepting.spawn(listen(self.spec.clone(), path, address, self.inner.clone()));
        }
    }
}

/// Accepts on one address, for ever.
async fn listen(spec: LinksSpec, path: usize, address: SocketAddr, inner: mpsc::Sender<Inner>) {
    let mut warned = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%address, %error, "cannot listen for the partner on this address yet; will keep trying");
            }
            Err(_) => {}
        }
        sleep(BIND_PAUSE).await;
    };
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        if handshakes.len() >= HANDSHAKES_MAX {
            handshakes.join_next().await;
        }
        match listener.accept().await {
            Ok((tcp, from)) => {
                let (spec, inner) = (spec.clone(), inner.clone());
                handshakes.spawn(async move {
                    match dial::accept(&spec.tls, tcp, spec.partner).await {
                        Ok((stream, hello)) => {
                            let _ = inner.send(Inner::Incoming { path, stream: Box::new(stream), hello }).await;
                        }
                        Err(error) => tracing::warn!(%from, %error, "refused a connection to the link port"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%address, %error, "accepting a link failed; trying again");
                sleep(DIAL_PAUSE).await;
            }
        }
    }
}

/// Keeps a control link on one path, for ever.
async fn keep_control(spec: LinksSpec, path: usize, inner: mpsc::Sender<Inner>, notices: mpsc::Sender<LinkNotice>) {
    let address = spec.dial[path];
    // Since the last link: several reasons may take turns.
    let mut said = BTreeSet::new();
    loop {
        let hello = LinkHello { vm: spec.vm, purpose: Purpose::Control };
        match dial::dial(&spec.tls, address, spec.partner, hello).await {
            Ok(stream) => {
                said.clear();
                let (outgoing, queue) = mpsc::channel(CONTROL_QUEUE_MAX);
                if inner.send(Inner::ControlUp { path, outgoing }).await.is_err() {
                    return;
                }
                let end = pulse_with_notices(stream, queue, notices.clone()).await;
                tracing::warn!(%address, %end, "the partner is no longer heard on this path");
                if inner.send(Inner::ControlDown { path }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if said.insert(error.to_string()) {
                    tracing::info!(%address, %error, "the partner is not reached on this path; will keep trying");
                }
            }
        }
        sleep(DIAL_PAUSE).await;
    }
}

async fn pulse_with_notices(
    stream: Stream,
    outgoing: mpsc::Receiver<Control>,
    notices: mpsc::Sender<LinkNotice>,
) -> pulse::PulseEnd {
    let (incoming, mut messages) = mpsc::channel(CONTROL_QUEUE_MAX);
    let forward = async {
        while let Some(message) = messages.recv().await {
            match message {
                Control::Ping => {}
                Control::Learned { nic, addresses } => {
                    let _ = notices.send(LinkNotice::Learned { nic, addresses }).await;
                }
            }
        }
    };
    let (end, ()) = tokio::join!(pulse::run(stream, outgoing, incoming), forward);
    end
}
