//! What connects the two AMs: lanes for the checkpoint engines, and a stream for the disk.

use std::collections::VecDeque;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::time::Instant;

use super::host::{Life, Memory};
use super::world::World;
use crate::mirror::host::Engine;
use crate::mirror::link::Packet;
use ev_core::mirror::Input;

/// A link is given up after so long without the other side.
const PATIENCE_MS: u64 = 600;

#[derive(Debug, Clone)]
pub(super) enum LaneMessage {
    Begin(Session),
    Clock(Session, Instant),
    Memory(Session, Epoch, Box<Memory>),
    Confirm { session: Session, epoch: Epoch, echo: Instant },
    Refuse(Session),
}

/// With the time at which each arrives.
type Queue<T> = VecDeque<(u64, T)>;

/// The disk's stream. Each side lets go of its end when it will.
#[derive(Debug, Default)]
pub(super) struct DiskLink {
    pub to: [Queue<Packet>; 2],
    pub held: [bool; 2],
}

#[derive(Debug, Default)]
pub(super) struct Link {
    /// Its number, if it is up.
    pub up: Option<u64>,
    count: u64,
    /// Since when one side does not hear the other, and since when nothing gets through to it: what was sent to a host that stands still
    /// waits for it.
    silent_ms: Option<u64>,
    cut_ms: Option<u64>,
    /// To each host: what must not queue behind megabytes, and those.
    lanes: [[Queue<LaneMessage>; 2]; 2],
    pub disk: Option<DiskLink>,
}

impl World {
    /// Whether there is a way between the two AMs.
    fn pair_connected(&self) -> bool {
        let there = |life| life != Life::Down;
        let lives = self.nodes.iter().all(|node| there(node.life) && node.am.is_some());
        lives && (!self.private_cut || !self.cuts.contains(&(0, 1)))
    }

    pub(super) fn say(&mut self, to: usize, message: LaneMessage) {
        if self.link.up.is_none() || self.nodes[1 - to].am.as_ref().is_none_or(|am| am.link != self.link.up) {
            return;
        }
        let bulk = matches!(message, LaneMessage::Memory(..));
        let at = self.arrival(if bulk { self.bulk_ms } else { 20 });
        let lane = &mut self.link.lanes[to][usize::from(bulk)];
        let earliest = lane.back().map_or(0, |(at, _)| *at);
        lane.push_back((at.max(earliest), message));
    }

    pub(super) fn send_packet(&mut self, from: usize, packet: Packet) {
        let at = self.arrival(20);
        let Some(link) = self.link.disk.as_mut().filter(|link| link.held == [true, true]) else { return };
        let earliest = link.to[1 - from].back().map_or(0, |(at, _)| *at);
        link.to[1 - from].push_back((at.max(earliest), packet));
    }

    fn arrival(&mut self, usual_ms: u64) -> u64 {
        let late = if !self.calm && self.rng.per_mille(10) { 400 } else { usual_ms };
        self.now_ms + self.rng.within(0..late)
    }

    /// The link comes and goes, both sides notice, and what is due arrives: at a host that stood still when it goes on, even when
    /// the link is gone by then.
    pub(super) fn tend_link(&mut self) {
        let whole = self.pair_connected();
        let sound = whole && self.nodes.iter().all(|node| node.life == Life::Up);
        let now_ms = self.now_ms;
        let since = |holds: bool, since: Option<u64>| (!holds).then(|| since.unwrap_or(now_ms));
        self.link.cut_ms = since(whole, self.link.cut_ms);
        self.link.silent_ms = since(sound, self.link.silent_ms);
        let given_up = self.link.silent_ms.is_some_and(|since| now_ms - since >= PATIENCE_MS);
        if self.link.up.is_some() && (given_up || self.nodes.iter().any(|node| node.am.is_none())) {
            self.link.up = None;
            self.lose_what_is_under_way();
        } else if self.link.up.is_none() && sound && (self.calm || self.rng.per_mille(100)) {
            let (count, disk) = (self.link.count + 1, self.link.disk.take());
            self.link = Link { up: Some(count), count, disk, ..Link::default() };
        }
        for index in 0..2 {
            let waits = self.link.up.is_none() && self.rng.per_mille(500);
            if !waits {
                self.notice_link(index);
            }
            self.arrive_all(index);
            self.notice_link(index);
            self.notice_disk_link(index);
        }
        self.connect_disks();
    }

