//! The VM's disks on this host: made once, opened, told their role by the record, and handed their links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ev_core::authority::{Authority, AuthorityChange, Power};
use ev_core::ids::{DiskId, Generation, HostId};
use ev_core::report::{DiskReport, ReplicaState};
use ev_core::vm::Vm;
use ev_mirror::{Disk, DiskEvent, DiskRole, DiskSpec, Gate, Initial, LinkStream, LinkTls, OpenError, Reverted};
use ev_wire::am::AmConfig;

use crate::links::Stream;
use crate::paths::Paths;
use crate::storage::{self, Retries};

/// The first records of a VM: made (1), placed on a second host (2). Later ones come after a first start.
const NEW_VM_GENERATION_MAX: Generation = Generation(2);

/// Longest wait for the flush after a guest's end, of which a lost partner takes some seconds. Longer: the end counts as
/// unclean, and the next start copies what the write-intent log names.
pub const FLUSH_TIME_MAX: Duration = Duration::from_secs(20);

/// All disks, by their place in the VM's configuration.
pub struct Disks {
    host: HostId,
    slots: Vec<Slot>,
    gate: Arc<Gate>,
    events: SyncSender<DiskEvent>,
    qemu_user: String,
}

struct Slot {
    spec: DiskSpec,
    state: State,
    retries: Retries,
}

enum State {
    Open(Arc<Disk>),
    /// Its replica failed, and the storage works again: the old disk is being closed, by a thread of its own since storage that hangs
    /// keeps it from ending. Then it is opened anew.
    Closing(JoinHandle<()>),
    /// It can't be used; why, in words.
    Broken {
        fault: Fault,
        why: String,
    },
}

/// What is wrong with a disk that can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// There is no replica or metadata, or what there is can't be used.
    Lost,
    /// Something around it, such as a missing right: the replica may be in order.
    Around,
}

/// What is to be done about a disk that has no replica to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Making {
    /// The VM is new: the replica as it lies there, or an empty one, is the disk.
    Source,
    /// The other host has the data; this one gets a copy.
    Target,
    /// The record still counts on the lost replica: first ask for a record without it.
    AskToLose,
    /// It was the only good one.
    Nothing,
}

fn making(record: &Authority, disk: DiskId, host: HostId) -> Making {
    let none = BTreeSet::new();
    let good = record.good.get(&disk).unwrap_or(&none);
    let new = record.generation <= NEW_VM_GENERATION_MAX && record.power == Power::Off && record.clean;
    match (good.contains(&host), new) {
        (true, true) => Making::Source,
        (true, false) if good.len() > 1 => Making::AskToLose,
        (true, false) => Making::Nothing,
        (false, _) => Making::Target,
    }
}

impl Disks {
    /// Opens what there is; [`Self::act`] makes what is missing.
    pub fn open(config: &AmConfig, vm: &Vm, gate: &Arc<Gate>, events: SyncSender<DiskEvent>) -> Self {
        let paths = Paths::new(&config.state_dir, &config.run_dir);
        let slot = |(index, disk): (usize, &ev_core::vm::DiskConfig)| {
            let spec = DiskSpec {
                pool: config.pool,
                vm: vm.id,
                disk: disk.id,
                host: config.host,
                size_bytes: disk.size_bytes,
                replica: paths.replica(index),
                metadata: paths.metadata(index),
                nbd_socket: Some(paths.nbd_socket(index)),
                copy_rate_limit: config.copy_rate_limit,
                partner_timeout: Duration::from_millis(config.times.partner_timeout_ms),
            };
            let state = State::Broken { fault: Fault::Lost, why: "there is no replica here yet".into() };
            Slot { spec, state, retries: Retries::default() }
        };
        let slots = vm.config.disks.iter().enumerate().map(slot).collect();
        let mut disks =
            Self { host: config.host, slots, gate: Arc::clone(gate), events, qemu_user: config.qemu_user.clone() };
        disks.open_closed();
        disks
    }

    /// Tries to open each disk that is not open and has metadata.
    fn open_closed(&mut self) {
        for slot in &mut self.slots {
            if let State::Broken { why: old, .. } = &slot.state
                && slot.spec.metadata.exists()
            {
                let state = open_one(&slot.spec, &self.gate, &self.events, &self.qemu_user);
                if let State::Broken { why, .. } = &state
                    && why != old
                {
                    tracing::error!(disk = %slot.spec.disk, error = why, "the replica on this host can't be used");
                }
                slot.state = state;
            }
        }
    }

