//! Messages of the control channel (FD.io memif, version 2.0).
//!
//! Each has 128 octets and is one packet of a Unix socket. Numbers are in host byte order, without
//! padding between them; what is behind the last field means nothing.
//!
//! | message | sent by | with a descriptor |
//! |---|---|---|
//! | hello | server, first | |
//! | init | client | |
//! | add region | client | the region's memory |
//! | add ring | client | the ring's eventfd |
//! | connect | client | |
//! | connected | server, last | |
//! | ack | server, to init, add region and add ring | |
//! | disconnect | either, at any time | |

use core::fmt;

use thiserror::Error;

/// Octets of every message.
pub const LENGTH: usize = 128;

/// The protocol's version: 2.0.
pub const VERSION: u16 = 0x0200;

/// The mode of an interface that carries Ethernet frames.
pub const ETHERNET: u8 = 0;

/// The ring is one by which the client sends.
const CLIENT_TO_SERVER: u16 = 1;

/// Octets of a name.
pub const NAME: usize = 32;
/// Octets of a secret.
pub const SECRET: usize = 24;
/// Octets of a reason.
pub const REASON: usize = 96;

const ACK: u16 = 1;
const HELLO: u16 = 2;
const INIT: u16 = 3;
const ADD_REGION: u16 = 4;
const ADD_RING: u16 = 5;
const CONNECT: u16 = 6;
const CONNECTED: u16 = 7;
const DISCONNECT: u16 = 8;

/// Text of a certain room. It ends with the first zero octet, or with the room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// As much of `text` as there is room for, with a zero behind it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut octets = [0; N];
        let mut end = text.len().min(N.saturating_sub(1));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        octets[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self(octets)
    }

    /// All of `octets`, with zeros behind them; `None` if there is no room for them.
    #[must_use]
    pub fn of_octets(octets: &[u8]) -> Option<Self> {
        let mut all = [0; N];
        all.get_mut(..octets.len())?.copy_from_slice(octets);
        Some(Self(all))
    }

    /// What is before the first zero.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        let end = self.0.iter().position(|&octet| octet == 0).unwrap_or(N);
        &self.0[..end]
    }
}

/// What a peer has written is shown without anything that moves a cursor.
impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(self.octets());
        write!(f, "{}", text.escape_debug())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What the server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The program.
    pub name: Text<NAME>,
    /// The lowest version.
    pub min_version: u16,
    /// The highest version.
    pub max_version: u16,
    /// The highest index of a region.
    pub max_region: u16,
    /// The highest index of a ring to the client.
    pub max_to_client: u16,
    /// The highest index of a ring to the server.
    pub max_to_server: u16,
    /// The largest ring has 2 to the power of this many descriptors.
    pub max_log2_ring_size: u8,
}

/// To which interface the client wants to connect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// The version that the client has chosen.
    pub version: u16,
    /// The interface's number.
    pub id: u32,
    /// What is carried: [`ETHERNET`].
    pub mode: u8,
    /// What the server may want to be shown.
    pub secret: Text<SECRET>,
    /// The program.
    pub name: Text<NAME>,
}

/// The secret is not for logs.
impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Init")
            .field("version", &self.version)
            .field("id", &self.id)
            .field("mode", &self.mode)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A region of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddRegion {
    /// Its index: they come in order.
    pub index: u16,
    /// Its octets.
    pub size: u64,
}

/// A ring in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddRing {
    /// Whether the client sends by it.
    pub to_server: bool,
    /// Its index among those of its direction: they come in order.
    pub index: u16,
    /// The region where it is.
    pub region: u16,
    /// Octets from the region's start.
    pub offset: u32,
    /// It has 2 to the power of this many descriptors.
    pub log2_size: u8,
    /// Octets in front of each frame that are the peers' own matter.
    pub private_header: u16,
}

/// The end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// A number without a meaning that all would know.
    pub code: u32,
    /// Why.
    pub reason: Text<REASON>,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// What was asked is done.
    Ack,
    /// What the server takes.
    Hello(Hello),
    /// To which interface the client wants to connect.
    Init(Init),
    /// A region of the client's.
    AddRegion(AddRegion),
    /// A ring in a region.
    AddRing(AddRing),
    /// All is there, says the client, and what its interface is called.
    Connect(Text<NAME>),
    /// Frames may go, says the server, and what its interface is called.
    Connected(Text<NAME>),
    /// The end.
    Disconnect(Disconnect),
}

