//! What each command does to the pool state. Deterministic: every member comes to the same result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::authority;
use super::command::{Command, Outcome, Refusal, SettingsFault, Stamped};
use super::state::{
    ADMIN_TOKENS_MAX, ALERTS_MAX, AdminTokenInfo, Alert, Compared, EVENTS_MAX, Event, MEMBERS_MAX, Member, MemberKind,
    NETWORKS_MAX, Network, PoolInfo, PoolState, Settings, Severity, TOKENS_MAX, Token, TokenPurpose, VMS_MAX,
};
use crate::authority::{Authority, AuthorityChange, Origin, Power};
use crate::ids::{DiskId, Generation, HostId, MemberId, NetworkId, VmId};
use crate::vm::{DISKS_MAX, Desired, Level, NICS_MAX, SECTOR_BYTES, Vm, VmConfig};

/// Longest name of anything, in bytes.
const NAME_BYTES_MAX: usize = 63;

impl PoolState {
    /// Applies one command. A refused one changes nothing.
    pub fn apply(&mut self, Stamped { unix_ms, command }: Stamped) -> Outcome {
        let note = self.note_before(&command);
        match self.try_apply(unix_ms, command) {
            Ok(outcome) => {
                if let Some(note) = note {
                    self.add_event(unix_ms, note.severity, note.object, note.text);
                }
                outcome
            }
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn try_apply(&mut self, unix_ms: u64, command: Command) -> Result<Outcome, Refusal> {
        match command {
            Command::PoolCreate { pool, first, network, admin_token } => {
                self.create(unix_ms, pool, *first, network, admin_token)
            }
            Command::AdminTokenAdd { hash, name } => self.add_admin_token(unix_ms, hash, name),
            Command::AdminTokenRevoke { hash_start } => self.revoke_admin_token(&hash_start),
            Command::TokenAdd { hash, token } => self.add_token(unix_ms, hash, token),
            Command::MemberJoin { token_hash, member } => self.join(&token_hash, unix_ms, *member),
            Command::MemberAdd { member } => self.add_member(*member),
            Command::MemberUpdate { member } => self.update_member(*member),
            Command::MemberRemove { id } => self.remove_member(id),
            Command::NetworkAdd { network } => self.add_network(network),
            Command::NetworkRemove { id } => self.remove_network(id),
            Command::SettingsSet { settings } => self.set_settings(settings),
            Command::VmCreate { id, name, config, host } => self.create_vm(id, name, *config, host),
            Command::VmRename { id, name } => self.rename_vm(id, name),
            Command::VmDelete { id } => self.delete_vm(id),
            Command::VmDesire { id, desired } => self.desire(id, desired),
            Command::VmPlace { id, level, hosts } => self.place(id, level, hosts),
            Command::VmAuthority { id, if_generation, change } => {
                let outcome = self.change_authority(id, if_generation, &change)?;
                if let AuthorityChange::ReplicaGood { disk, .. } = change {
                    let in_step = Compared { unix_ms, compared_bytes: 0, different_bytes: 0, repaired_bytes: 0 };
                    self.compared.entry(disk).or_insert(in_step);
                }
                Ok(outcome)
            }
            Command::DiskCompared { vm, disk, outcome } => self.disk_compared(unix_ms, vm, disk, outcome),
            Command::EventAdd { severity, object, text } => {
                self.add_event(unix_ms, severity, object, text);
                Ok(Outcome::Done)
            }
            Command::AlertRaise { key, alert } => self.raise_alert(key, alert),
            Command::AlertClear { key } => Ok(self.clear_alert(&key, unix_ms)),
        }
    }

    fn create(
        &mut self,
        unix_ms: u64,
        pool: PoolInfo,
        first: Member,
        network: Network,
        admin: String,
    ) -> Result<Outcome, Refusal> {
        if let Some(existing) = &self.pool {
            return Err(Refusal::PoolExists(existing.name.clone()));
        }
        check_name(&pool.name)?;
        check_name(&first.name)?;
        check_name(&network.name)?;
        self.pool = Some(pool);
        self.next_member = self.next_member.max(first.id.0 + 1);
        self.members.insert(first.id, first);
        self.networks.insert(network.id, network);
        let first_token = AdminTokenInfo { name: "ev pool-create".to_owned(), created_unix_ms: Some(unix_ms) };
        self.admin_tokens.insert(admin, first_token);
        Ok(Outcome::Done)
    }

    fn add_admin_token(&mut self, unix_ms: u64, hash: String, name: String) -> Result<Outcome, Refusal> {
        if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(Refusal::BadTokenName(NAME_BYTES_MAX));
        }
        if self.admin_tokens.len() >= ADMIN_TOKENS_MAX {
            return Err(Refusal::TooMany(ADMIN_TOKENS_MAX));
        }
        self.admin_tokens.insert(hash, AdminTokenInfo { name, created_unix_ms: Some(unix_ms) });
        Ok(Outcome::Done)
    }

    fn revoke_admin_token(&mut self, hash_start: &str) -> Result<Outcome, Refusal> {
        let mut meant = self.admin_tokens.keys().filter(|hash| hash.starts_with(hash_start));
        match (meant.next().cloned(), meant.next()) {
            (Some(hash), None) => self.admin_tokens.remove(&hash),
            (None, _) | (Some(_), Some(_)) => return Err(Refusal::NoSuchAdminToken(hash_start.to_owned())),
        };
        Ok(Outcome::Done)
    }

    /// Drops tokens that can never be used again, so that their number stays small.
    fn add_token(&mut self, unix_ms: u64, hash: String, token: Token) -> Result<Outcome, Refusal> {
        self.tokens.retain(|_, old| !old.used && unix_ms < old.expires_unix_ms);
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::TooMany(TOKENS_MAX));
        }
        self.tokens.insert(hash, token);
        Ok(Outcome::Done)
    }

    fn join(&mut self, token_hash: &str, now_unix_ms: u64, member: Member) -> Result<Outcome, Refusal> {
        let token = self.tokens.get(token_hash).ok_or(Refusal::TokenUnknown)?;
        let lets_in = match token.purpose {
            TokenPurpose::JoinHost => MemberKind::Host,
            TokenPurpose::JoinQuorumServer => MemberKind::QuorumServer,
        };
        if member.kind != lets_in {
            return Err(Refusal::TokenForOther);
        }
        if token.used {
            return Err(Refusal::TokenUsed);
        }
        if now_unix_ms >= token.expires_unix_ms {
            return Err(Refusal::TokenExpired);
        }
        if let Some(known) = self.members.values().find(|known| known.uuid == member.uuid) {
            return Err(Refusal::MemberKnown(known.name.clone()));
        }
        let outcome = self.add_member(member)?;
        if let Some(token) = self.tokens.get_mut(token_hash) {
            token.used = true;
        }
        Ok(outcome)
    }

    fn add_member(&mut self, mut member: Member) -> Result<Outcome, Refusal> {
        self.pool.as_ref().ok_or(Refusal::NoPool)?;
        check_name(&member.name)?;
        if self.member_named(&member.name).is_some() {
            return Err(Refusal::NameTaken(member.name));
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(Refusal::TooManyMembers(MEMBERS_MAX));
        }
        let id = MemberId(self.next_member);
        self.next_member += 1;
        member.id = id;
        self.members.insert(id, member);
        Ok(Outcome::MemberAdded(id))
    }

    fn update_member(&mut self, member: Member) -> Result<Outcome, Refusal> {
        check_name(&member.name)?;
        if self.member_named(&member.name).is_some_and(|other| other.id != member.id) {
            return Err(Refusal::NameTaken(member.name));
        }
        let known = self.members.get_mut(&member.id).ok_or(Refusal::NoSuchMember)?;
        if known.kind != member.kind || known.uuid != member.uuid {
            return Err(Refusal::OtherMember(known.name.clone()));
        }
        *known = member;
        Ok(Outcome::Done)
    }

    fn remove_member(&mut self, id: MemberId) -> Result<Outcome, Refusal> {
        let member = self.members.get(&id).ok_or(Refusal::NoSuchMember)?;
        if member.kind == MemberKind::Host {
            let vms: Vec<&str> = self.vms_on(id).map(|vm| vm.name.as_str()).collect();
            if !vms.is_empty() {
                return Err(Refusal::HostInUse { host: member.name.clone(), vms: vms.join(", ") });
            }
            if self.hosts().count() == 1 {
                return Err(Refusal::LastHost(member.name.clone()));
            }
        }
        self.members.remove(&id);
        Ok(Outcome::Done)
    }

    fn add_network(&mut self, network: Network) -> Result<Outcome, Refusal> {
        check_name(&network.name)?;
        if self.networks.values().any(|other| other.name == network.name || other.bridge == network.bridge) {
            return Err(Refusal::NameTaken(network.name));
        }
        if self.networks.len() >= NETWORKS_MAX {
            return Err(Refusal::TooMany(NETWORKS_MAX));
        }
        self.networks.insert(network.id, network);
        Ok(Outcome::Done)
    }

    fn remove_network(&mut self, id: NetworkId) -> Result<Outcome, Refusal> {
        let network = self.networks.get(&id).ok_or(Refusal::NoSuchNetwork)?;
        let uses = |vm: &&Vm| vm.config.nics.iter().any(|nic| nic.network == id);
        let vms: Vec<&str> = self.vms.values().filter(uses).map(|vm| vm.name.as_str()).collect();
        if !vms.is_empty() {
            return Err(Refusal::NetworkInUse { network: network.name.clone(), vms: vms.join(", ") });
        }
        self.networks.remove(&id);
        Ok(Outcome::Done)
    }

    fn set_settings(&mut self, settings: Settings) -> Result<Outcome, Refusal> {
        check_settings(&settings).map_err(Refusal::BadSettings)?;
        let leased = |vm: &&Vm| vm.level != Level::Unprotected && vm.authority.power != Power::Off;
        if settings.lease_ms < self.settings.lease_ms
            && let Some(vm) = self.vms.values().find(leased)
        {
            return Err(Refusal::LeasesOut(vm.name.clone()));
        }
        self.settings = settings;
        Ok(Outcome::Done)
    }

    fn create_vm(&mut self, id: VmId, name: String, config: VmConfig, host: HostId) -> Result<Outcome, Refusal> {
        check_name(&name)?;
        if self.vm_named(&name).is_some() || self.vms.contains_key(&id) {
            return Err(Refusal::NameTaken(name));
        }
        if !self.hosts().any(|member| member.id == host) {
            return Err(Refusal::NoSuchMember);
        }
        self.check_config(&config)?;
        let number = self.free_number().ok_or(Refusal::TooMany(VMS_MAX))?;
        let good: BTreeMap<_, _> = config.disks.iter().map(|disk| (disk.id, BTreeSet::from([host]))).collect();
        let authority = Authority {
            generation: Generation::NONE.next(),
            active: Some(host),
            standby: None,
            power: Power::Off,
            clean: true,
            good,
            memory: None,
            origin: Origin::Boot,
        };
        let vm = Vm {
            id,
            name,
            number,
            config,
            level: Level::Unprotected,
            hosts: BTreeSet::from([host]),
            desired: Desired::Shutdown,
            authority,
        };
        self.vms.insert(id, vm);
        Ok(Outcome::Done)
    }

    fn free_number(&self) -> Option<u16> {
        let taken: BTreeSet<u16> = self.vms.values().map(|vm| vm.number).collect();
        (0..u16::try_from(VMS_MAX).unwrap_or(u16::MAX)).find(|number| !taken.contains(number))
    }

    fn check_config(&self, config: &VmConfig) -> Result<(), Refusal> {
        let most = |what: &str, max: usize, asked: usize| Refusal::TooManyDevices { what: what.to_owned(), max, asked };
        if config.disks.len() > DISKS_MAX {
            return Err(most("disks", DISKS_MAX, config.disks.len()));
        }
        if config.nics.len() > NICS_MAX {
            return Err(most("NICs", NICS_MAX, config.nics.len()));
        }
        if config.vcpus == 0 {
            return Err(Refusal::TooFewDevices("virtual processor".to_owned()));
        }
        if config.memory_mib == 0 {
            return Err(Refusal::TooFewDevices("MiB of memory".to_owned()));
        }
        let mut disks: BTreeSet<_> = self.vms.values().flat_map(|vm| &vm.config.disks).map(|disk| disk.id).collect();
        for (index, disk) in config.disks.iter().enumerate() {
            if !disks.insert(disk.id) {
                return Err(Refusal::DiskTaken { index, disk: disk.id });
            }
            if disk.size_bytes == 0 || disk.size_bytes % SECTOR_BYTES != 0 {
                return Err(Refusal::DiskSize { index, size_bytes: disk.size_bytes });
            }
        }
        let mut macs: BTreeSet<_> = self.vms.values().flat_map(|vm| &vm.config.nics).map(|nic| nic.mac).collect();
        for nic in &config.nics {
            if !self.networks.contains_key(&nic.network) {
                return Err(Refusal::NoSuchNetwork);
            }
            if !macs.insert(nic.mac) {
                return Err(Refusal::MacTaken(nic.mac.to_string()));
            }
        }
        Ok(())
    }

    fn rename_vm(&mut self, id: VmId, name: String) -> Result<Outcome, Refusal> {
        check_name(&name)?;
        if self.vm_named(&name).is_some_and(|other| other.id != id) {
            return Err(Refusal::NameTaken(name));
        }
        self.vms.get_mut(&id).ok_or(Refusal::NoSuchVm)?.name = name;
        Ok(Outcome::Done)
    }

    fn delete_vm(&mut self, id: VmId) -> Result<Outcome, Refusal> {
        let vm = self.vms.get(&id).ok_or(Refusal::NoSuchVm)?;
        if vm.authority.power != Power::Off || vm.desired == Desired::Running {
            return Err(Refusal::VmRuns(vm.name.clone()));
        }
        for disk in &vm.config.disks {
            self.compared.remove(&disk.id);
        }
        self.vms.remove(&id);
        Ok(Outcome::Done)
    }

    fn desire(&mut self, id: VmId, desired: Desired) -> Result<Outcome, Refusal> {
        let vm = self.vms.get_mut(&id).ok_or(Refusal::NoSuchVm)?;
        if matches!(desired, Desired::Reboot | Desired::ForceReboot) && vm.authority.power == Power::Off {
            return Err(Refusal::NotRunning);
        }
        vm.desired = desired;
        Ok(Outcome::Done)
    }

    fn place(&mut self, id: VmId, level: Level, hosts: BTreeSet<HostId>) -> Result<Outcome, Refusal> {
        let needed = if level == Level::Unprotected { 1 } else { 2 };
        if hosts.len() != needed {
            return Err(Refusal::WrongHostCount { level: level.number(), needed, given: hosts.len() });
        }
        if hosts.iter().any(|host| !self.hosts().any(|member| member.id == *host)) {
            return Err(Refusal::NoSuchMember);
        }
        let vm = self.vms.get(&id).ok_or(Refusal::NoSuchVm)?;
        let runs = vm.authority.power != Power::Off;
        if let Some(active) = vm.authority.active.filter(|active| runs && !hosts.contains(active)) {
            return Err(Refusal::ActiveHostLeftOut(self.member_name(active)));
        }
        if vm.level == level && vm.hosts == hosts {
            return Ok(Outcome::Done);
        }
        let record = authority::placed(vm, level, &hosts)?;
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.level = level;
            vm.hosts = hosts;
            vm.authority = record;
        }
        Ok(Outcome::Done)
    }

    fn change_authority(&mut self, id: VmId, seen: Generation, change: &AuthorityChange) -> Result<Outcome, Refusal> {
        let vm = self.vms.get_mut(&id).ok_or(Refusal::NoSuchVm)?;
        if vm.authority.generation != seen {
            return Err(Refusal::Superseded(vm.authority.clone()));
        }
        vm.authority = authority::changed(vm, change)?;
        match change {
            AuthorityChange::Start { .. } => vm.desired = Desired::Running,
            AuthorityChange::Ended { .. } if vm.desired == Desired::Running => vm.desired = Desired::Shutdown,
            AuthorityChange::Ended { .. }
            | AuthorityChange::ReplicaLost { .. }
            | AuthorityChange::Revert { .. }
            | AuthorityChange::MemoryHeld { .. }
            | AuthorityChange::StandbyLost { .. }
            | AuthorityChange::Continue { .. }
            | AuthorityChange::ReplicaGood { .. } => {}
        }
        Ok(Outcome::Authority(vm.authority.clone()))
    }

    fn disk_compared(&mut self, unix_ms: u64, vm: VmId, disk: DiskId, outcome: Compared) -> Result<Outcome, Refusal> {
        let vm = self.vms.get(&vm).ok_or(Refusal::NoSuchVm)?;
        let index = vm.config.disks.iter().position(|config| config.id == disk).ok_or(Refusal::NoSuchDisk)?;
        if self.compared.get(&disk).is_some_and(|last| last.unix_ms >= outcome.unix_ms) {
            return Ok(Outcome::Done);
        }
        let name = vm.name.clone();
        self.compared.insert(disk, outcome);
        let Compared { compared_bytes, different_bytes, repaired_bytes, .. } = outcome;
        let (severity, text) = if different_bytes == 0 {
            (Severity::Info, format!("both replicas are alike ({compared_bytes} bytes compared)"))
        } else {
            let text = format!(
                "the replicas differed in {different_bytes} of {compared_bytes} bytes; {repaired_bytes} were repaired"
            );
            (Severity::Warning, text)
        };
        self.add_event(unix_ms, severity, name, format!("disk {index}: {text}"));
        Ok(Outcome::Done)
    }

    pub(super) fn add_event(&mut self, unix_ms: u64, severity: Severity, object: String, text: String) {
        self.events.push_back(Arc::new(Event { number: self.next_event, unix_ms, severity, object, text }));
        self.next_event += 1;
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    fn raise_alert(&mut self, key: String, mut alert: Alert) -> Result<Outcome, Refusal> {
        match self.alerts.get(&key) {
            Some(old) if old.text == alert.text && old.severity == alert.severity => return Ok(Outcome::Done),
            Some(old) => alert.since_unix_ms = old.since_unix_ms,
            None if self.alerts.len() >= ALERTS_MAX => return Err(Refusal::TooMany(ALERTS_MAX)),
            None => {}
        }
        self.add_event(alert.since_unix_ms, alert.severity, alert.object.clone(), alert.text.clone());
        self.alerts.insert(key, alert);
        Ok(Outcome::Done)
    }

    fn clear_alert(&mut self, key: &str, unix_ms: u64) -> Outcome {
        if let Some(alert) = self.alerts.remove(key) {
            self.add_event(unix_ms, Severity::Info, alert.object, format!("over: {}", alert.text));
        }
        Outcome::Done
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= NAME_BYTES_MAX && name.chars().all(inner) {
        Ok(())
    } else {
        Err(Refusal::BadName(name.to_owned()))
    }
}

fn check_settings(settings: &Settings) -> Result<(), SettingsFault> {
    if !(1_000..=60_000).contains(&settings.lease_ms) {
        return Err(SettingsFault::Lease);
    }
    if settings.report_interval_ms < 100 || settings.report_interval_ms > settings.lease_ms / 3 {
        return Err(SettingsFault::ReportInterval);
    }
    if settings.heartbeat_ms < 20 || settings.detection_ms < settings.heartbeat_ms.saturating_mul(4) {
        return Err(SettingsFault::Detection);
    }
    if !(200..=30_000).contains(&settings.partner_timeout_ms) {
        return Err(SettingsFault::PartnerTimeout);
    }
    Ok(())
}
