//! The AM: from what the keeper decides to what disks, checkpoints and the guest are told, and back.

use ev_core::authority::{Origin, Power};
use ev_core::availability::keeper::{Action, Event, Keeper, Paused, Role, in_order};
use ev_core::ids::Generation;
use ev_core::mirror::Input;
use ev_core::report::EndCause;
use ev_core::vm::Level;

use super::disk::geometry;
use super::host::{Am, Asked, Life, Memory, Node, Qemu};
use super::world::{GRACE, InFlight, World};

impl World {
    /// Tells a host's keeper what happened and does what it asks for. A host that stands still or is down hears nothing.
    pub(super) fn keep(&mut self, index: usize, event: Event) {
        let node = &mut self.nodes[index];
        let now = node.clock(self.now_ms);
        let Some(am) = node.am.as_mut().filter(|_| node.life == Life::Up) else { return };
        let mut actions = Vec::new();
        am.keeper.step(now, event, &mut actions);
        self.perform(index, actions);
    }

    /// The same in a moment, as one of the AM's tasks tells another one.
    pub(super) fn later(&mut self, index: usize, event: Event) {
        let at = self.now_ms + self.rng.within(0..15);
        self.queue.push_back((at, InFlight::Done { on: index, event }));
    }

    fn perform(&mut self, index: usize, actions: Vec<Action>) {
        for action in in_order(actions) {
            self.trace(|| format!("host {index} keeper: {action:?}").chars().take(200).collect());
            match action {
                Action::Start { since } => self.start_guest(index, since),
                Action::Continue { since } => self.continue_guest(index, since),
                Action::Pause => self.stop(index, true, Event::PausedNow),
                Action::Resume => self.stop(index, false, Event::ResumedNow),
                Action::End { cause } => self.guest_ends(index, cause),
                Action::PowerDown => self.guest_ends(index, EndCause::GuestShutdown),
                Action::Propose { seen, change } => self.send(InFlight::Propose { from: index, seen, change }),
                Action::Gate(gate) => {
                    if let Some(am) = &mut self.nodes[index].am {
                        am.gate = gate;
                    }
                }
                Action::SetRoles { role, .. } => self.set_roles(index, role),
                Action::Leave => self.crash_am(index),
            }
        }
    }

    fn set_roles(&mut self, index: usize, role: Role) {
        let Some(am) = &mut self.nodes[index].am else { return };
        let record = &am.keeper.vm().authority;
        let goes_on = matches!(role, Role::Coordinator { .. })
            && record.origin == Origin::Memory
            && matches!(record.power, Power::On { .. });
        am.role = Some(role);
        self.leave_standby(index, role, goes_on);
        self.set_disk_role(index);
        self.become_standby(index, role);
        self.given_up(index);
    }

    fn stop(&mut self, index: usize, stopped: bool, done: Event) {
        if let Some(qemu) = &mut self.nodes[index].qemu {
            qemu.stopped = stopped;
        }
        self.later(index, done);
    }

    fn mark_started(&mut self, index: usize, since: Generation) {
        let node = &mut self.nodes[index];
        assert!(node.started < since, "a guest was started twice on one host under {since}");
        node.started = since;
        if let Some(other) = self.starts.insert(since, index) {
            panic!("the guest of {since} was started on host {other} and on host {index}");
        }
    }

    fn start_guest(&mut self, index: usize, since: Generation) {
        self.mark_started(index, since);
        self.nodes[index].qemu = Some(Qemu { since, memory: None, stopped: false, asked: Some((Asked::Boot, None)) });
        self.begin_level3(index, false);
        self.later(index, Event::Started);
    }

    fn continue_guest(&mut self, index: usize, since: Generation) {
        assert_eq!(self.holders.get(&since), Some(&self.nodes[index].id), "it goes on where nobody held its memory");
        let Some(am) = &mut self.nodes[index].am else { return };
        if am.taking.is_none() {
            let cause = EndCause::StartFailed("this host does not hold the memory".to_owned());
            return self.later(index, Event::Ended { cause, clean: false });
        }
        am.continuing = Some(since);
        self.mark_started(index, since);
    }