/// Why octets are no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// There are too few or too many.
    #[error("a message of {0} octets: each has {LENGTH}")]
    Length(usize),
    /// There is no such message.
    #[error("a message of unknown type {0}")]
    Type(u16),
}

impl Message {
    /// Reads one packet.
    ///
    /// # Errors
    ///
    /// [`MessageError`]. What the fields of a message say is not looked at here.
    pub fn parse(octets: &[u8]) -> Result<Self, MessageError> {
        let octets: &[u8; LENGTH] = octets
            .try_into()
            .map_err(|_| MessageError::Length(octets.len()))?;
        let mut fields = Fields(octets);
        Ok(match fields.u16() {
            ACK => Self::Ack,
            HELLO => Self::Hello(Hello {
                name: fields.text(),
                min_version: fields.u16(),
                max_version: fields.u16(),
                max_region: fields.u16(),
                max_to_client: fields.u16(),
                max_to_server: fields.u16(),
                max_log2_ring_size: fields.u8(),
            }),
            INIT => Self::Init(Init {
                version: fields.u16(),
                id: fields.u32(),
                mode: fields.u8(),
                secret: fields.text(),
                name: fields.text(),
            }),
            ADD_REGION => Self::AddRegion(AddRegion {
                index: fields.u16(),
                size: fields.u64(),
            }),
            ADD_RING => Self::AddRing(AddRing {
                to_server: fields.u16() & CLIENT_TO_SERVER != 0,
                index: fields.u16(),
                region: fields.u16(),
                offset: fields.u32(),
                log2_size: fields.u8(),
                private_header: fields.u16(),
            }),
            CONNECT => Self::Connect(fields.text()),
            CONNECTED => Self::Connected(fields.text()),
            DISCONNECT => Self::Disconnect(Disconnect {
                code: fields.u32(),
                reason: fields.text(),
            }),
            other => return Err(MessageError::Type(other)),
        })
    }

    /// Writes the packet.
    #[must_use]
    pub fn emit(&self) -> [u8; LENGTH] {
        let mut packet = Packet {
            octets: [0; LENGTH],
            end: 0,
        };
        packet.u16(self.number());
        match self {
            Self::Ack => {}
            Self::Hello(hello) => {
                packet.put(&hello.name.0);
                packet.u16(hello.min_version);
                packet.u16(hello.max_version);
                packet.u16(hello.max_region);
                packet.u16(hello.max_to_client);
                packet.u16(hello.max_to_server);
                packet.put(&[hello.max_log2_ring_size]);
            }
            Self::Init(init) => {
                packet.u16(init.version);
                packet.put(&init.id.to_ne_bytes());
                packet.put(&[init.mode]);
                packet.put(&init.secret.0);
                packet.put(&init.name.0);
            }
            Self::AddRegion(region) => {
                packet.u16(region.index);
                packet.put(&region.size.to_ne_bytes());
            }
            Self::AddRing(ring) => {
                packet.u16(if ring.to_server { CLIENT_TO_SERVER } else { 0 });
                packet.u16(ring.index);
                packet.u16(ring.region);
                packet.put(&ring.offset.to_ne_bytes());
                packet.put(&[ring.log2_size]);
                packet.u16(ring.private_header);
            }
            Self::Connect(name) | Self::Connected(name) => packet.put(&name.0),
            Self::Disconnect(end) => {
                packet.put(&end.code.to_ne_bytes());
                packet.put(&end.reason.0);
            }
        }
        packet.octets
    }

    fn number(&self) -> u16 {
        match self {
            Self::Ack => ACK,
            Self::Hello(_) => HELLO,
            Self::Init(_) => INIT,
            Self::AddRegion(_) => ADD_REGION,
            Self::AddRing(_) => ADD_RING,
            Self::Connect(_) => CONNECT,
            Self::Connected(_) => CONNECTED,
            Self::Disconnect(_) => DISCONNECT,
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Hello(_) => "hello",
            Self::Init(_) => "init",
            Self::AddRegion(_) => "add region",
            Self::AddRing(_) => "add ring",
            Self::Connect(_) => "connect",
            Self::Connected(_) => "connected",
            Self::Disconnect(_) => "disconnect",
        }
    }
}

