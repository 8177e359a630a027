//! The event that a command leaves behind when it is applied.

use super::command::Command;
use super::state::{PoolState, Severity};
use crate::authority::AuthorityChange;
use crate::ids::VmId;
use crate::vm::{Desired, Vm};

/// An event in the making; kept if the command is not refused.
pub(super) struct Note {
    pub severity: Severity,
    pub object: String,
    pub text: String,
}

impl PoolState {
    /// What to record if `command` is carried out; written from the state as it is before.
    pub(super) fn note_before(&self, command: &Command) -> Option<Note> {
        let info =
            |object: &str, text: String| Some(Note { severity: Severity::Info, object: object.to_owned(), text });
        let pool = self.pool.as_ref().map_or("pool", |pool| pool.name.as_str());
        match command {
            Command::PoolCreate { pool, first, .. } => info(&pool.name, format!("pool created on {}", first.name)),
            Command::MemberJoin { member, .. } | Command::MemberAdd { member } => {
                info(&member.name, "joined the pool".to_owned())
            }
            Command::MemberRemove { id } => info(&self.member_name(*id), "removed from the pool".to_owned()),
            Command::AdminTokenAdd { name, .. } => info(pool, format!("administrator's token made{}", called(name))),
            Command::AdminTokenRevoke { hash_start } => {
                let meant = self.admin_tokens.iter().find(|(hash, _)| hash.starts_with(hash_start.as_str()));
                let name = meant.map_or("", |(_, token)| token.name.as_str());
                info(pool, format!("administrator's token {hash_start} revoked{}", called(name)))
            }
            Command::NetworkAdd { network } => {
                info(&network.name, format!("network added on bridge {}", network.bridge))
            }
            Command::VmCreate { name, host, .. } => info(name, format!("created on {}", self.member_name(*host))),
            Command::VmRename { id, name } => info(name, format!("renamed from {}", self.vm_name(*id))),
            Command::VmDelete { id } => info(&self.vm_name(*id), "deleted".to_owned()),
            Command::VmDesire { id, desired } => info(&self.vm_name(*id), desire_text(*desired).to_owned()),
            Command::VmPlace { id, level, hosts } => {
                let names: Vec<String> = hosts.iter().map(|host| self.member_name(*host)).collect();
                info(&self.vm_name(*id), format!("level {} on {}", level.number(), names.join(" and ")))
            }
            Command::VmAuthority { id, change, .. } => self.vms.get(id).map(|vm| self.authority_note(vm, change)),
            // Events and alerts record themselves; join tokens and settings leave no trace that a person would look for here.
            Command::EventAdd { .. }
            | Command::DiskCompared { .. }
            | Command::AlertRaise { .. }
            | Command::AlertClear { .. }
            | Command::TokenAdd { .. }
            | Command::MemberUpdate { .. }
            | Command::NetworkRemove { .. }
            | Command::SettingsSet { .. } => None,
        }
    }

    fn authority_note(&self, vm: &Vm, change: &AuthorityChange) -> Note {
        let disk_number = |disk| vm.config.disks.iter().position(|config| config.id == disk).unwrap_or_default();
        let (severity, text) = match change {
            AuthorityChange::ReplicaLost { disk, host } => (
                Severity::Warning,
                format!("disk {}: the replica on {} no longer counts", disk_number(*disk), self.member_name(*host)),
            ),
            AuthorityChange::ReplicaGood { disk, host } => (
                Severity::Info,
                format!("disk {}: the replica on {} is in sync", disk_number(*disk), self.member_name(*host)),
            ),
            AuthorityChange::Start { host, .. } if vm.authority.active == Some(*host) => {
                (Severity::Info, format!("started on {}", self.member_name(*host)))
            }
            AuthorityChange::Start { host, .. } => {
                let from = vm
                    .authority
                    .active
                    .map_or_else(String::new, |old| format!(", taken over from {}", self.member_name(old)));
                (Severity::Warning, format!("started on {}{from}", self.member_name(*host)))
            }
            AuthorityChange::MemoryHeld { host } => {
                (Severity::Info, format!("{} holds its memory: it can go on there", self.member_name(*host)))
            }
            AuthorityChange::StandbyLost { host } => {
                (Severity::Warning, format!("its memory and disks on {} no longer count", self.member_name(*host)))
            }
            AuthorityChange::Continue { host } => {
                let from = vm
                    .authority
                    .active
                    .map_or_else(String::new, |old| format!(", taken over from {}", self.member_name(old)));
                (Severity::Warning, format!("goes on from its memory on {}{from}", self.member_name(*host)))
            }
            AuthorityChange::Revert { host } => (
                Severity::Warning,
                format!(
                    "went back to the older state on {}; what was written since is given up",
                    self.member_name(*host)
                ),
            ),
            AuthorityChange::Ended { clean: true } => (Severity::Info, "ended".to_owned()),
            AuthorityChange::Ended { clean: false } => (Severity::Warning, "ended without a clean shutdown".to_owned()),
        };
        Note {
            severity,
            object: vm.name.clone(),
            text: format!("{text} (generation {})", vm.authority.generation.next()),
        }
    }

    fn vm_name(&self, id: VmId) -> String {
        self.vms.get(&id).map_or_else(|| id.to_string(), |vm| vm.name.clone())
    }
}

fn called(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" ({name})") }
}

fn desire_text(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "to be started",
        Desired::Shutdown => "to be shut down",
        Desired::ForceOff => "to be forced off",
        Desired::Reboot => "to be rebooted",
        Desired::ForceReboot => "to be rebooted by force",
    }
}
