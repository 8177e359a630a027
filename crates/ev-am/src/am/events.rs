//! What each event means for the keeper and for the parts of the AM.

use ev_core::availability::keeper::Event as KeeperEvent;
use ev_core::ids::Generation;
use ev_core::report::EndCause;
use ev_mirror::DiskEvent;
use ev_vm::{Exit, ShutdownReason};
use ev_wire::am::{AmAnswer, AmCall};
use ev_wire::peer::{Directive, ProposeRefusal};

use super::{Am, Event, Stay, TICKS_PER_DISK_REPAIR, TICKS_PER_LOOK};
use crate::checkpoint::waiting::DiskNotice;
use crate::guest::GuestNotice;
use crate::links::{Channel, LinkNotice};
use crate::local::LocalCall;
use crate::master::{MasterNotice, ProposeFailure};
use crate::{disks, started};

impl Am {
    pub(super) async fn handle(&mut self, event: Event) -> Stay {
        match event {
            Event::Master(MasterNotice::Directive { asked_at, directive }) => {
                let Directive { vm, lease_ms } = *directive;
                let Some(vm) = vm else { return self.step(KeeperEvent::VmGone).await };
                if self.step(KeeperEvent::Vm(Box::new(vm))).await == Stay::No {
                    return Stay::No;
                }
                let lease = lease_ms.map(std::time::Duration::from_millis);
                self.step(KeeperEvent::Directive { asked_at, lease }).await
            }
            Event::Master(MasterNotice::Proposed { change, result }) => self.proposed(&change, result).await,
            Event::Links(notice) => {
                self.on_link(notice);
                Stay::Yes
            }
            Event::Guest((since, notice)) => self.on_guest(since, notice).await,
            Event::Disk(event) => self.on_disk(event).await,
            Event::Local(call) => self.on_local(call).await,
            Event::Level3(notice) => self.on_level3(notice).await,
            Event::StreamWanted(channel) => {
                if let Some(links) = &self.links {
                    links.stream_down(channel);
                }
                Stay::Yes
            }
            Event::WentOn { since, result } => self.went_on(since, result).await,
            Event::Flushed { since, cause, clean } => self.ended(since, cause, clean).await,
            Event::Tick => self.tick().await,
            Event::Terminate => self.terminate(),
        }
    }

    async fn proposed(
        &mut self,
        change: &ev_core::authority::AuthorityChange,
        result: Result<ev_core::authority::Authority, ProposeFailure>,
    ) -> Stay {
        let record = match result {
            Ok(record) => {
                tracing::info!(?change, generation = %record.generation, "the record was changed");
                Some(record)
            }
            Err(ProposeFailure::Refused(ProposeRefusal::Superseded(record))) => {
                tracing::info!(?change, generation = %record.generation, "the record had moved on");
                Some(record)
            }
            Err(ProposeFailure::NoMaster) => None,
            // Not told to the keeper: it would ask again at once, and the answer would be the same. It asks again when its
            // patience is over.
            Err(ProposeFailure::Refused(refusal @ (ProposeRefusal::NoSuchVm | ProposeRefusal::Forbidden(_)))) => {
                tracing::warn!(?change, %refusal, "the pool refused a change of the record");
                return Stay::Yes;
            }
        };
        self.step(KeeperEvent::ProposalAnswered { record }).await
    }

    fn on_link(&mut self, notice: LinkNotice) {
        match notice {
            LinkNotice::Stream { channel: Channel::Disk(disk), stream } => {
                if let Some(partner) = self.config.partner {
                    self.disks.link(disk, *stream, partner);
                }
            }
            LinkNotice::Stream { channel: channel @ (Channel::Lane | Channel::Memory), stream } => {
                self.level3_stream(channel, stream);
            }
            LinkNotice::PartnerHeard(heard) => {
                self.partner_heard = heard;
                if heard {
                    tracing::info!("the partner's AM is heard");
                } else {
                    tracing::warn!("the partner's AM is not heard on any path");
                }
            }
            LinkNotice::Learned { nic, addresses } => {
                if self.learned.set(usize::from(nic), addresses) {
                    self.keep_learned();
                }
            }
        }
    }

    async fn on_guest(&mut self, since: Generation, notice: GuestNotice) -> Stay {
        if self.guest.as_ref().is_none_or(|guest| guest.task.since() != since) {
            return Stay::Yes;
        }
        match notice {
            GuestNotice::Up { guest, accelerator, running } => self.on_up(guest, accelerator, running).await,
            GuestNotice::StartFailed(why) => {
                tracing::error!(%since, why, "QEMU could not be started");
                self.guest = None;
                self.flush_then_end(since, EndCause::StartFailed(why));
                Stay::Yes
            }
            GuestNotice::Paused => self.step(KeeperEvent::PausedNow).await,
            GuestNotice::Resumed => self.step(KeeperEvent::ResumedNow).await,
            GuestNotice::Gone { exit, shutdown, log } => {
                let ending = self.guest.take().and_then(|guest| guest.ending);
                let cause = ending.unwrap_or_else(|| cause_of(exit, shutdown.as_ref(), &log));
                tracing::info!(%since, ?exit, ?shutdown, ?cause, "the guest has ended");
                if matches!(cause, EndCause::Crashed(_)) && self.standby_may_go_on() {
                    // Nothing is to be flushed: what was written since the standby's last checkpoint has not been.
                    return self.ended(since, cause, false).await;
                }
                self.end_ahead();
                self.flush_then_end(since, cause);
                Stay::Yes
            }
        }
    }

