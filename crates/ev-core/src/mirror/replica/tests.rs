//! A replica by itself while a session of checkpoints is on: what it holds back, in which order it writes, what it refuses.

use proptest::prelude::*;

use super::super::history::History;
use super::super::log::RegionLog;
use super::super::message::{CopyKind, Durability, Epochs, WriteKind};
use super::super::region::Geometry;
use super::staging::{EPOCHS_MAX, STAGED_BYTES_MAX};
use super::*;
use crate::ids::MemberId;

const HERE: HostId = MemberId(2);
const THERE: HostId = MemberId(1);
const SESSION: Session = Session(7);

/// A replica whose storage ends what the test says.
struct Bench {
    replica: Replica,
    /// Under way on the storage, oldest first.
    running: Vec<(OpId, LocalIo)>,
}

fn write(offset: u64, length: u32) -> Write {
    Write { extent: Extent { offset, length }, kind: WriteKind::Data, durability: Durability::AtFlush }
}

fn durable(offset: u64) -> Write {
    Write { durability: Durability::BeforeReply, ..write(offset, 512) }
}

fn ack(op: u64, outcome: Outcome) -> Action {
    Action::Send(Message::Ack { op: OpId(op), outcome })
}

fn applied(epoch: u64) -> Action {
    Action::EpochApplied { session: SESSION, epoch: Epoch(epoch) }
}

fn staged(epoch: u64, flushed: bool) -> Action {
    Action::EpochStaged { session: SESSION, epoch: Epoch(epoch), flushed }
}

const LOST: Action = Action::EpochsLost { session: SESSION };

impl Bench {
    /// Linked, with nothing under way.
    fn new() -> Self {
        let geometry = Geometry::new(1 << 20, 1 << 16, 1 << 12);
        let history = History { current: Generation(1), bitmap_base: Generation(1) };
        let info = ReplicaInfo { health: Health::Good, history };
        let local = LocalReplica::new(HERE, 1, info, RegionLog::new(geometry, &[], &[]));
        let replica = Replica::new(local, THERE, Generation(1));
        let mut bench = Self { replica, running: Vec::new() };
        assert_eq!(bench.link(), Some(Epochs::None));
        bench
    }

    /// In a session, after its first epoch, which is applied.
    fn in_session() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.mark(1), [staged(1, false)]);
        assert_eq!(bench.apply(1), [applied(1)]);
        bench
    }

    /// Takes an input and gives what follows from it. Metadata is stored at once; storage I/O is kept; data is not followed.
    fn step(&mut self, input: ReplicaInput) -> Vec<Action> {
        let mut inputs = std::collections::VecDeque::from([input]);
        let mut seen = Vec::new();
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            self.replica.step(input, &mut out);
            for action in out {
                match action {
                    Action::Commit(_) => inputs.push_back(ReplicaInput::Committed { ok: true }),
                    Action::Superblock(_) => inputs.push_back(ReplicaInput::SuperblockStored { ok: true }),
                    Action::Local { op, io } => self.running.push((op, io)),
                    Action::Stage { .. } | Action::Forget { .. } => {}
                    other => seen.push(other),
                }
            }
        }
        seen
    }

    /// A new link; what the replica says of epochs.
    fn link(&mut self) -> Option<Epochs> {
        let seen = self.step(ReplicaInput::LinkUp);
        let replica = self.replica.local.info();
        let hello = Hello { host: THERE, instance: 5, generation: Generation(9), replica, epochs: Epochs::None };
        self.receive(Message::Hello(hello));
        seen.iter().find_map(|action| match action {
            Action::Send(Message::Hello(hello)) => Some(hello.epochs),
            _ => None,
        })
    }

    fn receive(&mut self, message: Message) -> Vec<Action> {
        self.step(ReplicaInput::Received(message))
    }

    fn write(&mut self, op: u64, write: Write) -> Vec<Action> {
        self.receive(Message::Write { op: OpId(op), write })
    }

    fn flush(&mut self, op: u64) -> Vec<Action> {
        self.receive(Message::Flush { op: OpId(op) })
    }

    fn mark(&mut self, epoch: u64) -> Vec<Action> {
        self.receive(Message::EpochEnd { session: SESSION, epoch: Epoch(epoch) })
    }

    fn apply(&mut self, epoch: u64) -> Vec<Action> {
        self.step(ReplicaInput::ApplyEpoch { session: SESSION, epoch: Epoch(epoch) })
    }

    fn copy_begins(&mut self, op: u64) -> Vec<Action> {
        self.receive(Message::CopyBegin { op: OpId(op), kind: CopyKind::Delta, current: Generation(9) })
    }

    /// Ends the oldest operation on the storage.
    fn end(&mut self, ok: bool) -> Vec<Action> {
        let (op, _) = self.running.remove(0);
        self.step(ReplicaInput::LocalDone { op, ok })
    }

    fn under_way(&self) -> Vec<LocalIo> {
        self.running.iter().map(|(_, io)| *io).collect()
    }
}

