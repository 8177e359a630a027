//! Both ends of a memory stream over loopback: what is sent arrives, and what is not whole is not applied.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use ev_core::checkpoint::{Epoch, Session};
use ev_vm::ram::{PAGE_BYTES, PageBytes, PageNumber};
use ev_wire::frame::{Frame, FrameKind};
use proptest::prelude::*;
use tokio::sync::mpsc;

use crate::packing::Packing;
use crate::ship::{Sender, ShipCounters};
use crate::wire::{self, End};
use crate::{Applier, Image, ImageMemory, MemoryStream, Receiver, StagedNotice};

const SESSION: Session = Session(0x1234_5678_9abc_def0);
const PAGES: u32 = 64;

/// Memory of a guest that is none.
#[derive(Debug, Clone)]
struct Pages(Arc<Mutex<Vec<PageBytes>>>);

impl Pages {
    /// Full of rubbish.
    fn new() -> Self {
        let pages = usize::try_from(PAGES).unwrap();
        Self(Arc::new(Mutex::new(vec![[0xee; PAGE_BYTES]; pages])))
    }

    fn content(&self) -> Vec<PageBytes> {
        self.0.lock().unwrap().clone()
    }
}

impl ImageMemory for Pages {
    fn blocks(&self) -> Vec<(String, u32)> {
        vec![("ram".to_owned(), PAGES - 4), ("vga".to_owned(), 4)]
    }

