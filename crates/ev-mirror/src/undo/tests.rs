//! Keeping and having back: undo files whole, torn and foreign, and reflinks where there are some.

use std::os::unix::fs::FileExt;

use ev_core::ids::{DiskId, Generation};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SIZE_BYTES: u64 = 1_000_448;

fn identity() -> UndoIdentity {
    UndoIdentity { disk: DiskId(Uuid::from_u128(7)), size_bytes: SIZE_BYTES, current: Generation(3) }
}

struct Fixture {
    _folder: tempfile::TempDir,
    replica: PathBuf,
    paths: UndoPaths,
    old: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let replica = folder.path().join("disk-0.raw");
        let length = usize::try_from(SIZE_BYTES).unwrap();
        // The second half is zero, so that both kinds of records occur.
        let old: Vec<u8> =
            (0..length).map(|at| if at < length / 2 { u8::try_from(at % 255).unwrap() } else { 0 }).collect();
        std::fs::write(&replica, &old).unwrap();
        let paths = UndoPaths::beside(&folder.path().join("disk-0"));
        Self { _folder: folder, replica, paths, old }
    }

    fn replica(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.replica).unwrap()
    }

    /// The file method whatever the file system can do.
    fn begin(&self) -> Undo {
        let file = UndoFile::open_or_create(&self.paths.file, identity()).unwrap();
        Undo::File { paths: self.paths.clone(), file }
    }

    fn restored(&self) -> Vec<u8> {
        restore(&self.replica, &self.paths, identity()).unwrap();
        std::fs::read(&self.replica).unwrap()
    }
}

fn extent(offset: u64, length: u32) -> Extent {
    Extent { offset, length }
}

#[test]
fn what_was_saved_comes_back_and_is_saved_once() {
    let fixture = Fixture::new();
    let replica = fixture.replica();
    let mut undo = fixture.begin();
    assert_eq!(undo.method(), UndoMethod::File);
    let touched = [extent(100, 10), extent(65_000, 70_000), extent(SIZE_BYTES - 512, 512), extent(600_000, 1)];
    assert!(touched.iter().all(|&extent| !undo.is_saved(extent)));
    undo.save(&replica, &touched).unwrap();
    assert!(touched.iter().all(|&extent| undo.is_saved(extent)));
    assert!(!undo.is_saved(extent(300_000, 1)));
    let length = std::fs::metadata(&fixture.paths.file).unwrap().len();
    for extent in touched {
        replica.write_all_at(&vec![0xee; usize::try_from(extent.length).unwrap()], extent.offset).unwrap();
    }
    undo.save(&replica, &touched).unwrap();
    assert_eq!(std::fs::metadata(&fixture.paths.file).unwrap().len(), length, "the new data is not saved over the old");
    assert!(fixture.restored() == fixture.old);
    assert!(fixture.restored() == fixture.old, "again, as after a crash");
    undo.finish().unwrap();
    assert!(!fixture.paths.file.exists());
}

#[test]
fn an_interrupted_copy_goes_on_with_the_first_state() {
    let fixture = Fixture::new();
    let replica = fixture.replica();
    let mut undo = fixture.begin();
    undo.save(&replica, &[extent(0, 65_536)]).unwrap();
    replica.write_all_at(&[1; 65_536], 0).unwrap();
    drop(undo);
    let mut undo = fixture.begin();
    assert!(undo.is_saved(extent(0, 65_536)));
    undo.save(&replica, &[extent(0, 131_072)]).unwrap();
    replica.write_all_at(&[2; 131_072], 0).unwrap();
    assert!(fixture.restored() == fixture.old);
}