    /// Begins to close each disk whose replica failed and whose storage works again. A guest's I/O waits from then until
    /// [`Self::reopen_closed`], as it does for a new AM.
    pub fn close_failed(&mut self, now: Instant) {
        for slot in &mut self.slots {
            let State::Open(disk) = &slot.state else { continue };
            let failed = disk.report().local == ReplicaState::Failed;
            // A flush that is still under way holds on to the disk: next time.
            if !failed || !slot.retries.is_due(now) || Arc::strong_count(disk) > 1 {
                continue;
            }
            let folder = slot.spec.replica.parent().expect("a replica lies in the VM's state folder");
            if let Err(error) = storage::probe(folder) {
                tracing::debug!(disk = %slot.spec.disk, %error, "the storage of this replica still fails");
                continue;
            }
            slot.retries.tried(now);
            tracing::info!(disk = %slot.spec.disk, "the storage of the failed replica works again: opening it anew");
            slot.close();
        }
    }

    /// Opens the disks anew that have been closed; which ones. [`Self::act`] is then to be called.
    pub fn reopen_closed(&mut self) -> Vec<DiskId> {
        let mut reopened = Vec::new();
        for slot in &mut self.slots {
            if let State::Closing(thread) = &slot.state
                && thread.is_finished()
            {
                slot.state = State::Broken { fault: Fault::Lost, why: "it is being opened anew".into() };
                reopened.push(slot.spec.disk);
            }
        }
        if !reopened.is_empty() {
            self.open_closed();
        }
        reopened
    }

    /// Brings back the older state of each replica that the record does not call good; when the oldest was kept. Each one that
    /// could be brought back has an older state from then on, which only a record can make good.
    pub async fn revert(&mut self, record: &Authority) -> Result<Option<u64>, String> {
        let host = self.host;
        let lacks = |slot: &&mut Slot| record.good.get(&slot.spec.disk).is_none_or(|good| !good.contains(&host));
        let mut oldest: Option<u64> = None;
        let mut failed = Ok(());
        let busy = |slot: &Slot| match &slot.state {
            State::Open(disk) => Arc::strong_count(disk) > 1,
            State::Closing(_) => true,
            State::Broken { .. } => false,
        };
        if self.slots.iter().any(busy) {
            return Err("the disks are being flushed or closed: try again in a few seconds".to_owned());
        }
        for slot in self.slots.iter_mut().filter(lacks) {
            let why = "its older state is being brought back".to_owned();
            let open = std::mem::replace(&mut slot.state, State::Broken { fault: Fault::Around, why });
            let spec = slot.spec.clone();
            let work = tokio::task::spawn_blocking(move || {
                // Closes the files.
                drop(open);
                Disk::revert(&spec)
            });
            match work.await.map_err(|error| error.to_string()).and_then(|done| done.map_err(|error| error.to_string()))
            {
                Ok(Reverted::BeforeCopy { kept_at_unix_s }) => {
                    oldest = Some(oldest.map_or(kept_at_unix_s, |other| other.min(kept_at_unix_s)));
                }
                Ok(Reverted::AsItLay) => {}
                Err(why) => failed = Err(format!("disk {}: {why}", slot.spec.disk)),
            }
        }
        self.open_closed();
        failed.map(|()| oldest)
    }

    /// Makes every disk act by this record; answers with the changes of the record that are needed first.
    pub fn act(&mut self, vm: &Vm) -> Vec<AuthorityChange> {
        let mut wishes = Vec::new();
        for slot in &mut self.slots {
            if let State::Broken { fault: Fault::Lost, .. } = slot.state {
                wishes.extend(repair(slot, &vm.authority, self.host));
            }
        }
        self.open_closed();
        for slot in &self.slots {
            let State::Open(disk) = &slot.state else { continue };
            let (role, clean) = role(vm, slot.spec.disk, self.host);
            if let Err(error) = disk.role(vm.authority.generation, role, clean) {
                tracing::error!(disk = %slot.spec.disk, %error, "the disk takes no orders");
            }
        }
        wishes
    }

    /// Hands a connected stream to its disk.
    pub fn link(&self, disk: DiskId, stream: Stream, peer: HostId) {
        let Some(open) = self.slots.iter().find(|slot| slot.spec.disk == disk).and_then(Slot::disk) else { return };
        let result = hand_over(open, stream, peer);
        if let Err(error) = result {
            tracing::warn!(%disk, %error, "a stream to the partner was not taken by its disk");
        }
    }

    pub fn reports(&self) -> Vec<DiskReport> {
        self.slots.iter().map(Slot::report).collect()
    }