#[test]
fn an_epoch_is_written_when_it_is_told_to_be_and_flushed_where_the_guest_did() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.flush(2);
    bench.write(3, write(512, 512));
    assert_eq!(bench.mark(2), [staged(2, true)]);
    bench.write(4, write(1024, 512));
    assert_eq!(bench.under_way(), [], "nothing is decided");
    assert_eq!(bench.apply(2), []);
    assert_eq!(bench.under_way(), [LocalIo::Write(write(0, 512))]);
    assert_eq!(bench.end(true), []);
    assert_eq!(bench.under_way(), [LocalIo::Flush]);
    assert_eq!(bench.end(true), [ack(2, Outcome::Done)], "its word for the coordinator's log");
    assert_eq!(bench.under_way(), [LocalIo::Write(write(512, 512))], "not before the flush");
    assert_eq!(bench.end(true), [applied(2)]);
    assert_eq!(bench.mark(3), [staged(3, false)]);
    assert!(bench.under_way().is_empty() && !bench.replica.is_applying());
    assert_eq!(bench.replica.staged_bytes(), 512 + 256, "the third write");
}

#[test]
fn a_durable_write_counts_as_a_flush_and_nothing_passes_it() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.write(2, durable(512));
    bench.write(3, write(1024, 512));
    assert_eq!(bench.mark(2), [staged(2, true)]);
    bench.apply(2);
    assert_eq!(bench.under_way(), [LocalIo::Write(write(0, 512)), LocalIo::Write(durable(512))]);
    bench.end(true);
    assert_eq!(bench.under_way(), [LocalIo::Write(durable(512))]);
    bench.end(true);
    assert_eq!(bench.under_way(), [LocalIo::Write(write(1024, 512))]);
}

#[test]
fn writes_that_overlap_are_written_in_their_order_within_and_between_epochs() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 1024));
    bench.write(2, write(512, 1024));
    bench.mark(2);
    bench.write(3, write(512, 512));
    bench.mark(3);
    bench.apply(3);
    for expected in [write(0, 1024), write(512, 1024), write(512, 512)] {
        assert_eq!(bench.under_way(), [LocalIo::Write(expected)]);
        bench.end(true);
    }
    assert_eq!(bench.under_way(), []);
}

#[test]
fn what_came_directly_is_written_before_anything_of_a_session() {
    let mut bench = Bench::new();
    bench.write(1, write(0, 512));
    assert_eq!(bench.mark(1), [staged(1, false)]);
    bench.write(2, write(0, 512));
    bench.mark(2);
    assert_eq!(bench.apply(2), [], "neither is applied yet");
    assert_eq!(bench.running.len(), 1);
    assert_eq!(bench.end(true), [ack(1, Outcome::Done), applied(1)]);
    assert_eq!(bench.end(true), [applied(2)]);
}

#[test]
fn a_lost_link_leaves_whole_epochs_and_ends_the_one_that_was_coming() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.flush(2);
    bench.mark(2);
    bench.write(3, write(512, 512));
    bench.step(ReplicaInput::LinkDown);
    assert_eq!(bench.replica.staged_bytes(), 512 + 2 * 256);
    bench.apply(3);
    assert_eq!(bench.under_way(), [], "it will never be whole");
    bench.apply(2);
    bench.end(true);
    assert_eq!(bench.end(true), [applied(2)], "the link is gone: nobody is told of the flush");
    assert_eq!(bench.under_way(), []);
}

