//! The pool's library (ISO images, kernels, initial RAM disks) and disk images on their way in.

use serde::{Deserialize, Serialize};

/// `GET /v1/library`, and the answer to `PUT /v1/library/{blake3}?name=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryView {
    pub name: String,
    pub blake3: String,
    pub size_bytes: u64,
}

/// State of an uploaded disk image on the host that will run the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum ImageState {
    Uploading,
    Converting {
        done_bytes: u64,
        total_bytes: u64,
    },
    /// Ready to become a disk of this size.
    Ready {
        format: String,
        size_bytes: u64,
    },
    Failed {
        error: crate::ApiError,
    },
}

/// `PUT /v1/images/{id}?host=…` (streamed), `GET /v1/images/{id}?host=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    pub id: uuid::Uuid,
    /// Host that holds it.
    pub host: String,
    #[serde(flatten)]
    pub state: ImageState,
}

/// `GET /v1/images/home?host=…`: the host that a new VM's images are to be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHome {
    pub host: String,
}
