//! Which parts of a file are holes.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};

use crate::extent::Extent;
use crate::nbd::{Allocation, AllocationExtent, STATUS_EXTENTS_MAX};

/// The extent in stretches of data and holes, in order.
pub fn within(file: &File, extent: Extent) -> io::Result<Vec<AllocationExtent>> {
    let mut found = Vec::new();
    let mut at = extent.offset;
    while at < extent.end() && found.len() < STATUS_EXTENTS_MAX {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset.min(extent.end()),
            Err(rustix::io::Errno::NXIO) => extent.end(),
            Err(error) => return Err(error.into()),
        };
        if data > at {
            found.push(stretch(data - at, Allocation::Hole));
        }
        if data >= extent.end() {
            break;
        }
        let hole = seek(file, SeekFrom::Hole(data))?.min(extent.end());
        found.push(stretch(hole - data, Allocation::Data));
        at = hole;
    }
    Ok(found)
}

fn stretch(length: u64, allocation: Allocation) -> AllocationExtent {
    AllocationExtent { length: u32::try_from(length).expect("within an extent"), allocation }
}
