//! The lane between both sides' engines: a task that reads, one that writes, and no waiting for either.

use ev_checkpoint::{LANE, LaneMessage};
use ev_core::checkpoint::Epoch;
use ev_failpoint::{Step, reach};
use ev_wire::frame::Frame;
use ev_wire::stream::{read_frame, write_frame};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::links::Stream;

/// Messages that may wait to be written; a lane that takes no more is stuck, and ended.
const OUT_MAX: usize = 64;

/// What came over a lane, with the lane's number.
#[derive(Debug)]
pub enum LaneEvent {
    Message(u64, LaneMessage),
    Down(u64),
}

/// A connected lane. Its end closes the stream.
#[derive(Debug)]
pub struct Lane {
    number: u64,
    out: mpsc::Sender<LaneMessage>,
    _tasks: JoinSet<()>,
}

impl Lane {
    /// `number` tells its events from those of lanes before it.
    pub fn start<T: From<LaneEvent> + Send + 'static>(number: u64, stream: Stream, events: mpsc::Sender<T>) -> Self {
        let (out, mut queue) = mpsc::channel::<LaneMessage>(OUT_MAX);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut tasks = JoinSet::new();
        let down = events.clone();
        tasks.spawn(async move {
            while let Ok(Some(frame)) = read_frame(&mut reader).await {
                let Ok(message) = frame.message(LANE) else { break };
                if events.send(LaneEvent::Message(number, message).into()).await.is_err() {
                    return;
                }
            }
            let _ = events.send(LaneEvent::Down(number).into()).await;
        });
        tasks.spawn(async move {
            while let Some(message) = queue.recv().await {
                let frame = Frame::of(LANE, &message).expect("a message of the lane is short");
                if write_frame(&mut writer, &frame).await.is_err() {
                    break;
                }
                if matches!(message, LaneMessage::Confirm { epoch, .. } if epoch > Epoch::FIRST) {
                    reach(Step::StandbyConfirmed);
                }
            }
            let _ = down.send(LaneEvent::Down(number).into()).await;
        });
        Self { number, out, _tasks: tasks }
    }

    /// Which one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Queues a message. One that finds no room is lost: the other side falls silent, and the session ends by that.
    pub fn send(&self, message: LaneMessage) {
        if self.out.try_send(message).is_err() {
            tracing::debug!("a lane takes no more messages");
        }
    }
}
