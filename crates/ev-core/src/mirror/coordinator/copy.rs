//! The copy: compares by hash what may differ, moves what does, while the guest goes on.
//!
//! A region that is copied stays in the out-of-sync map until both replicas have flushed since. Before it leaves, its
//! bit in the write-intent log must be durable, because the guest writes it meanwhile: so that bit is set first, for a batch of
//! regions at a time.
//!
//! Each part of a region that is compared holds its range, so that the guest's writes and the copy come to both
//! replicas in one order.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::acknowledge::Leg;
use super::super::extent::Extent;
use super::super::lock::Turn;
use super::super::message::{Action, BlockHash, CopyKind, LocalIo, Message, OpId, Trouble, Verified};
use super::super::region::RegionSet;
use super::Coordinator;
use super::op::{Op, Stage, Task};
use super::partner::Link;
use crate::ids::Generation;
use crate::report::CopyProgress;
use crate::time::Instant;

/// Parts that are compared at once: enough to keep both disks and the link busy.
const CHUNKS_MAX: usize = 6;
/// Longest part that is compared at once; a guest's write to it waits so long.
const CHUNK_BYTES_MAX: u32 = 256 << 10;
/// Regions whose write-intent bits are set by one commit.
const BATCH_REGIONS: usize = 64;
/// Copied regions after which both replicas are flushed, so that an interrupted copy goes on from there.
const FLUSH_REGIONS: usize = 64;
/// A walk with a limited rate catches up on so much lost time: an idle disk's thread looks only now and then.
const CATCH_UP: Duration = Duration::from_millis(100);

/// What the walk over the disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Copy(CopyKind),
    /// This host's own replica is brought back from the partner's.
    Homeward(CopyKind),
    /// Compare only, or make the partner's replica like ours.
    Verify {
        repair: bool,
    },
}

#[derive(Debug)]
struct Chunk {
    region: u64,
    extent: Extent,
    ours: Option<Vec<BlockHash>>,
    theirs: Option<Vec<BlockHash>>,
    /// Parts on their way to the partner.
    children: usize,
}

#[derive(Debug)]
pub(super) struct Copier {
    purpose: Purpose,
    /// What to walk over.
    todo: RegionSet,
    next_region: u64,
    /// Regions whose write-intent bits are set or being set.
    batch: VecDeque<u64>,
    /// The region that is being cut into parts, and from where on.
    cutting: Option<(u64, u64)>,
    chunks: BTreeMap<OpId, Chunk>,
    /// Parts not compared yet, by region.
    parts_left: BTreeMap<u64, usize>,
    /// Copied regions that were not flushed since, with the epoch in which that was.
    copied: VecDeque<(u64, u64)>,
    /// The partner is told that the copy has ended.
    ending: Option<(OpId, Generation)>,
    /// The partner has confirmed the end.
    ended: bool,
    total_bytes: u64,
    done_bytes: u64,
    moved_bytes: u64,
    different_bytes: u64,
    began: Instant,
    /// Not before then is the next part begun.
    next_at: Instant,
    /// A rate of its own, below that of copies.
    bytes_per_s: Option<u64>,
}

impl Copier {
    pub fn new(kind: CopyKind, todo: &RegionSet, now: Instant) -> Self {
        Self::over(Purpose::Copy(kind), todo.clone(), now)
    }

    pub fn homeward(kind: CopyKind, todo: &RegionSet, now: Instant) -> Self {
        Self::over(Purpose::Homeward(kind), todo.clone(), now)
    }

    fn over(purpose: Purpose, todo: RegionSet, now: Instant) -> Self {
        Self {
            purpose,
            todo,
            next_region: 0,
            batch: VecDeque::new(),
            cutting: None,
            chunks: BTreeMap::new(),
            parts_left: BTreeMap::new(),
            copied: VecDeque::new(),
            ending: None,
            ended: false,
            total_bytes: 0,
            done_bytes: 0,
            moved_bytes: 0,
            different_bytes: 0,
            began: now,
            next_at: now,
            bytes_per_s: None,
        }
    }

