//! The engine of the active side: when to take a checkpoint, what may leave the host, when to give the standby up.
//!
//! ```text
//!           wanted, link up                captured 1               confirmed 1, on record
//!   Off ──────────────────────► Filling ───────────────► Joining ──────────────────────────► Protected
//!    ▲                             │                        │ link down, silence, refusal        │
//!    │◄────────────────────────────┘                        ▼                                    │
//!    └──────── the record is without the standby ──────── Parting ◄──────────────────────────────┘
//! ```
//! Until the first checkpoint is captured, the mirror works as at Level 2 and output is not held; from that pause on disks write ahead
//! and output is held, whether or not the record names the standby yet. Back to free output leads only through a record
//! by which the standby can neither go on from its memory nor start from its disks.

use std::time::Duration;

use super::pace::{Pace, PaceLimits};
use super::{Epoch, Session};
use crate::time::Instant;

/// A standby that is silent for so long is given up.
const SILENCE_MAX: Duration = Duration::from_millis(700);
/// The same while nothing is held back for it: it starts a QEMU and makes room for the memory, which takes time on a busy host.
const SILENCE_FILLING_MAX: Duration = Duration::from_secs(10);
/// A confirmation that answers something older than this is not acted on, and what it released leaves no later: this host may have
/// stood still, and the standby may have taken over meanwhile. A later one lets the same frames out.
const ECHO_AGE_MAX: Duration = Duration::from_millis(500);
/// A proposal that was not answered is made again after this time.
const PROPOSAL_REPEAT: Duration = Duration::from_millis(1_000);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Whether Level 3 is wished for and possible now: both replicas of all disks are in step, the guest runs, the standby is a
    /// candidate. `session` is drawn anew by the caller each time.
    Wanted {
        session: Option<Session>,
    },
    /// What the newest record says.
    Record(Standing),
    LinkUp,
    LinkDown,
    /// Something came from the standby.
    Heard,
    /// The whole memory was sent once, while the guest ran: what is left for the first pause is little.
    Filled {
        session: Session,
    },
    /// The pause is over: the epoch's checkpoint is staged on this host and goes out by itself.
    Captured {
        epoch: Epoch,
        pause: Duration,
    },
    /// No checkpoint could be taken; the guest runs on. `held`: disks write ahead, or output is held, from it on.
    CaptureFailed {
        held: bool,
    },
    /// The standby has decided this epoch; `Epoch::NONE`: it has opened the session. `echo` is the newest reading of this host's clock that the standby had got from it.
    Confirmed {
        session: Session,
        epoch: Epoch,
        echo: Instant,
    },
    /// The standby can't go on, such as for want of space.
    Refused {
        session: Session,
    },
    /// The guest stood still for the sake of its pace, and runs again; or it could not be stopped now.
    Braked,
    /// A frame or an acknowledgement waits for its epoch.
    OutputWaits,
    /// The guest's processors have nothing to do at this instant; asked for by [`Primary::waits_for_rest`].
    Rested,
    /// Time passed.
    Tick,
}

/// What the record leaves to the other host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may go on from its memory.
    MayGoOn,
    /// It may start the guest from its disks (once this host's lease is over), and not go on.
    MayStart,
    /// It can't become active.
    Nothing,
    /// It is active, or this host no longer is.
    Everything,
}

/// What to ask the pool master for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposal {
    /// The standby holds the memory: it may go on from it.
    StandbyHolds,
    /// The standby's memory and replicas no longer count.
    StandbyLost,
}

/// What may leave the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// All of it, as at Level 2: the lease decides.
    Free,
    /// What belongs to epochs up to this one.
    Through(Epoch),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Open a session with the standby and begin to send memory while the guest runs.
    Begin {
        session: Session,
    },
    /// Pause the guest, stage all that changed, let it run on. With the first one, disks begin to write ahead and output
    /// begins to be held, in the same pause. Answered by [`Event::Captured`] or [`Event::CaptureFailed`] in any case, also after
    /// [`Action::End`].
    Capture {
        epoch: Epoch,
    },
    /// Let the guest stand still for a moment: it writes more than is sent.
    Brake,
    /// What may leave from now on.
    Release(Output),
    /// What was released may leave until then. This host may stand still right afterwards, and the standby take over meanwhile.
    LetOutUntil(Instant),
    Propose(Proposal),
    /// The session is over: staged checkpoints are dropped. Disks that wrote ahead keep waiting for the record.
    End,
}

