//! The NBD codec in front of memory, a thread per connection: what real clients are let loose on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ev_mirror::buffer::{BufferPool, SendQueue};
use ev_mirror::extent::Extent;
use ev_mirror::nbd::{Allocation, AllocationExtent, Connection, Export, Request};

const BLOCK: usize = 4096;

/// A served disk. Its threads end with the test's process.
pub struct MemoryServer {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    pub disk: Arc<Mutex<Vec<u8>>>,
}

impl MemoryServer {
    pub fn start(size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let disk = Arc::new(Mutex::new(vec![0; size]));
        let shared = Arc::clone(&disk);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let disk = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream.unwrap(), &disk));
            }
        });
        Self { _folder: folder, socket, disk }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn folder(&self) -> &Path {
        self.socket.parent().unwrap()
    }
}

fn serve(mut stream: UnixStream, disk: &Mutex<Vec<u8>>) {
    let mut out = SendQueue::default();
    let mut pool = BufferPool::default();
    let size_bytes = u64::try_from(disk.lock().unwrap().len()).unwrap();
    let mut connection = Connection::new(Export { name: "memory".to_owned(), size_bytes }, &mut out);
    loop {
        let received = loop {
            match connection.next(&mut out, &mut pool) {
                Ok(Some(Request::Disconnect)) => break Err(()),
                Ok(Some(request)) => carry_out(request, &mut disk.lock().unwrap(), &mut out, &mut pool),
                Ok(None) => break Ok(()),
                Err(error) => {
                    eprintln!("{error}");
                    break Err(());
                }
            }
        };
        while !out.is_empty() {
            let Ok(count) = stream.write(out.front()) else { return };
            out.sent(count, &mut pool);
        }
        if received.is_err() {
            return;
        }
        match stream.read(connection.space()) {
            Ok(0) | Err(_) => return,
            Ok(count) => connection.received(count),
        }
    }
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    usize::try_from(extent.offset).unwrap()..usize::try_from(extent.end()).unwrap()
}

fn carry_out(request: Request, disk: &mut [u8], out: &mut SendQueue, pool: &mut BufferPool) {
    match request {
        Request::Read { extent, reply } => {
            let mut data = pool.take(range(extent).len());
            data.data_mut().copy_from_slice(&disk[range(extent)]);
            reply.data(data, out, pool);
        }
        Request::Write { extent, data, reply, .. } => {
            disk[range(extent)].copy_from_slice(data.data());
            pool.give(data);
            reply.done(out);
        }
        Request::WriteZeroes { extent, reply, .. } | Request::Trim { extent, reply, .. } => {
            disk[range(extent)].fill(0);
            reply.done(out);
        }
        Request::Flush { reply } => reply.done(out),
        Request::BlockStatus { extent, reply } => {
            let extents: Vec<_> = disk[range(extent)].chunks(BLOCK).map(status).collect();
            reply.extents(extents, out);
        }
        Request::Disconnect => {}
    }
}

fn status(block: &[u8]) -> AllocationExtent {
    let zero = block.iter().all(|&byte| byte == 0);
    AllocationExtent {
        length: u32::try_from(block.len()).unwrap(),
        allocation: if zero { Allocation::Hole } else { Allocation::Data },
    }
}
