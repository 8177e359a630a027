//! Requests of the transmission phase: taken apart, checked, and either handed out or refused.

use zerocopy::FromBytes;

use super::reply::{Extents, ReplyForm};
use super::wire::{self, RequestHeader, command, command_flag};
use super::{BLOCK_BYTES_MIN, DoneReply, Durability, NbdError, ProtocolError, REQUEST_BYTES_MAX};
use super::{ReadReply, Request, StatusReply, Zeroing};
use crate::buffer::{BufferPool, SendQueue};
use crate::extent::Extent;
use crate::receive::{BodyState, Receiver};

const HEADER_BYTES: usize = size_of::<RequestHeader>();

/// What the client asked for in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub reads: ReplyForm,
    /// Whether `base:allocation` was selected, so that BLOCK_STATUS may be asked.
    pub block_status: bool,
}

/// A WRITE whose payload is on its way.
#[derive(Debug, Clone, Copy)]
enum Pending {
    Write {
        cookie: u64,
        extent: Extent,
        durability: Durability,
    },
    /// It will be refused when its payload has passed.
    Refused {
        cookie: u64,
        error: NbdError,
    },
}

/// The transmission phase of one connection.
#[derive(Debug)]
pub(super) struct Transmission {
    features: Features,
    pending: Option<Pending>,
}

/// A request with known command, before its extent was looked at.
struct Parsed {
    cookie: u64,
    extent: Extent,
    flags: u16,
}

impl Parsed {
    fn durability(&self) -> Durability {
        if self.flags & command_flag::FUA == 0 { Durability::AtFlush } else { Durability::BeforeReply }
    }

    /// Refuses flags that the command does not have. FUA is allowed everywhere, as the protocol says.
    fn check_flags(&self, allowed: u16) -> Result<(), NbdError> {
        if self.flags & !(allowed | command_flag::FUA) == 0 { Ok(()) } else { Err(NbdError::Invalid) }
    }

    /// `beyond_end` is what the protocol asks for when the extent passes the end of the disk.
    fn check_extent(&self, size_bytes: u64, beyond_end: NbdError) -> Result<(), NbdError> {
        let block = u64::from(BLOCK_BYTES_MIN);
        let aligned = self.extent.offset.is_multiple_of(block) && u64::from(self.extent.length).is_multiple_of(block);
        if self.extent.offset > size_bytes || self.extent.end() > size_bytes {
            Err(beyond_end)
        } else if !aligned || self.extent.length == 0 {
            Err(NbdError::Invalid)
        } else {
            Ok(())
        }
    }
}

impl Transmission {
    pub fn new(features: Features) -> Self {
        Self { features, pending: None }
    }

    pub fn next(
        &mut self,
        size_bytes: u64,
        receiver: &mut Receiver,
        out: &mut SendQueue,
        pool: &mut BufferPool,
    ) -> Result<Option<Request>, ProtocolError> {
        loop {
            match receiver.body() {
                BodyState::Incomplete => return Ok(None),
                BodyState::Payload(data) => match self.pending.take() {
                    Some(Pending::Write { cookie, extent, durability }) => {
                        let reply = DoneReply { cookie };
                        return Ok(Some(Request::Write { extent, data, durability, reply }));
                    }
                    Some(Pending::Refused { .. }) | None => unreachable!("only a good write's payload is kept"),
                },
                BodyState::Skipped => match self.pending.take() {
                    Some(Pending::Refused { cookie, error }) => DoneReply { cookie }.fail(error, out),
                    Some(Pending::Write { .. }) | None => unreachable!("only a refused write's payload is skipped"),
                },
                BodyState::None => {}
            }
            let Some(bytes) = receiver.peek(HEADER_BYTES) else { return Ok(None) };
            let header = RequestHeader::read_from_bytes(bytes).expect("as long as the header");
            if header.magic.get() != wire::REQUEST_MAGIC {
                return Err(ProtocolError::BadRequestMagic(header.magic.get()));
            }
            let length = header.length.get();
            if header.command.get() == command::WRITE && length > REQUEST_BYTES_MAX {
                return Err(ProtocolError::WriteTooLong(length));
            }
            receiver.consume(HEADER_BYTES);
            if let Some(request) = self.request(&header, size_bytes, receiver, out, pool) {
                return Ok(Some(request));
            }
        }
    }

