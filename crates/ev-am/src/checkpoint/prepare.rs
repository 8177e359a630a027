//! A QEMU that waits on the standby: whether it can take over from the active host's, its start, and its end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ev_checkpoint::{Image, MemoryShape};
use ev_vm::checkpoint::Standby as WaitingQemu;
use ev_vm::ram::GuestMemory;
use ev_vm::{Guest, GuestSpec, Qemu};

use super::waiting::WaitingSpec;

/// How long a QEMU that is of no more use may take to be gone.
const END_TIME_MAX: Duration = Duration::from_secs(5);

pub struct Prepared {
    pub qemu: WaitingQemu,
    pub image: Arc<Mutex<Image>>,
    pub shape: MemoryShape,
}

/// The guest's description here, if this host's QEMU can go on from checkpoints of a QEMU of that version with that machine type.
pub async fn fits(spec: &WaitingSpec, qemu: &str, machine: &str) -> Result<GuestSpec, String> {
    let own = spec.qemu.probe().await.map_err(|error| error.to_string())?;
    let guest = (spec.make_spec)()?;
    let is_known = own.machines.contains(machine);
    match misfit((&own.version.to_string(), &guest.machine), (qemu, machine), is_known) {
        Some(misfit) => Err(misfit),
        None => Ok(guest),
    }
}

/// Why QEMU and machine type here can't go on from a checkpoint of theirs there, if so.
fn misfit(here: (&str, &str), there: (&str, &str), is_known: bool) -> Option<String> {
    let ((own_qemu, own_machine), (qemu, machine)) = (here, there);
    if own_qemu != qemu {
        return Some(format!(
            "QEMU is {own_qemu} on the standby and {qemu} on the active host: install the same version on both; a guest that \
             runs takes it up when it is started anew"
        ));
    }
    if own_machine != machine {
        return Some(format!(
            "the machine type is {own_machine} on the standby and {machine} on the active host: start the guest anew"
        ));
    }
    (!is_known).then(|| {
        format!("QEMU {own_qemu} on the standby has no machine type {machine}: install the same package on both hosts")
    })
}

/// Starts a QEMU that waits, and clears its memory.
pub async fn prepare(qemu: &Qemu, spec: &GuestSpec) -> Result<Prepared, String> {
    let accelerator = qemu.accelerator(&spec.user).await;
    let waiting = WaitingQemu::prepare(qemu, &accelerator, spec).await.map_err(|error| error.to_string())?;
    let pid = waiting.guest().pid();
    crate::priority::lower_processors(pid);
    let shape = MemoryShape::from(&waiting.memory().layout());
    let cleared = tokio::task::spawn_blocking(move || {
        let memory = GuestMemory::of_process(pid).map_err(|error| error.to_string())?;
        Image::new(memory).map_err(|error| error.to_string())
    });
    match cleared.await.map_err(|error| error.to_string()).and_then(|cleared| cleared) {
        Ok(image) => Ok(Prepared { qemu: waiting, image: Arc::new(Mutex::new(image)), shape }),
        Err(why) => {
            end(waiting.guest()).await;
            Err(why)
        }
    }
}

/// Ends a QEMU that waits.
pub async fn end(guest: &Guest) {
    if let Err(error) = guest.kill() {
        tracing::error!(pid = guest.pid(), %error, "cannot end a waiting QEMU; end it by hand");
    }
    if tokio::time::timeout(END_TIME_MAX, guest.exited()).await.is_err() {
        tracing::error!(pid = guest.pid(), "a waiting QEMU does not end; end it by hand");
    }
}

#[cfg(test)]
mod tests {
    use super::misfit;

    #[test]
    fn another_qemu_or_machine_type_is_no_standby_and_both_are_named() {
        let ours = ("10.0.2", "pc-q35-7.2");
        assert_eq!(misfit(ours, ours, true), None);
        for (there, is_known, parts) in [
            (("10.0.3", "pc-q35-7.2"), true, ["10.0.2 on the standby", "10.0.3 on the active"]),
            (("10.0.2", "pc-q35-10.0"), true, ["pc-q35-7.2 on the standby", "pc-q35-10.0 on the active"]),
            (ours, false, ["10.0.2 on the standby", "no machine type pc-q35-7.2"]),
        ] {
            let why = misfit(ours, there, is_known).unwrap();
            assert!(parts.iter().all(|part| why.contains(part)), "{why}");
        }
    }
}
