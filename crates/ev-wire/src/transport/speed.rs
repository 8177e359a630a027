//! How fast a link is, found out by using it for a moment: pieces are sent and count when the other side says that it has read them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ev_core::ids::{MemberId, PoolId};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::frame::{Frame, FrameKind};
use crate::identity::{NotAMember, peer_of_certificates, server_name};
use crate::stream::{ReadError, read_frame, write_frame};

/// How long the link is used.
const TIME: Duration = Duration::from_millis(300);
/// How long the first piece may take; then nothing got through.
const TIME_MAX: Duration = Duration::from_millis(600);
/// How long connection and handshake may take.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(400);
/// Bytes of a piece, and pieces on their way: together a millisecond's worth of a link of 8 Gbit/s.
const PIECE_BYTES: u32 = 64 << 10;
const PIECES_UNDER_WAY_MAX: usize = 16;

/// What got through, in what time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throughput {
    pub bytes: u64,
    pub time: Duration,
}

impl Throughput {
    /// In Mbit/s, rounded down.
    #[must_use]
    pub fn mbit_per_s(self) -> u64 {
        let microseconds = self.time.as_micros().max(1);
        u64::try_from(u128::from(self.bytes) * 8 / microseconds).unwrap_or(u64::MAX)
    }
}

/// Why a link's speed is not known.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    #[error("connecting to {address} failed: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("no connection to {address} within {} ms", CONNECT_TIME_MAX.as_millis())]
    ConnectTimeout { address: SocketAddr },
    #[error(transparent)]
    NotAMember(#[from] NotAMember),
    #[error("at {address} is member {found}, not member {wanted}: check the members' addresses")]
    WrongMember { address: SocketAddr, found: MemberId, wanted: MemberId },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the other side ended the measurement; is its Evenkeel of the same version?")]
    Ended,
}

/// Sends to `member` at `address` for 0.3 s, on a connection of its own; takes 1 s at most.
///
/// # Errors
/// The member can't be reached there, or does not take part.
pub async fn measure(
    config: Arc<ClientConfig>,
    pool: PoolId,
    member: MemberId,
    address: SocketAddr,
) -> Result<Throughput, SpeedError> {
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(config).connect(server_name(pool), tcp).await
    };
    let stream = timeout(CONNECT_TIME_MAX, connect)
        .await
        .map_err(|_| SpeedError::ConnectTimeout { address })?
        .map_err(|source| SpeedError::Connect { address, source })?;
    let found = peer_of_certificates(stream.get_ref().1.peer_certificates())?.member;
    if found != member {
        return Err(SpeedError::WrongMember { address, found, wanted: member });
    }
    let (reader, writer) = tokio::io::split(stream);
    use_for_a_moment(reader, writer).await
}

async fn use_for_a_moment(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<Throughput, SpeedError> {
    let piece = Frame { kind: FrameKind::FILLER, body: vec![0; usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX)] };
    let (places, start) = (Semaphore::new(PIECES_UNDER_WAY_MAX), Instant::now());
    let (bytes, last_us) = (AtomicU64::new(0), AtomicU64::new(0));
    let send = async {
        loop {
            // Never closed.
            if let Ok(place) = places.acquire().await {
                place.forget();
            }
            write_frame(&mut writer, &piece).await.map_err(ReadError::Io)?;
            write_frame(&mut writer, &Frame::empty(FrameKind::PING)).await.map_err(ReadError::Io)?;
        }
    };
    let receive = async {
        let mut until = start + TIME_MAX;
        while let Ok(frame) = timeout_at(until, read_frame(&mut reader)).await {
            if frame?.is_none_or(|frame| frame.kind != FrameKind::PONG) {
                return Err(SpeedError::Ended);
            }
            places.add_permits(1);
            bytes.fetch_add(u64::from(PIECE_BYTES), Ordering::Relaxed);
            last_us.store(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            until = start + TIME;
        }
        Ok(())
    };
    tokio::select! {
        broken = send => { let never: Result<std::convert::Infallible, SpeedError> = broken; never.map(drop)?; }
        received = receive => received?,
    }
    let time = match last_us.load(Ordering::Relaxed) {
        0 => TIME_MAX,
        last => Duration::from_micros(last),
    };
    Ok(Throughput { bytes: bytes.load(Ordering::Relaxed), time })
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use tokio::time::sleep;

    use super::*;

    /// Reads a piece in that time, and says so.
    async fn answer(mut stream: DuplexStream, piece_time: Duration) {
        let mut pieces = 0;
        while let Ok(Some(frame)) = read_frame(&mut stream).await {
            match frame.kind {
                FrameKind::FILLER => {
                    pieces += 1;
                    sleep(piece_time).await;
                }
                FrameKind::PING => {
                    assert!(pieces > 0, "a ping before the piece");
                    if write_frame(&mut stream, &Frame::empty(FrameKind::PONG)).await.is_err() {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn measured(piece_time: Duration) -> u64 {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(here);
        let answering = tokio::spawn(answer(there, piece_time));
        let throughput = use_for_a_moment(reader, writer).await.unwrap();
        answering.abort();
        throughput.mbit_per_s()
    }

    #[tokio::test(start_paused = true)]
    async fn links_of_all_speeds_are_measured() {
        for (piece_ms, mbit_per_s) in [(1, 524), (5, 104), (50, 10), (250, 2), (400, 1), (900, 0)] {
            assert_eq!(measured(Duration::from_millis(piece_ms)).await, mbit_per_s, "{piece_ms} ms a piece");
        }
    }

    #[tokio::test]
    async fn who_hangs_up_is_not_measured() {
        let (here, there) = tokio::io::duplex(1 << 20);
        drop(there);
        let (reader, writer) = tokio::io::split(here);
        assert!(use_for_a_moment(reader, writer).await.is_err());
    }
}
