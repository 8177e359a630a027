//! What the guest wrote, and what it may therefore read.

use super::disk::Sector;

/// One write to one sector.
#[derive(Debug, Clone, Copy)]
struct Written {
    value: Sector,
    /// When it was asked for, and when it was acknowledged.
    asked: u64,
    /// When it came to the replicas first; for what a guest has found, that was before it began.
    written: u64,
    acknowledged: Option<u64>,
    /// When a flush that was asked for after its acknowledgement was acknowledged too.
    flushed: Option<u64>,
    /// The guest's number of the write.
    id: u64,
}

/// The history of each sector since its content was last known for sure.
#[derive(Debug, Clone)]
pub struct Oracle {
    sectors: Vec<Vec<Written>>,
}

/// Which acknowledged writes may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    None,
    /// Those asked for before this time that were not flushed: the replica's host lost its power then.
    UnflushedBefore(u64),
    /// The replica was written ahead of. Nobody has seen anything that the guest did after `seen`, so only what it had flushed by then
    /// must be there (and before anything that is there), and if it kept its power what was acknowledged before `together`, when both replicas still were asked.
    Behind {
        together: Option<u64>,
        seen: u64,
    },
}

impl Oracle {
    pub fn new(content: &[Sector]) -> Self {
        let known = |value: &Sector| {
            vec![Written { value: *value, asked: 0, written: 0, acknowledged: Some(0), flushed: Some(0), id: 0 }]
        };
        Self { sectors: content.iter().map(known).collect() }
    }

    /// The guest has begun anew and found this; nothing of before is under way any more. What was found need not be flushed: a
    /// power cut may bring back what was before.
    pub fn found(&mut self, content: &[Sector], now: u64) {
        for (sector, value) in self.sectors.iter_mut().zip(content.iter().copied()) {
            for written in sector.iter_mut() {
                written.acknowledged.get_or_insert(now);
            }
            if sector.len() == 1 && sector[0].value == value {
                continue;
            }
            let first = sector.iter().rev().find(|written| written.value == value);
            let written = first.map_or(now + 1, |first| first.written);
            sector.push(Written { value, asked: now + 1, written, acknowledged: Some(now + 1), flushed: None, id: 0 });
        }
    }

    pub fn asked(&mut self, id: u64, sectors: std::ops::Range<usize>, value: Sector, now: u64) {
        for sector in sectors {
            let written = Written { value, asked: now, written: now, acknowledged: None, flushed: None, id };
            self.sectors[sector].push(written);
        }
    }

    pub fn acknowledged(&mut self, id: u64, sectors: std::ops::Range<usize>, durable: bool, now: u64) {
        for sector in sectors {
            for written in self.sectors[sector].iter_mut().filter(|written| written.id == id) {
                written.acknowledged = Some(now);
                written.flushed = durable.then_some(now);
            }
        }
    }

    /// A flush that was asked for at `asked` was acknowledged.
    pub fn flushed(&mut self, asked: u64, now: u64) {
        for written in self.sectors.iter_mut().flatten() {
            if written.acknowledged.is_some_and(|at| at < asked) {
                written.flushed.get_or_insert(now);
            }
        }
    }

    /// Forgets what can't come back any more. Not while the guest is answered ahead of one of the replicas.
    pub fn forget_superseded(&mut self) {
        for sector in &mut self.sectors {
            let all = sector.clone();
            sector.retain(|written| !superseded(written, &all, |other| other.flushed.is_some()));
        }
    }

    /// The guest goes on from a replica that was written ahead of: what it flushed later than `seen` need not have been.
    pub fn unflush_after(&mut self, seen: u64) {
        for written in self.sectors.iter_mut().flatten() {
            written.flushed = written.flushed.filter(|at| *at <= seen);
        }
    }

    /// When the newest write was asked for that is found there: what was flushed before that has to be there as well.
    pub fn newest(&self, content: &[Sector]) -> u64 {
        let found = |(sector, value): (&Vec<Written>, &Sector)| {
            let written = sector.iter().rev().find(|written| *value != 0 && written.value == *value && written.id != 0);
            written.map_or(0, |written| written.asked)
        };
        self.sectors.iter().zip(content).map(found).max().unwrap_or_default()
    }

    /// Whether `value` may be read from `sector`.
    pub fn allows(&self, sector: usize, value: Sector, loss: Loss) -> bool {
        let counts = |other: &Written| match loss {
            Loss::None => true,
            Loss::UnflushedBefore(time) => other.flushed.is_some() || other.written > time,
            Loss::Behind { together, seen } => {
                let acknowledged = together.is_some_and(|time| other.acknowledged.is_some_and(|at| at <= time));
                acknowledged || other.flushed.is_some_and(|at| at <= seen)
            }
        };
        let all = &self.sectors[sector];
        all.iter().any(|written| written.value == value && !superseded(written, all, counts))
    }

    pub fn explain(&self, sector: usize) -> String {
        format!("{:?}", self.sectors[sector])
    }
}

/// Whether a write that counts was asked for after this one was acknowledged, and was acknowledged itself.
fn superseded(written: &Written, all: &[Written], counts: impl Fn(&Written) -> bool) -> bool {
    let Some(acknowledged) = written.acknowledged else { return false };
    all.iter().any(|other| other.acknowledged.is_some() && other.asked > acknowledged && counts(other))
}
