//! What one Availability Manager may and must do with its guest: run it, pause it, end it, let it be seen.
//!
//! ```text
//!             Start                        lease over                 grace over
//!  Absent ────────────► Starting ─► Running ─────────► Paused ───────────────────► Ending ─► Ended
//!    │                                 ▲                  │                          ▲
//!    │ the marker says that a guest    └──────────────────┘                          │
//!    │ was started here and is gone         lease back            the record moved on, or it is wished off
//!    └──────────────────────────────────────────────────────────────────────────────────────► Ended
//! ```
//!
//! - *Absent → Starting*: the record names this host active, `power: On { since }`, and no guest was started here under
//!   `since` before; a master was heard since this process began; and the lease is valid (level 0 needs none). A guest that
//!   goes on from memory doesn't wait for the lease: its gate is closed until there is one.
//! - *Running → Paused → Running*: the lease ran out, and came back under the same `since`.
//! - *→ Ending*: the record no longer names this host, or names a later `since`; or the user wishes it off by force; or
//!   the grace time is over.
//! - *Ended* is final for its `since`: only a new record starts a guest again.
//!
//! The gate is opened until the end of the lease, never "until told otherwise": it closes by time alone. No lease is needed
//! while the record names a host that holds the guest's memory (level 3): then nothing passes without that host's
//! confirmation, and this gate stands open.
//!
//! A process that takes up a running guest does not know what the one before it held back and asked for, and what was
//! asked for may be committed late. Its gate stays closed until that can do no harm: the other host's replicas count and are
//! in step (level 2), or they do not count under a record newer than the first that it heard of.

mod settle;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_memory;
#[cfg(test)]
mod tests_past;
#[cfg(test)]
mod tests_wishes;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::authority::{Authority, AuthorityChange, Origin, Power};
use crate::ids::{DiskId, Generation, HostId};
use crate::report::{EndCause, GuestState};
use crate::time::Instant;
use crate::vm::{Desired, Level, Vm};

/// How long a proposal may go without an answer before it is made again.
const PROPOSAL_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How often a guest that was asked to power down is asked again: a guest that is still booting misses the first time.
const POWER_DOWN_REPEAT: Duration = Duration::from_secs(5);

/// A guest that runs and needs a lease from now on (it went on from memory, or the standby that held it was given up) is
/// not paused for want of one for so long. Its gate is closed meanwhile.
const FIRST_LEASE_WAIT: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A committed state of the VM, from the pool master's answer or from this host's copy of the pool state. Older ones
    /// than the newest known are ignored.
    Vm(Box<Vm>),
    /// The pool master says that the VM no longer exists.
    VmGone,
    /// The pool master answered a report that was sent at `asked_at`, with or without a lease.
    Directive {
        asked_at: Instant,
        lease: Option<Duration>,
    },
    /// At the start of this process: QEMU was found alive, started under `since` by a process before.
    Attached {
        since: Generation,
        paused: Paused,
    },
    /// QEMU runs the guest that [`Action::Start`] asked for.
    Started,
    /// QEMU could not be started, or ended (then `clean` says whether all replicas were flushed afterwards).
    Ended {
        cause: EndCause,
        clean: bool,
    },
    /// [`Action::Pause`] and [`Action::Resume`] have taken effect.
    PausedNow,
    ResumedNow,
    /// A disk can't go on under the present record (its acknowledgements wait).
    ReplicaLost {
        disk: DiskId,
        host: HostId,
    },
    /// A copy to this replica is complete and flushed.
    ReplicaGood {
        disk: DiskId,
        host: HostId,
    },
    /// (Level 3) The checkpoint engine's wishes. It repeats them as long as they hold.
    ///
    /// `host` has confirmed a complete checkpoint: it may go on from the guest's memory.
    MemoryHeld {
        host: HostId,
    },
    /// `host` was given up: what is held back waits for a record without it. Wins over [`Event::MemoryHeld`].
    StandbyLost {
        host: HostId,
    },
    /// The guest is to go on on `host` from its memory now: what was let out of it is there.
    SwitchTo {
        host: HostId,
    },
    /// The answer to the last proposal; the record, if it changed, comes as [`Event::Vm`] or here.
    ProposalAnswered {
        record: Option<Authority>,
    },
    /// Time passed.
    Tick,
}

