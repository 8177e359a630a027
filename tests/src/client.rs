//! Being the client machine: connections from its namespace.

use std::fs::File;
use std::path::Path;

use ev_lab::Lab;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why a guest's service did not do what was asked. A client of a service that fails over meets all of these.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connection: {0}")]
    Connection(#[from] std::io::Error),
    #[error("database: {0}")]
    Database(#[from] postgres::Error),
    #[error("the guest answered {answer:?} to {command:?}")]
    Answer { command: String, answer: String },
}

/// Runs `work` in the network of the lab's client. Sockets that it makes stay in that network, wherever they are used.
///
/// # Panics
/// If the lab is gone, or if `work` panics.
pub fn in_client<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> T {
    let namespace = namespace(lab);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            enter(&namespace);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The client's namespace, for threads that enter it themselves.
pub(crate) fn namespace(lab: &Lab) -> String {
    lab.plan().namespace(lab.plan().node("client").expect("every lab has a client"))
}

/// Moves this thread for good.
pub(crate) fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).expect("the client's namespace is there");
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).expect("root may enter it");
}