    fn lose_what_is_under_way(&mut self) {
        let until = self.link.cut_ms.unwrap_or(self.now_ms).min(self.now_ms);
        self.link.lanes.iter_mut().flatten().for_each(|lane| lane.retain(|(at, _)| *at <= until));
        if let Some(link) = &mut self.link.disk {
            link.to.iter_mut().for_each(|queue| queue.retain(|(at, _)| *at <= until));
        }
    }

    fn notice_link(&mut self, index: usize) {
        let up = self.link.up;
        let node = &mut self.nodes[index];
        let Some(am) = node.am.as_mut().filter(|am| node.life == Life::Up && am.link != up) else { return };
        if am.link.take().is_some() {
            self.drop_disk_link(index);
            self.link_lost(index);
        }
        if up.is_some()
            && let Some(am) = &mut self.nodes[index].am
        {
            am.link = up;
            self.link_made(index);
        }
    }

    fn arrive_all(&mut self, to: usize) {
        // What was on its way when it broke comes when it is whole again, or never.
        let until = self.link.cut_ms.unwrap_or(self.now_ms).min(self.now_ms);
        for lane in 0..2 {
            while self.can_hear(to) && self.link.lanes[to][lane].front().is_some_and(|(at, _)| *at <= until) {
                let (_, message) = self.link.lanes[to][lane].pop_front().expect("it was looked at");
                self.lane_message(to, message);
            }
        }
        while self.can_hear(to)
            && let Some((_, packet)) = self.link.disk.as_mut().and_then(|link| {
                let held = link.held[to];
                link.to[to].pop_front_if(|(at, _)| held && *at <= until)
            })
        {
            self.packet_arrives(to, packet);
        }
    }

    fn can_hear(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        node.life == Life::Up && node.am.as_ref().is_some_and(|am| am.link.is_some())
    }

    fn connect_disks(&mut self) {
        if self.link.disk.is_some() || self.link.up.is_none() || self.link.silent_ms.is_some() {
            return;
        }
        let ready = |index: &usize| {
            let node = &self.nodes[*index];
            let process = node.storage.process.as_ref().filter(|process| process.next_role.is_none());
            node.am.as_ref().is_some_and(|am| am.link == self.link.up)
                && process.is_some_and(|process| !matches!(process.engine, Engine::None))
        };
        let coordinators = self
            .nodes
            .iter()
            .filter(|node| node.storage.process.as_ref().is_some_and(|process| process.coordinator().is_some()));
        // The hello of a real link is refused when both sides have the same role.
        if coordinators.count() != 1 || !(0..2).all(|index| ready(&index)) || !self.rng.per_mille(200) {
            return;
        }
        self.link.disk = Some(DiskLink { held: [true, true], ..DiskLink::default() });
        for index in 0..2 {
            self.tell_disk(index, Input::LinkUp);
        }
    }

    /// That host lets go of its end.
    pub(super) fn drop_disk_link(&mut self, index: usize) {
        let Some(link) = self.link.disk.as_mut().filter(|link| link.held[index]) else { return };
        link.held[index] = false;
        link.to[index].clear();
        if link.held == [false, false] {
            self.link.disk = None;
        }
        self.tell_disk(index, Input::LinkDown);
        self.disk_link_lost(index);
    }

    /// The other end is gone.
    fn notice_disk_link(&mut self, index: usize) {
        let gone = self
            .link
            .disk
            .as_ref()
            .is_some_and(|link| link.held[index] && !link.held[1 - index] && link.to[index].is_empty());
        if gone && self.can_hear(index) {
            self.drop_disk_link(index);
        }
    }

    /// The process at this end is gone: what it had sent may arrive in part, what was sent to it does not.
    pub(super) fn cut_link(&mut self, index: usize) {
        self.link.up = None;
        self.link.lanes[index] = Default::default();
        let keep = usize::try_from(self.rng.within(0..4)).expect("few");
        for lane in &mut self.link.lanes[1 - index] {
            lane.truncate(keep);
        }
        if let Some(link) = &mut self.link.disk {
            link.held[index] = false;
            link.to[index].clear();
            link.to[1 - index].truncate(keep);
            if link.held == [false, false] {
                self.link.disk = None;
            }
        }
    }
}
