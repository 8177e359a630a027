//! The handshake: greeting, client flags, options.

use zerocopy::{FromBytes, IntoBytes};

use super::reply::ReplyForm;
use super::transmission::Features;
use super::wire::{self, OptionHeader, OptionReplyHeader, info, option, option_reply, transmission_flag};
use super::{BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, Export, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX};
use super::{OPTIONS_MAX, ProtocolError, REQUEST_BYTES_MAX};
use crate::buffer::SendQueue;
use crate::receive::{BodyState, Receiver};

const HEADER_BYTES: usize = size_of::<OptionHeader>();
/// Zeroes after the answer to EXPORT_NAME for clients that did not agree to leave them out.
const EXPORT_NAME_PADDING: [u8; 124] = [0; 124];
/// Longest export name and longest metadata query (`doc/proto.md`, "Values": strings).
const STRING_BYTES_MAX: usize = 4096;

/// What a step of the handshake came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    NeedBytes,
    Again,
    Transmission(Features),
    /// The client gave up.
    Ended,
}

#[derive(Debug)]
enum State {
    AwaitFlags,
    Options,
}

/// The handshake of one connection.
#[derive(Debug)]
pub(super) struct Handshake {
    state: State,
    pad_export_name: bool,
    reads: ReplyForm,
    block_status: bool,
    options: u32,
}

/// The option was not understood.
struct Malformed;

impl Handshake {
    pub fn greet(out: &mut SendQueue) -> Self {
        let batch = out.batch();
        batch.extend_from_slice(&wire::GREETING_MAGIC.to_be_bytes());
        batch.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        batch.extend_from_slice(&(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).to_be_bytes());
        Self {
            state: State::AwaitFlags,
            pad_export_name: true,
            reads: ReplyForm::Simple,
            block_status: false,
            options: 0,
        }
    }

    pub fn step(
        &mut self,
        export: &Export,
        receiver: &mut Receiver,
        out: &mut SendQueue,
    ) -> Result<Progress, ProtocolError> {
        match self.state {
            State::AwaitFlags => self.client_flags(receiver),
            State::Options => self.option(export, receiver, out),
        }
    }

    fn client_flags(&mut self, receiver: &mut Receiver) -> Result<Progress, ProtocolError> {
        let Some(Ok(bytes)) = receiver.peek(4).map(<[u8; 4]>::try_from) else { return Ok(Progress::NeedBytes) };
        let flags = u32::from_be_bytes(bytes);
        let no_zeroes = u32::from(wire::FLAG_NO_ZEROES);
        if flags & !(no_zeroes | u32::from(wire::FLAG_FIXED_NEWSTYLE)) != 0 {
            return Err(ProtocolError::UnknownClientFlags(flags));
        }
        receiver.consume(4);
        self.pad_export_name = flags & no_zeroes == 0;
        self.state = State::Options;
        Ok(Progress::Again)
    }

    fn option(
        &mut self,
        export: &Export,
        receiver: &mut Receiver,
        out: &mut SendQueue,
    ) -> Result<Progress, ProtocolError> {
        match receiver.body() {
            BodyState::Incomplete => return Ok(Progress::NeedBytes),
            BodyState::None | BodyState::Skipped => {}
            BodyState::Payload(_) => unreachable!("options are looked at in the window"),
        }
        let Some(bytes) = receiver.peek(HEADER_BYTES) else { return Ok(Progress::NeedBytes) };
        let header = OptionHeader::read_from_bytes(bytes).expect("as long as the header");
        if header.magic.get() != wire::OPTION_MAGIC {
            return Err(ProtocolError::BadOptionMagic(header.magic.get()));
        }
        let length = header.length.get();
        if length > OPTION_SKIP_BYTES_MAX {
            return Err(ProtocolError::OptionTooLong(length));
        }
        let number = header.option.get();
        if length > OPTION_BYTES_MAX {
            self.count_option()?;
            receiver.consume(HEADER_BYTES);
            receiver.start_skip(u64::from(length));
            if number == option::EXPORT_NAME {
                return Err(ProtocolError::UnknownExport);
            }
            put_reply(out, number, option_reply::ERR_TOO_BIG, &[]);
            return Ok(Progress::Again);
        }
        let length = usize::try_from(length).expect("at most the longest option");
        let Some(bytes) = receiver.peek(HEADER_BYTES + length) else { return Ok(Progress::NeedBytes) };
        self.count_option()?;
        let progress = self.answer(export, number, &bytes[HEADER_BYTES..], out);
        receiver.consume(HEADER_BYTES + length);
        progress
    }

    fn count_option(&mut self) -> Result<(), ProtocolError> {
        self.options += 1;
        if self.options > OPTIONS_MAX { Err(ProtocolError::TooManyOptions) } else { Ok(()) }
    }

    fn answer(
        &mut self,
        export: &Export,
        number: u32,
        data: &[u8],
        out: &mut SendQueue,
    ) -> Result<Progress, ProtocolError> {
        let answered = match number {
            option::EXPORT_NAME => return self.export_name(export, data, out),
            option::ABORT => {
                put_reply(out, number, option_reply::ACK, &[]);
                return Ok(Progress::Ended);
            }
            option::LIST => list(export, data, out),
            option::INFO | option::GO => match self.info(export, number, data, out) {
                Ok(Found::Export) if number == option::GO => return Ok(Progress::Transmission(self.features())),
                Ok(Found::Export | Found::Nothing) => Ok(()),
                Err(malformed) => Err(malformed),
            },
            option::STRUCTURED_REPLY => self.structured_reply(data, out),
            option::SET_META_CONTEXT | option::LIST_META_CONTEXT => self.meta_context(export, number, data, out),
            _ => {
                put_reply(out, number, option_reply::ERR_UNSUPPORTED, &[]);
                Ok(())
            }
        };
        if let Err(Malformed) = answered {
            put_reply(out, number, option_reply::ERR_INVALID, &[]);
        }
        Ok(Progress::Again)
    }

