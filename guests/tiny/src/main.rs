//! Process 1 of the tiny test guest: says that it lives, sets up its devices, and answers a test client over TCP.
//!
//! Line protocol on port [`PORT`], one answer line a command, in order, so that a client may send ahead:
//!
//! | command | answer |
//! |---|---|
//! | `ping` | `pong BOOT-ID COUNT`: COUNT rises with each ping since this boot |
//! | `echo NUMBER SUM TEXT` | `echo NUMBER COUNT SUM TEXT`: COUNT is how many echoes this connection has had; SUM is [`record::checksum`] of NUMBER and TEXT, and was seen to be right |
//! | `memory` | `memory THREADS LOWEST-ROUND PAGES BAD-PAGES` of the verification by `ev.memory` |
//! | `size` | `size BYTES` of the disk |
//! | `write SLOT VALUE` | `written SLOT VALUE` once it is flushed to the disk |
//! | `read SLOT` | `record SLOT VALUE`, `empty SLOT`, or `damaged SLOT` |
//! | `fill MIB COUNT SEED` | `filled MIB COUNT` once COUNT MiB from MIB on hold SEED's bytes and are flushed |
//! | `check MIB COUNT SEED` | `same MIB COUNT`, or `differs OFFSET` at the first block that does not |
//! | `reboot`, `poweroff` | the line goes away |
//!
//! Anything else is answered with `error …`.

mod code;
mod disk;
mod memory;
mod record;
mod service;
mod setup;

use std::net::TcpListener;
use std::sync::Arc;

/// Where the guest listens.
const PORT: u16 = 7000;

fn main() {
    setup::mount_kernel_file_systems();
    let boot_id = setup::boot_id();
    println!("EVENKEEL-GUEST first instruction boot={boot_id}");
    let command_line = setup::command_line();
    let verified = memory::start(&command_line);
    code::start(&command_line);
    setup::load_modules();
    setup::configure_network(&command_line);
    let service = Arc::new(service::Service::new(boot_id, disk::find(), verified));
    match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => {
            println!("EVENKEEL-GUEST ready on port {PORT}");
            service::serve(&listener, &service);
        }
        Err(error) => println!("EVENKEEL-GUEST could not listen on port {PORT}: {error}"),
    }
    // Process 1 must not end: the kernel would panic.
    loop {
        std::thread::park();
    }
}
