//! Helpers of the end-to-end scenarios: a lab that cleans up after itself, `ev` in its machines, clients of its guests.
//!
//! Nothing here sleeps as a way of synchronising: it waits for a state that can be looked at, with a deadline.

mod client;
mod forensics;
mod guests;
mod lab;
mod load;
mod owners;
mod pool;
mod postgres;
mod rounds;
mod stream;
mod system;
mod tiny;
mod wait;

pub use client::{ClientError, in_client};
pub use guests::{BootSector, DebianGuest, TinyImage};
pub use lab::TestLab;
pub use load::{Load, LoadReport, Service};
pub use pool::{EvFailure, Pool};
pub use postgres::Postgres;
pub use rounds::{Protected, Return, Takeover};
pub use stream::{Answered, MemoryCount, Stream, StreamFault, StreamReport};
pub use system::{GoneOn, Level3View, System, SystemView};
pub use tiny::{BESIDE_LOAD, TinyGuest};
pub use wait::eventually;
