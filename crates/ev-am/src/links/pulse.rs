//! A control link: both sides say "I am here" several times a second, and notice when the other one no longer does.

use std::time::Duration;

use ev_wire::frame::{Frame, FrameError};
use ev_wire::stream::{ReadError, read_frame, write_frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::message::{Control, LINK_CONTROL};

/// How often each side pings.
pub const PING_INTERVAL: Duration = Duration::from_millis(100);
/// How long the other side may be silent before the path counts as lost: four pings. Shorter takes a busy host for a
/// lost one; longer makes guest writes wait.
pub const SILENCE_MAX: Duration = Duration::from_millis(400);

/// Why a control link ended.
#[derive(Debug, thiserror::Error)]
pub enum PulseEnd {
    #[error("silent for {} ms", SILENCE_MAX.as_millis())]
    Silent,
    #[error("closed by the other side")]
    Closed,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("writing failed: {0}")]
    Write(std::io::Error),
    #[error("no longer wanted")]
    Dropped,
}

/// Pings, and passes messages both ways, until the link is lost or `outgoing` is closed. `incoming` gets everything but
/// pings; what it has no room for is dropped, for all such messages are repeated.
pub async fn run<S: AsyncRead + AsyncWrite>(
    stream: S,
    mut outgoing: mpsc::Receiver<Control>,
    incoming: mpsc::Sender<Control>,
) -> PulseEnd {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let read = async {
        loop {
            let frame = match timeout(SILENCE_MAX, read_frame(&mut reader)).await {
                Err(_) => return PulseEnd::Silent,
                Ok(Err(error)) => return error.into(),
                Ok(Ok(None)) => return PulseEnd::Closed,
                Ok(Ok(Some(frame))) => frame,
            };
            match frame.message(LINK_CONTROL) {
                Ok(Control::Ping) => {}
                Ok(message @ Control::Learned { .. }) => drop(incoming.try_send(message)),
                Err(error) => return error.into(),
            }
        }
    };
    let write = async {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = outgoing.recv() => match message {
                    Some(message) => message,
                    None => return PulseEnd::Dropped,
                },
                _ = ping.tick() => Control::Ping,
            };
            let frame = Frame::of(LINK_CONTROL, &message).expect("a control message is short");
            match timeout(SILENCE_MAX, write_frame(&mut writer, &frame)).await {
                Err(_) => return PulseEnd::Silent,
                Ok(Err(error)) => return PulseEnd::Write(error),
                Ok(Ok(())) => {}
            }
        }
    };
    tokio::select! {
        end = read => end,
        end = write => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn two_ends_keep_each_other_alive_and_pass_messages() {
        let (one, other) = tokio::io::duplex(4096);
        let (to_other, out_one) = mpsc::channel(1);
        let (in_one, _keep_one) = mpsc::channel(1);
        let (_to_one, out_other) = mpsc::channel(1);
        let (in_other, mut from_one) = mpsc::channel(1);
        let first = tokio::spawn(run(one, out_one, in_one));
        let second = tokio::spawn(run(other, out_other, in_other));
        let learned = Control::Learned { nic: 0, addresses: vec!["192.0.2.1".parse().unwrap()] };
        to_other.send(learned.clone()).await.unwrap();
        assert_eq!(from_one.recv().await, Some(learned));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!first.is_finished() && !second.is_finished());
        drop(to_other);
        assert!(matches!(first.await.unwrap(), PulseEnd::Dropped));
        assert!(matches!(second.await.unwrap(), PulseEnd::Closed | PulseEnd::Write(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_end_is_noticed_in_time() {
        let (one, _other) = tokio::io::duplex(1 << 20);
        let (_keep, outgoing) = mpsc::channel(1);
        let (incoming, _keep_incoming) = mpsc::channel(1);
        let start = Instant::now();
        assert!(matches!(run(one, outgoing, incoming).await, PulseEnd::Silent));
        assert_eq!(start.elapsed(), SILENCE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn rubbish_ends_the_link() {
        use tokio::io::AsyncWriteExt;
        let (one, mut other) = tokio::io::duplex(4096);
        let (_keep, outgoing) = mpsc::channel(1);
        let (incoming, _keep_incoming) = mpsc::channel(1);
        other.write_all(&[0x55; 64]).await.unwrap();
        assert!(matches!(run(one, outgoing, incoming).await, PulseEnd::Read(_)));
    }
}