    async fn on_up(&mut self, up: ev_vm::Guest, accelerator: Option<String>, running: bool) -> Stay {
        let pid = up.pid();
        self.begin_level3(up);
        let Some(guest) = &mut self.guest else { return Stay::Yes };
        tracing::info!(pid, ?accelerator, running, "QEMU runs");
        crate::priority::lower_processors(pid);
        guest.accelerator = accelerator.or(guest.accelerator.take());
        guest.nics.announce(&self.learned);
        self.step(KeeperEvent::Started).await
    }

    async fn on_disk(&mut self, event: DiskEvent) -> Stay {
        // A wish that was made under an older record is not passed on: the disk repeats it if it still holds.
        let newest = self.vm().authority.generation;
        match event {
            DiskEvent::ReplicaLost { disk, host, seen } if seen == newest => {
                self.step(KeeperEvent::ReplicaLost { disk, host }).await
            }
            DiskEvent::ReplicaGood { disk, host, seen } if seen == newest => {
                self.step(KeeperEvent::ReplicaGood { disk, host }).await
            }
            DiskEvent::ReplicaLost { .. } | DiskEvent::ReplicaGood { .. } => Stay::Yes,
            DiskEvent::LinkDown { disk } => {
                self.level3_disk_link_down();
                if let Some(links) = &self.links {
                    links.stream_down(Channel::Disk(disk));
                }
                Stay::Yes
            }
            DiskEvent::LinkUp { disk } => {
                tracing::info!(%disk, "the disk is linked to the partner");
                Stay::Yes
            }
            DiskEvent::EpochStaged { disk, session, epoch, flushed } => {
                self.on_epoch(DiskNotice::Staged { disk, session, epoch, flushed });
                Stay::Yes
            }
            DiskEvent::EpochApplied { disk, session, epoch } => {
                self.on_epoch(DiskNotice::Applied { disk, session, epoch });
                Stay::Yes
            }
            DiskEvent::EpochsLost { disk, session } => {
                self.on_epoch(DiskNotice::Lost { disk, session });
                Stay::Yes
            }
            DiskEvent::AheadStuck { disk, session } => {
                tracing::warn!(%disk, %session, "the guest waits for a disk that failed here; it goes on on the standby");
                match self.config.partner {
                    Some(host) => self.step(KeeperEvent::SwitchTo { host }).await,
                    None => Stay::Yes,
                }
            }
            DiskEvent::Trouble { disk, text } => {
                tracing::warn!(%disk, text, "a disk is in trouble");
                self.troubles.note(disk, text);
                Stay::Yes
            }
        }
    }

    async fn on_local(&mut self, LocalCall { call, answer }: LocalCall) -> Stay {
        let mut stay = Stay::Yes;
        let reply = match call {
            AmCall::Reload => match self.reload() {
                Ok(()) => {
                    stay = self.step(KeeperEvent::Vm(Box::new(self.config.vm.clone()))).await;
                    AmAnswer::Done
                }
                Err(error) => AmAnswer::Refused(format!("{error:#}")),
            },
            AmCall::Vm(vm) if vm.id == self.config.vm_id => {
                stay = self.step(KeeperEvent::Vm(vm)).await;
                AmAnswer::Done
            }
            AmCall::Vm(_) => AmAnswer::Refused("this AM belongs to another VM".into()),
            AmCall::Status => AmAnswer::Status(Box::new(self.report())),
            AmCall::Verify { repair, bytes_per_s } => match self.disks.verify(repair, bytes_per_s) {
                Ok(()) => AmAnswer::Done,
                Err(error) => AmAnswer::Refused(error.to_string()),
            },
            AmCall::Revert => self.revert().await,
            AmCall::Quit if self.guest.is_some() => {
                AmAnswer::Refused("the guest still runs: end it first (ev pvm-shutdown)".into())
            }
            AmCall::Quit => {
                stay = Stay::No;
                AmAnswer::Done
            }
        };
        // The caller may have hung up.
        let _ = answer.send(reply);
        stay
    }

    /// The AM does nothing else meanwhile: its guest is off, and a copy of the partner's must not begin.
    async fn revert(&mut self) -> AmAnswer {
        if self.vm().authority.power != ev_core::authority::Power::Off {
            return AmAnswer::Refused("the guest is on: end it first (ev pvm-force-off)".into());
        }
        let reverted = self.disks.revert(&self.vm().authority.clone()).await;
        self.act_on_disks();
        match reverted {
            Ok(kept_at_unix_s) => AmAnswer::Reverted { kept_at_unix_s },
            Err(why) => AmAnswer::Refused(why),
        }
    }