/// How far the pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No checkpoints.
    Off,
    /// The whole memory is on its way.
    Filling,
    /// Output is held; the record does not name the standby yet.
    Joining,
    /// The standby can go on at any moment.
    Protected,
    /// The standby is given up; output waits for the record.
    Parting,
}

/// The engine. One thread owns it.
#[derive(Debug)]
pub struct Primary {
    phase: Phase,
    session: Option<Session>,
    /// The standby has opened the session: what disks send from now on finds it.
    opened: bool,
    /// The whole memory was sent to it once.
    filled: bool,
    wanted: Option<Session>,
    link_up: bool,
    /// The epoch that the guest is in.
    running: Epoch,
    capturing: bool,
    braking: bool,
    confirmed: Epoch,
    heard: Instant,
    pace: Pace,
    limits: PaceLimits,
    proposed: Option<(Proposal, Instant)>,
    standing: Standing,
}

impl Primary {
    /// Off, as for a guest that was just started.
    #[must_use]
    pub fn new(limits: PaceLimits, now: Instant) -> Self {
        Self {
            phase: Phase::Off,
            session: None,
            opened: false,
            filled: false,
            wanted: None,
            link_up: false,
            running: Epoch::NONE,
            capturing: false,
            braking: false,
            confirmed: Epoch::NONE,
            heard: now,
            pace: Pace::new(limits, now),
            limits,
            proposed: None,
            standing: Standing::MayStart,
        }
    }

    /// For a guest that a process before this one kept, under a record by which the other host may go on from its memory: what was under way
    /// is lost, so the standby is given up, and output is held until a record is without it.
    #[must_use]
    pub fn taken_up(limits: PaceLimits, now: Instant) -> Self {
        Self { phase: Phase::Parting, standing: Standing::MayGoOn, ..Self::new(limits, now) }
    }

    /// For reports.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The epoch that the guest is in; what it sends and writes now belongs to it.
    #[must_use]
    pub fn running(&self) -> Epoch {
        self.running
    }

    /// The newest epoch that the standby has confirmed.
    #[must_use]
    pub fn confirmed(&self) -> Epoch {
        self.confirmed
    }

