//! A small blocking NBD client: enough to write, read and flush as a guest would.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
/// How long the socket may take to appear.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked for it.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// How long a reply may take, unless a test says otherwise: one that never comes is to end the test, and not to hang it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Client {
    stream: UnixStream,
    cookie: u64,
}

impl Client {
    /// Connects and goes straight to transmission, with simple replies.
    pub fn connect(socket: &Path) -> Self {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => panic!("connecting to {}: {error}", socket.display()),
                Err(_) => std::thread::sleep(CONNECT_PAUSE),
            }
        };
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Self { stream, cookie: 0 }
    }

    /// A reply fails with an I/O error when it does not come within the time. `None`: the usual time.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.stream.set_read_timeout(timeout.or(Some(REPLY_TIMEOUT))).unwrap();
    }

    fn request(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) {
        self.cookie += 1;
        let mut bytes = Vec::with_capacity(28 + data.len());
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends a write without waiting for its reply.
    pub fn start_write(&mut self, offset: u64, data: &[u8]) {
        self.request(WRITE, offset, u32::try_from(data.len()).unwrap(), data);
    }

    /// Waits for one reply and gives its error number.
    pub fn reply(&mut self) -> std::io::Result<u32> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        Ok(u32::from_be_bytes(reply[4..8].try_into().unwrap()))
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.start_write(offset, data);
        assert_eq!(self.reply().unwrap(), 0);
    }

    /// Asks for a flush without waiting for it.
    pub fn start_flush(&mut self) {
        self.request(FLUSH, 0, 0, &[]);
    }

    pub fn flush(&mut self) {
        self.start_flush();
        assert_eq!(self.reply().unwrap(), 0);
    }

    /// Asks for a read without waiting for it.
    pub fn start_read(&mut self, offset: u64, length: u32) {
        self.request(READ, offset, length, &[]);
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.request(READ, offset, length, &[]);
        assert_eq!(self.reply().unwrap(), 0);
        let mut data = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut data).unwrap();
        data
    }
}
