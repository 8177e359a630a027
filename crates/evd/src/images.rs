//! Disk images on their way in: streamed into a staging folder of the host that will run the VM, checked, converted,
//! and at last moved into the VM's state folder as a replica.
//!
//! ```text
//! (nothing) --upload--> Uploading --all there--> Converting --converted--> Ready --adopted by a VM--> (nothing)
//!                           |                        |                       |
//!                           +-- connection broke ----+-- refused or failed --+-- not adopted in a day
//!                                     v                        v                       v
//!                                 (nothing)                 Failed                 (nothing)
//! ```
//! A restart of the daemon sweeps the staging folder: uploads are begun anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ev_api::library::ImageState;
use ev_api::{ApiError, ErrorCode};
use ev_vm::image::{self, Format, ImageError};
use uuid::Uuid;

/// Most images on one host that no VM has adopted yet.
pub const IMAGES_MAX: usize = 32;
/// An image that no VM adopted for so long is thrown away at the next upload.
const KEEP: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// `image::import_to_raw` counts in these.
const PER_MILLE: u64 = 1000;

struct Image {
    since: Instant,
    state: ImageState,
}

/// The images of this host.
#[derive(Clone)]
pub struct Images {
    folder: PathBuf,
    images: Arc<Mutex<BTreeMap<Uuid, Image>>>,
}

impl Images {
    /// An empty staging folder. Its disk may have failed: then uploads are refused, and the daemon does all the rest.
    #[must_use]
    pub fn open(folder: PathBuf) -> Self {
        if let Err(error) = crate::durable::remove_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "earlier uploads cannot be removed; remove the folder by hand");
        }
        Self { folder, images: Arc::default() }
    }

    fn with<R>(&self, work: impl FnOnce(&mut BTreeMap<Uuid, Image>) -> R) -> R {
        work(&mut self.images.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn uploaded(&self, id: Uuid) -> PathBuf {
        self.folder.join(format!("{id}.image"))
    }

    fn raw(&self, id: Uuid) -> PathBuf {
        self.folder.join(format!("{id}.raw"))
    }

    /// The file that an upload is written to.
    ///
    /// # Errors
    /// Too many wait already, or the file can't be made.
    pub fn begin(&self, id: Uuid) -> Result<File, ApiError> {
        let old: Vec<Uuid> = self.with(|images| {
            images.iter().filter(|(_, image)| image.since.elapsed() > KEEP).map(|(id, _)| *id).collect()
        });
        for id in old {
            self.discard(id);
        }
        self.with(|images| {
            if images.len() >= IMAGES_MAX {
                return Err(ApiError::new(
                    ErrorCode::Refused,
                    format!("{IMAGES_MAX} uploaded images wait for a VM on this host already"),
                )
                .hint("make VMs of them, or restart evd on that host to throw them away"));
            }
            images.insert(id, Image { since: Instant::now(), state: ImageState::Uploading });
            Ok(())
        })?;
        std::fs::create_dir_all(&self.folder).and_then(|()| File::create(self.uploaded(id))).map_err(|error| {
            self.discard(id);
            disk_fault(&self.folder, &error)
        })
    }

    /// Forgets an image and removes its files.
    pub fn discard(&self, id: Uuid) {
        self.with(|images| images.remove(&id));
        for path in [self.uploaded(id), self.raw(id)] {
            let _ = crate::durable::remove_all(&path);
        }
    }

    #[must_use]
    pub fn state(&self, id: Uuid) -> Option<ImageState> {
        self.with(|images| images.get(&id).map(|image| image.state.clone()))
    }

    fn set(&self, id: Uuid, state: ImageState) {
        self.with(|images| {
            if let Some(image) = images.get_mut(&id) {
                image.state = state;
            }
        });
    }

    /// Converts what was uploaded, in the background.
    pub fn convert(&self, id: Uuid) {
        self.set(id, ImageState::Converting { done_bytes: 0, total_bytes: 0 });
        let this = self.clone();
        tokio::spawn(async move {
            let state = match this.convert_now(id).await {
                Ok((format, size_bytes)) => ImageState::Ready { format, size_bytes },
                Err(error) => {
                    let _ = crate::durable::remove_all(&this.raw(id));
                    ImageState::Failed { error }
                }
            };
            let _ = crate::durable::remove_all(&this.uploaded(id));
            this.set(id, state);
        });
    }

    async fn convert_now(&self, id: Uuid) -> Result<(String, u64), ApiError> {
        let uploaded = self.uploaded(id);
        let info = image::inspect(&uploaded, None).await.map_err(refused)?;
        let (raw, size_bytes) = (self.raw(id), info.virtual_bytes);
        File::create(&raw)
            .and_then(|file| file.set_len(size_bytes))
            .map_err(|error| disk_fault(&self.folder, &error))?;
        self.set(id, ImageState::Converting { done_bytes: 0, total_bytes: size_bytes });
        let progress = |per_mille: u16| {
            let done_bytes = size_bytes / PER_MILLE * u64::from(per_mille);
            self.set(id, ImageState::Converting { done_bytes, total_bytes: size_bytes });
        };
        image::import_to_raw(&uploaded, &info, &raw, progress).await.map_err(refused)?;
        let format = match info.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        Ok((format.to_owned(), size_bytes))
    }

    /// Moves a converted image to where a VM's replica lies, grown to `size_bytes`, durably.
    ///
    /// # Errors
    /// There is no such image, it is not ready, it is larger, or the disk is full.
    pub fn adopt(&self, id: Uuid, size_bytes: u64, replica: &Path) -> Result<(), ApiError> {
        match self.state(id) {
            Some(ImageState::Ready { size_bytes: has, .. }) if has <= size_bytes => {}
            Some(ImageState::Ready { size_bytes: has, .. }) => {
                return Err(ApiError::new(
                    ErrorCode::Invalid,
                    format!("the disk of {size_bytes} bytes is smaller than the image's {has}"),
                ));
            }
            Some(ImageState::Failed { error }) => return Err(error),
            Some(ImageState::Uploading | ImageState::Converting { .. }) => {
                return Err(
                    ApiError::new(ErrorCode::Refused, "the image is not converted yet").hint("wait and try again")
                );
            }
            None => {
                return Err(ApiError::new(
                    ErrorCode::NotFound,
                    format!("there is no uploaded image {id} on this host"),
                )
                .hint("upload it again"));
            }
        }
        let place = || -> io::Result<()> {
            let folder = replica.parent().ok_or(io::ErrorKind::InvalidInput)?;
            std::fs::create_dir_all(folder)?;
            let file = File::options().write(true).open(self.raw(id))?;
            file.set_len(size_bytes)?;
            file.sync_all()?;
            std::fs::rename(self.raw(id), replica)?;
            crate::durable::sync_folder(folder)
        };
        place().map_err(|error| disk_fault(&self.folder, &error))?;
        self.discard(id);
        Ok(())
    }
}

/// A full or faulty disk, for the user.
pub fn disk_fault(path: &Path, error: &io::Error) -> ApiError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let code = if full { ErrorCode::NoSpace } else { ErrorCode::Internal };
    ApiError::new(code, format!("cannot write to {}: {error}", path.display()))
        .hint("make room there or repair the disk, then try again")
}

fn refused(error: ImageError) -> ApiError {
    ApiError::new(ErrorCode::Invalid, format!("the image cannot be taken in: {error}"))
}