#[test]
fn on_a_later_link_nothing_is_taken_before_a_copy() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    assert_eq!(bench.link(), Some(Epochs::Held));
    let refused = |op| vec![ack(op, Outcome::NotNow)];
    assert_eq!(bench.write(4, write(0, 512)), refused(4));
    assert_eq!(bench.flush(5), refused(5));
    let extent = Extent { offset: 0, length: 512 };
    assert_eq!(bench.receive(Message::CopyData { op: OpId(6), extent }), refused(6));
    assert_eq!(bench.receive(Message::Read { op: OpId(7), extent }), refused(7));
    let (current, bitmap_base) = (Generation(3), Generation(2));
    assert_eq!(bench.receive(Message::History { op: OpId(8), current, bitmap_base }), refused(8));
    assert_eq!(bench.receive(Message::CopyEnd { op: OpId(9), current }), refused(9));
    assert_eq!(bench.under_way(), []);
    assert_eq!(bench.mark(3), [Action::CloseLink(CloseReason::EpochOutOfOrder)]);
    bench.apply(2);
    assert_eq!(bench.under_way(), [LocalIo::Write(write(0, 512))], "what was staged is still there");
}

#[test]
fn a_new_link_is_greeted_when_what_is_decided_is_written() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    bench.apply(2);
    assert_eq!(bench.link(), None);
    let seen = bench.end(true);
    assert!(seen.contains(&applied(2)), "{seen:?}");
    assert!(seen.iter().any(|action| matches!(action, Action::Send(Message::Hello(_)))), "{seen:?}");
}

#[test]
fn a_copy_ends_the_session_after_what_is_decided_is_written() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    bench.write(2, write(512, 512));
    bench.mark(3);
    bench.link();
    bench.apply(2);
    assert_eq!(bench.copy_begins(9), [LOST]);
    assert_eq!(bench.replica.local.info().health, Health::Good, "it is one state until then");
    assert_eq!(bench.end(true), [applied(2), ack(9, Outcome::Done)]);
    assert_eq!(bench.replica.local.info().health, Health::Copying);
    bench.apply(3);
    assert_eq!(bench.under_way(), []);
    assert_eq!(bench.replica.staged_bytes(), 0);
    bench.write(10, write(0, 512));
    assert_eq!(bench.under_way(), [LocalIo::Write(write(0, 512))], "plain writes again");
    bench.end(true);
    assert_eq!(bench.mark(1), [Action::CloseLink(CloseReason::EpochOutOfOrder)], "not while it is copied");
}

#[test]
fn marks_that_do_not_follow_close_the_link_and_nothing_is_applied_by_them() {
    let closes = [Action::CloseLink(CloseReason::EpochOutOfOrder)];
    for epoch in [0, 1, 2, 4] {
        let mut bench = Bench::in_session();
        bench.write(1, write(0, 512));
        bench.mark(2);
        bench.write(2, write(512, 512));
        assert_eq!(bench.mark(epoch), closes, "{epoch}");
        bench.apply(epoch);
        assert!(bench.running.len() <= 1, "no more than epoch 2");
    }
    let mut bench = Bench::in_session();
    let other = Message::EpochEnd { session: Session(8), epoch: Epoch(2) };
    assert_eq!(bench.receive(other), closes);
    assert_eq!(Bench::new().mark(2), closes, "a session begins with its first epoch");
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    bench.step(ReplicaInput::ApplyEpoch { session: Session(8), epoch: Epoch(2) });
    bench.apply(3);
    assert_eq!(bench.under_way(), [], "another session, and an epoch that is not there");
}

#[test]
fn too_much_is_given_up_and_what_was_decided_is_still_written() {
    let closes = Action::CloseLink(CloseReason::EpochsLost);
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    bench.apply(2);
    let many = STAGED_BYTES_MAX / (1 << 25);
    for number in 0..many - 1 {
        assert_eq!(bench.write(10 + number, write(0, 1 << 25)), []);
    }
    assert_eq!(bench.write(30, write(0, 1 << 25)), [LOST, closes.clone()]);
    assert_eq!(bench.end(true), [applied(2)]);
    assert_eq!(bench.replica.staged_bytes(), 0);
    let mut bench = Bench::in_session();
    for epoch in 0..EPOCHS_MAX {
        assert_eq!(bench.mark(u64::try_from(epoch).expect("few") + 2).len(), 1);
    }
    assert_eq!(bench.mark(u64::try_from(EPOCHS_MAX).expect("few") + 2), [LOST, closes]);
}