    /// The disks were flushed after the guest's end: now the end is on record, and the keeper told.
    async fn ended(&mut self, since: Generation, cause: EndCause, clean: bool) -> Stay {
        let end = started::End { cause: cause.clone(), clean };
        if let Err(error) = started::write(&self.paths.started(), since, Some(end)) {
            tracing::error!(%error, "the guest's end is not on record; after a restart of this AM it counts as a crash");
        }
        self.step(KeeperEvent::Ended { cause, clean }).await
    }

    async fn tick(&mut self) -> Stay {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(TICKS_PER_LOOK) {
            self.look_at_nics().await;
        }
        self.reopen_closed_disks();
        if self.ticks.is_multiple_of(TICKS_PER_DISK_REPAIR) {
            self.disks.close_failed(std::time::Instant::now());
            if self.disks.all_open().is_none() {
                self.act_on_disks();
            }
        }
        self.step(KeeperEvent::Tick).await
    }

    fn reopen_closed_disks(&mut self) {
        let reopened = self.disks.reopen_closed();
        if reopened.is_empty() {
            return;
        }
        for disk in &reopened {
            self.troubles.forget(*disk);
        }
        self.keep_marker();
        self.act_on_disks();
    }

    /// New storage in the old one's place lacks the marker of the guest that runs.
    fn keep_marker(&self) {
        let Some(guest) = &self.guest else { return };
        let path = self.paths.started();
        if matches!(started::read(&path), Ok(None))
            && let Err(error) = started::write(&path, guest.task.since(), None)
        {
            tracing::error!(%error, "after a restart of this AM the guest will count as lost");
        }
    }

    async fn look_at_nics(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        guest.nics.mend().await;
        let mut changed = false;
        for (nic, addresses) in guest.nics.newly_learned() {
            changed |= self.learned.set(nic, addresses.iter().copied());
            if let (Some(links), Ok(nic)) = (&self.links, u16::try_from(nic)) {
                links.learned(nic, addresses.into_iter().collect());
            }
        }
        if changed {
            self.keep_learned();
        }
    }

    fn keep_learned(&self) {
        if let Err(error) = self.learned.write(&self.paths.learned()) {
            tracing::warn!(%error, "the guest's addresses could not be kept; neighbours learn them from its frames");
        }
    }

    fn terminate(&self) -> Stay {
        match &self.guest {
            Some(guest) => tracing::warn!(
                since = %guest.task.since(),
                "told to end: QEMU is left running and its disks and NICs wait until the next ev-am takes them up"
            ),
            None => tracing::info!("told to end; no guest runs here"),
        }
        Stay::No
    }

    /// Flushes the disks on a thread of its own; [`Event::Flushed`] tells the end.
    pub(super) fn flush_then_end(&self, since: Generation, cause: EndCause) {
        let (flushed, disks) = (self.outbox.flushed.clone(), self.disks.all_open());
        let limit = disks::FLUSH_TIME_MAX;
        tokio::spawn(async move {
            let work = tokio::task::spawn_blocking(move || disks.is_some_and(|disks| disks::flush_all(&disks)));
            let clean = match tokio::time::timeout(limit, work).await {
                Ok(Ok(clean)) => clean,
                Ok(Err(_)) => false,
                Err(_) => {
                    tracing::warn!(
                        limit_s = limit.as_secs(),
                        "flushing the disks takes too long; the end is not clean"
                    );
                    false
                }
            };
            let _ = flushed.send((since, cause, clean)).await;
        });
    }
}

/// Why a guest ended that nobody here wanted to end.
fn cause_of(exit: Exit, shutdown: Option<&ShutdownReason>, log: &str) -> EndCause {
    match (shutdown, exit) {
        (Some(ShutdownReason::GuestShutdown), _) => EndCause::GuestShutdown,
        (Some(reason), _) => EndCause::Crashed(format!("QEMU ended it: {reason:?}")),
        (None, Exit::Signal(signal)) => EndCause::Crashed(format!("QEMU was killed by signal {signal}")),
        (None, Exit::Code(code)) => {
            let last = log.lines().next_back().unwrap_or("it said nothing");
            EndCause::Crashed(format!("QEMU exited with {code}: {last}"))
        }
        (None, Exit::Unknown) => EndCause::Crashed("QEMU is gone; why is not known".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_what_qemu_said_or_how_it_died() {
        let by_guest = cause_of(Exit::Code(0), Some(&ShutdownReason::GuestShutdown), "");
        assert_eq!(by_guest, EndCause::GuestShutdown);
        assert_eq!(cause_of(Exit::Unknown, Some(&ShutdownReason::GuestShutdown), ""), EndCause::GuestShutdown);
        let killed = cause_of(Exit::Signal(9), None, "");
        assert_eq!(killed, EndCause::Crashed("QEMU was killed by signal 9".into()));
        let failed = cause_of(Exit::Code(1), None, "one\ncannot allocate memory");
        assert_eq!(failed, EndCause::Crashed("QEMU exited with 1: cannot allocate memory".into()));
        let panicked = cause_of(Exit::Code(0), Some(&ShutdownReason::GuestPanic), "");
        assert!(matches!(panicked, EndCause::Crashed(_)));
    }
}