/// Whether an attached guest was found paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    Yes,
    No,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell each disk its role under this record.
    SetRoles {
        record: Authority,
        role: Role,
    },
    /// Write the marker durably, then start QEMU.
    Start {
        since: Generation,
    },
    /// (Level 3) Write the marker durably, then let the guest go on from the memory that this host held as standby. Answered
    /// like [`Action::Start`].
    Continue {
        since: Generation,
    },
    /// Ask the guest to power down (ACPI).
    PowerDown,
    Pause,
    Resume,
    /// Kill QEMU, then report [`Event::Ended`] with this cause.
    End {
        cause: EndCause,
    },
    /// Ask the pool master for a change of the record.
    Propose {
        seen: Generation,
        change: AuthorityChange,
    },
    /// Set the gate that acknowledgements and frames pass.
    Gate(Gate),
    /// This host has nothing to do with the VM any more: stop serving and exit.
    Leave,
}

/// The actions of one step in the order in which they are to be carried out: disks learn of a new record before anything else happens
/// under it.
#[must_use]
pub fn in_order(mut actions: Vec<Action>) -> Vec<Action> {
    actions.sort_by_key(|action| match action {
        Action::Gate(Gate::Closed) => 0,
        Action::SetRoles { .. } => 1,
        Action::Gate(_) => 2,
        Action::Start { .. }
        | Action::Continue { .. }
        | Action::PowerDown
        | Action::Pause
        | Action::Resume
        | Action::End { .. }
        | Action::Propose { .. } => 3,
        Action::Leave => 4,
    });
    actions
}

/// How far the gate is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Closed,
    OpenUntil(Instant),
    /// Level 0: no other host can run the VM.
    Open,
}

/// What this host is for the VM's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves the guest and writes both replicas.
    Coordinator { partner: Option<HostId> },
    /// Holds a replica that the active host's AM writes.
    Replica { coordinator: Option<HostId> },
}

/// The guest on this host, as far as decisions go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Guest {
    Absent,
    Starting { since: Generation },
    Running { since: Generation },
    Pausing { since: Generation },
    Paused { since: Generation },
    Resuming { since: Generation },
    Ending { since: Generation },
    Ended { since: Generation, cause: EndCause, clean: bool },
}

impl Guest {
    /// The record under which the guest is (or is coming) alive.
    fn alive_since(&self) -> Option<Generation> {
        match self {
            Self::Absent | Self::Ended { .. } => None,
            Self::Starting { since }
            | Self::Running { since }
            | Self::Pausing { since }
            | Self::Paused { since }
            | Self::Resuming { since }
            | Self::Ending { since } => Some(*since),
        }
    }
}

/// The engine. One task owns it.
#[derive(Debug)]
pub struct Keeper {
    host: HostId,
    grace: Duration,
    vm: Vm,
    gone: bool,
    /// Whether a master answered since this process began.
    heard_master: bool,
    /// End of the newest lease.
    lease_until: Option<Instant>,
    /// When the lease was last seen to be over, for the grace time.
    without_lease_since: Option<Instant>,
    /// No pause for want of a lease before this time.
    first_lease_until: Option<Instant>,
    past: Past,
    /// The durable marker: the newest `since` under which a guest was started here.
    started: Generation,
    guest: Guest,
    /// What the disks and the checkpoint engine wish for, and the newest record known when they said so.
    wishes: BTreeMap<Wish, Generation>,
    proposal: Option<(Generation, Instant)>,
    roles_set: Option<(Generation, Role)>,
    gate_set: Gate,
    power_down_asked: Option<Instant>,
    left: bool,
}

/// What is known of the guest's past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// This process started it, or what an earlier one asked for can do no harm any more.
    Own,
    /// It was taken up from an earlier process; since then the pool master named this generation first.
    Inherited { first_heard: Option<Generation> },
}

/// A change that a disk or the checkpoint engine asked for; the first in this order is proposed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    StandbyLost(HostId),
    Lost(DiskId, HostId),
    SwitchTo(HostId),
    Good(DiskId, HostId),
    MemoryHeld(HostId),
}

impl Wish {
    /// Whether it would let `host` be made active.
    fn counts_on(self, host: HostId) -> bool {
        match self {
            Self::SwitchTo(on) | Self::Good(_, on) | Self::MemoryHeld(on) => on == host,
            Self::StandbyLost(_) | Self::Lost(..) => false,
        }
    }
}