#[test]
fn a_failed_storage_loses_the_session() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.write(2, write(512, 512));
    bench.flush(3);
    bench.mark(2);
    bench.apply(2);
    let seen = bench.end(false);
    let closes = Action::CloseLink(CloseReason::EpochsLost);
    assert_eq!(seen, [Action::Trouble(Trouble::LocalFailed), LOST, closes]);
    assert_eq!(bench.end(true), [], "neither flushed nor applied");
    assert_eq!(bench.under_way(), []);
    assert!(bench.replica.is_idle());
}

#[test]
fn the_role_changes_when_what_was_decided_is_written_and_not_more() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    bench.write(2, write(512, 512));
    bench.mark(3);
    bench.apply(2);
    bench.step(ReplicaInput::LinkDown);
    assert!(!bench.replica.is_idle());
    bench.end(true);
    assert!(bench.replica.is_idle());
    assert_eq!(bench.under_way(), []);
}

#[test]
fn what_is_discarded_is_not_written_and_not_added_to() {
    let mut bench = Bench::in_session();
    bench.write(1, write(0, 512));
    bench.mark(2);
    assert_eq!(bench.step(ReplicaInput::DiscardEpochs), [Action::CloseLink(CloseReason::EpochsLost)]);
    bench.apply(2);
    assert_eq!(bench.under_way(), []);
    assert_eq!(bench.link(), Some(Epochs::Held), "it lacks what the record counts on");
    assert_eq!(bench.write(3, write(0, 512)), [ack(3, Outcome::NotNow)]);
    assert_eq!(bench.copy_begins(4), [ack(4, Outcome::Done)], "who discarded it need not be told");
}

#[test]
fn data_is_kept_under_a_number_of_its_own() {
    let mut bench = Bench::in_session();
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut out = Vec::new();
        let message = Message::Write { op: OpId(5), write: write(0, 512) };
        bench.replica.step(ReplicaInput::Received(message), &mut out);
        kept.extend(out.iter().filter_map(|action| match action {
            Action::Stage { op: OpId(5), staged } => Some(*staged),
            _ => None,
        }));
    }
    assert!(kept.len() == 2 && kept[0] != kept[1] && kept.iter().all(|op| op.is_staged()), "{kept:?}");
}

const BLOCKS: usize = 8;

/// What a coordinator may send, and what happens meanwhile.
#[derive(Debug, Clone, Copy)]
enum Event {
    Write {
        first: usize,
        count: usize,
        durable: bool,
    },
    Flush,
    Mark,
    Decide,
    /// One of what is under way ends, counted from the oldest.
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..BLOCKS, 1..4_usize, any::<bool>())
            .prop_map(|(first, count, durable)| Event::Write { first, count: count.min(BLOCKS - first), durable }),
        1 => Just(Event::Flush),
        2 => Just(Event::Mark),
        1 => Just(Event::Decide),
        6 => (0..8_usize).prop_map(Event::End),
    ]
}

/// The storage and what it should hold.
struct Model {
    bench: Bench,
    /// Content of the blocks, by number of the write.
    blocks: [u64; BLOCKS],
    /// What the guest's disk held at the end of each epoch from the first one on.
    epochs: Vec<[u64; BLOCKS]>,
    now: [u64; BLOCKS],
    /// In the stream's order: whether the guest may rely on it and all before being durable.
    stream: Vec<bool>,
    numbers: BTreeMap<OpId, u64>,
    /// Numbers of what has ended on the storage.
    ended: std::collections::BTreeSet<u64>,
}

impl Model {
    fn new() -> Self {
        Self {
            bench: Bench::in_session(),
            blocks: [0; BLOCKS],
            epochs: vec![[0; BLOCKS]],
            now: [0; BLOCKS],
            stream: vec![true],
            numbers: BTreeMap::new(),
            ended: std::collections::BTreeSet::from([0]),
        }
    }

