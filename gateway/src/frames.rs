//! RFC 6455 from the server's side, without a socket: bytes in, frames out; messages in, bytes out.
//!
//! Holds: frames are read in place, in whatever buffer they arrived; bytes are kept only while a frame or a message is
//! not whole, and an idle socket keeps none. What breaks a rule is named by [`Broken`]; after it nothing more can be read.
//! Bounds: a message and each of its frames have at most `bytes_max`, which is checked before anything is kept.
//! Headers are the library's (tungstenite); `tests` compare the rest with the whole library on random streams.
//! Not here: what messages mean, and when to read or write (`socket`, `threads`).

use std::io::{self, Cursor, ErrorKind, Write};
use std::ops::ControlFlow;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered with a pong of the same bytes.
    Ping(&'a [u8]),
    /// An answer to a ping.
    Pong,
    /// The client says goodbye; its payload is to be sent back.
    Close(&'a [u8]),
}

/// How a client broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A rule of RFC 6455.
    Protocol,
    /// A message larger than allowed.
    TooLarge,
    /// Text that is no UTF-8.
    NotUtf8,
}

/// A message of several frames, as far as it is here.
#[derive(Debug)]
struct Begun {
    is_text: bool,
    bytes: Vec<u8>,
}

/// The reading side of one socket.
#[derive(Debug, Default)]
pub struct Inbound {
    bytes_max: usize,
    /// Bytes whose frame is not whole, or behind one at which reading was stopped.
    rest: Vec<u8>,
    begun: Option<Box<Begun>>,
}