#[test]
fn a_torn_tail_is_cut_off_and_what_precedes_it_counts() {
    let fixture = Fixture::new();
    let replica = fixture.replica();
    fixture.begin().save(&replica, &[extent(0, 1), extent(65_536, 1)]).unwrap();
    let whole = std::fs::read(&fixture.paths.file).unwrap();
    let second = 4096 + 32 + 65_536;
    for end in [4096, 4100, 4128, 5000, second, second + 31, second + 100, whole.len() - 1] {
        std::fs::write(&fixture.paths.file, &whole[..end]).unwrap();
        let undo = fixture.begin();
        assert_eq!(undo.is_saved(extent(0, 1)), end >= second, "cut at {end}");
        assert!(!undo.is_saved(extent(65_536, 1)));
        let expected = if end >= second { second } else { 4096 };
        assert_eq!(std::fs::read(&fixture.paths.file).unwrap().len(), expected);
    }
}

#[test]
fn foreign_newer_and_garbage_files_are_refused_and_nothing_is_restored() {
    let fixture = Fixture::new();
    let error = restore(&fixture.replica, &fixture.paths, identity()).unwrap_err();
    assert!(matches!(error, UndoError::NothingKept { .. }));
    drop(fixture.begin());
    let whole = std::fs::read(&fixture.paths.file).unwrap();
    let others = [
        UndoIdentity { disk: DiskId(Uuid::from_u128(8)), ..identity() },
        UndoIdentity { size_bytes: SIZE_BYTES + 512, ..identity() },
        UndoIdentity { current: Generation(4), ..identity() },
    ];
    for other in others {
        assert!(matches!(restore(&fixture.replica, &fixture.paths, other), Err(UndoError::Other { .. })));
        assert!(matches!(UndoFile::open_or_create(&fixture.paths.file, other), Err(UndoError::Other { .. })));
    }
    for garbage in [Vec::new(), vec![1; 100], vec![1; 9000]] {
        std::fs::write(&fixture.paths.file, &garbage).unwrap();
        assert!(matches!(restore(&fixture.replica, &fixture.paths, identity()), Err(UndoError::Other { .. })));
    }
    let mut newer = whole;
    newer[8] = 2;
    let checksum = crc32c::crc32c(&newer[..48]);
    newer[48..52].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&fixture.paths.file, newer).unwrap();
    let error = restore(&fixture.replica, &fixture.paths, identity()).unwrap_err();
    assert!(matches!(error, UndoError::NewerVersion { version: 2, .. }));
    assert!(std::fs::read(&fixture.replica).unwrap() == fixture.old);
}

#[test]
fn begin_takes_a_reflink_where_there_is_one_and_both_ways_restore() {
    let fixture = Fixture::new();
    let replica = fixture.replica();
    let mut undo = Undo::begin(&fixture.replica, fixture.paths.clone(), identity()).unwrap();
    match undo.method() {
        UndoMethod::Reflink => assert!(fixture.paths.reflink.exists() && !fixture.paths.file.exists()),
        UndoMethod::File => assert!(!fixture.paths.reflink.exists() && fixture.paths.file.exists()),
    }
    if !undo.is_saved(extent(4096, 4096)) {
        undo.save(&replica, &[extent(4096, 4096)]).unwrap();
    }
    replica.write_all_at(&[5; 4096], 4096).unwrap();
    drop(undo);
    let again = Undo::begin(&fixture.replica, fixture.paths.clone(), identity()).unwrap();
    assert!(again.is_saved(extent(4096, 4096)));
    assert!(fixture.restored() == fixture.old);
    discard(&fixture.paths).unwrap();
    assert_eq!(std::fs::read_dir(fixture.replica.parent().unwrap()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_writes_can_be_undone(
        writes in prop::collection::vec((0..SIZE_BYTES - 70_000, 1_u32..70_000, any::<u8>()), 1..12), reopen in 0_usize..12,
    ) {
        let fixture = Fixture::new();
        let replica = fixture.replica();
        let mut undo = fixture.begin();
        for (at, (offset, length, byte)) in writes.into_iter().enumerate() {
            if at == reopen {
                undo = fixture.begin();
            }
            undo.save(&replica, &[extent(offset, length)]).unwrap();
            replica.write_all_at(&vec![byte; usize::try_from(length).unwrap()], offset).unwrap();
        }
        prop_assert!(fixture.restored() == fixture.old);
    }
}
