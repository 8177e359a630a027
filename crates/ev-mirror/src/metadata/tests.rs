//! The metadata file: saved bytes, damage of each kind, and what is refused.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ev_core::ids::{DiskId, Generation, HostId, MemberId, PoolId, VmId};
use ev_core::mirror::{History, MapWord, ReplicaInfo};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SIZE_BYTES: u64 = 40 << 30;

type Who = (PoolId, VmId, DiskId, HostId);

fn who() -> Who {
    (PoolId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2)), DiskId(Uuid::from_u128(3 << 96)), MemberId(4))
}

fn info(health: Health, current: u64) -> ReplicaInfo {
    ReplicaInfo { health, history: History { current: Generation(current), bitmap_base: Generation(6) } }
}

fn superblock() -> Superblock {
    let (pool, vm, disk, host) = who();
    Superblock {
        sequence: 0,
        pool,
        vm,
        disk,
        host,
        size_bytes: SIZE_BYTES,
        region_bytes: REGION_BYTES_DEFAULT,
        info: info(Health::Good, 5),
        kept: None,
    }
}

struct Fixture {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk-0.meta");
        Self { _folder: folder, path }
    }

    fn created() -> Self {
        let fixture = Self::new();
        MetadataFile::create(&fixture.path, superblock()).unwrap();
        fixture
    }

    fn open(&self) -> Result<(MetadataFile, Slots), OpenError> {
        MetadataFile::open(&self.path, who(), SIZE_BYTES)
    }

    fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

fn fixture_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metadata/version-1.meta")
}

#[test]
fn version_1_is_what_it_was() {
    let small = Superblock {
        size_bytes: 100 << 20,
        info: info(Health::Copying, 5),
        kept: Some(KeptState { method: UndoMethod::File, current: Generation(3), kept_at_unix_s: 1_790_000_000 }),
        ..superblock()
    };
    let fixture = Fixture::new();
    let file = MetadataFile::create(&fixture.path, small).unwrap();
    file.store_map(RegionMap::WriteIntent, 8, &[0x8000_0000_0000_0001, 5]).unwrap();
    file.store_map(RegionMap::OutOfSync, 9, &[2, 0]).unwrap();
    if std::env::var_os("EVENKEEL_SAVE_BYTES").is_some() {
        std::fs::write(fixture_path(), fixture.bytes()).unwrap();
    }
    let saved = std::fs::read(fixture_path()).unwrap();
    assert!(fixture.bytes() == saved, "written as it was");
    drop(file);
    std::fs::write(&fixture.path, saved).unwrap();
    let (file, slots) = MetadataFile::open(&fixture.path, who(), 100 << 20).unwrap();
    assert_eq!((file.superblock(), slots), (&Superblock { sequence: 1, ..small }, Slots::Equal));
    let maps = file.load_maps();
    let expected =
        LoadedMaps { write_intent: vec![0x8000_0000_0000_0001, 5], out_of_sync: vec![2, 0], damaged_pages: 0 };
    assert_eq!(maps, expected);
}

#[test]
fn create_open_update_open() {
    let fixture = Fixture::created();
    let (mut file, slots) = fixture.open().unwrap();
    assert_eq!(slots, Slots::Equal);
    let changed = Superblock { info: info(Health::Copying, 9), ..*file.superblock() };
    file.update(changed).unwrap();
    assert_eq!(file.superblock().sequence, 2);
    drop(file);
    let (file, slots) = fixture.open().unwrap();
    assert_eq!((file.superblock().info, slots), (info(Health::Copying, 9), Slots::Equal));
}