impl Keeper {
    /// `vm` is what the configuration file says, `started` what the durable marker says ([`Generation::NONE`]: nothing).
    #[must_use]
    pub fn new(host: HostId, grace: Duration, vm: Vm, started: Generation) -> Self {
        Self {
            host,
            grace,
            vm,
            gone: false,
            heard_master: false,
            lease_until: None,
            without_lease_since: None,
            first_lease_until: None,
            past: Past::Own,
            started,
            guest: Guest::Absent,
            wishes: BTreeMap::new(),
            proposal: None,
            roles_set: None,
            gate_set: Gate::Closed,
            power_down_asked: None,
            left: false,
        }
    }

    /// Takes in what happened and appends what is to be done. Times must not run backwards.
    pub fn step(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.take_in(now, event);
        if !self.left {
            self.settle(now, out);
        }
    }

    /// The newest record known.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The guest for the report.
    #[must_use]
    pub fn guest_state(&self) -> GuestState {
        match &self.guest {
            Guest::Absent => GuestState::Absent,
            Guest::Starting { since } => GuestState::Starting { since: *since },
            Guest::Running { since } | Guest::Resuming { since } | Guest::Ending { since } => {
                GuestState::Running { since: *since }
            }
            Guest::Pausing { since } | Guest::Paused { since } => GuestState::Paused { since: *since },
            Guest::Ended { since, cause, clean } => {
                GuestState::Ended { since: *since, cause: cause.clone(), clean: *clean }
            }
        }
    }

    fn take_in(&mut self, now: Instant, event: Event) {
        let needed_lease = self.needs_lease();
        self.note(now, event);
        self.note_past();
        if self.needs_lease() && !needed_lease {
            self.wait_for_first_lease(now);
        }
        self.note_lease(now);
    }

    fn note(&mut self, now: Instant, event: Event) {
        match event {
            Event::Vm(vm) => self.adopt(*vm),
            Event::VmGone => {
                self.gone = true;
                self.heard_master = true;
            }
            Event::Directive { asked_at, lease } => {
                self.heard_master = true;
                if let Some(duration) = lease {
                    let until = asked_at.after(duration);
                    self.lease_until = Some(self.lease_until.map_or(until, |old| old.max(until)));
                }
            }
            Event::Attached { since, paused } => {
                self.started = self.started.max(since);
                self.past = Past::Inherited { first_heard: None };
                self.guest = match paused {
                    Paused::Yes => Guest::Paused { since },
                    Paused::No => Guest::Running { since },
                };
            }
            Event::Started => self.on_started(now),
            Event::Ended { cause, clean } => self.on_ended(cause, clean),
            Event::PausedNow => {
                if let Guest::Pausing { since } = self.guest {
                    self.guest = Guest::Paused { since };
                }
            }
            Event::ResumedNow => {
                if let Guest::Resuming { since } = self.guest {
                    self.guest = Guest::Running { since };
                }
            }
            Event::ReplicaLost { disk, host } => {
                self.wishes.remove(&Wish::Good(disk, host));
                self.wish(Wish::Lost(disk, host));
            }
            Event::ReplicaGood { disk, host } => {
                self.wishes.remove(&Wish::Lost(disk, host));
                self.wish(Wish::Good(disk, host));
            }
            Event::MemoryHeld { host } => self.wish(Wish::MemoryHeld(host)),
            Event::SwitchTo { host } => self.wish(Wish::SwitchTo(host)),
            Event::StandbyLost { host } => {
                self.wishes.retain(|wish, _| !wish.counts_on(host));
                self.wish(Wish::StandbyLost(host));
            }
            Event::ProposalAnswered { record } => {
                self.proposal = None;
                if let Some(record) = record.filter(|record| record.generation > self.vm.authority.generation) {
                    self.vm.authority = record;
                    self.forget_passing_wishes();
                }
            }
            Event::Tick => {}
        }
    }

    /// A record of the same generation can still bring another wish, name or level.
    fn adopt(&mut self, vm: Vm) {
        if vm.authority.generation >= self.vm.authority.generation {
            if vm.authority.generation > self.vm.authority.generation {
                self.forget_passing_wishes();
            }
            self.vm = vm;
        }
    }

