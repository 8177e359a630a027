//! The command that saves a guest's devices: it lies ready in QEMU, but for its last byte, before it is needed.

use std::time::Instant;

use serde_json::{Value, json};

use super::capture::PAUSE_TIME_MAX;
use crate::qmp::{Awaited, CommandId, DirectQmp, QmpError};
use crate::ram::RamTracker;

const COMMAND: &str = "xen-save-devices-state";

/// Has a connection of its own, as QEMU carries out the commands of one connection in order.
#[derive(Debug)]
pub(super) struct Saving {
    qmp: DirectQmp,
    arguments: Value,
    ready: Option<CommandId>,
}

impl Saving {
    pub(super) fn new(qmp: DirectQmp, tracker: &RamTracker) -> Result<Self, QmpError> {
        let arguments = json!({ "filename": tracker.memory().state_path(), "live": false });
        let mut saving = Self { qmp, arguments, ready: None };
        saving.be_ready()?;
        Ok(saving)
    }

    /// To be called while nobody waits: QEMU takes half a millisecond to read the command.
    pub(super) fn be_ready(&mut self) -> Result<(), QmpError> {
        // Events, and what came too late.
        self.qmp.forget()?;
        if self.ready.is_none() {
            self.ready = Some(self.qmp.write_most(COMMAND, &self.arguments)?);
        }
        Ok(())
    }

    /// Has QEMU begin. The guest must stand still: QEMU would let it go on by itself afterwards if it had to stop it for this.
    pub(super) fn begin(&mut self, deadline: Instant) -> Result<Awaited, QmpError> {
        let id = match self.ready.take() {
            Some(id) => id,
            None => self.qmp.write_most(COMMAND, &self.arguments)?,
        };
        self.qmp.finish(COMMAND)?;
        Ok(Awaited { id, command: COMMAND, time_max: PAUSE_TIME_MAX, deadline })
    }

    /// Waits until they are saved.
    pub(super) fn end(&mut self, begun: Awaited) -> Result<(), QmpError> {
        self.qmp.answer(begun, |_| {}).map(|_| ())
    }
}