    pub fn progress(&self, now: Instant) -> CopyProgress {
        let elapsed = now.since(self.began).as_millis();
        let left_bytes = u128::from(self.total_bytes.saturating_sub(self.done_bytes));
        let left_ms = (left_bytes * elapsed).checked_div(u128::from(self.done_bytes));
        CopyProgress {
            full: matches!(self.purpose, Purpose::Copy(CopyKind::Full) | Purpose::Homeward(CopyKind::Full)),
            total_bytes: self.total_bytes,
            done_bytes: self.done_bytes,
            moved_bytes: self.moved_bytes,
            left_s: left_ms.and_then(|ms| u64::try_from(ms.div_ceil(1000)).ok()),
        }
    }

    pub fn compared(&self, complete: bool) -> Verified {
        Verified {
            compared_bytes: self.done_bytes,
            different_bytes: self.different_bytes,
            repaired_bytes: self.moved_bytes,
            complete,
        }
    }

    /// Whether data is moved to bring a replica back.
    pub fn is_copy(&self) -> bool {
        matches!(self.purpose, Purpose::Copy(_) | Purpose::Homeward(_))
    }

    fn is_homeward(&self) -> bool {
        matches!(self.purpose, Purpose::Homeward(_))
    }
}

impl Coordinator {
    pub(super) fn start_verify(&mut self, repair: bool, bytes_per_s: Option<u64>, out: &mut Vec<Action>) {
        if let Some(copier) = self.copier.as_mut().filter(|copier| !copier.is_copy()) {
            copier.bytes_per_s = bytes_per_s;
            return;
        }
        let alike = matches!(self.partner.link, Link::InStep) && !self.was_ahead();
        if self.copier.is_some() || !alike || self.local.failed {
            let nothing = Verified { compared_bytes: 0, different_bytes: 0, repaired_bytes: 0, complete: false };
            out.push(Action::Verified(nothing));
            return;
        }
        let mut all = RegionSet::empty(self.local.log.geometry().regions());
        all.fill();
        let mut copier = Copier::over(Purpose::Verify { repair }, all, self.now);
        copier.total_bytes = self.local.log.geometry().size_bytes();
        copier.bytes_per_s = bytes_per_s;
        self.copier = Some(copier);
    }

    /// Begins what the limits allow; flushes, and ends the copy, when it is time.
    pub(super) fn advance_copy(&mut self, out: &mut Vec<Action>) {
        let Some(copier) = self.copier.as_mut() else { return };
        if copier.total_bytes == 0 {
            let geometry = self.local.log.geometry();
            copier.total_bytes = copier.todo.iter().map(|region| u64::from(geometry.extent_of(region).length)).sum();
        }
        if copier.ending.is_some() {
            self.advance_end(out);
            return;
        }
        while self.begin_next_chunk(out) {}
        let Some(copier) = self.copier.as_ref() else { return };
        let walked = copier.cutting.is_none()
            && copier.batch.is_empty()
            && copier.chunks.is_empty()
            && copier.todo.next_from(copier.next_region).is_none();
        let copied = copier.copied.len();
        if !copier.is_copy() {
            if walked {
                self.verify_ends(true, out);
            }
        } else if walked && copied == 0 && copier.is_homeward() {
            self.last_copy = Some(CopyProgress { left_s: Some(0), ..copier.progress(self.now) });
            self.copier = None;
            self.own_copy_ends();
        } else if walked && copied == 0 {
            self.end_copy(out);
        } else if (walked || copied >= FLUSH_REGIONS) && self.settling.op.is_none() {
            self.settling.wanted = true;
        }
    }