    /// The disks in service, for as long as they are.
    pub fn handles(&self) -> Vec<(DiskId, Weak<Disk>)> {
        self.slots.iter().map(|slot| (slot.spec.disk, slot.disk().map_or_else(Weak::new, Arc::downgrade))).collect()
    }

    pub fn ids(&self) -> Vec<DiskId> {
        self.slots.iter().map(|slot| slot.spec.disk).collect()
    }

    /// All disks, if all can be used.
    pub fn all_open(&self) -> Option<Vec<Arc<Disk>>> {
        self.slots.iter().map(|slot| slot.disk().map(Arc::clone)).collect()
    }

    /// Compares both replicas of each disk.
    pub fn verify(&self, repair: bool, bytes_per_s: Option<u64>) -> Result<(), ev_mirror::CommandError> {
        self.slots.iter().filter_map(Slot::disk).try_for_each(|disk| disk.verify(repair, bytes_per_s))
    }

    pub fn set_copy_rate_limit(&self, bytes_per_second: Option<u64>) {
        for disk in self.slots.iter().filter_map(Slot::disk) {
            if let Err(error) = disk.set_copy_rate_limit(bytes_per_second) {
                tracing::error!(%error, "the disk takes no orders");
            }
        }
    }
}

impl Slot {
    fn disk(&self) -> Option<&Arc<Disk>> {
        match &self.state {
            State::Open(disk) => Some(disk),
            State::Closing(_) | State::Broken { .. } => None,
        }
    }

    /// Gives the disk to a thread that drops it.
    fn close(&mut self) {
        let why = "it is being closed, to be opened anew: its storage works again".to_owned();
        let closing = State::Broken { fault: Fault::Around, why };
        let State::Open(disk) = std::mem::replace(&mut self.state, closing) else { return };
        match std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(disk)) {
            Ok(thread) => self.state = State::Closing(thread),
            // The disk was dropped with the thread's body.
            Err(error) => {
                tracing::error!(disk = %self.spec.disk, %error, "no thread to close the disk: check the limits on threads");
            }
        }
    }

    fn report(&self) -> DiskReport {
        match &self.state {
            State::Open(disk) => disk.report(),
            State::Closing(_) => self.failed("the failed replica is being closed, to be opened anew"),
            State::Broken { why, .. } => self.failed(why),
        }
    }

    fn failed(&self, why: &str) -> DiskReport {
        DiskReport {
            disk: self.spec.disk,
            local: ReplicaState::Failed,
            partner: None,
            copy: None,
            comparison: None,
            read_bytes: 0,
            write_bytes: 0,
            trouble: Some(why.to_owned()),
        }
    }
}

/// What a disk does under the record.
///
/// A start after an unclean end leaves only the starter's replica good, so a good partner means that the start was
/// clean. With no other good replica "unclean" is always right: it only makes the later copy look at a little more.
fn role(vm: &Vm, disk: DiskId, host: HostId) -> (DiskRole, bool) {
    let record = &vm.authority;
    let good = record.good.get(&disk).cloned().unwrap_or_default();
    match record.active {
        Some(active) if active == host => {
            let partner = vm.hosts.iter().copied().find(|other| *other != host);
            let clean = good.len() > 1;
            (DiskRole::Coordinator { partner, good }, clean)
        }
        Some(coordinator) if vm.hosts.contains(&host) => (DiskRole::Replica { coordinator }, true),
        Some(_) | None => (DiskRole::Idle, true),
    }
}

fn open_one(spec: &DiskSpec, gate: &Arc<Gate>, events: &SyncSender<DiskEvent>, qemu_user: &str) -> State {
    let disk = match Disk::open(spec.clone(), Arc::clone(gate), events.clone()) {
        Ok(disk) => disk,
        Err(error) => {
            let fault = match &error {
                OpenError::Replica { .. } | OpenError::OtherSize { .. } | OpenError::Metadata(_) => Fault::Lost,
                OpenError::Ring(_) | OpenError::NbdSocket { .. } | OpenError::Thread(_) => Fault::Around,
            };
            return State::Broken { fault, why: error.to_string() };
        }
    };
    if let Some(socket) = &spec.nbd_socket
        && let Err(error) = ev_vm::guest::allow_connect(socket, qemu_user)
    {
        return State::Broken { fault: Fault::Around, why: error.to_string() };
    }
    State::Open(Arc::new(disk))
}

