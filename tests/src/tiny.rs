//! A client of the tiny guest's program; `guests/tiny/src/main.rs` has the protocol.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::client::ClientError;
use crate::load::Service;

/// Where its program listens.
pub(crate) const PORT: u16 = 7000;
/// What a test may fill of a 256 MiB disk while a load writes to it, in MiB: where it begins, and how much. It is for whoever fills it
/// alone: the load's slots, one for each write, begin at the other end.
pub const BESIDE_LOAD: (u64, u64) = (192, 64);
/// As in `guests/tiny/src/record.rs`.
const SLOTS_PER_MIB: u64 = 256;
/// A guest whose host dies says nothing any more; then the client has to try again.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Filling and checking take as long as the disk does.
const BULK_LIMIT: Duration = Duration::from_secs(120);

/// One connection to a tiny guest.
#[derive(Debug)]
pub struct TinyGuest {
    reader: BufReader<TcpStream>,
}

impl TinyGuest {
    /// Connects to the guest at that address. To be called in the client's network: see [`crate::in_client`].
    pub fn connect(address: &str) -> Result<Self, ClientError> {
        let address = SocketAddr::new(address.parse().expect("an address"), PORT);
        let stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends one command, returns the answer's words.
    pub fn call(&mut self, command: &str) -> Result<Vec<String>, ClientError> {
        writeln!(self.reader.get_mut(), "{command}")?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }

    /// The same, and the answer must begin with `expected`.
    fn expect(&mut self, command: &str, expected: &str) -> Result<Vec<String>, ClientError> {
        let answer = self.call(command)?;
        if answer.first().is_some_and(|word| word == expected) {
            return Ok(answer);
        }
        Err(ClientError::Answer { command: command.to_owned(), answer: answer.join(" ") })
    }

    /// Identity of this boot: another after every restart of the guest.
    pub fn boot_id(&mut self) -> Result<String, ClientError> {
        self.expect("ping", "pong").map(|answer| answer[1].clone())
    }

    /// Pages that the guest has verified, by its own count.
    pub fn memory_pages(&mut self) -> Result<u64, ClientError> {
        let answer = self.expect("memory", "memory")?;
        let pages = answer.get(3).and_then(|pages| pages.parse().ok());
        pages.ok_or_else(|| ClientError::Answer { command: "memory".to_owned(), answer: answer.join(" ") })
    }

    /// The value in a slot, `None` if it was never written.
    pub fn read(&mut self, slot: u64) -> Result<Option<u64>, ClientError> {
        let command = format!("read {slot}");
        let answer = self.call(&command)?;
        match (answer.first().map(String::as_str), answer.get(2).and_then(|value| value.parse().ok())) {
            (Some("record"), Some(value)) => Ok(Some(value)),
            (Some("empty"), None) => Ok(None),
            _ => Err(ClientError::Answer { command, answer: answer.join(" ") }),
        }
    }

    /// Fills `count` MiB from `first` MiB on with the seed's bytes; they are flushed when this returns.
    pub fn fill(&mut self, first: u64, count: u64, seed: u64) -> Result<(), ClientError> {
        self.bulk(|guest| guest.expect(&format!("fill {first} {count} {seed}"), "filled").map(|_| ()))
    }

    /// Whether they are still there.
    pub fn check(&mut self, first: u64, count: u64, seed: u64) -> Result<(), ClientError> {
        self.bulk(|guest| guest.expect(&format!("check {first} {count} {seed}"), "same").map(|_| ()))
    }

    fn bulk<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, ClientError>) -> Result<T, ClientError> {
        self.reader.get_ref().set_read_timeout(Some(BULK_LIMIT))?;
        let result = work(self);
        self.reader.get_ref().set_read_timeout(Some(ANSWER_LIMIT))?;
        result
    }
}

/// Number `n` is the record with value `n` in slot `n`; damage in a slot that was never acknowledged is nobody's loss.
impl Service for TinyGuest {
    fn write(&mut self, number: u64) -> Result<(), ClientError> {
        assert!(
            number < BESIDE_LOAD.0 * SLOTS_PER_MIB,
            "a load of {number} writes comes to what others fill: end it earlier"
        );
        self.expect(&format!("write {number} {number}"), "written").map(|_| ())
    }

    fn missing(&mut self, acknowledged: u64) -> Result<Vec<u64>, ClientError> {
        let mut missing = Vec::new();
        for number in 0..acknowledged {
            match self.read(number) {
                Ok(Some(value)) if value == number => {}
                Ok(_) | Err(ClientError::Answer { .. }) => missing.push(number),
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }
}