    /// Whether one more part was begun.
    fn begin_next_chunk(&mut self, out: &mut Vec<Action>) -> bool {
        let Some(copier) = self.copier.as_mut() else { return false };
        if copier.chunks.len() >= CHUNKS_MAX || self.now < copier.next_at {
            return false;
        }
        let rate = [self.settings.copy_bytes_per_s, copier.bytes_per_s].into_iter().flatten().min();
        let Some((region, from)) = copier.cutting.take().or_else(|| self.next_region()) else { return false };
        let geometry = self.local.log.geometry();
        let whole = geometry.extent_of(region);
        let block = geometry.block_bytes();
        let longest = (CHUNK_BYTES_MAX / block).max(1) * block;
        let length = u32::try_from(whole.end() - from).expect("at most a region").min(longest);
        let extent = Extent { offset: from, length };
        let op = self.own_op();
        let pause = rate.map_or(Duration::ZERO, |rate| {
            Duration::from_nanos(u64::from(length).saturating_mul(1_000_000_000) / rate.max(1))
        });
        let now = self.now;
        let Some(copier) = self.copier.as_mut() else { return false };
        if extent.end() < whole.end() {
            copier.cutting = Some((region, extent.end()));
        }
        *copier.parts_left.entry(region).or_default() += 1;
        copier.next_at = copier.next_at.max(now.before(CATCH_UP)).after(pause);
        copier.chunks.insert(op, Chunk { region, extent, ours: None, theirs: None, children: 0 });
        self.ops.insert(op, Op::new(Task::Chunk, Stage::Queued));
        if self.locks.enter(op, extent) == Turn::Now {
            self.begin_chunk(op, out);
        }
        true
    }

    /// The next region whose write-intent bit is durable. Asks for a batch of them when there is none.
    fn next_region(&mut self) -> Option<(u64, u64)> {
        let copier = self.copier.as_mut()?;
        if copier.batch.is_empty() {
            while copier.batch.len() < BATCH_REGIONS {
                let Some(region) = copier.todo.next_from(copier.next_region) else { break };
                copier.next_region = region + 1;
                copier.batch.push_back(region);
                if copier.is_copy() {
                    self.local.log.set_intent(region);
                    // It must not leave the write-intent log until it is copied.
                    self.settling.hold(region);
                }
            }
            self.local.log.want_commit();
        }
        let region = *copier.batch.front()?;
        if copier.is_copy() && !self.local.log.intent_is_sure(region) {
            return None;
        }
        copier.batch.pop_front();
        Some((region, self.local.log.geometry().extent_of(region).offset))
    }

