//! This terminal joined to a byte stream: `ev pvm-console`.

use std::io::IsTerminal;

use rustix::termios::{self, OptionalActions, Termios};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::exit::Failure;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// Bytes moved at once.
const CHUNK_BYTES: usize = 4096;

/// Puts the terminal into raw mode; back when dropped.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let _ = termios::tcsetattr(&stdin, OptionalActions::Now, &raw);
        Self(Some(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Until Ctrl-], the end of the stream, or (where standard input is no terminal) the end of the input and then of the
/// stream.
pub async fn join(stream: impl AsyncRead + AsyncWrite) -> Result<(), Failure> {
    let _raw = RawMode::enter();
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let output = async {
        tokio::io::copy(&mut from_guest, &mut tokio::io::stdout()).await?;
        std::io::Result::Ok(())
    };
    let input = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; CHUNK_BYTES];
        loop {
            let length = stdin.read(&mut buffer).await?;
            let typed = &buffer[..length];
            let end = typed.iter().position(|byte| *byte == ESCAPE);
            to_guest.write_all(&typed[..end.unwrap_or(length)]).await?;
            to_guest.flush().await?;
            if end.is_some() {
                return std::io::Result::Ok(());
            }
            if length == 0 {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        result = output => result,
        result = input => result,
    }
    .or_else(|error| if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
    .map_err(|error| Failure::local(format!("the connection to the console broke: {error}")))
}
