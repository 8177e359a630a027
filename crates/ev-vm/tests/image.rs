//! Images as users bring them, good and bad, with the real `qemu-img`.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use ev_vm::image::{Format, ImageError, ImageInfo, Refusal, import_to_raw, inspect};

const DISK_BYTES: u64 = 4 << 20;

struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A disk with a pattern in its second MiB, and zeroes around it.
    fn raw(&self) -> (PathBuf, Vec<u8>) {
        let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
        for (index, byte) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
            *byte = u8::try_from(index * 7 % 251).unwrap();
        }
        let path = self.path("disk.raw");
        fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    fn qemu_img(&self, arguments: &str) {
        let status = Command::new("qemu-img").args(arguments.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }

    fn empty(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

async fn import(path: &Path, info: &ImageInfo, destination: &Path) -> Result<Vec<u16>, ImageError> {
    let mut seen = Vec::new();
    import_to_raw(path, info, destination, |per_mille| seen.push(per_mille)).await.map(|()| seen)
}

fn refusal(result: Result<impl std::fmt::Debug, ImageError>) -> Refusal {
    match result.expect_err("it is refused") {
        ImageError::Refused { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn raw_and_qcow2_are_copied_sparsely_and_exactly() {
    let images = Images::new();
    let (raw, bytes) = images.raw();
    images.qemu_img("convert -O qcow2 disk.raw new.qcow2");
    images.qemu_img("convert -O qcow2 -c disk.raw small.qcow2");
    images.qemu_img("convert -O qcow2 -o compat=0.10 disk.raw old.qcow2");
    images.qemu_img("snapshot -c before new.qcow2");
    fs::copy(&raw, images.path("a:strange,name=1.raw")).unwrap();
    for (name, format) in [
        ("disk.raw", Format::Raw),
        ("new.qcow2", Format::Qcow2),
        ("small.qcow2", Format::Qcow2),
        ("old.qcow2", Format::Qcow2),
        ("a:strange,name=1.raw", Format::Raw),
    ] {
        let path = images.path(name);
        let info = inspect(&path, None).await.unwrap();
        assert_eq!((info.format, info.virtual_bytes), (format, DISK_BYTES), "{name}");
        // Into a larger disk, too.
        let destination = images.empty("copy.raw", DISK_BYTES * 2);
        let progress = import(&path, &info, &destination).await.unwrap();
        assert_eq!(progress.last(), Some(&1000));
        let copy = fs::read(&destination).unwrap();
        assert!(copy[..bytes.len()] == bytes[..] && copy[bytes.len()..].iter().all(|byte| *byte == 0), "{name}");
        let copied = inspect(&destination, Some(Format::Raw)).await.unwrap();
        assert!(copied.allocated_bytes <= 2 << 20, "{name}: {} bytes are allocated", copied.allocated_bytes);
    }
}

#[tokio::test]
async fn images_that_refer_to_other_files_are_refused() {
    let images = Images::new();
    images.raw();
    images.qemu_img("create -f qcow2 -b disk.raw -F raw overlay.qcow2");
    assert_eq!(refusal(inspect(&images.path("overlay.qcow2"), None).await), Refusal::BackingFile);
    images.qemu_img("create -f qcow2 -o data_file=data.raw split.qcow2 4M");
    assert_eq!(refusal(inspect(&images.path("split.qcow2"), None).await), Refusal::DataFile);
    // Changed between the look and the copy.
    images.qemu_img("create -f qcow2 image.qcow2 4M");
    let path = images.path("image.qcow2");
    let info = inspect(&path, None).await.unwrap();
    fs::copy(images.path("overlay.qcow2"), &path).unwrap();
    let destination = images.empty("copy.raw", DISK_BYTES);
    assert_eq!(refusal(import(&path, &info, &destination).await), Refusal::BackingFile);
    assert!(fs::read(&destination).unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_disk_that_is_named_raw_is_not_looked_into() {
    let images = Images::new();
    images.raw();
    images.qemu_img("create -f qcow2 -b disk.raw -F raw overlay.qcow2");
    let path = images.path("overlay.qcow2");
    File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let info = inspect(&path, Some(Format::Raw)).await.unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!((info.format, info.virtual_bytes), (Format::Raw, bytes.len().try_into().unwrap()));
    let destination = images.empty("copy.raw", info.virtual_bytes);
    import(&path, &info, &destination).await.unwrap();
    assert!(fs::read(&destination).unwrap() == bytes);
}

#[tokio::test]
async fn corrupt_and_truncated_images_are_refused_before_anything_is_copied() {
    let images = Images::new();
    let (raw, _) = images.raw();
    images.qemu_img("convert -O qcow2 disk.raw good.qcow2");
    let whole = fs::read(images.path("good.qcow2")).unwrap();
    for length in [30, 100, 4096, 200_000, whole.len() - 70_000] {
        let path = images.path("short.qcow2");
        fs::write(&path, &whole[..length]).unwrap();
        let destination = images.empty("copy.raw", DISK_BYTES);
        let result = match inspect(&path, None).await {
            Ok(info) => import(&path, &info, &destination).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(result.is_err(), "{length}");
        assert!(fs::read(&destination).unwrap().iter().all(|byte| *byte == 0), "{length}");
    }
    // The reference count table points nowhere.
    let path = images.path("corrupt.qcow2");
    fs::write(&path, &whole).unwrap();
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(48)).unwrap();
    file.write_all(&0x7000_0000_u64.to_be_bytes()).unwrap();
    let result = match inspect(&path, None).await {
        Ok(info) => import(&path, &info, &images.empty("copy.raw", DISK_BYTES)).await.map(drop),
        Err(error) => Err(error),
    };
    assert!(result.is_err());
    assert!(inspect(&raw, Some(Format::Qcow2)).await.is_err());
}

#[tokio::test]
async fn odd_sizes_other_formats_and_no_files_are_refused_with_a_reason() {
    let images = Images::new();
    let odd = images.empty("odd.raw", 1_000_001);
    assert_eq!(refusal(inspect(&odd, None).await), Refusal::NotSectors { bytes: 1_000_001 });
    let empty = images.empty("empty.raw", 0);
    assert_eq!(refusal(inspect(&empty, None).await), Refusal::Empty);
    images.qemu_img("create -f vmdk disk.vmdk 4M");
    images.qemu_img("create -f vdi disk.vdi 4M");
    images.qemu_img("create -f vhdx disk.vhdx 4M");
    images.qemu_img("create -f vpc disk.vhd 4M");
    for (name, format) in [("disk.vmdk", "VMDK"), ("disk.vdi", "VDI"), ("disk.vhdx", "VHDX"), ("disk.vhd", "VHD")] {
        assert_eq!(refusal(inspect(&images.path(name), None).await), Refusal::Unsupported { format }, "{name}");
    }
    assert_eq!(refusal(inspect(images.0.path(), None).await), Refusal::NotAFile);
    assert!(matches!(inspect(&images.path("none"), None).await, Err(ImageError::Read { .. })));
    // A header that promises 2 EiB.
    images.qemu_img("create -f qcow2 huge.qcow2 4M");
    let mut file = File::options().write(true).open(images.path("huge.qcow2")).unwrap();
    file.seek(SeekFrom::Start(24)).unwrap();
    file.write_all(&(1_u64 << 61).to_be_bytes()).unwrap();
    assert!(inspect(&images.path("huge.qcow2"), None).await.is_err());
}