    /// The range is free: compare.
    pub(super) fn begin_chunk(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Some(chunk) = self.copier.as_ref().and_then(|copier| copier.chunks.get(&op)) else { return };
        let extent = chunk.extent;
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.stage = Stage::Started;
            entry.local = Leg::Running;
            entry.partner = Leg::Running;
        }
        out.push(Action::Send(Message::HashRequest { op, extent }));
        out.push(Action::Local { op, io: LocalIo::Hash { extent } });
    }

    pub(super) fn local_hashes(&mut self, op: OpId, hashes: Option<Vec<BlockHash>>, out: &mut Vec<Action>) {
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.local = Leg::Done;
        }
        let Some(copier) = self.copier.as_mut() else { return };
        // On the way home, what can't be read here is written; that mends it, or shows that it can't be.
        let hashes = if copier.is_homeward() { Some(hashes.unwrap_or_default()) } else { hashes };
        let Some(chunk) = copier.chunks.get_mut(&op) else { return };
        chunk.ours = hashes;
        if chunk.ours.is_none() {
            self.copy_source_failed(out);
        } else {
            self.compare(op, out);
        }
    }

    pub(super) fn partner_hashes(&mut self, op: OpId, hashes: Vec<BlockHash>, out: &mut Vec<Action>) {
        let Some(chunk) = self.copier.as_mut().and_then(|copier| copier.chunks.get_mut(&op)) else { return };
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.partner = Leg::Done;
        }
        chunk.theirs = Some(hashes);
        self.compare(op, out);
    }

    /// Both sides' hashes are there: what differs goes to the partner.
    fn compare(&mut self, op: OpId, out: &mut Vec<Action>) {
        let block = self.local.log.geometry().block_bytes();
        let Some(copier) = self.copier.as_mut() else { return };
        let Some(chunk) = copier.chunks.get(&op) else { return };
        let (Some(ours), Some(theirs)) = (&chunk.ours, &chunk.theirs) else { return };
        let homeward = copier.is_homeward();
        let blocks = chunk.extent.length.div_ceil(block);
        if homeward && u32::try_from(theirs.len()) != Ok(blocks) {
            self.own_source_failed(out);
            return;
        }
        let different = if homeward {
            differing(chunk.extent, block, theirs, ours)
        } else {
            differing(chunk.extent, block, ours, theirs)
        };
        let bytes: u64 = different.iter().map(|extent| u64::from(extent.length)).sum();
        copier.different_bytes += bytes;
        if copier.purpose == (Purpose::Verify { repair: false }) || different.is_empty() {
            self.chunk_done(op, out);
            return;
        }
        copier.moved_bytes += bytes;
        for extent in different {
            let child = self.own_op();
            if homeward {
                let mut entry = Op::new(Task::CopyIn { chunk: op, extent }, Stage::Started);
                entry.partner = Leg::Running;
                self.ops.insert(child, entry);
                out.push(Action::Send(Message::Read { op: child, extent }));
            } else {
                let mut entry = Op::new(Task::CopyOut { chunk: op, extent }, Stage::Started);
                entry.local = Leg::Running;
                self.ops.insert(child, entry);
                out.push(Action::Local { op: child, io: LocalIo::Read { extent } });
            }
            if let Some(chunk) = self.copier.as_mut().and_then(|copier| copier.chunks.get_mut(&op)) {
                chunk.children += 1;
            }
        }
    }

    /// The data is there: send it.
    pub(super) fn copy_out(&mut self, op: OpId, chunk: OpId, extent: Extent, out: &mut Vec<Action>) {
        if !self.copier.as_ref().is_some_and(|copier| copier.chunks.contains_key(&chunk)) {
            return;
        }
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.partner = Leg::Running;
        }
        out.push(Action::Send(Message::CopyData { op, extent }));
    }

    /// A part has been written where it differed.
    pub(super) fn copied(&mut self, op: OpId, chunk: OpId, out: &mut Vec<Action>) {
        self.ops.remove(&op);
        out.push(Action::Forget { op });
        let Some(entry) = self.copier.as_mut().and_then(|copier| copier.chunks.get_mut(&chunk)) else { return };
        entry.children -= 1;
        if entry.children == 0 {
            self.chunk_done(chunk, out);
        }
    }

    fn chunk_done(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Some(copier) = self.copier.as_mut() else { return };
        let Some(chunk) = copier.chunks.remove(&op) else { return };
        copier.done_bytes += u64::from(chunk.extent.length);
        let cutting = copier.cutting.is_some_and(|(region, _)| region == chunk.region);
        let left = copier.parts_left.entry(chunk.region).or_default();
        *left -= 1;
        if *left == 0 && !cutting {
            copier.parts_left.remove(&chunk.region);
            if copier.is_copy() {
                self.settling.let_go(chunk.region);
                copier.copied.push_back((chunk.region, self.settling.epoch()));
            }
        }
        self.finish_own(op, out);
    }

    /// Both replicas were flushed: regions copied before that leave the out-of-sync map.
    pub(super) fn copies_settled(&mut self) {
        let Some(copier) = self.copier.as_mut() else { return };
        while let Some((region, epoch)) = copier.copied.front().copied() {
            if !self.settling.is_covered(epoch) {
                break;
            }
            copier.copied.pop_front();
            self.local.log.clear_out_of_sync(region);
            // Its write-intent bit was set for the copy; it stays only if the guest has written the region since.
            self.settling.leave_log(region, &mut self.local.log);
        }
        self.local.log.want_commit();
    }

    /// All is copied and flushed on both sides: the partner is to say so in its superblock.
    fn end_copy(&mut self, out: &mut Vec<Action>) {
        let op = self.own_op();
        let current = self.local.history().current;
        self.control(op);
        if let Some(copier) = self.copier.as_mut() {
            copier.ending = Some((op, current));
        }
        out.push(Action::Send(Message::CopyEnd { op, current }));
    }

    /// The partner's superblock says good.
    pub(super) fn copy_ended(&mut self, op: OpId) {
        let Some(copier) = self.copier.as_mut() else { return };
        let Some((_, current)) = copier.ending.filter(|(asked, _)| *asked == op) else { return };
        copier.ended = true;
        self.partner_holds(current);
    }

    /// Our own superblock says that the partner holds the same: it is in step.
    fn advance_end(&mut self, out: &mut Vec<Action>) {
        let Some(copier) = self.copier.as_ref() else { return };
        if !copier.ended || !self.local.is_stored() {
            return;
        }
        if !self.local.history().is_shared() {
            // A record came meanwhile that began a new history here: the partner is to have that one.
            self.end_copy(out);
            if let Some(copier) = self.copier.as_mut() {
                copier.ended = false;
            }
            return;
        }
        self.last_copy = Some(CopyProgress { left_s: Some(0), ..copier.progress(self.now) });
        self.copier = None;
        self.partner.link = Link::InStep;
    }

    fn verify_ends(&mut self, complete: bool, out: &mut Vec<Action>) {
        let Some(copier) = self.copier.take() else { return };
        out.push(Action::Verified(copier.compared(complete)));
    }

    /// This host's replica can't be read where it has to be copied from.
    pub(super) fn copy_source_failed(&mut self, out: &mut Vec<Action>) {
        let copying = self.copier.as_ref().is_some_and(Copier::is_copy);
        self.abort_copy(out);
        if copying {
            self.partner.link = Link::Stalled { since: self.now };
            self.local.log.intent_is_out_of_sync();
        }
        if !std::mem::replace(&mut self.told.source_unreadable, true) {
            out.push(Action::Trouble(Trouble::CopySourceUnreadable));
        }
    }

    /// The link or a replica is lost: forgets the walk; the out-of-sync map says where to begin again.
    pub(super) fn abort_copy(&mut self, out: &mut Vec<Action>) {
        let Some(copier) = self.copier.take() else { return };
        if copier.is_copy() {
            self.last_copy = Some(CopyProgress { left_s: None, ..copier.progress(self.now) });
            let held = copier.batch.iter().chain(copier.parts_left.keys()).copied();
            let cut = copier.cutting.map(|(region, _)| region).filter(|r| !copier.parts_left.contains_key(r));
            for region in held.chain(cut) {
                self.settling.let_go(region);
            }
        } else {
            self.copier = Some(copier);
            self.verify_ends(false, out);
        }
        // A part that is being written here is waited for, so that it can't come after what is written next.
        let over = |op: &Op| op.task.is_copy() && !(matches!(op.task, Task::CopyIn { .. }) && op.is_running_locally());
        let own: Vec<OpId> = self.ops.iter().filter(|(_, op)| over(op)).map(|(op, _)| *op).collect();
        for op in own {
            self.finish_own(op, out);
        }
    }
}

/// Runs of blocks whose hashes differ. A target that has too few is taken to differ.
fn differing(extent: Extent, block: u32, ours: &[BlockHash], theirs: &[BlockHash]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    let mut offset = extent.offset;
    for (index, hash) in ours.iter().enumerate() {
        let length = u64::from(block).min(extent.end().saturating_sub(offset));
        let length = u32::try_from(length).expect("at most a block");
        if theirs.get(index) != Some(hash) {
            match runs.last_mut() {
                Some(last) if last.end() == offset => last.length += length,
                Some(_) | None => runs.push(Extent { offset, length }),
            }
        }
        offset += u64::from(length);
    }
    runs
}
