//! Checkpoints of a running guest, and a second QEMU that continues from one.

mod capture;
mod pause;
mod processors;
mod saving;
mod standby;
mod stream;

pub use capture::{AtStop, Capture, CaptureError, Checkpoint, EpochBuffer, NotTaken, PAUSE_TIME_MAX, PauseTimes};
pub use processors::{Processors, WatchError};
pub use standby::{LOAD_TIME_MAX, PrepareError, RestoreError, ResumeTimes, Standby};
pub use stream::{DEVICE_STATE_BYTES_MAX, IncomingStream, StateError, check_state, incoming_stream};