#[test]
fn a_file_in_use_and_an_existing_one_are_refused() {
    let fixture = Fixture::created();
    let before = fixture.bytes();
    assert!(matches!(MetadataFile::create(&fixture.path, superblock()), Err(CreateError::Exists { .. })));
    assert_eq!(fixture.bytes(), before);
    assert_eq!(std::fs::read_dir(fixture.path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    let _open = fixture.open().unwrap();
    assert!(matches!(fixture.open(), Err(OpenError::InUse { .. })));
}

#[test]
fn impossible_sizes_are_refused() {
    for (size_bytes, region_bytes) in
        [(0, 1 << 20), (1 << 30, 0), (1 << 30, 3), (u64::MAX, 1 << 20), (1 << 48, 1 << 20)]
    {
        let result =
            MetadataFile::create(Path::new("/nowhere"), Superblock { size_bytes, region_bytes, ..superblock() });
        assert!(matches!(result, Err(CreateError::BadSize { .. })), "{size_bytes} {region_bytes}");
    }
    let result = MetadataFile::create(Path::new("/nonexistent/disk-0.meta"), superblock());
    assert!(matches!(result, Err(CreateError::Io { .. })));
}

#[test]
fn one_damaged_slot_is_survived_and_written_anew() {
    for slot in [0_u64, 1] {
        let fixture = Fixture::created();
        fixture.overwrite(slot * 4096 + 20, b"damage");
        let (file, slots) = fixture.open().unwrap();
        assert_eq!(slots, Slots::OneDamaged(SuperblockError::Checksum));
        assert_eq!(file.superblock().info, info(Health::Good, 5));
        drop(file);
        assert_eq!(fixture.open().unwrap().1, Slots::Equal);
    }
}

#[test]
fn a_damaged_slot_never_brings_back_an_older_state() {
    for slot in [0_u64, 1] {
        let fixture = Fixture::created();
        let (mut file, _) = fixture.open().unwrap();
        let copying = Superblock { info: info(Health::Copying, 5), ..*file.superblock() };
        file.update(copying).unwrap();
        drop(file);
        fixture.overwrite(slot * 4096, &[0; 4096]);
        assert_eq!(fixture.open().unwrap().0.superblock().info.health, Health::Copying);
    }
}

#[test]
fn a_crash_between_the_two_writes_of_an_update_leaves_the_newer_one() {
    let fixture = Fixture::created();
    let mut page = Page::ZERO;
    Superblock { sequence: 2, info: info(Health::Good, 8), ..superblock() }.encode(&mut page);
    fixture.overwrite(0, &page.0);
    let (file, slots) = fixture.open().unwrap();
    assert_eq!((file.superblock().info, slots), (info(Health::Good, 8), Slots::OneOlder));
    drop(file);
    let (file, slots) = fixture.open().unwrap();
    assert_eq!((file.superblock().info, slots), (info(Health::Good, 8), Slots::Equal));
}

#[test]
fn garbage_other_disks_newer_versions_and_cut_files_are_refused_unchanged() {
    let refused = |prepare: &dyn Fn(&Fixture), who: Who, size_bytes, expected: &str| {
        let fixture = Fixture::created();
        prepare(&fixture);
        let before = fixture.bytes();
        let message = MetadataFile::open(&fixture.path, who, size_bytes).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("; "), "says what to do: {message}");
        assert_eq!(fixture.bytes(), before);
    };
    let (pool, vm, disk, host) = who();
    let other = Uuid::from_u128(77);
    let nothing = |_: &Fixture| {};
    refused(&nothing, (PoolId(other), vm, disk, host), SIZE_BYTES, "belongs to pool");
    refused(&nothing, (pool, VmId(other), disk, host), SIZE_BYTES, "belongs to VM");
    refused(&nothing, (pool, vm, DiskId(other), host), SIZE_BYTES, "belongs to disk");
    refused(&nothing, (pool, vm, disk, MemberId(9)), SIZE_BYTES, "belongs to host");
    refused(&nothing, who(), SIZE_BYTES + 512, "belongs to a disk of size");
    refused(&|fixture| fixture.overwrite(0, &[0x5a; 16384]), who(), SIZE_BYTES, "is no disk metadata");
    refused(&|fixture| std::fs::write(&fixture.path, b"").unwrap(), who(), SIZE_BYTES, "is no disk metadata");
    let cut = |length| move |fixture: &Fixture| std::fs::write(&fixture.path, &fixture.bytes()[..length]).unwrap();
    refused(&cut(5000), who(), SIZE_BYTES, "has 5000 bytes and should have 24576");
    refused(&cut(100), who(), SIZE_BYTES, "is no disk metadata");
    let newer = |fixture: &Fixture| {
        let mut page = Page::ZERO;
        superblock().encode(&mut page);
        page.0[8] = 2;
        page.seal();
        fixture.overwrite(4096, &page.0);
    };
    refused(&newer, who(), SIZE_BYTES, "has format version 2, which is newer than this program");
}

#[test]
fn bad_map_pages_count_as_all_set() {
    let fixture = Fixture::created();
    let layout = superblock().layout().unwrap();
    assert_eq!((layout.regions(), layout.words(), layout.pages_per_map()), (40960, 640, 2));
    let words: Vec<u64> = (0..640).collect();
    {
        let (file, _) = fixture.open().unwrap();
        file.store_map(RegionMap::WriteIntent, 1, &words).unwrap();
        file.store_map(RegionMap::OutOfSync, 1, &words).unwrap();
    }
    // A torn page, and a whole page at a wrong place.
    fixture.overwrite(layout.map_page_offset(RegionMap::WriteIntent, 1) + 512, &[0xff; 512]);
    let elsewhere = usize::try_from(layout.map_page_offset(RegionMap::OutOfSync, 1)).unwrap();
    let page = fixture.bytes()[elsewhere..elsewhere + 4096].to_vec();
    fixture.overwrite(layout.map_page_offset(RegionMap::OutOfSync, 0), &page);
    let maps = fixture.open().unwrap().0.load_maps();
    assert_eq!(maps.damaged_pages, 2);
    assert_eq!(maps.write_intent[..508], words[..508]);
    assert!(maps.write_intent[508..].iter().all(|&word| word == u64::MAX));
    assert!(maps.out_of_sync[..508].iter().all(|&word| word == u64::MAX));
    assert_eq!(maps.out_of_sync[508..], words[508..]);
}

#[test]
fn a_commit_writes_each_changed_page_once() {
    let fixture = Fixture::created();
    let layout = superblock().layout().unwrap();
    let word = |map, word, bits| MapWord { map, word, bits };
    let words = [
        word(RegionMap::WriteIntent, 3, 7),
        word(RegionMap::WriteIntent, 507, 9),
        word(RegionMap::WriteIntent, 508, 8),
        word(RegionMap::OutOfSync, 639, 1),
    ];
    {
        let (file, _) = fixture.open().unwrap();
        let mut store = MapStore::new(who().2, layout, file.load_maps());
        let pages = store.commit(&words);
        let offsets: Vec<_> = pages.iter().map(|page| page.offset).collect();
        assert_eq!(offsets, [2 * 4096, 3 * 4096, 5 * 4096]);
        pages.iter().for_each(|write| file.file().write_all_at(&write.page.0, write.offset).unwrap());
    }
    let maps = fixture.open().unwrap().0.load_maps();
    assert_eq!(maps.damaged_pages, 0);
    for MapWord { map, word, bits } in words {
        let found = if map == RegionMap::WriteIntent { &maps.write_intent } else { &maps.out_of_sync };
        assert_eq!(found[word], bits);
    }
    assert_eq!(maps.write_intent.iter().filter(|&&word| word != 0).count(), 3);
}

#[test]
fn bits_after_the_last_region_are_never_set() {
    let layout = Layout::new((3 << 20) + 512, 1 << 20).unwrap();
    assert_eq!(layout.regions(), 4);
    let mut words = [u64::MAX];
    layout.trim(&mut words);
    assert_eq!(words, [0b1111]);
    assert_eq!(layout.page_of_region(3), 0);
    assert_eq!(layout.file_bytes(), 4 * 4096);
}

proptest! {
    #[test]
    fn random_pages_are_no_superblock_and_no_map(bytes in prop::collection::vec(any::<u8>(), 4096), sealed: bool) {
        let mut page = Page(bytes.try_into().unwrap());
        if sealed {
            page.seal();
        }
        prop_assert!(Superblock::decode(&page).is_err());
        let here = MapPage { disk: who().2, map: RegionMap::OutOfSync, index: 0 };
        prop_assert!(here.decode(&page, &mut [0; 508]).is_err());
    }

    #[test]
    fn sealed_superblocks_with_changed_bytes_never_panic(at in 8_usize..128, byte: u8) {
        let mut page = Page::ZERO;
        superblock().encode(&mut page);
        page.0[at] = byte;
        page.seal();
        let _ = Superblock::decode(&page);
    }

    #[test]
    fn a_flipped_bit_is_found(bit in 0_usize..4096 * 8) {
        let mut page = Page::ZERO;
        superblock().encode(&mut page);
        page.0[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Superblock::decode(&page).is_err());
    }
}
