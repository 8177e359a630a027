//! One order for writes that overlap: the later one starts when the earlier one is done on every replica.
//!
//! Both replicas then see overlapping writes in the same order, whatever their own disks do with writes in flight, and
//! sending unfinished ones again after a lost link can't turn the order round. Copies take part like writes.

use std::collections::VecDeque;

use super::extent::Extent;
use super::message::OpId;

#[derive(Debug)]
struct Entry {
    op: OpId,
    extent: Extent,
    /// Earlier overlapping entries that are still there.
    waits_for: usize,
}

/// The writes and copies that are under way or wait for their turn, oldest first. Their number is bounded by the
/// caller's limit on operations in flight, which makes walking the list cheap.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    entries: VecDeque<Entry>,
}

/// Whether an operation may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    Later,
}

impl RangeLocks {
    /// Queues behind whatever overlaps.
    pub fn enter(&mut self, op: OpId, extent: Extent) -> Turn {
        let waits_for = self.entries.iter().filter(|entry| entry.extent.overlaps(extent)).count();
        self.entries.push_back(Entry { op, extent, waits_for });
        if waits_for == 0 { Turn::Now } else { Turn::Later }
    }

    /// Lets go, and names those whose turn has come.
    pub fn leave(&mut self, op: OpId, ready: &mut Vec<OpId>) {
        let Some(index) = self.entries.iter().position(|entry| entry.op == op) else { return };
        let Some(left) = self.entries.remove(index) else { return };
        for entry in self.entries.iter_mut().skip(index).filter(|entry| entry.extent.overlaps(left.extent)) {
            entry.waits_for -= 1;
            if entry.waits_for == 0 {
                ready.push(entry.op);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ones_go_one_after_the_other_and_others_side_by_side() {
        let mut locks = RangeLocks::default();
        let extent = |offset, length| Extent { offset, length };
        let mut ready = Vec::new();
        assert_eq!(locks.enter(OpId(1), extent(0, 10)), Turn::Now);
        assert_eq!(locks.enter(OpId(2), extent(10, 10)), Turn::Now);
        assert_eq!(locks.enter(OpId(3), extent(5, 10)), Turn::Later);
        assert_eq!(locks.enter(OpId(4), extent(0, 1)), Turn::Later);
        assert_eq!(locks.enter(OpId(5), extent(5, 1)), Turn::Later);
        locks.leave(OpId(1), &mut ready);
        assert_eq!(ready, [OpId(4)], "3 still waits for 2, 5 for 3");
        ready.clear();
        locks.leave(OpId(2), &mut ready);
        assert_eq!(ready, [OpId(3)]);
        ready.clear();
        locks.leave(OpId(3), &mut ready);
        assert_eq!(ready, [OpId(5)]);
    }
}
