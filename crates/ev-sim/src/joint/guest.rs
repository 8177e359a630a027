//! The guest, and what must be so when it begins, goes on, and is seen.

use std::rc::Rc;

use ev_core::checkpoint::{Epoch, Output};
use ev_core::mirror::{Durability, Extent, Input, OpId, Source, Write, WriteKind};

use super::host::{Asked, Frame, Life, Memory};
use super::world::{SECTORS, World};
use crate::mirror::disk::{SECTOR_BYTES, Sector};
use crate::mirror::host::Engine;

/// How often the guest flushes, and tells the outside how far it is, between two writes.
const FLUSH_PER_MILLE: u64 = 150;
const TELL_PER_MILLE: u64 = 400;
/// Just confirmed when the guest went on or began elsewhere, frames may still come for so long.
const LATE_MS: u64 = 600;

/// What somebody knows who sees everything.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// The newest boot, when it was, and what that guest has asked to be written, in the history that counts.
    boot: u64,
    boot_ms: u64,
    found: Rc<Vec<Sector>>,
    history: Vec<(usize, Sector)>,
    /// Where it lives.
    place: usize,
    since_ms: u64,
    /// How far the outside was told.
    written: usize,
    flushed: usize,
    pub told_ms: u64,
    next_value: Sector,
}

impl Known {
    pub(super) fn new() -> Self {
        Self {
            boot: 0,
            boot_ms: 0,
            found: Rc::new(vec![0; SECTORS]),
            history: Vec::new(),
            place: 0,
            since_ms: 0,
            written: 0,
            flushed: 0,
            told_ms: 0,
            next_value: 1,
        }
    }
}

fn extent(sector: usize) -> Extent {
    Extent { offset: u64::try_from(sector).expect("small") * u64::from(SECTOR_BYTES), length: SECTOR_BYTES }
}

impl World {
    /// The guest does something, as far as it may.
    pub(super) fn run_guest(&mut self, index: usize) {
        let paused = self.nodes[index].am.as_ref().is_some_and(|am| am.pause.is_some());
        let node = &mut self.nodes[index];
        let Some(qemu) = &mut node.qemu else { return };
        let Some(memory) = qemu.memory.as_ref().filter(|_| !paused && !qemu.stopped && qemu.asked.is_none()) else {
            return self.submit(index);
        };
        let (boot, written, flushed) = (memory.boot, memory.written.len(), memory.flushed);
        if self.rng.per_mille(TELL_PER_MILLE) {
            self.tell_outside(index, written, flushed);
        }
        let asked = if self.rng.per_mille(FLUSH_PER_MILLE) {
            Asked::Flush { written }
        } else {
            let sector = usize::try_from(self.rng.within(0..u64::try_from(SECTORS).expect("small"))).expect("small");
            let value = self.known.next_value;
            self.known.next_value += 1;
            if self.known.boot == boot && self.known.place == index {
                self.known.history.push((sector, value));
            }
            Asked::Write { sector, value }
        };
        if let Some(qemu) = &mut self.nodes[index].qemu {
            qemu.asked = Some((asked, None));
        }
        self.submit(index);
    }

    /// Gives the AM's disk thread what it does not know of.
    fn submit(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let (Some(qemu), Some(process)) = (&mut node.qemu, &mut node.storage.process) else { return };
        let Some((asked, op @ None)) = &mut qemu.asked else { return };
        if !matches!(process.engine, Engine::Coordinator(_)) || process.next_role.is_some() {
            return;
        }
        process.next_op += 1;
        let id = OpId(process.next_op);
        *op = Some(id);
        let input = match *asked {
            Asked::Boot => Input::Read { op: id, extent: extent(0) },
            Asked::Flush { .. } => Input::Flush { op: id },
            Asked::Write { sector, value } => {
                process.data.insert(id, vec![value]);
                let write = Write { extent: extent(sector), kind: WriteKind::Data, durability: Durability::AtFlush };
                Input::Write { op: id, write }
            }
        };
        self.tell_disk(index, input);
    }

    /// An answer of its disk.
    pub(super) fn guest_hears(&mut self, index: usize, op: OpId) {
        if let Some(process) = &mut self.nodes[index].storage.process {
            process.data.remove(&op);
        }
        let Some(qemu) = &mut self.nodes[index].qemu else { return };
        let Some((asked, _)) = qemu.asked.take_if(|(_, known)| *known == Some(op)) else { return };
        match (asked, &mut qemu.memory) {
            (Asked::Boot, _) => self.boots(index),
            (Asked::Write { sector, value }, Some(memory)) => memory.written.push((sector, value)),
            (Asked::Flush { written }, Some(memory)) => memory.flushed = memory.flushed.max(written),
            (Asked::Write { .. } | Asked::Flush { .. }, None) => panic!("only the firmware runs"),
        }
    }