    fn number(&self) -> u64 {
        u64::try_from(self.stream.len()).expect("few")
    }

    fn receive(&mut self, message: Message) {
        let number = self.number();
        let mut out = Vec::new();
        self.bench.replica.step(ReplicaInput::Received(message), &mut out);
        for action in out {
            if let Action::Stage { staged, .. } = action {
                self.numbers.insert(staged, number);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Write { first, count, durable } => {
                let extent = Extent {
                    offset: u64::try_from(first * 512).expect("small"),
                    length: u32::try_from(count * 512).expect("small"),
                };
                let durability = if durable { Durability::BeforeReply } else { Durability::AtFlush };
                let write = Write { extent, kind: WriteKind::Data, durability };
                let number = self.number();
                self.receive(Message::Write { op: OpId(number), write });
                self.now[first..first + count].fill(number);
                self.stream.push(durable);
            }
            Event::Flush => {
                self.receive(Message::Flush { op: OpId(self.number()) });
                self.stream.push(true);
            }
            Event::Mark if self.bench.replica.staging.as_ref().is_some_and(|s| s.undecided() < EPOCHS_MAX) => {
                let epoch = u64::try_from(self.epochs.len()).expect("few") + 1;
                self.bench.mark(epoch);
                self.epochs.push(self.now);
            }
            Event::Decide => {
                let epoch = u64::try_from(self.epochs.len()).expect("few");
                self.decide(epoch);
            }
            Event::End(index) if !self.bench.running.is_empty() => {
                let index = index % self.bench.running.len();
                self.end(index);
            }
            Event::Mark | Event::End(_) => {}
        }
    }

    fn decide(&mut self, epoch: u64) {
        let seen = self.bench.apply(epoch);
        self.check(&seen);
    }

    /// The storage ends one of ours: in whatever order it likes.
    fn end(&mut self, index: usize) {
        let (op, io) = self.bench.running.remove(index);
        match io {
            LocalIo::Write(write) => {
                let number = self.numbers[&op];
                let first = usize::try_from(write.extent.offset / 512).expect("small");
                let count = usize::try_from(write.extent.length / 512).expect("small");
                self.blocks[first..first + count].fill(number);
                self.ended.insert(number);
            }
            LocalIo::Flush => {}
            LocalIo::Read { .. } | LocalIo::Hash { .. } => unreachable!("nobody asked for it"),
        }
        let seen = self.bench.step(ReplicaInput::LocalDone { op, ok: true });
        for action in &seen {
            if let Action::Send(Message::Ack { op: OpId(flush), .. }) = action {
                self.ended.insert(*flush);
            }
        }
        self.check(&seen);
    }

    fn check(&mut self, seen: &[Action]) {
        // Nothing is begun before a flush or durable write that came before it has ended.
        for (op, _) in &self.bench.running {
            let Some(number) = self.numbers.get(op) else { continue };
            for before in 0..*number {
                let barrier = self.stream[usize::try_from(before).expect("small")];
                assert!(!barrier || self.ended.contains(&before), "{number} has passed {before}");
            }
        }
        for action in seen {
            if let Action::EpochApplied { epoch, .. } = action {
                let index = usize::try_from(epoch.0).expect("few") - 1;
                assert_eq!(self.blocks, self.epochs[index], "after {epoch}");
            }
        }
    }
}

proptest! {
    /// At the end of each epoch the storage holds what the guest's disk held then, whatever the storage does with what is under way.
    #[test]
    fn an_epoch_that_is_applied_is_what_the_guest_had(events in prop::collection::vec(event(), 1..200)) {
        let mut model = Model::new();
        for event in events {
            model.happen(event);
        }
        let newest = u64::try_from(model.epochs.len()).expect("few");
        model.decide(newest);
        while !model.bench.running.is_empty() {
            model.end(model.bench.running.len() - 1);
        }
        prop_assert!(!model.bench.replica.is_applying());
        prop_assert_eq!(Some(&model.blocks), model.epochs.last());
    }
}