/// What is left of a packet. All messages are shorter than it, so that no field is missing.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u8(&mut self) -> u8 {
        u8::from_ne_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn text<const N: usize>(&mut self) -> Text<N> {
        Text(self.take())
    }
}

struct Packet {
    octets: [u8; LENGTH],
    end: usize,
}

impl Packet {
    fn put(&mut self, field: &[u8]) {
        let end = self.end + field.len();
        if let Some(place) = self.octets.get_mut(self.end..end) {
            place.copy_from_slice(field);
        }
        self.end = end;
    }

    fn u16(&mut self, field: u16) {
        self.put(&field.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_stand_where_other_programs_look_for_them() {
        let init = Message::Init(Init {
            version: VERSION,
            id: 0x0102_0304,
            mode: 2,
            secret: Text::new("secret"),
            name: Text::new("name"),
        });
        let octets = init.emit();
        assert_eq!(octets[..2], 3_u16.to_ne_bytes());
        assert_eq!(octets[2..4], VERSION.to_ne_bytes());
        assert_eq!(octets[4..8], 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(octets[8], 2);
        assert_eq!(&octets[9..16], b"secret\0");
        assert_eq!(&octets[33..38], b"name\0");
        let ring = Message::AddRing(AddRing {
            to_server: true,
            index: 1,
            region: 2,
            offset: 3,
            log2_size: 4,
            private_header: 5,
        });
        let octets = ring.emit();
        let words = [5_u16, 1, 1, 2].map(u16::to_ne_bytes).concat();
        assert_eq!(octets[..8], words);
        assert_eq!(octets[8..12], 3_u32.to_ne_bytes());
        assert_eq!(octets[12], 4);
        assert_eq!(octets[13..15], 5_u16.to_ne_bytes());
        let region = Message::AddRegion(AddRegion { index: 7, size: 9 });
        let octets = region.emit();
        assert_eq!(octets[2..4], 7_u16.to_ne_bytes());
        assert_eq!(octets[4..12], 9_u64.to_ne_bytes());
        let hello = Message::Hello(Hello {
            name: Text::new("x"),
            min_version: 1,
            max_version: 2,
            max_region: 3,
            max_to_client: 4,
            max_to_server: 5,
            max_log2_ring_size: 6,
        });
        let octets = hello.emit();
        let numbers = [1_u16, 2, 3, 4, 5].map(u16::to_ne_bytes).concat();
        assert_eq!(octets[34..44], numbers);
        assert_eq!(octets[44], 6);
    }

    #[test]
    fn texts_end_with_their_room() {
        assert_eq!(Text::<4>::new("abcdef").octets(), b"abc");
        assert_eq!(Text::<4>::new("äää").to_string(), "ä");
        assert_eq!(Text::<4>([b'a'; 4]).octets(), b"aaaa");
        assert_eq!(Text::<4>::of_octets(b"abcd").unwrap().octets(), b"abcd");
        assert!(Text::<4>::of_octets(b"abcde").is_none());
        assert_eq!(Text::<8>::new("a\n\u{1b}b").to_string(), "a\\n\\u{1b}b");
        assert_eq!(Text::<4>([0xff, b'a', 0, b'b']).to_string(), "\u{fffd}a");
    }

    #[test]
    fn only_whole_messages_of_known_types_are_read() {
        assert_eq!(Message::parse(&[]), Err(MessageError::Length(0)));
        assert_eq!(Message::parse(&[0; 127]), Err(MessageError::Length(127)));
        assert_eq!(Message::parse(&[0; 129]), Err(MessageError::Length(129)));
        assert_eq!(Message::parse(&[0; 128]), Err(MessageError::Type(0)));
        let mut unknown = [0; 128];
        unknown[..2].copy_from_slice(&9_u16.to_ne_bytes());
        assert_eq!(Message::parse(&unknown), Err(MessageError::Type(9)));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(
            number in 0..10_u16,
            rest in proptest::collection::vec(any::<u8>(), LENGTH - 2),
        ) {
            let octets = [&number.to_ne_bytes()[..], &rest].concat();
            if let Ok(message) = Message::parse(&octets) {
                prop_assert_eq!(Message::parse(&message.emit()), Ok(message));
                // It can be logged.
                let logged = format!("{message:?}");
                prop_assert!(!logged.is_empty());
            }
        }

        #[test]
        fn any_octets_are_read_or_refused(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&octets);
        }
    }
}
