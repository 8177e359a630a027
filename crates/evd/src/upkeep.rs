//! The membership over the daemon's life: taken up at the start, kept true, given up when the pool removed this host.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ev_core::pool::Command;

use crate::app::App;
use crate::found::own_record;
use crate::identity::{MemberFile, Phase};
use crate::join;
use crate::member::Member;

/// How often the membership is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether this host is still what the pool knows of it. Nothing is run for that while QEMU's file is the same.
const FACTS_INTERVAL: Duration = Duration::from_secs(10);

/// Takes up the membership that lies on disk, if there is one.
///
/// # Errors
/// It can't be read or started.
pub async fn take_up(app: &Arc<App>) -> anyhow::Result<()> {
    let Some(file) = app.papers.member()? else { return Ok(()) };
    match file.phase {
        Phase::Creating => {
            tracing::warn!(pool = %file.pool_name, "the making of a pool was interrupted; it is undone");
            app.papers.remove()?;
        }
        Phase::Joining | Phase::Member => {
            let member = Member::start(app, &file).await.context("cannot take up the membership in the pool")?;
            app.set_member(Some(Arc::clone(&member)));
            tokio::spawn(settle(Arc::clone(app), member, file));
        }
    }
    Ok(())
}

/// Finishes a join that was interrupted.
async fn settle(app: Arc<App>, member: Arc<Member>, file: MemberFile) {
    if file.phase == Phase::Joining {
        while let Err(error) = join::arrive(&app, &member, &file).await {
            tracing::warn!(%error, "the join goes on");
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// Tells the pool whenever this host is not what the pool state says, such as after an upgrade of QEMU.
pub async fn tell_changes(app: Arc<App>, member: Arc<Member>) {
    let mut states = member.states();
    let mut trouble = String::new();
    loop {
        let Ok(known) =
            states.wait_for(|state| state.members.contains_key(&member.host)).await.map(|state| state.clone())
        else {
            return;
        };
        let Some(record) = known.members.get(&member.host) else { return };
        match own_record(&app, record.id, record.uuid).await {
            Ok(own) if own == *record => trouble.clear(),
            Ok(own) => {
                tracing::info!("this host has changed: telling the pool");
                if let Err(error) = member.propose(Command::MemberUpdate { member: Box::new(own) }).await {
                    tracing::warn!(%error, "the pool does not know yet what has changed on this host");
                }
            }
            Err(error) if error.message != trouble => {
                tracing::error!(%error, "guests cannot run here");
                trouble = error.message;
            }
            Err(_) => {}
        }
        tokio::time::sleep(FACTS_INTERVAL).await;
    }
}

/// Ends only with a failure that this process cannot go on after.
///
/// # Errors
/// The consensus has stopped.
pub async fn watch(app: Arc<App>) -> anyhow::Result<()> {
    let mut memberships = app.memberships();
    loop {
        let current = memberships.borrow_and_update().clone();
        let Some(member) = current else {
            memberships.changed().await?;
            continue;
        };
        tokio::select! {
            reason = member.node.failed() => {
                anyhow::bail!("the pool state's consensus has stopped ({reason}); start evd again");
            }
            changed = memberships.changed() => changed?,
            true = member.node.removed() => leave(&app, &member).await,
            () = removed(&member) => leave(&app, &member).await,
        }
    }
}

/// Until the pool state shows that this host was in the pool and no longer is.
async fn removed(member: &Member) {
    let was_given = |state: &ev_core::pool::PoolState| {
        state.next_member > member.host.0 && !state.members.contains_key(&member.host)
    };
    loop {
        if was_given(&member.state()) {
            return;
        }
        let mut states = member.states();
        let _ = tokio::time::timeout(INTERVAL, states.wait_for(|state| was_given(state))).await;
    }
}

async fn leave(app: &Arc<App>, member: &Arc<Member>) {
    let _changing = app.changing.lock().await;
    tracing::warn!(pool = %member.pool_name, "the pool has removed this host; it belongs to no pool now");
    app.set_member(None);
    member.stop().await;
    if let Err(error) = app.papers.remove() {
        tracing::error!(%error, "what this host knew of the pool could not be removed");
    }
}
