//! The task that owns a QMP socket: writes commands in the order of asking, hands answers to who asked, and events to
//! whoever listens. It ends with the connection; everyone who still waits is then told.

use std::collections::BTreeMap;

use futures::StreamExt;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::message::{Message, command_line, parse};
use super::{Event, QmpError};

/// Longest line that QEMU may send, in bytes; a longer one ends the connection. `query-qmp-schema` is about 0.3 MB.
pub(super) const LINE_BYTES_MAX: usize = 16 << 20;
/// Requests that may wait to be written; more wait in their callers.
pub(super) const REQUESTS_QUEUED_MAX: usize = 32;
/// Commands that may wait for an answer; a request beyond that ends the connection, as QEMU is then stuck.
const COMMANDS_PENDING_MAX: usize = 1024;

/// A command and what it asks.
pub(super) type Command = (String, Value);

/// One command, to be answered.
pub(super) type Answer = oneshot::Sender<Result<Value, QmpError>>;

/// Commands to be written together.
pub(super) type Request = Vec<(Command, Answer)>;

pub(super) type Lines = FramedRead<OwnedReadHalf, LinesCodec>;

pub(super) fn lines(half: OwnedReadHalf) -> Lines {
    FramedRead::new(half, LinesCodec::new_with_max_length(LINE_BYTES_MAX))
}

struct Pending {
    command: String,
    answer: Answer,
}

pub(super) struct Connection {
    lines: Lines,
    write: OwnedWriteHalf,
    events: broadcast::Sender<Event>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
}

/// Why the task ended; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    ByUs,
    ByQemu,
    NoQmp,
    Stuck,
}

impl Connection {
    pub(super) fn new(lines: Lines, write: OwnedWriteHalf, events: broadcast::Sender<Event>) -> Self {
        Self { lines, write, events, pending: BTreeMap::new(), next_id: 1 }
    }

    /// Serves until the connection or all handles are gone.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let ended = loop {
            tokio::select! {
                line = self.lines.next() => match line {
                    Some(Ok(line)) => {
                        if let Err(ended) = self.take_line(&line) {
                            break ended;
                        }
                    }
                    Some(Err(_)) | None => break Ended::ByQemu,
                },
                request = requests.recv() => match request {
                    Some(request) => {
                        if let Err(ended) = self.send(request).await {
                            break ended;
                        }
                    }
                    None => break Ended::ByUs,
                },
            }
        };
        tracing::debug!(?ended, pending = self.pending.len(), "QMP connection ended");
        for (_, Pending { command, answer }) in std::mem::take(&mut self.pending) {
            let _ = answer.send(Err(QmpError::Closed { command }));
        }
    }

    fn take_line(&mut self, line: &str) -> Result<(), Ended> {
        match parse(line) {
            Some(Message::Answer { id, result }) => {
                let Some(Pending { command, answer }) = self.pending.remove(&id) else {
                    return Ok(());
                };
                let result = result.map_err(|refusal| QmpError::Refused {
                    command,
                    class: refusal.class,
                    description: refusal.desc,
                });
                // The asker may have given up by now.
                let _ = answer.send(result);
                Ok(())
            }
            Some(Message::Event(event)) => {
                tracing::debug!(kind = ?event.kind, "QMP event");
                // Nobody may be listening.
                let _ = self.events.send(event);
                Ok(())
            }
            Some(Message::Greeting) => Ok(()),
            Some(Message::NotUnderstood(refusal)) => {
                tracing::warn!(class = refusal.class, description = refusal.desc, "QEMU did not understand us");
                Err(Ended::NoQmp)
            }
            None => {
                tracing::warn!("QEMU sent a line that is not QMP");
                Err(Ended::NoQmp)
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), Ended> {
        if self.pending.len() + request.len() > COMMANDS_PENDING_MAX {
            return Err(Ended::Stuck);
        }
        let mut text = String::new();
        for ((command, arguments), answer) in request {
            text.push_str(&command_line(self.next_id, &command, &arguments));
            self.pending.insert(self.next_id, Pending { command, answer });
            self.next_id += 1;
        }
        self.write.write_all(text.as_bytes()).await.map_err(|_| Ended::ByQemu)
    }
}