    /// The guest begins anew: all that it was seen to have done must be there.
    fn boots(&mut self, index: usize) {
        let engine = self.nodes[index].storage.process.as_ref().and_then(|process| process.coordinator());
        let source = match engine.and_then(|engine| engine.reads_from()).expect("it has just been read") {
            Source::Local => index,
            Source::Partner => 1 - index,
        };
        let content = self.nodes[source].storage.disk.content().to_vec();
        let known = &self.known;
        let kept = self.nodes[source].lost_ms < known.boot_ms;
        let told = if kept { known.written } else { known.flushed };
        for (sector, found) in content.iter().enumerate() {
            let last = known.history[..told].iter().rev().find(|(at, _)| *at == sector);
            let needed = last.map_or(if kept { known.found[sector] } else { 0 }, |(_, value)| *value);
            let of_history = known.history.contains(&(sector, *found));
            if *found < needed || kept && !of_history && *found != known.found[sector] {
                self.fail(&format!(
                    "the guest boots on host {index} from host {source} (kept: {kept}) and finds {found} in sector {sector}; \
                     {needed} was seen"
                ));
            }
        }
        self.trace(|| format!("the guest boots on host {index}"));
        self.summary.boots += 1;
        let (boot, found, now_ms) = (self.known.boot + 1, Rc::new(content), self.now_ms);
        self.known = Known {
            boot,
            boot_ms: now_ms,
            found: Rc::clone(&found),
            history: Vec::new(),
            place: index,
            since_ms: now_ms,
            written: 0,
            flushed: 0,
            ..self.known
        };
        if let Some(qemu) = &mut self.nodes[index].qemu {
            qemu.memory = Some(Memory { boot, found, written: Vec::new(), flushed: 0 });
        }
    }

    /// The guest goes on: nothing that was seen is undone, and its disk is exactly what its memory says.
    pub(super) fn goes_on(&mut self, index: usize, memory: &Memory) {
        let known = &self.known;
        let has_all = memory.boot == known.boot
            && memory.written.len() >= known.written
            && memory.written[..known.written] == known.history[..known.written];
        if !has_all {
            self.fail(&format!("the guest goes on from {} writes, and {known:?} was seen", memory.written.len()));
        }
        let (disk, content) = (memory.disk(), self.nodes[index].storage.disk.content());
        if disk != content {
            self.fail(&format!("the guest goes on with the disk {content:?}, and by its memory it is {disk:?}"));
        }
        self.trace(|| format!("the guest goes on on host {index} after {} writes", memory.written.len()));
        self.summary.went_on += 1;
        self.summary.went_on_from_frozen += u64::from(self.nodes[1 - index].life == Life::Frozen);
        self.known.history.clone_from(&memory.written);
        self.known.place = index;
        self.known.since_ms = self.now_ms;
    }

    /// A frame, held or not.
    fn tell_outside(&mut self, index: usize, written: usize, flushed: usize) {
        let Some(am) = &mut self.nodes[index].am else { return };
        let held = am.output != Output::Free;
        let epoch = am.primary.as_ref().filter(|_| held).map_or(Epoch::NONE, |primary| primary.running());
        am.held.push_back(Frame { epoch, written, flushed });
        self.let_out(index);
    }

    /// What may leave leaves.
    pub(super) fn let_out(&mut self, index: usize) {
        let node = &self.nodes[index];
        if node.life != Life::Up || !node.gate_is_open(self.now_ms) {
            return;
        }
        while let Some(am) = &mut self.nodes[index].am {
            let free = |frame: &mut Frame| match am.output {
                Output::Free => true,
                Output::Through(epoch) => frame.epoch <= epoch,
            };
            let Some(frame) = am.held.pop_front_if(free) else { return };
            self.see(index, frame);
        }
    }

    fn see(&mut self, index: usize, frame: Frame) {
        let Some(memory) = self.memory(index) else { return };
        let known = &self.known;
        if known.place != index && self.now_ms - known.since_ms > LATE_MS {
            self.fail(&format!("host {index} lets a frame out long after the guest went on elsewhere"));
        }
        let same = memory.boot == known.boot
            && known.history.len() >= frame.written
            && memory.written[..frame.written] == known.history[..frame.written];
        if !same {
            self.fail(&format!("host {index} lets {frame:?} out, which is not of the history that counts: {known:?}"));
        }
        let known = &mut self.known;
        known.written = known.written.max(frame.written);
        known.flushed = known.flushed.max(frame.flushed);
        known.told_ms = self.now_ms;
        self.summary.seen += 1;
    }
}
