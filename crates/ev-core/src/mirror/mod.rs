//! The mirror of one disk: what may be acknowledged, what must be copied, which replica is good.
//!
//! The three decisions are pure functions, one file each: [`acknowledge`], [`history`], [`good`]. Two engines use them: the
//! [`Coordinator`] on the active host serves the guest and keeps the partner's replica in step; the [`Replica`] on the other
//! host carries out what it is sent. Both are told what happened and answer with [`Action`]s; data never passes through
//! them.
//!
//! How a partner's replica comes to count, seen from the coordinator:
//!
//! ```text
//!              link up                    record without it            both maps durable, target marked
//!   Down ────────────────► Greeting ──► Behind ────────────────► Preparing ─────────────────► Copying
//!    ▲                         │                                                                  │ all copied and
//!    │ link lost, anywhere     │ same instance, or nothing was under way                          │ flushed on both
//!    └──────────────           └──────────────────────────► InStep ◄──────────────────────────────┘
//!                                                                   then: record with it
//! ```
//! - Greeting: both sides say which history they hold and which regions their logs name.
//! - Behind: the record may still call it good; no acknowledgement is given until a record without it is committed.
//! - Preparing: what the logs of both sides name is made durable in our out-of-sync map; the target marks itself.
//! - Copying: guest's writes go to both replicas, and the regions of the out-of-sync map are compared and copied.
//! - InStep: it has every write that was acknowledged since, and takes part in each.
//!
//! With Level 3 the coordinator *writes ahead* of a partner in step: acknowledged is what is done here, and the partner stages what
//! it is sent until its epoch is decided ([`crate::checkpoint`]). A partner that was written ahead of comes back by a copy only.

pub mod acknowledge;
pub mod coordinator;
pub mod extent;
pub mod good;
pub mod history;
mod lock;
pub mod log;
pub mod message;
pub mod region;
mod replica;
mod superblock;

pub use acknowledge::{Proof, Required};
pub use coordinator::{Coordinator, Input, Record, Settings};
pub use extent::Extent;
pub use history::{Health, History, ReplicaInfo};
pub use log::RegionLog;
pub use message::{
    Action, BlockHash, CloseReason, CopyKind, Durability, Epochs, Hello, LocalIo, MapWord, MarkRefusal, Message, OpId,
    Outcome, RegionMap, Source, Trouble, Verified, Wish, Write, WriteKind,
};
pub use region::{Geometry, RegionSet};
pub use replica::{Replica, ReplicaInput};
pub use superblock::LocalReplica;