    /// Whether [`Event::Rested`] would bring a checkpoint at once.
    #[must_use]
    pub fn waits_for_rest(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Joining | Phase::Protected)
            && !self.capturing
            && self.pace.waits_for_rest(now, self.unconfirmed())
    }

    /// Takes one event; what is to be done goes to `out`, in order.
    pub fn step(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Wanted { session } => self.wanted = session,
            Event::Record(standing) => self.standing = standing,
            Event::LinkUp => {
                // A new one: what was under way on the last one is lost, whether or not its end was seen.
                self.give_up(out);
                self.link_up = true;
                self.heard = now;
            }
            Event::LinkDown => {
                self.link_up = false;
                self.give_up(out);
            }
            Event::Heard => self.heard = now,
            Event::Filled { session } => self.filled |= self.session == Some(session),
            Event::Captured { epoch, pause } => self.captured(now, epoch, pause),
            Event::CaptureFailed { held } => {
                self.capturing = held;
                self.give_up(out);
                self.capturing = false;
            }
            Event::Confirmed { session, epoch, echo } => self.confirmed_by_standby(now, session, epoch, echo, out),
            Event::Refused { session } if self.session == Some(session) => self.give_up(out),
            Event::Refused { .. } | Event::Tick => {}
            Event::Braked => {
                self.braking = false;
                self.pace.braked(now);
            }
            Event::OutputWaits => self.pace.output(),
            Event::Rested => self.pace.rested(),
        }
        self.advance(now, out);
    }

    fn captured(&mut self, now: Instant, epoch: Epoch, pause: Duration) {
        self.capturing = false;
        // A session that was given up in the middle of the pause: its epoch went with it.
        if epoch != self.running {
            return;
        }
        match self.phase {
            Phase::Filling => self.phase = Phase::Joining,
            Phase::Joining | Phase::Protected => {}
            Phase::Off | Phase::Parting => return,
        }
        self.running = epoch.next();
        self.pace.captured(now, pause);
    }

    fn confirmed_by_standby(
        &mut self,
        now: Instant,
        session: Session,
        epoch: Epoch,
        echo: Instant,
        out: &mut Vec<Action>,
    ) {
        self.heard = now;
        self.opened |= self.session == Some(session);
        let holds_output = matches!(self.phase, Phase::Joining | Phase::Protected);
        let is_known = epoch < self.running && epoch >= self.confirmed && epoch != Epoch::NONE;
        if self.session != Some(session) || !holds_output || !is_known || now.since(echo) > ECHO_AGE_MAX {
            return;
        }
        out.push(Action::LetOutUntil(echo.after(ECHO_AGE_MAX)));
        if epoch == self.confirmed {
            return;
        }
        self.confirmed = epoch;
        out.push(Action::Release(Output::Through(epoch)));
    }

    /// Ends the session. If output is held by now, a record has to come first before any more of it leaves.
    fn give_up(&mut self, out: &mut Vec<Action>) {
        let next = match self.phase {
            Phase::Off | Phase::Parting => return,
            // A first pause that is under way counts as past: disks may have begun to write ahead.
            Phase::Filling if !self.capturing => Phase::Off,
            Phase::Filling | Phase::Joining | Phase::Protected => Phase::Parting,
        };
        self.phase = next;
        self.session = None;
        self.wanted = None;
        self.proposed = None;
        out.push(Action::End);
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        let silence_max = if self.phase == Phase::Filling { SILENCE_FILLING_MAX } else { SILENCE_MAX };
        let silent = now.since(self.heard) >= silence_max;
        if silent && self.session.is_some() {
            self.give_up(out);
        }
        match self.phase {
            // Left by a process before this one: the standby has something to go on from, and this one knows nothing of it.
            Phase::Off if self.standing == Standing::MayGoOn => {
                self.phase = Phase::Parting;
                out.push(Action::Release(Output::Through(Epoch::NONE)));
                self.part(now, out);
            }
            Phase::Off => self.begin(now, out),
            Phase::Filling | Phase::Joining | Phase::Protected => {
                if self.wanted.is_none() {
                    self.give_up(out);
                    return;
                }
                self.join(now, out);
                self.capture(now, out);
            }
            Phase::Parting => self.part(now, out),
        }
    }

    fn part(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.standing {
            Standing::MayGoOn | Standing::MayStart => self.propose(now, Proposal::StandbyLost, out),
            Standing::Nothing if !self.capturing => {
                self.phase = Phase::Off;
                self.proposed = None;
                out.push(Action::Release(Output::Free));
            }
            // What is held stays held: the guest goes on elsewhere, without it.
            Standing::Nothing | Standing::Everything => {}
        }
    }

    fn begin(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(session) =
            self.wanted.filter(|_| self.link_up && !self.capturing && self.standing == Standing::MayStart)
        else {
            return;
        };
        self.phase = Phase::Filling;
        self.session = Some(session);
        self.opened = false;
        self.filled = false;
        self.braking = false;
        self.running = Epoch::FIRST;
        self.confirmed = Epoch::NONE;
        self.heard = now;
        self.pace = Pace::new(self.limits, now);
        out.push(Action::Begin { session });
    }

    fn join(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.phase != Phase::Joining || self.confirmed == Epoch::NONE {
            return;
        }
        match self.standing {
            Standing::MayGoOn => {
                self.phase = Phase::Protected;
                self.proposed = None;
            }
            Standing::MayStart => self.propose(now, Proposal::StandbyHolds, out),
            // The record does not count on its replicas, so that it can't hold the memory either.
            Standing::Nothing | Standing::Everything => self.give_up(out),
        }
    }

    fn capture(&mut self, now: Instant, out: &mut Vec<Action>) {
        let unconfirmed = self.unconfirmed();
        let first = self.phase == Phase::Filling && self.opened && self.filled;
        // Not after a session that has just been given up: nobody would take that checkpoint, and output would wait for it.
        let more = matches!(self.phase, Phase::Joining | Phase::Protected);
        if !self.capturing && (first || more && self.pace.is_due(now, unconfirmed)) {
            self.capturing = true;
            out.push(Action::Capture { epoch: self.running });
        }
        if more && !self.capturing && !self.braking && self.pace.is_ahead(now, unconfirmed) {
            self.braking = true;
            out.push(Action::Brake);
        }
    }

    /// Checkpoints that were captured, and that the standby has not confirmed.
    fn unconfirmed(&self) -> u64 {
        self.running.0 - 1 - self.confirmed.0
    }

    fn propose(&mut self, now: Instant, proposal: Proposal, out: &mut Vec<Action>) {
        let waits = self.proposed.is_some_and(|(made, at)| made == proposal && now.since(at) < PROPOSAL_REPEAT);
        if !waits {
            self.proposed = Some((proposal, now));
            out.push(Action::Propose(proposal));
        }
    }
}