    fn read(&self, page: PageNumber, into: &mut PageBytes) -> io::Result<()> {
        let index = usize::try_from(page.0).unwrap();
        *into = *self.0.lock().unwrap().get(index).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    fn write(&self, page: PageNumber, bytes: &PageBytes) -> io::Result<()> {
        let index = usize::try_from(page.0).unwrap();
        *self.0.lock().unwrap().get_mut(index).ok_or(io::ErrorKind::InvalidInput)? = *bytes;
        Ok(())
    }

    fn next_data(&self, page: PageNumber, end: PageNumber) -> io::Result<Option<PageNumber>> {
        let pages = self.0.lock().unwrap();
        let all_zero =
            |number: &u32| pages.get(usize::try_from(*number).unwrap()).is_some_and(|page| *page == [0; PAGE_BYTES]);
        Ok((page.0..end.0).find(|number| !all_zero(number)).map(PageNumber))
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// A standby that applies each epoch as soon as it is there.
struct Standby {
    memory: Pages,
    image: Arc<Mutex<Image>>,
    notices: mpsc::Receiver<StagedNotice>,
    applier: Applier,
    _receiver: Receiver,
}

impl Standby {
    fn reading(stream: TcpStream) -> Self {
        let memory = Pages::new();
        let image = Arc::new(Mutex::new(Image::new(memory.clone()).unwrap()));
        let (sender, notices) = mpsc::channel(1000);
        let receiver = Receiver::start(MemoryStream::plain(stream).unwrap(), sender.clone()).unwrap();
        receiver.open(SESSION, Arc::clone(&image));
        let applier = Applier::start(SESSION, Arc::clone(&image), sender).unwrap();
        Self { memory, image, notices, applier, _receiver: receiver }
    }

    /// Applies what comes until the stream ends: the newest epoch that was applied, and why it ended.
    fn until_the_end(&mut self) -> (Epoch, String) {
        let (mut staged_last, mut applied) = (Epoch::NONE, Epoch::NONE);
        let mut end = None;
        while end.is_none() || applied < staged_last {
            match self.notices.blocking_recv().unwrap() {
                StagedNotice::Staged { session, epoch, staged } => {
                    assert_eq!((session, epoch), (SESSION, staged_last.next()));
                    staged_last = epoch;
                    self.applier.apply(epoch, staged).unwrap();
                }
                StagedNotice::Applied { epoch, .. } => applied = epoch,
                StagedNotice::Failed { why, .. } => panic!("{why}"),
                StagedNotice::Ended { why } => end = Some(why),
            }
        }
        (applied, end.unwrap())
    }

    fn state(&self) -> Vec<u8> {
        self.image.lock().unwrap().state().to_vec()
    }
}

/// What a guest wrote in an epoch, and its device state at the end of it.
#[derive(Debug, Clone)]
struct Written {
    pages: BTreeMap<u32, (u8, usize, Pattern)>,
    state: Vec<u8>,
}

/// How a page is written from some place on: content that packs well, badly, or as a difference.
#[derive(Debug, Clone, Copy)]
enum Pattern {
    Same,
    Noise,
    Scattered,
}

fn written() -> impl Strategy<Value = Written> {
    let pattern = prop_oneof![Just(Pattern::Same), Just(Pattern::Noise), Just(Pattern::Scattered)];
    let pages = proptest::collection::btree_map(0..PAGES, (any::<u8>(), 0..PAGE_BYTES, pattern), 0..20);
    let state = proptest::collection::vec(any::<u8>(), 1..10_000);
    (pages, state).prop_map(|(pages, state)| Written { pages, state })
}

/// A page is filled from some place on: sometimes a little changes, sometimes all.
fn write(memory: &mut [PageBytes], written: &Written) {
    for (number, (byte, from, pattern)) in &written.pages {
        let written = &mut memory[usize::try_from(*number).unwrap()][*from..];
        match pattern {
            Pattern::Same => written.fill(*byte),
            Pattern::Scattered => written.iter_mut().step_by(19).for_each(|at| *at = at.wrapping_add(*byte)),
            Pattern::Noise => {
                let mut noise = u32::from(*byte);
                for at in written {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *at = noise.to_be_bytes()[0];
                }
            }
        }
    }
}

/// Memory and device state at the end of an epoch.
type Content = (Vec<PageBytes>, Vec<u8>);

/// The bytes that the sender sends for these epochs, and memory and state after each.
fn sent(epochs: &[Written], packing: Packing) -> (Vec<u8>, Vec<Content>) {
    let (one, mut other) = connection();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        other.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let (stream, cut) = MemoryStream::plain(one).unwrap();
    let mut sender = Sender::new(SESSION, PAGES, stream, packing, Arc::new(ShipCounters::default()));
    let mut memory = vec![[0; PAGE_BYTES]; usize::try_from(PAGES).unwrap()];
    let mut after = vec![(memory.clone(), Vec::new())];
    for epoch in epochs {
        write(&mut memory, epoch);
        let numbers = epoch.pages.keys().copied();
        sender.pages_of(numbers.map(|number| (number, &memory[usize::try_from(number).unwrap()]))).unwrap();
        sender.end(&epoch.state).unwrap();
        after.push((memory.clone(), epoch.state.clone()));
    }
    drop(cut);
    (reader.join().unwrap(), after)
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![Just(Packing::Always), Just(Packing::Always), Just(Packing::Never), Just(Packing::Measured)]
}

fn receive(bytes: &[u8]) -> (Standby, Epoch, String) {
    let (mut one, other) = connection();
    let mut standby = Standby::reading(other);
    // The standby hangs up on rubbish.
    let _ = one.write_all(bytes);
    let _ = one.shutdown(Shutdown::Both);
    let (applied, why) = standby.until_the_end();
    (standby, applied, why)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_and_state_arrive_epoch_by_epoch_whatever_was_written(
        epochs in proptest::collection::vec(written(), 1..6),
        packing in packing(),
    ) {
        let (bytes, after) = sent(&epochs, packing);
        let (standby, applied, _) = receive(&bytes);
        prop_assert_eq!(applied.0, u64::try_from(epochs.len()).unwrap());
        let (memory, state) = after.last().unwrap();
        prop_assert!(standby.memory.content() == *memory);
        prop_assert_eq!(&standby.state(), state);
    }

    #[test]
    fn of_a_stream_that_is_cut_or_damaged_whole_epochs_are_applied_and_nothing_else(
        epochs in proptest::collection::vec(written(), 2..5),
        at in any::<prop::sample::Index>(),
        damage in prop_oneof![Just(Damage::Cut), Just(Damage::Flip), Just(Damage::Insert)],
        packing in packing(),
    ) {
        let (mut bytes, after) = sent(&epochs, packing);
        let at = at.index(bytes.len());
        match damage {
            Damage::Cut => bytes.truncate(at),
            Damage::Flip => bytes[at] ^= 0x10,
            Damage::Insert => bytes.insert(at, 0),
        }
        let (standby, applied, _) = receive(&bytes);
        prop_assert!(applied.0 < u64::try_from(epochs.len()).unwrap());
        // The first epoch is applied as it comes: before its end there is nothing to go on from.
        if applied != Epoch::NONE {
            let (memory, state) = &after[usize::try_from(applied.0).unwrap()];
            prop_assert!(standby.memory.content() == *memory);
            prop_assert_eq!(&standby.state(), state);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Cut,
    Flip,
    Insert,
}

fn one_page(epoch: u8) -> Written {
    Written { pages: BTreeMap::from([(u32::from(epoch), (epoch, 0, Pattern::Same))]), state: vec![epoch; 100] }
}

/// Cuts the sent bytes into epochs.
fn epochs_apart(count: u8) -> Vec<Vec<u8>> {
    let all: Vec<Written> = (1..=count).map(one_page).collect();
    let lengths: Vec<usize> = (0..=all.len()).map(|count| sent(&all[..count], Packing::Always).0.len()).collect();
    let (bytes, _) = sent(&all, Packing::Always);
    lengths.windows(2).map(|ends| bytes[ends[0]..ends[1]].to_vec()).collect()
}

#[test]
fn repeated_and_reordered_epochs_end_the_stream() {
    let apart = epochs_apart(3);
    for (order, applied) in [([0, 0, 1], 1), ([0, 2, 1], 1), ([1, 0, 2], 0), ([0, 1, 1], 2)] {
        let bytes: Vec<u8> = order.iter().flat_map(|index| apart[*index].clone()).collect();
        let (_, last, why) = receive(&bytes);
        assert_eq!(last, Epoch(applied), "{order:?}");
        assert!(why.contains("was due"), "{why}");
    }
}

#[test]
fn a_session_that_was_not_begun_is_not_taken() {
    let (mut one, other) = connection();
    let (sender, mut notices) = mpsc::channel(10);
    let _receiver = Receiver::start(MemoryStream::plain(other).unwrap(), sender).unwrap();
    one.write_all(&sent(&[one_page(1)], Packing::Always).0).unwrap();
    let StagedNotice::Ended { why } = notices.blocking_recv().unwrap() else { panic!("something was taken") };
    assert!(why.contains("not begun here"), "{why}");
}

/// An epoch after the first, as a peer would send it that means harm: sound in all but its entries.
fn epoch_of(kind: FrameKind, entries: &[u8]) -> Vec<u8> {
    let epoch = Epoch(2);
    let (mut bytes, mut body) = (Vec::new(), Vec::new());
    wire::begin_body(&mut body, SESSION, epoch);
    body.extend(entries);
    wire::write(&mut bytes, kind, &body).unwrap();
    let end = End { session: SESSION, epoch, state_bytes: 100, hash: *blake3::hash(&body).as_bytes() };
    wire::write(&mut bytes, wire::END, &Frame::of(wire::END, &end).unwrap().body).unwrap();
    bytes
}

#[test]
fn an_epoch_whose_entries_are_not_sound_is_not_applied_at_all() {
    let (first, after) = sent(&[one_page(1)], Packing::Always);
    let sound = |number: u32| [&number.to_be_bytes()[..], &[1], &[7; PAGE_BYTES]].concat();
    let packed = |form: u8, length: usize| {
        let block = lz4_flex::block::compress(&vec![3; length]);
        let bytes = u16::try_from(block.len()).unwrap();
        [&[0, 0, 0, 2, form][..], &bytes.to_be_bytes(), &block].concat()
    };
    let bad = [
        packed(3, PAGE_BYTES - 1),
        packed(3, PAGE_BYTES + 1),
        packed(4, PAGE_BYTES * 15),
        packed(4, 0),
        vec![0, 0, 0, 2, 3, 0xff, 0xff, 1, 2, 3],
        vec![0, 0, 0, 2, 9],
        sound(PAGES),
    ];
    for bad in bad {
        let bytes = [&first[..], &epoch_of(wire::PAGES, &[sound(1), bad.clone()].concat())].concat();
        let (standby, applied, why) = receive(&bytes);
        assert_eq!(applied, Epoch::FIRST, "{bad:?}");
        assert!(standby.memory.content() == after[1].0, "of an epoch that ends in {bad:?} something was applied");
        assert!(why.contains("can't be understood"), "{why}");
    }
    let state = epoch_of(wire::STATE, &sound(u32::MAX / 2));
    assert_eq!(receive(&[&first[..], &state].concat()).1, Epoch::FIRST);
    let all_sound = epoch_of(wire::PAGES, &[sound(1), packed(3, PAGE_BYTES), packed(4, PAGE_BYTES)].concat());
    let (standby, applied, _) = receive(&[&first[..], &all_sound].concat());
    assert_eq!(applied, Epoch(2));
    assert_eq!(standby.memory.content()[2], [0; PAGE_BYTES], "three, and XORed with three");
}