    /// Hands out the request unless it is refused or still lacks its payload.
    fn request(
        &mut self,
        header: &RequestHeader,
        size_bytes: u64,
        receiver: &mut Receiver,
        out: &mut SendQueue,
        pool: &mut BufferPool,
    ) -> Option<Request> {
        let parsed = Parsed {
            cookie: header.cookie.get(),
            extent: Extent { offset: header.offset.get(), length: header.length.get() },
            flags: header.flags.get(),
        };
        let cookie = parsed.cookie;
        match header.command.get() {
            command::READ => self.read(&parsed, size_bytes, out),
            command::WRITE => {
                self.write(&parsed, size_bytes, receiver, out, pool);
                None
            }
            command::DISCONNECT => Some(Request::Disconnect),
            command::FLUSH => match parsed.check_flags(0) {
                Ok(()) => Some(Request::Flush { reply: DoneReply { cookie } }),
                Err(error) => refuse(cookie, error, out),
            },
            command::TRIM => match parsed.check_flags(0).and(parsed.check_extent(size_bytes, NbdError::Invalid)) {
                Ok(()) => Some(Request::Trim {
                    extent: parsed.extent,
                    durability: parsed.durability(),
                    reply: DoneReply { cookie },
                }),
                Err(error) => refuse(cookie, error, out),
            },
            command::WRITE_ZEROES => {
                // FAST_ZERO was not offered, so that it is refused with the unknown flags.
                let flags = parsed.check_flags(command_flag::NO_HOLE);
                let zeroing = if parsed.flags & command_flag::NO_HOLE == 0 {
                    Zeroing::MayDeallocate
                } else {
                    Zeroing::KeepAllocated
                };
                match flags.and(parsed.check_extent(size_bytes, NbdError::NoSpace)) {
                    Ok(()) => Some(Request::WriteZeroes {
                        extent: parsed.extent,
                        zeroing,
                        durability: parsed.durability(),
                        reply: DoneReply { cookie },
                    }),
                    Err(error) => refuse(cookie, error, out),
                }
            }
            command::BLOCK_STATUS => self.block_status(&parsed, size_bytes, out),
            _ => refuse(cookie, NbdError::Invalid, out),
        }
    }

    fn read(&self, parsed: &Parsed, size_bytes: u64, out: &mut SendQueue) -> Option<Request> {
        let allowed = match self.features.reads {
            ReplyForm::Structured => command_flag::DF,
            ReplyForm::Simple => 0,
        };
        let reply = ReadReply { cookie: parsed.cookie, extent: parsed.extent, form: self.features.reads };
        let length = if parsed.extent.length > REQUEST_BYTES_MAX { Err(NbdError::Invalid) } else { Ok(()) };
        match parsed.check_flags(allowed).and(parsed.check_extent(size_bytes, NbdError::Invalid)).and(length) {
            Ok(()) => Some(Request::Read { extent: parsed.extent, reply }),
            Err(error) => {
                reply.fail(error, out);
                None
            }
        }
    }

    fn write(
        &mut self,
        parsed: &Parsed,
        size_bytes: u64,
        receiver: &mut Receiver,
        out: &mut SendQueue,
        pool: &mut BufferPool,
    ) {
        let cookie = parsed.cookie;
        let length = parsed.extent.length;
        match parsed.check_flags(0).and(parsed.check_extent(size_bytes, NbdError::NoSpace)) {
            Ok(()) => {
                self.pending = Some(Pending::Write { cookie, extent: parsed.extent, durability: parsed.durability() });
                let length = usize::try_from(length).expect("at most the longest request");
                receiver.start_payload(length, pool);
            }
            Err(error) if length == 0 => DoneReply { cookie }.fail(error, out),
            Err(error) => {
                self.pending = Some(Pending::Refused { cookie, error });
                receiver.start_skip(u64::from(length));
            }
        }
    }

    fn block_status(&self, parsed: &Parsed, size_bytes: u64, out: &mut SendQueue) -> Option<Request> {
        let cookie = parsed.cookie;
        let extents = if parsed.flags & command_flag::REQ_ONE == 0 { Extents::Many } else { Extents::One };
        let reply = StatusReply { cookie, extent: parsed.extent, extents };
        if !self.features.block_status {
            return match self.features.reads {
                ReplyForm::Simple => refuse(cookie, NbdError::Invalid, out),
                ReplyForm::Structured => {
                    reply.fail(NbdError::Invalid, out);
                    None
                }
            };
        }
        match parsed.check_flags(command_flag::REQ_ONE).and(parsed.check_extent(size_bytes, NbdError::Invalid)) {
            Ok(()) => Some(Request::BlockStatus { extent: parsed.extent, reply }),
            Err(error) => {
                reply.fail(error, out);
                None
            }
        }
    }
}

fn refuse(cookie: u64, error: NbdError, out: &mut SendQueue) -> Option<Request> {
    DoneReply { cookie }.fail(error, out);
    None
}
