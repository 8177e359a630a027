//! `am.json`, made from the pool state and this host's configuration.

use std::net::SocketAddr;

use ev_core::pool::{Member as PoolMember, PoolState};
use ev_core::vm::Vm;
use ev_wire::am::{AmConfig, MemberEndpoint, Times, Turns};

use crate::app::App;
use crate::member::Member;

/// What the AM of `vm` on this host is to know.
#[must_use]
pub fn am_config(app: &App, member: &Member, state: &PoolState, vm: &Vm) -> AmConfig {
    let partner = vm.hosts.iter().copied().find(|host| *host != member.host);
    let partner_record = partner.and_then(|host| state.members.get(&host));
    let own = state.members.get(&member.host);
    let settings = state.settings;
    AmConfig {
        version: 1,
        pool: member.pool,
        host: member.host,
        vm: vm.clone(),
        vm_id: vm.id,
        state_dir: app.vm_state(vm.id),
        run_dir: app.vm_run(vm.id),
        library_dir: app.library.folder().to_owned(),
        members: state.members.values().flat_map(endpoints).collect(),
        link_listen: own.map_or_else(Vec::new, |own| links(own, vm)),
        link_partner: partner_record.map_or_else(Vec::new, |record| links(record, vm)),
        partner: partner_record.map(|record| record.id),
        certificate: app.papers.certificate(),
        key: app.papers.key(),
        authority_certificate: app.papers.authority_certificate(),
        qemu: app.config.qemu.clone(),
        qemu_user: app.config.qemu_user.clone(),
        qemu_data_dir: app.config.qemu_data_dir.clone(),
        times: Times {
            lease_ms: settings.lease_ms,
            report_interval_ms: settings.report_interval_ms,
            grace_ms: settings.grace_ms,
            partner_timeout_ms: settings.partner_timeout_ms,
        },
        copy_rate_limit: (settings.copy_rate_limit_bytes > 0).then_some(settings.copy_rate_limit_bytes),
        turns: Turns { folder: app.config.run_dir.join("turns"), at_once: settings.sync_at_once },
        blackout_ms: settings.blackout_ms,
    }
}

fn endpoints(record: &PoolMember) -> impl Iterator<Item = MemberEndpoint> {
    let member = record.id;
    ev_pool::membership::addresses(record).into_iter().map(move |address| MemberEndpoint { member, address })
}

/// Private links first, then management, each at the port of this VM.
fn links(record: &PoolMember, vm: &Vm) -> Vec<SocketAddr> {
    let port = record.link_port_base.saturating_add(vm.number);
    let all = record.private.iter().copied().chain(std::iter::once(record.peer.ip()));
    all.map(|address| SocketAddr::new(address, port)).collect()
}
