//! Runs `qemu-img` within limits: memory, processor time, time without progress.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Format, ImageError};

/// Address space of a `qemu-img`, in bytes: to check an image of 64 TiB takes about half of it.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// How long a question may take.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(30);
/// Processor time of a question, in seconds.
const QUESTION_PROCESSOR_SECONDS_MAX: u64 = 30;
/// How long a check or a copy may show no progress.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(600);
/// Most of its output that is kept, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// How an image is named to QEMU's tools: format and driver said, nothing guessed, no other file opened.
pub(super) fn source(path: &Path, format: Format) -> Result<OsString, ImageError> {
    let path = std::path::absolute(path).map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    let text = path.to_str().ok_or_else(|| ImageError::Name { path: path.clone() })?;
    let file = json!({"driver": "file", "filename": text});
    let node = match format {
        Format::Raw => json!({"driver": "raw", "file": file}),
        Format::Qcow2 => json!({"driver": "qcow2", "backing": null, "file": file}),
    };
    Ok(format!("json:{node}").into())
}

/// What a run left behind.
pub(super) struct Run {
    pub status: ExitStatus,
    pub output: String,
    pub error: String,
}

fn command(arguments: &[OsString]) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

fn spawn(arguments: &[OsString], processor_seconds_max: Option<u64>) -> Result<Child, ImageError> {
    let child = command(arguments).spawn().map_err(ImageError::NoTool)?;
    let limit = |resource, max| {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        pid.map_or(Ok(Rlimit { current: None, maximum: None }), |pid| {
            prlimit(Some(pid), resource, Rlimit { current: Some(max), maximum: Some(max) })
        })
    };
    // One that has ended already needs no limits.
    let mut limited = limit(Resource::As, MEMORY_BYTES_MAX);
    if let Some(seconds) = processor_seconds_max {
        limited = limited.and(limit(Resource::Cpu, seconds));
    }
    if let Err(error) = limited {
        tracing::debug!(%error, "could not limit qemu-img");
    }
    Ok(child)
}

async fn read_text(from: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await?;
        // More than that is read and forgotten, so that it does not block.
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a subcommand that answers soon.
pub(super) async fn ask(arguments: &[OsString]) -> Result<Run, ImageError> {
    run(arguments, Some(QUESTION_PROCESSOR_SECONDS_MAX), QUESTION_TIME_MAX).await
}

/// Runs a subcommand that may take long.
pub(super) async fn work(arguments: &[OsString]) -> Result<Run, ImageError> {
    run(arguments, None, SILENCE_TIME_MAX).await
}

async fn run(arguments: &[OsString], processor_seconds: Option<u64>, time_max: Duration) -> Result<Run, ImageError> {
    let mut child = spawn(arguments, processor_seconds)?;
    let (output, error) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::try_join!(read_text(output), read_text(error), child.wait()) };
    match timeout(time_max, all).await {
        Ok(Ok((output, error, status))) => Ok(Run { status, output, error }),
        Ok(Err(error)) => Err(ImageError::NoTool(error)),
        Err(_) => Err(ImageError::TimedOut { waited: time_max }),
    }
}

/// Runs a subcommand with `-p`, and tells its progress in per mille.
pub(super) async fn watch(arguments: &[OsString], mut progress: impl FnMut(u16) + Send) -> Result<Run, ImageError> {
    let mut child = spawn(arguments, None)?;
    let (output, error) = (child.stdout.take(), child.stderr.take());
    let follow = async {
        let Some(mut output) = output else { return Ok(()) };
        let (mut text, mut last) = (Vec::new(), None);
        loop {
            let mut bytes = [0; 4096];
            let count = match timeout(SILENCE_TIME_MAX, output.read(&mut bytes)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(count)) => count,
                Ok(Err(error)) => return Err(ImageError::NoTool(error)),
                Err(_) => return Err(ImageError::TimedOut { waited: SILENCE_TIME_MAX }),
            };
            text.extend_from_slice(&bytes[..count]);
            let now = last_per_mille(&text);
            if now.is_some() && now != last {
                last = now;
                progress(now.unwrap_or_default());
            }
            // Only an unfinished word at the end is still needed.
            let keep = text.iter().rposition(|byte| *byte == b'(').unwrap_or(text.len());
            text.drain(..keep);
            text.truncate(64);
        }
    };
    let error = async { read_text(error).await.map_err(ImageError::NoTool) };
    let ((), error) = tokio::try_join!(follow, error)?;
    let status = child.wait().await.map_err(ImageError::NoTool)?;
    Ok(Run { status, output: String::new(), error })
}

/// From `    (12.34/100%)` and a carriage return, again and again.
fn last_per_mille(text: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(text).ok()?;
    let end = text.rfind("/100%)")?;
    let number = text.get(..end)?.rsplit_once('(')?.1;
    let (whole, part) = number.split_once('.')?;
    let tenths = part.get(..1)?.parse::<u16>().ok()?;
    whole.parse::<u16>().ok().filter(|whole| *whole <= 100).map(|whole| (whole * 10 + tenths).min(1000))
}

/// A number in `qemu-img`'s JSON.
pub(super) fn number(answer: &Value, key: &str) -> Option<u64> {
    answer.get(key)?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_the_last_whole_figure() {
        assert_eq!(last_per_mille(b"    (0.00/100%)\r    (12.34/100%)\r    (13.0"), Some(123));
        assert_eq!(last_per_mille(b"    (100.00/100%)\r"), Some(1000));
        assert_eq!(last_per_mille(b"(1000.0/100%)"), None);
        assert_eq!(last_per_mille(b"no figures"), None);
        assert_eq!(last_per_mille(b"\xff(1.0/100%)"), None);
    }
}
