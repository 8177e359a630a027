//! What the page cache holds of a file that was open before, perhaps while its storage failed.
//!
//! Linux calls pages clean that it could not write, tells the error once to whoever had the file open, and goes on reading what it holds.
//! So a file that is opened anew may read as if everything had been written. Nothing is compared with that, or decided by it.

use std::fs::File;
use std::io;

use rustix::fs::{Advice, fadvise};

/// Has the file be read from its storage. What is still to be written stays, and its errors are told by the next flush.
///
/// # Errors
/// The kernel does not take the advice; no local file system on Linux refuses it.
pub fn forget_clean(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

/// The same, and nothing stays: all that is read from here on is durable.
///
/// # Errors
/// What was written can't be made durable.
pub fn forget_all(file: &File) -> io::Result<()> {
    file.sync_all()?;
    forget_clean(file)
}
