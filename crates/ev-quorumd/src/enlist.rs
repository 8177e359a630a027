//! The quorum server's side of `ev_wire::quorum`: a pool's master comes with an invitation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ev_wire::frame::{Frame, FrameKind};
use ev_wire::identity::new_key_and_request;
use ev_wire::quorum::{Enlist, QuorumMessage};
use ev_wire::stream::{read_frame, write_frame};
use ev_wire::transport::{BoxFuture, ServerStream, StreamHandler};

use crate::invitations;
use crate::pools::{Papers, PoolRecord, Pools};

/// How long the whole exchange may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a wrong secret is answered, so that guessing stays hopeless.
const WRONG_SECRET_PAUSE: Duration = Duration::from_millis(500);

pub struct EnlistHandler {
    pub pools: Arc<Pools>,
    pub state_dir: PathBuf,
}

impl StreamHandler for EnlistHandler {
    fn serve(&self, mut stream: ServerStream, from: SocketAddr) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let exchange = tokio::time::timeout(TIMEOUT, self.exchange(&mut stream)).await;
            match exchange.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {} s", TIMEOUT.as_secs()))) {
                Ok(pool) => tracing::info!(%from, pool, "enlisted"),
                Err(error) => {
                    tracing::warn!(%from, "an enlistment failed: {error:#}");
                    // The other side may be gone already.
                    let _ = send(&mut stream, &QuorumMessage::Refused(format!("{error:#}"))).await;
                }
            }
        })
    }
}

impl EnlistHandler {
    async fn exchange(&self, stream: &mut ServerStream) -> anyhow::Result<String> {
        let QuorumMessage::Enlist(Enlist { secret, pool, pool_name, member, authority_certificate }) =
            receive(stream).await?
        else {
            anyhow::bail!("it began with another message than it should");
        };
        if !invitations::redeem(&self.state_dir, &secret) {
            tokio::time::sleep(WRONG_SECRET_PAUSE).await;
            anyhow::bail!("the invitation is unknown, used or expired: make a new one (ev-quorumd invite)");
        }
        if let Some(objection) = self.pools.objection(pool, member) {
            anyhow::bail!(objection);
        }
        let key = new_key_and_request()?;
        send(stream, &QuorumMessage::Request { request: key.request_pem }).await?;
        let QuorumMessage::Certificate { certificate } = receive(stream).await? else {
            anyhow::bail!("no certificate came");
        };
        let papers = Papers { certificate, key: key.key_pem, authority: authority_certificate };
        let record = PoolRecord { name: pool_name.clone(), member };
        self.pools.enlist(pool, record, &papers).await?;
        send(stream, &QuorumMessage::Enlisted).await?;
        Ok(pool_name)
    }
}

async fn receive(stream: &mut ServerStream) -> anyhow::Result<QuorumMessage> {
    let frame = read_frame(stream).await?.context("the other side hung up")?;
    Ok(frame.message(FrameKind::QUORUM)?)
}

async fn send(stream: &mut ServerStream, message: &QuorumMessage) -> anyhow::Result<()> {
    Ok(write_frame(stream, &Frame::of(FrameKind::QUORUM, message)?).await?)
}
