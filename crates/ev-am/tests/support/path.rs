//! A path between two AMs that can be cut: bytes stop, and neither end is told.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Path {
    pub address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Path {
    /// A path whose far end is `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, seen) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((one, _)) = listener.accept().await {
                tokio::spawn(carry(one, target, seen.clone()));
            }
        });
        Self { address, open }
    }

    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn heal(&self) {
        self.open.send_replace(true);
    }
}

async fn carry(one: TcpStream, target: SocketAddr, mut open: watch::Receiver<bool>) {
    let _ = open.wait_for(|open| *open).await;
    let Ok(other) = TcpStream::connect(target).await else { return };
    let (one, other) = (one.into_split(), other.into_split());
    tokio::select! {
        () = pass(one.0, other.1, open.clone()) => {}
        () = pass(other.0, one.1, open) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok(length) = from.read(&mut buffer).await else { return };
        let _ = open.wait_for(|open| *open).await;
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