impl Inbound {
    /// Messages may have `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// Takes in what has arrived; `each` hears of every frame that is whole now. After a `Break` the bytes behind that
    /// frame are kept, and the next call goes on with them.
    pub fn take(
        &mut self,
        bytes: &mut [u8],
        each: impl FnMut(Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), Broken> {
        if self.rest.is_empty() {
            let read = self.read(bytes, each)?;
            self.rest.extend_from_slice(&bytes[read..]);
        } else {
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(bytes);
            let read = self.read(&mut rest, each)?;
            if read < rest.len() {
                rest.drain(..read);
                self.rest = rest;
            }
        }
        Ok(())
    }

    /// Reads whole frames; how many bytes they had.
    fn read(
        &mut self,
        bytes: &mut [u8],
        mut each: impl FnMut(Frame<'_>) -> ControlFlow<()>,
    ) -> Result<usize, Broken> {
        let mut read = 0;
        loop {
            let mut cursor = Cursor::new(&bytes[read..]);
            // In memory only an opcode can be wrong.
            let header = FrameHeader::parse(&mut cursor).map_err(|_| Broken::Protocol)?;
            let Some((header, length)) = header else {
                return Ok(read);
            };
            let header_bytes = cursor.position() as usize;
            let length = self.check(&header, length)?;
            let start = read + header_bytes;
            let Some(payload) = bytes.get_mut(start..start + length) else {
                return Ok(read);
            };
            read = start + length;
            unmask(payload, header.mask.unwrap_or_default());
            if self.deliver(&header, payload, &mut each)?.is_break() {
                return Ok(read);
            }
        }
    }

    /// Checks a header before its payload is waited for; the payload's length.
    fn check(&self, header: &FrameHeader, length: u64) -> Result<usize, Broken> {
        let is_reserved = header.rsv1 || header.rsv2 || header.rsv3;
        if is_reserved || header.mask.is_none() {
            return Err(Broken::Protocol);
        }
        let begun = self.begun.as_ref();
        match header.opcode {
            OpCode::Control(_) if length > CONTROL_BYTES_MAX || !header.is_final => {
                return Err(Broken::Protocol);
            }
            OpCode::Data(Data::Continue) if begun.is_none() => return Err(Broken::Protocol),
            OpCode::Data(Data::Text | Data::Binary) if begun.is_some() => {
                return Err(Broken::Protocol);
            }
            OpCode::Control(_) | OpCode::Data(_) => {}
        }
        let room = self.bytes_max - begun.map_or(0, |begun| begun.bytes.len().min(self.bytes_max));
        match usize::try_from(length) {
            Ok(length) if length <= room || matches!(header.opcode, OpCode::Control(_)) => {
                Ok(length)
            }
            _ => Err(Broken::TooLarge),
        }
    }

    fn deliver(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        each: &mut impl FnMut(Frame<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Broken> {
        let is_text = match header.opcode {
            OpCode::Control(Control::Ping) => return Ok(each(Frame::Ping(payload))),
            OpCode::Control(Control::Close) => {
                check_close(payload)?;
                return Ok(each(Frame::Close(payload)));
            }
            OpCode::Control(_) => return Ok(each(Frame::Pong)),
            OpCode::Data(Data::Continue) => {
                let Some(mut begun) = self.begun.take() else {
                    return Err(Broken::Protocol);
                };
                begun.bytes.extend_from_slice(payload);
                if header.is_final {
                    return Ok(each(message(begun.is_text, &begun.bytes)?));
                }
                self.begun = Some(begun);
                return Ok(ControlFlow::Continue(()));
            }
            OpCode::Data(kind) => kind == Data::Text,
        };
        if header.is_final {
            return Ok(each(message(is_text, payload)?));
        }
        self.begun = Some(Box::new(Begun {
            is_text,
            bytes: payload.to_vec(),
        }));
        Ok(ControlFlow::Continue(()))
    }
}

/// The longest payload of a control frame (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

fn message(is_text: bool, bytes: &[u8]) -> Result<Frame<'_>, Broken> {
    if is_text {
        let text = std::str::from_utf8(bytes).map_err(|_| Broken::NotUtf8)?;
        Ok(Frame::Text(text))
    } else {
        Ok(Frame::Binary(bytes))
    }
}

/// A goodbye has no payload, or a code that may be sent and a reason in UTF-8.
fn check_close(payload: &[u8]) -> Result<(), Broken> {
    match payload {
        [] => Ok(()),
        [high, low, reason @ ..] => {
            let code = CloseCode::from(u16::from_be_bytes([*high, *low]));
            if !code.is_allowed() {
                return Err(Broken::Protocol);
            }
            let reason = std::str::from_utf8(reason).map(|_| ());
            reason.map_err(|_| Broken::NotUtf8)
        }
        [_] => Err(Broken::Protocol),
    }
}

/// Takes the mask off, eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// The writing side of one socket: frames that are not written yet.
#[derive(Debug, Default)]
pub struct Outbound {
    bytes: Vec<u8>,
    written: usize,
}

/// How far a write came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// The client's window is full.
    Blocked,
}

impl Outbound {
    fn push(&mut self, opcode: OpCode, payload: &[u8]) {
        let header = FrameHeader {
            opcode,
            ..FrameHeader::default()
        };
        let length = payload.len() as u64;
        self.bytes.reserve(header.len(length) + payload.len());
        // Writing into memory cannot fail.
        let _ = header.format(length, &mut self.bytes);
        self.bytes.extend_from_slice(payload);
    }

    /// A text message.
    pub fn text(&mut self, text: &[u8]) {
        self.push(OpCode::Data(Data::Text), text);
    }

    /// A binary message.
    pub fn binary(&mut self, bytes: &[u8]) {
        self.push(OpCode::Data(Data::Binary), bytes);
    }

    /// A heartbeat.
    pub fn ping(&mut self) {
        self.push(OpCode::Control(Control::Ping), &[]);
    }

    /// The answer to a ping.
    pub fn pong(&mut self, payload: &[u8]) {
        self.push(OpCode::Control(Control::Pong), payload);
    }

    /// The answer to a goodbye.
    pub fn close_like(&mut self, payload: &[u8]) {
        self.push(OpCode::Control(Control::Close), payload);
    }

    /// A goodbye; `reason` has at most 123 bytes.
    pub fn close(&mut self, code: u16, reason: &str) {
        debug_assert!(reason.len() as u64 <= CONTROL_BYTES_MAX - 2);
        let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        self.push(OpCode::Control(Control::Close), &payload);
    }

    /// The bytes, for who writes them all at once.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes not written yet.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Is everything written?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what can be written. The memory goes back with the last byte: idle sockets are many.
    pub fn flush(&mut self, to: &mut (impl Write + ?Sized)) -> io::Result<Flushed> {
        while self.written < self.bytes.len() {
            match to.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) => return Err(error),
            }
        }
        // The memory goes back also when what we gave on still waits below.
        *self = Self::default();
        match to.flush() {
            Ok(()) => Ok(Flushed::All),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Flushed::Blocked),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
    use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

    const BYTES_MAX: usize = 300;

    /// A frame as a client sends it, right or wrong.
    #[derive(Clone, Debug)]
    struct Sent {
        first: u8,
        is_masked: bool,
        payload: Vec<u8>,
        /// Claimed instead of the payload's own length.
        length: Option<u64>,
    }

    impl Sent {
        fn new(first: u8, payload: impl Into<Vec<u8>>) -> Self {
            Self {
                first,
                is_masked: true,
                payload: payload.into(),
                length: None,
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let mask = [0x1f, 0x00, 0xa5, 0xff];
            let bit = u8::from(self.is_masked) << 7;
            let length = self.length.unwrap_or(self.payload.len() as u64);
            let mut bytes = vec![self.first];
            match length {
                0..=125 => bytes.push(bit | length as u8),
                126..=65_535 => {
                    bytes.push(bit | 126);
                    bytes.extend((length as u16).to_be_bytes());
                }
                _ => {
                    bytes.push(bit | 127);
                    bytes.extend(length.to_be_bytes());
                }
            }
            if self.is_masked {
                bytes.extend(mask);
                let masked = self.payload.iter().zip(mask.into_iter().cycle());
                bytes.extend(masked.map(|(byte, key)| byte ^ key));
            } else {
                bytes.extend(&self.payload);
            }
            bytes
        }
    }

    const TEXT: u8 = 0x81;
    const BINARY: u8 = 0x82;
    const TEXT_BEGINS: u8 = 0x01;
    const BINARY_BEGINS: u8 = 0x02;
    const GOES_ON: u8 = 0x00;
    const ENDS: u8 = 0x80;
    const CLOSE: u8 = 0x88;
    const PING: u8 = 0x89;
    const PONG: u8 = 0x8a;

    /// What was heard, in words, and how it ended.
    type Heard = (Vec<String>, Option<Broken>);

    fn word(frame: &Frame<'_>) -> String {
        match frame {
            Frame::Text(text) => format!("text {text}"),
            Frame::Binary(bytes) => format!("binary {bytes:?}"),
            Frame::Ping(bytes) => format!("ping {bytes:?}"),
            Frame::Pong => "pong".to_owned(),
            Frame::Close(payload) => format!("close {payload:?}"),
        }
    }

    /// Feeds a stream in chunks; `stops` after every frame if wanted, which must change nothing.
    fn heard(stream: &[u8], chunk: usize, stops: bool) -> Heard {
        let mut inbound = Inbound::new(BYTES_MAX);
        let mut words: Vec<String> = Vec::new();
        for bytes in stream.chunks(chunk) {
            let mut bytes = bytes.to_vec();
            loop {
                let before = words.len();
                let taken = inbound.take(&mut bytes, |frame| {
                    words.push(word(&frame));
                    if stops || matches!(frame, Frame::Close(_)) {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                });
                if let Err(broken) = taken {
                    return (words, Some(broken));
                }
                if words.last().is_some_and(|last| last.starts_with("close")) {
                    return (words, None);
                }
                // What is behind the frame it stopped at.
                bytes.clear();
                if !stops || words.len() == before {
                    break;
                }
            }
        }
        (words, None)
    }

    /// A stream that ends, and swallows what is written.
    struct Memory(Cursor<Vec<u8>>);

    impl Read for Memory {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The same by the whole library.
    fn heard_by_library(stream: &[u8]) -> Heard {
        let config = WebSocketConfig::default()
            .max_message_size(Some(BYTES_MAX))
            .max_frame_size(Some(BYTES_MAX));
        let memory = Memory(Cursor::new(stream.to_vec()));
        let mut socket = WebSocket::from_raw_socket(memory, Role::Server, Some(config));
        let mut words = Vec::new();
        loop {
            let frame = match socket.read() {
                Ok(frame) => frame,
                Err(Error::Capacity(_)) => return (words, Some(Broken::TooLarge)),
                Err(Error::Utf8(_)) => return (words, Some(Broken::NotUtf8)),
                Err(Error::Protocol(
                    tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                )) => return (words, None),
                Err(Error::Protocol(_)) => return (words, Some(Broken::Protocol)),
                Err(_) => return (words, None),
            };
            words.push(match frame {
                Message::Text(text) => word(&Frame::Text(&text)),
                Message::Binary(bytes) => word(&Frame::Binary(&bytes)),
                Message::Ping(bytes) => word(&Frame::Ping(&bytes)),
                Message::Pong(_) => word(&Frame::Pong),
                Message::Close(None) => word(&Frame::Close(&[])),
                // A goodbye with a code that nobody may send is no error there: it is heard as this one.
                Message::Close(Some(close)) if close.reason.as_str() == "Protocol violation" => {
                    return (words, Some(Broken::Protocol));
                }
                Message::Close(Some(close)) => {
                    let code = u16::from(close.code).to_be_bytes();
                    word(&Frame::Close(
                        &[&code, close.reason.as_str().as_bytes()].concat(),
                    ))
                }
                Message::Frame(_) => unreachable!("never read"),
            });
            if words.last().is_some_and(|last| last.starts_with("close")) {
                return (words, None);
            }
        }
    }

    fn stream(sent: &[Sent]) -> Vec<u8> {
        sent.iter().flat_map(Sent::bytes).collect()
    }

    /// Both readers hear the same. The library names text that is no UTF-8 before its message is whole; what this one
    /// hears between is allowed.
    #[track_caller]
    fn check(stream: &[u8], chunk: usize) -> Heard {
        let mine = heard(stream, chunk, false);
        assert_eq!(
            heard(stream, chunk, true),
            mine,
            "stopping changed something"
        );
        let library = heard_by_library(stream);
        if library.1 == Some(Broken::NotUtf8) {
            assert_eq!(mine.0[..library.0.len()], library.0, "{stream:x?}");
        } else {
            assert_eq!(mine, library, "{stream:x?} by {chunk}");
        }
        mine
    }

    #[track_caller]
    fn breaks(sent: &[Sent], broken: Broken) {
        let stream = stream(sent);
        for chunk in [1, 3, stream.len()] {
            assert_eq!(check(&stream, chunk).1, Some(broken), "{sent:?}");
        }
    }

    #[test]
    fn a_message_in_pieces_is_whole_and_control_frames_come_between() {
        let sent = [
            Sent::new(TEXT_BEGINS, "Ta"),
            Sent::new(PING, "alive?"),
            Sent::new(GOES_ON, ""),
            Sent::new(PONG, "yes"),
            // The last letter's two bytes are in two frames.
            Sent::new(GOES_ON, [b'x', 0xc3]),
            Sent::new(ENDS, [0xaf]),
            Sent::new(BINARY, [1, 2]),
            Sent::new(CLOSE, [0x03, 0xe8, b'b', b'y', b'e']),
            Sent::new(TEXT, "nobody hears this"),
        ];
        let stream = stream(&sent);
        for chunk in 1..=stream.len() {
            let (words, broken) = check(&stream, chunk);
            let wanted = [
                "ping [97, 108, 105, 118, 101, 63]",
                "pong",
                "text Taxï",
                "binary [1, 2]",
                "close [3, 232, 98, 121, 101]",
            ];
            assert_eq!((words, broken), (wanted.map(String::from).to_vec(), None));
        }
    }

    #[test]
    fn each_broken_rule_is_named() {
        use Broken::*;
        let text = || Sent::new(TEXT, "hello");
        let unmasked = Sent {
            is_masked: false,
            ..text()
        };
        breaks(&[text(), unmasked], Protocol);
        for reserved in [0x40, 0x20, 0x10] {
            breaks(&[Sent::new(TEXT | reserved, "x")], Protocol);
        }
        for opcode in [3, 7, 0xb, 0xf] {
            breaks(&[Sent::new(0x80 | opcode, "x")], Protocol);
        }
        breaks(&[Sent::new(ENDS, "nothing began")], Protocol);
        breaks(&[Sent::new(TEXT_BEGINS, "a"), text()], Protocol);
        breaks(&[Sent::new(PING & 0x7f, "half a ping")], Protocol);
        breaks(&[Sent::new(PING, vec![b'x'; 126])], Protocol);
        breaks(&[Sent::new(CLOSE, [3])], Protocol);
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            breaks(&[Sent::new(CLOSE, code.to_be_bytes())], Protocol);
        }
        breaks(&[Sent::new(CLOSE, [0x03, 0xe8, 0xff])], NotUtf8);
        breaks(&[Sent::new(TEXT, [b'a', 0xff])], NotUtf8);
        breaks(&[Sent::new(TEXT, vec![b'x'; BYTES_MAX + 1])], TooLarge);
        breaks(
            &[
                Sent::new(BINARY_BEGINS, vec![1; BYTES_MAX]),
                Sent::new(PING, vec![1; 125]),
                Sent::new(ENDS, [1]),
            ],
            TooLarge,
        );
        // The claim alone is enough: nothing of it is waited for, or kept.
        let claim = Sent {
            length: Some(1 << 62),
            ..Sent::new(BINARY, [])
        };
        breaks(&[claim], TooLarge);
    }

    #[test]
    fn an_idle_socket_keeps_nothing() {
        let mut inbound = Inbound::new(BYTES_MAX);
        let long = stream(&[Sent::new(TEXT, vec![b'x'; BYTES_MAX])]);
        let go_on = |_: Frame<'_>| ControlFlow::Continue(());
        inbound.take(&mut long[..20].to_vec(), go_on).unwrap();
        assert!(inbound.rest.capacity() > 0);
        inbound.take(&mut long[20..].to_vec(), go_on).unwrap();
        assert_eq!(inbound.rest.capacity(), 0);
        let mut outbound = Outbound::default();
        outbound.text(&[b'x'; 500]);
        assert_eq!(outbound.len(), 504);
        assert_eq!(outbound.flush(&mut Vec::new()).unwrap(), Flushed::All);
        assert_eq!(outbound.bytes.capacity(), 0);
    }

    /// Takes three bytes, then none, in turn.
    struct Narrow(Vec<u8>, bool);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if !self.1 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let taken = bytes.len().min(3);
            self.0.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_written_arrives_however_slowly_it_is_taken() {
        let mut outbound = Outbound::default();
        outbound.text(b"{}");
        outbound.ping();
        let mut narrow = Narrow(Vec::new(), false);
        assert_eq!(outbound.flush(&mut narrow).unwrap(), Flushed::Blocked);
        outbound.close(4410, "replaced");
        while outbound.flush(&mut narrow).unwrap() == Flushed::Blocked {}
        assert!(outbound.is_empty());
        let wanted = [
            &[0x81, 2, b'{', b'}'][..],
            &[0x89, 0],
            &[0x88, 10, 0x11, 0x3a],
            b"replaced",
        ];
        assert_eq!(narrow.0, wanted.concat());
    }

    fn any_frame() -> impl Strategy<Value = Sent> {
        let firsts = vec![
            TEXT,
            BINARY,
            TEXT_BEGINS,
            BINARY_BEGINS,
            GOES_ON,
            ENDS,
            PING,
            PONG,
        ];
        let payload = prop_oneof![
            4 => "[ -~]{0,30}".prop_map(String::into_bytes),
            2 => "\\PC{0,20}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..140),
        ];
        (prop::sample::select(firsts), payload)
            .prop_map(|(first, payload)| Sent::new(first, payload))
    }

    proptest! {
        #[test]
        fn any_stream_is_heard_as_the_library_hears_it(
            sent in prop::collection::vec(any_frame(), 0..12),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            chunk in 1..80_usize,
        ) {
            let mut stream = stream(&sent);
            if let (Some((place, byte)), false) = (damage, stream.is_empty()) {
                let place = place.index(stream.len());
                stream[place] = byte;
            }
            let mine = heard(&stream, chunk, false);
            prop_assert_eq!(&heard(&stream, chunk, true), &mine);
            let library = heard_by_library(&stream);
            match library.1 {
                None if damage.is_none() => prop_assert_eq!(&mine, &library),
                // A header that breaks a rule is enough here; the library waits for its payload.
                None => prop_assert_eq!(&mine.0, &library.0),
                // Two rules may be broken by one frame, and text may be found out earlier: what was heard before is
                // the same, and both hear no more after it than the rest of that message.
                Some(_) => {
                    let common = library.0.len().min(mine.0.len());
                    prop_assert_eq!(&mine.0[..common], &library.0[..common]);
                    if library.1 != Some(Broken::NotUtf8) {
                        prop_assert_eq!(mine.0.len(), library.0.len());
                        prop_assert!(mine.1.is_some());
                    }
                }
            }
        }
    }
}