    /// The guest goes on once its disk has its new role and everything that was decided is applied.
    pub(super) fn run_takeover(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(am) = &mut node.am else { return };
        let (Some(since), Some(taking)) = (am.continuing, &am.taking) else { return };
        let Some(outcome) = taking.outcome else { return };
        let process = node.storage.process.as_ref().filter(|process| process.next_role.is_none());
        let served = process.and_then(|process| process.coordinator()).is_some_and(|engine| engine.record().is_some());
        if !served {
            return;
        }
        am.continuing = None;
        let taking = am.taking.take();
        let held = taking.and_then(|taking| taking.image).filter(|(epoch, _)| Some(*epoch) == outcome);
        assert_eq!(held.is_some(), outcome.is_some(), "the memory is not of the epoch that the guest is to go on from");
        let Some((_, memory)) = held else {
            let cause = EndCause::StartFailed("no checkpoint is here".to_owned());
            return self.later(index, Event::Ended { cause, clean: false });
        };
        self.goes_on(index, &memory);
        self.nodes[index].qemu = Some(Qemu { since, memory: Some(memory), stopped: false, asked: None });
        self.begin_level3(index, false);
        self.later(index, Event::Started);
    }

    /// QEMU is ended, or ends.
    pub(super) fn guest_ends(&mut self, index: usize, cause: EndCause) {
        let there = self.nodes[1 - index].id;
        self.nodes[index].qemu = None;
        let Some(am) = &mut self.nodes[index].am else { return };
        am.forget_guest();
        let goes_on_there = am.keeper.vm().authority.memory == Some(there) && matches!(cause, EndCause::Crashed(_));
        if !goes_on_there {
            self.tell_disk(index, Input::EndAhead);
        }
        self.later(index, Event::Ended { cause, clean: false });
    }

    /// Starts an AM from what its configuration file says: any record up to the newest.
    pub(super) fn start_am(&mut self, index: usize) {
        let vm = if self.rng.per_mille(500) { self.vm().clone() } else { self.first_vm() };
        let level3 = self.vm().level == Level::System;
        self.instances += 1;
        let (instance, now_ms) = (self.instances, self.now_ms);
        let Node { id, started, qemu, storage, next_report_ms, .. } = &mut self.nodes[index];
        storage.start_process(geometry(), instance);
        *next_report_ms = now_ms;
        let keeper = Keeper::new(*id, GRACE, vm, *started);
        let attached = qemu.as_mut().map(|qemu| {
            if let Some((_, op)) = &mut qemu.asked {
                *op = None;
            }
            let paused = if qemu.stopped { Paused::Yes } else { Paused::No };
            Event::Attached { since: qemu.since, paused }
        });
        if let Some(process) = &mut storage.process {
            process.takes_up = attached.is_some() && level3;
        }
        self.nodes[index].am = Some(Am::new(keeper));
        if let Some(event) = attached {
            self.begin_level3(index, true);
            self.keep(index, event);
        }
    }

    /// The AM's process dies; the guest lives on.
    pub(super) fn crash_am(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(am) = node.am.take() else { return };
        if am.waiting.is_some() || am.taking.is_some() {
            node.lost_ms = self.now_ms;
        }
        node.storage.kill_process(false, &mut self.rng);
        self.cut_link(index);
        self.forget_connections(index);
    }

    /// A host loses its power; a leader does not come back as one.
    pub(super) fn crash(&mut self, index: usize) {
        self.crash_am(index);
        let node = &mut self.nodes[index];
        node.life = Life::Down;
        node.lost_ms = self.now_ms;
        node.qemu = None;
        node.master = ev_core::availability::master::Master::new(node.id);
        node.storage.cut_power(self.now_ms, &mut self.rng);
        if self.leader == Some(index) {
            self.leader = None;
        }
    }

    pub(super) fn kill_guest(&mut self, index: usize) {
        if self.nodes[index].qemu.is_some() && self.nodes[index].am.is_some() {
            self.guest_ends(index, EndCause::Crashed("killed".to_owned()));
        }
    }

    pub(super) fn memory(&self, index: usize) -> Option<&Memory> {
        self.nodes[index].qemu.as_ref()?.memory.as_ref()
    }
}
