//! Turns of a host's VMs at sending their memory: few at once, so that each is soon protected and the link is not shared by all.
//!
//! A file in a common folder stands for each VM that waits or has its turn. The kernel's lock on it says that its process lives, so
//! that nobody waits for a dead one, and no daemon is needed. This orders traffic and nothing else: where the folder can't be used,
//! everybody has a turn.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ev_mirror::gate::boot_time;
use ev_wire::am::Turns;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A place among those that wait or have their turn. It is given up by dropping this.
#[derive(Debug)]
pub struct Ticket {
    folder: PathBuf,
    name: String,
    _locked: File,
}

impl Ticket {
    /// The last place. `who` tells apart those who come at the same moment.
    pub fn take(folder: &Path, who: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        // In the order of coming.
        let name = format!("{:020}-{who}", boot_time().0);
        // Nobody may see it before it is locked.
        let unseen = folder.join(format!(".{name}"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&unseen)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        fs::rename(&unseen, folder.join(&name))?;
        Ok(Self { folder: folder.to_owned(), name, _locked: file })
    }

    /// How many came before and are still there.
    pub fn ahead(&self) -> io::Result<u32> {
        let mut ahead = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') || *name >= *self.name {
                continue;
            }
            match is_alive(&entry.path()) {
                Ok(true) => ahead += 1,
                // Whoever left it has died; another one may be removing it too.
                Ok(false) => drop(fs::remove_file(entry.path())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ahead)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.folder.join(&self.name)) {
            tracing::warn!(%error, ticket = self.name, "a place in the queue was not given up; the next in line does that");
        }
    }
}

/// A shared lock does not disturb others who look.
fn is_alive(path: &Path) -> io::Result<bool> {
    match flock(&File::open(path)?, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// How often it is looked whether the turn has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where one VM is in the queue.
#[derive(Debug)]
pub struct Turn {
    who: String,
    ticket: Option<Ticket>,
    looked_at: Option<Instant>,
    /// As of the last look; 0: it has its turn.
    position: u32,
}

impl Turn {
    /// Not in the queue.
    pub fn new(who: String) -> Self {
        Self { who, ticket: None, looked_at: None, position: 0 }
    }

    /// Stands in line if it does not yet. Whether the turn has come.
    pub fn wait(&mut self, turns: &Turns) -> bool {
        if self.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return self.position == 0;
        }
        self.looked_at = Some(Instant::now());
        self.position = match self.look(turns) {
            Ok(ahead) => (ahead + 1).saturating_sub(turns.at_once),
            Err(error) => {
                tracing::warn!(%error, folder = %turns.folder.display(), "no turns can be taken; this VM does not wait");
                0
            }
        };
        self.position == 0
    }

    fn look(&mut self, turns: &Turns) -> io::Result<u32> {
        let ticket = match self.ticket.take() {
            Some(ticket) => ticket,
            None => Ticket::take(&turns.folder, &self.who)?,
        };
        self.ticket.insert(ticket).ahead()
    }

    /// Leaves the queue, or ends the turn.
    pub fn give_up(&mut self) {
        (self.ticket, self.looked_at, self.position) = (None, None, 0);
    }

    /// 1 is the next one; `None`: it does not wait.
    pub fn position(&self) -> Option<u32> {
        Some(self.position).filter(|position| *position > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_the_order_of_coming_and_close_up() {
        let folder = tempfile::tempdir().unwrap();
        let tickets: Vec<Ticket> = ["c", "a", "b"].map(|who| Ticket::take(folder.path(), who).unwrap()).into();
        let ahead = |tickets: &[Ticket]| tickets.iter().map(|ticket| ticket.ahead().unwrap()).collect::<Vec<_>>();
        assert_eq!(ahead(&tickets), [0, 1, 2]);
        let [first, second, third]: [Ticket; 3] = tickets.try_into().unwrap();
        drop(second);
        assert_eq!(ahead(&[first, third]), [0, 1]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn as_many_as_are_allowed_have_their_turn() {
        let folder = tempfile::tempdir().unwrap();
        let turns = Turns { folder: folder.path().to_owned(), at_once: 2 };
        let mut vms: Vec<Turn> = (0..4).map(|who| Turn::new(format!("vm{who}"))).collect();
        let positions =
            |vms: &mut [Turn]| vms.iter_mut().map(|vm| (vm.wait(&turns), vm.position())).collect::<Vec<_>>();
        assert_eq!(positions(&mut vms), [(true, None), (true, None), (false, Some(1)), (false, Some(2))]);
        vms[0].give_up();
        let mut rest: Vec<Turn> = vms.drain(1..).collect();
        for vm in &mut rest {
            vm.looked_at = None;
        }
        assert_eq!(positions(&mut rest), [(true, None), (true, None), (false, Some(1))]);
    }

    #[test]
    fn nobody_waits_for_a_process_that_died() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("00000000000000000001-dead"), "").unwrap();
        let ticket = Ticket::take(folder.path(), "next").unwrap();
        assert_eq!(ticket.ahead().unwrap(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
