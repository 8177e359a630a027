//! What the AM tells the pool master and `evd`.

use ev_core::report::AmReport;

use super::Am;

const EMULATED: &str = "the guest is emulated (TCG) and slow, as this host gives it no KVM: enable virtualisation in the host's firmware, \
                        and load kvm_amd or kvm_intel";

impl Am {
    pub(super) fn report(&self) -> AmReport {
        let vm = self.keeper.vm();
        AmReport {
            vm: self.config.vm_id,
            host: self.config.host,
            generation: vm.authority.generation,
            power: vm.authority.power,
            guest: self.keeper.guest_state(),
            disks: self.disks.reports(),
            accelerator: self.guest.as_ref().and_then(|guest| guest.accelerator.clone()),
            level3: self.level3_report(),
            troubles: self.troubles(),
        }
    }

    /// The report that goes out from now on.
    pub(super) fn publish(&self) {
        self.master.set_report(self.report());
    }

    fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.troubles.list().collect();
        if let Some(guest) = &self.guest {
            troubles.extend(guest.nics.troubles());
            if guest.accelerator.as_deref() == Some("tcg") {
                troubles.push(EMULATED.into());
            }
        }
        if self.links.is_some() && !self.partner_heard {
            troubles.push("the partner's AM is not heard on any path: look at its host and the private links".into());
        }
        troubles
    }
}