    fn features(&self) -> Features {
        Features { reads: self.reads, block_status: self.block_status }
    }

    fn transmission_flags(&self) -> u16 {
        use transmission_flag as flag;
        let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
        let structured = match self.reads {
            ReplyForm::Simple => 0,
            ReplyForm::Structured => flag::SEND_DF,
        };
        always | flag::CAN_MULTI_CONN | structured
    }

    fn export_name(&self, export: &Export, name: &[u8], out: &mut SendQueue) -> Result<Progress, ProtocolError> {
        if !export.is_called(name) {
            return Err(ProtocolError::UnknownExport);
        }
        let batch = out.batch();
        batch.extend_from_slice(&export.size_bytes.to_be_bytes());
        batch.extend_from_slice(&self.transmission_flags().to_be_bytes());
        if self.pad_export_name {
            batch.extend_from_slice(&EXPORT_NAME_PADDING);
        }
        Ok(Progress::Transmission(self.features()))
    }

    fn info(&self, export: &Export, number: u32, data: &[u8], out: &mut SendQueue) -> Result<Found, Malformed> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let wanted = fields.u16()?;
        let mut send_name = false;
        for _ in 0..wanted {
            send_name |= fields.u16()? == info::NAME;
        }
        fields.end()?;
        if !export.is_called(name) {
            put_reply(out, number, option_reply::ERR_UNKNOWN, &[]);
            return Ok(Found::Nothing);
        }
        put_reply(
            out,
            number,
            option_reply::INFO,
            &[&info::EXPORT.to_be_bytes(), &export.size_bytes.to_be_bytes(), &self.transmission_flags().to_be_bytes()],
        );
        put_reply(
            out,
            number,
            option_reply::INFO,
            &[
                &info::BLOCK_SIZE.to_be_bytes(),
                &BLOCK_BYTES_MIN.to_be_bytes(),
                &BLOCK_BYTES_PREFERRED.to_be_bytes(),
                &REQUEST_BYTES_MAX.to_be_bytes(),
            ],
        );
        if send_name {
            put_reply(out, number, option_reply::INFO, &[&info::NAME.to_be_bytes(), export.name.as_bytes()]);
        }
        put_reply(out, number, option_reply::ACK, &[]);
        Ok(Found::Export)
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut SendQueue) -> Result<(), Malformed> {
        Fields(data).end()?;
        self.reads = ReplyForm::Structured;
        put_reply(out, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
        Ok(())
    }

    fn meta_context(
        &mut self,
        export: &Export,
        number: u32,
        data: &[u8],
        out: &mut SendQueue,
    ) -> Result<(), Malformed> {
        let setting = number == option::SET_META_CONTEXT;
        if setting {
            // Also when this request fails: it replaces what an earlier one selected.
            self.block_status = false;
            if self.reads == ReplyForm::Simple {
                return Err(Malformed);
            }
        }
        let mut fields = Fields(data);
        let name = fields.string()?;
        let queries = fields.u32()?;
        let mut matched = !setting && queries == 0;
        for _ in 0..queries {
            let query = fields.string()?;
            matched |= query == wire::BASE_ALLOCATION || (!setting && query == b"base:");
        }
        fields.end()?;
        if !export.is_called(name) {
            put_reply(out, number, option_reply::ERR_UNKNOWN, &[]);
            return Ok(());
        }
        if matched {
            let id = if setting { wire::BASE_ALLOCATION_ID } else { 0 };
            put_reply(out, number, option_reply::META_CONTEXT, &[&id.to_be_bytes(), wire::BASE_ALLOCATION]);
            self.block_status |= setting;
        }
        put_reply(out, number, option_reply::ACK, &[]);
        Ok(())
    }
}

/// Whether INFO or GO named what we serve.
enum Found {
    Export,
    Nothing,
}

impl Export {
    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

fn list(export: &Export, data: &[u8], out: &mut SendQueue) -> Result<(), Malformed> {
    Fields(data).end()?;
    let name = export.name.as_bytes();
    let length = u32::try_from(name.len()).expect("names are short");
    put_reply(out, option::LIST, option_reply::SERVER, &[&length.to_be_bytes(), name]);
    put_reply(out, option::LIST, option_reply::ACK, &[]);
    Ok(())
}

fn put_reply(out: &mut SendQueue, number: u32, reply: u32, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let header = OptionReplyHeader {
        magic: wire::OPTION_REPLY_MAGIC.into(),
        option: number.into(),
        reply: reply.into(),
        length: u32::try_from(length).expect("answers to options are short").into(),
    };
    let batch = out.batch();
    batch.extend_from_slice(header.as_bytes());
    for part in parts {
        batch.extend_from_slice(part);
    }
}

/// Reads an option's data field by field.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_| Malformed)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
    }

    /// A 32-bit length and as many bytes.
    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        if length > STRING_BYTES_MAX { Err(Malformed) } else { self.take(length) }
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}
