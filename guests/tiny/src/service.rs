//! Commands of the test client, each answered with one line.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::system::{RebootCommand, reboot};

use crate::disk::Disk;
use crate::memory::Verified;
use crate::record::{self, Content};

/// What all connections share.
#[derive(Debug)]
pub struct Service {
    boot_id: String,
    disk: Option<Disk>,
    pings: AtomicU64,
    verified: Arc<Verified>,
}

/// Why a command got no proper answer.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("unknown command; see the table in guests/tiny/src/main.rs")]
    Unknown,
    #[error("not a number: {0}")]
    Number(#[from] std::num::ParseIntError),
    #[error("the guest has no disk; give it one")]
    NoDisk,
    #[error("the check sum of this message is {0}; it was altered on its way")]
    Altered(u64),
    #[error("disk: {0}")]
    Disk(#[from] std::io::Error),
    #[error("could not: {0}")]
    System(#[from] rustix::io::Errno),
}

/// Takes connections for ever, each with a thread of its own.
pub fn serve(listener: &TcpListener, service: &Arc<Service>) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let service = Arc::clone(service);
                std::thread::spawn(move || service.converse(stream));
            }
            Err(error) => println!("EVENKEEL-GUEST could not take a connection: {error}"),
        }
    }
}

impl Service {
    pub fn new(boot_id: String, disk: Option<Disk>, verified: Arc<Verified>) -> Self {
        Self { boot_id, disk, pings: AtomicU64::new(0), verified }
    }

    /// Answers one client until it goes.
    fn converse(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let Ok(mut writer) = stream.try_clone() else { return };
        let mut echoes = 0;
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let answer = self.answer(&line, &mut echoes).unwrap_or_else(|error| format!("error {error}"));
            // In one piece: each write is a frame of its own.
            if writer.write_all(format!("{answer}\n").as_bytes()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, line: &str, echoes: &mut u64) -> Result<String, CommandError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["echo", number, sum, text] => {
                let found = record::checksum(&[number.as_bytes(), text.as_bytes()]);
                if found != sum.parse()? {
                    return Err(CommandError::Altered(found));
                }
                *echoes += 1;
                format!("echo {number} {echoes} {sum} {text}")
            }
            ["memory"] => format!("memory {}", self.verified.words()),
            ["ping"] => format!("pong {} {}", self.boot_id, self.pings.fetch_add(1, Ordering::Relaxed) + 1),
            ["size"] => format!("size {}", self.disk()?.size()?),
            ["write", slot, value] => {
                self.disk()?.write_record(slot.parse()?, value.parse()?)?;
                format!("written {slot} {value}")
            }
            ["read", slot] => match self.disk()?.read_record(slot.parse()?)? {
                Content::Record { value, .. } => format!("record {slot} {value}"),
                Content::Empty => format!("empty {slot}"),
                Content::Damaged => format!("damaged {slot}"),
            },
            ["fill", first, count, seed] => {
                self.disk()?.fill(first.parse()?, count.parse()?, seed.parse()?)?;
                format!("filled {first} {count}")
            }
            ["check", first, count, seed] => {
                match self.disk()?.check(first.parse()?, count.parse()?, seed.parse()?)? {
                    None => format!("same {first} {count}"),
                    Some(offset) => format!("differs {offset}"),
                }
            }
            ["reboot"] => end(RebootCommand::Restart)?,
            ["poweroff"] => end(RebootCommand::PowerOff)?,
            _ => return Err(CommandError::Unknown),
        })
    }

    fn disk(&self) -> Result<&Disk, CommandError> {
        self.disk.as_ref().ok_or(CommandError::NoDisk)
    }
}

fn end(command: RebootCommand) -> Result<String, CommandError> {
    rustix::fs::sync();
    reboot(command)?;
    Ok("ending".to_owned())
}