    fn wish(&mut self, wish: Wish) {
        self.wishes.insert(wish, self.vm.authority.generation);
    }

    /// "This replica is good" was said under an older record and may no longer hold under a newer one (the partner can
    /// have been lost in between): its disk says it again if it does; so with memory. A wish to lose something does no
    /// harm late.
    fn forget_passing_wishes(&mut self) {
        self.wishes.retain(|wish, _| matches!(wish, Wish::Lost(..) | Wish::StandbyLost(_)));
    }

    fn on_started(&mut self, now: Instant) {
        if let Guest::Starting { since } = self.guest {
            self.guest = Guest::Running { since };
            if self.vm.authority.origin == Origin::Memory {
                self.wait_for_first_lease(now);
            }
        }
    }

    fn wait_for_first_lease(&mut self, now: Instant) {
        self.first_lease_until = Some(now.after(FIRST_LEASE_WAIT));
        self.without_lease_since = None;
    }

    fn on_ended(&mut self, cause: EndCause, clean: bool) {
        if let Some(since) = self.guest.alive_since() {
            self.guest = Guest::Ended { since, cause, clean };
        }
        self.past = Past::Own;
        self.power_down_asked = None;
    }

    fn note_lease(&mut self, now: Instant) {
        if self.lease_is_valid(now) {
            self.without_lease_since = None;
        } else if self.without_lease_since.is_none() {
            self.without_lease_since = Some(now);
        }
    }

    fn needs_lease(&self) -> bool {
        match self.vm.level {
            Level::Unprotected => false,
            Level::Restart | Level::Component => true,
            Level::System => self.vm.authority.memory.is_none() || self.is_heir(),
        }
    }

    fn note_past(&mut self) {
        let Past::Inherited { first_heard } = &mut self.past else { return };
        if self.heard_master {
            first_heard.get_or_insert(self.vm.authority.generation);
            if self.wish_of_heir().is_none() {
                self.past = Past::Own;
            }
        }
    }

    fn is_heir(&self) -> bool {
        matches!(self.past, Past::Inherited { .. })
    }

    /// Who took up a guest asks first for a record under which nothing that the process before asked for can be committed, and
    /// by which nothing counts that only that one knew the state of.
    fn wish_of_heir(&self) -> Option<Wish> {
        let Past::Inherited { first_heard } = self.past else { return None };
        if self.vm.level == Level::Unprotected {
            return None;
        }
        let record = &self.vm.authority;
        let partner = self.vm.hosts.iter().copied().find(|host| *host != self.host)?;
        match record.good.iter().find(|(_, good)| !good.contains(&partner)) {
            None => self.memory_may_be_held().then_some(Wish::StandbyLost(partner)),
            // It may have said that this replica is good now; what this process acknowledges is not in it.
            Some((disk, _)) if first_heard == Some(record.generation) => Some(Wish::Lost(*disk, partner)),
            Some(_) => None,
        }
    }

    /// Whether the other host holds the guest's memory by this record, or can by a proposal that is under way.
    fn memory_may_be_held(&self) -> bool {
        self.vm.level == Level::System && self.vm.hosts.iter().all(|host| self.vm.authority.holds_all_good(*host))
    }

    fn lease_is_valid(&self, now: Instant) -> bool {
        !self.needs_lease() || self.lease_until.is_some_and(|until| now < until)
    }

    fn is_active(&self) -> bool {
        self.vm.authority.active == Some(self.host)
    }

    /// The `since` under which this host is to run the guest by the newest record.
    fn ordered_since(&self) -> Option<Generation> {
        match self.vm.authority.power {
            Power::On { since } if self.is_active() && !self.gone => Some(since),
            Power::On { .. } | Power::Off => None,
        }
    }

    fn wished_off_by_force(&self) -> bool {
        match self.vm.desired {
            Desired::ForceOff | Desired::ForceReboot => true,
            Desired::Running | Desired::Shutdown | Desired::Reboot => false,
        }
    }

    fn wished_to_power_down(&self) -> bool {
        match self.vm.desired {
            Desired::Shutdown | Desired::Reboot => true,
            Desired::Running | Desired::ForceOff | Desired::ForceReboot => false,
        }
    }
}