/// Makes a missing replica as far as the record allows.
fn repair(slot: &mut Slot, record: &Authority, host: HostId) -> Option<AuthorityChange> {
    let spec = &slot.spec;
    let has_metadata = spec.metadata.exists();
    match making(record, spec.disk, host) {
        Making::Source if !has_metadata => slot.create(Initial::Source),
        // Damaged or lost, and the record does not count on it: what is there is put aside for a person to look at.
        Making::Target => {
            put_aside(&spec.metadata);
            put_aside(&spec.replica);
            slot.create(Initial::Target);
        }
        Making::AskToLose => return Some(AuthorityChange::ReplicaLost { disk: spec.disk, host }),
        Making::Source => {}
        Making::Nothing => {
            if !has_metadata {
                let why = "the only good replica of this disk was here and its metadata is gone: is the file system of the \
                           state folder mounted?";
                slot.state = State::Broken { fault: Fault::Lost, why: why.into() };
            }
        }
    }
    None
}

impl Slot {
    fn create(&mut self, initial: Initial) {
        match Disk::create(&self.spec, initial) {
            Ok(()) => tracing::info!(disk = %self.spec.disk, ?initial, "the replica was created"),
            Err(error) => {
                tracing::error!(disk = %self.spec.disk, %error, "the replica can't be created on this host");
                self.state = State::Broken { fault: Fault::Lost, why: error.to_string() };
            }
        }
    }
}

fn put_aside(path: &Path) {
    if path.exists() {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".lost");
        if let Err(error) = std::fs::rename(path, &aside) {
            tracing::error!(path = %path.display(), %error, "cannot put a damaged file aside; move it away by hand");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum HandOverError {
    #[error("the socket can't be handed over: {0}")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Command(#[from] ev_mirror::CommandError),
}

fn hand_over(disk: &Disk, stream: Stream, peer: HostId) -> Result<(), HandOverError> {
    let (tcp, tls) = match stream {
        Stream::Client(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, LinkTls::Client(Box::new(tls)))
        }
        Stream::Server(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, LinkTls::Server(Box::new(tls)))
        }
    };
    disk.link(LinkStream { socket: tcp.into_std()?, tls, peer })?;
    Ok(())
}

/// Flushes all disks on all good replicas; waits for the disks' threads, so it is not for an asynchronous task.
#[must_use]
pub fn flush_all(disks: &[Arc<Disk>]) -> bool {
    let flush = |disk: &Arc<Disk>| {
        disk.flush().inspect_err(|error| tracing::warn!(%error, "a disk was not flushed after the guest's end"))
    };
    disks.iter().map(flush).filter(Result::is_err).count() == 0
}

/// Troubles that the disks told, for people: the last one of each.
#[derive(Debug, Default)]
pub struct Troubles(BTreeMap<DiskId, String>);

impl Troubles {
    pub fn note(&mut self, disk: DiskId, text: String) {
        self.0.insert(disk, text);
    }

    pub fn forget(&mut self, disk: DiskId) {
        self.0.remove(&disk);
    }

    pub fn list(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(disk, text)| format!("disk {disk}: {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const DISK: DiskId = DiskId(Uuid::from_u128(1));
    const HERE: HostId = ev_core::ids::MemberId(1);
    const THERE: HostId = ev_core::ids::MemberId(2);

    fn record(generation: u64, power: Power, clean: bool, good: &[HostId]) -> Authority {
        Authority {
            generation: Generation(generation),
            active: Some(HERE),
            standby: None,
            power,
            clean,
            good: [(DISK, good.iter().copied().collect())].into(),
            ..Authority::default()
        }
    }

    #[test]
    fn only_a_new_vm_gets_an_empty_disk() {
        let made = |record: &Authority| making(record, DISK, HERE);
        assert_eq!(made(&record(1, Power::Off, true, &[HERE])), Making::Source);
        assert_eq!(made(&record(2, Power::Off, true, &[HERE])), Making::Source);
        // It ran already, and its only replica is gone: an empty disk in its place would be a lie.
        assert_eq!(made(&record(3, Power::Off, true, &[HERE])), Making::Nothing);
        assert_eq!(made(&record(2, Power::On { since: Generation(2) }, false, &[HERE])), Making::Nothing);
    }

    #[test]
    fn a_lost_replica_is_copied_anew_once_the_record_does_not_count_on_it() {
        let on = Power::On { since: Generation(2) };
        assert_eq!(making(&record(7, on, false, &[HERE, THERE]), DISK, HERE), Making::AskToLose);
        assert_eq!(making(&record(8, on, false, &[THERE]), DISK, HERE), Making::Target);
        assert_eq!(making(&record(1, Power::Off, true, &[THERE]), DISK, HERE), Making::Target);
    }
}
