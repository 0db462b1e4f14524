//! What travels between two peers, checked while it is decoded.
//!
//! One connection carries, in each direction, one *control* stream and one *bulk* stream, so that a have or a grant
//! never waits behind a megabyte. Control is a row of frames:
//!
//! ```text
//! | length: varint | Frame: protobuf, see schema/wire.proto |   length ≤ FRAME_BYTES_MAX
//! ```
//!
//! Bulk is a row of pieces, integers in little-endian order:
//!
//! ```text
//! | exchange: u32 | piece: u32 | encoding: u8 | part: u8 | 0 0 | payload bytes: u32 | payload |
//! ```
//!
//! `exchange` is the sender's number for the piece list, as it said in its `Join`; `part` is zero for a whole piece,
//! else the requester's number for the ranges that it asked for, whose bytes the payload has in a row. Generated types
//! become checked types in this file and nowhere else. Changing either layout is a new protocol name ([`CONTROL_PROTOCOL`]).

mod fleet;
mod ranges;

use std::num::NonZeroU8;

use prost::Message as _;
pub use ranges::{ByteRanges, Part, RANGES_PER_PART_MAX, RangesError};

use crate::assignment::{Assignment, LAYERS_MAX, LayerName};
use crate::cid::{Cid, DIGEST_BYTES};
use crate::exchange::message::HAVES_PER_MESSAGE_MAX;
use crate::exchange::{Announcement, Bitfield, Declined, Message};
use crate::fleet::{Follow, Orders, Report};
use crate::host::HostName;
use crate::image::{ImageName, NameRecord, PieceIndex, PieceList};
use crate::members::Members;
use crate::release::Release;
use crate::signing::{PeerId, SIGNATURE_BYTES, SIGNED_BYTES_MAX, Signed};
use crate::zone::{Zone, ZoneError};

#[allow(unreachable_pub, missing_docs, clippy::all)]
pub(crate) mod generated {
    include!(concat!(env!("OUT_DIR"), "/shoal.wire.v1.rs"));
}

pub const CONTROL_PROTOCOL: &str = "/shoal/ctl/4";
pub const BULK_PROTOCOL: &str = "/shoal/blk/3";
/// A conversation of its own beside trades, such as a golden client's offer of its tree.
pub const SESSION_PROTOCOL: &str = "/shoal/ses/1";
/// Version said in `Hello`.
pub const VERSION: u32 = 1;
/// Longest control frame: an answer with a root record of the largest size, and some.
pub const FRAME_BYTES_MAX: usize = SIGNED_BYTES_MAX + (64 << 10);
/// Bytes of a bulk header.
pub const BULK_HEADER_BYTES: usize = 16;
/// Most peers told in one frame.
pub const PEERS_PER_FRAME_MAX: usize = 64;
/// Most addresses told of one peer, and ports said of oneself.
pub const ADDRESSES_PER_PEER_MAX: usize = 4;
/// Longest reason for refusing an assignment.
const REFUSAL_BYTES_MAX: usize = 1024;
/// Longest address text, `[IPv6]:PORT`.
const ADDRESS_BYTES_MAX: usize = 64;

/// One control frame, checked but for what needs the piece list ([`TradeFrame::check`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Hello),
    PeersWanted,
    Peers(Vec<PeerAddresses>),
    /// The sender has no room for the receiver, who may ask these.
    Refused(Vec<PeerAddresses>),
    /// The publisher's list of members: for the receiver to verify.
    Members(Signed<Members>),
    /// The receiver is no member, and hears nothing else.
    Barred {
        revoked: bool,
    },
    Follow(Follow),
    /// The publisher's newest word about a channel: for the receiver to verify.
    Release(Signed<Release>),
    Report(Box<Report>),
    Orders(Orders),
    Query(Query),
    Answer(Answer),
    /// The sender calls the piece list of this name by this number from now on.
    Join {
        exchange: u32,
        list: Cid,
    },
    Trade(TradeFrame),
    /// The last byte of a piece reached the sender of this frame.
    Arrived {
        exchange: u32,
        piece: u32,
    },
}

/// First frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub role: PeerRole,
    /// TCP ports that the sender listens on, at most [`ADDRESSES_PER_PEER_MAX`].
    pub ports: Vec<u16>,
    pub rack: Zone,
    /// Number of the newest list of members that the sender knows, 0 for none.
    pub members: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    Node,
    Seeder,
}

/// A peer told by a peer: unproved, only worth a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddresses {
    pub id: PeerId,
    pub addresses: Vec<std::net::SocketAddr>,
    pub rack: Zone,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Query {
    Name(ImageName),
    Image(Cid),
    Host(Box<HostQuery>),
}

/// "What is this host to be?", and what a command line says besides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostQuery {
    pub host: HostName,
    /// Instead of the host's.
    pub image: Option<ImageName>,
    /// Over all others; the first wins. At most [`LAYERS_MAX`].
    pub overrides: Vec<LayerName>,
}

/// What the sender knows of a queried image or host: nothing, or statements of the publisher that the receiver has to
/// verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub query: Query,
    pub name: Option<Signed<NameRecord>>,
    pub root: Option<Signed<crate::image::RootRecord>>,
    pub assignment: Option<Signed<Assignment>>,
    /// Why the asker gets no assignment, at most 1024 bytes.
    pub refused: Option<String>,
}

impl Answer {
    /// An answer that knows nothing yet.
    pub fn nothing(query: Query) -> Self {
        Self { query, name: None, root: None, assignment: None, refused: None }
    }
}

/// A message of one exchange, not yet checked against its piece list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TradeFrame {
    /// The sender's number for the list.
    pub exchange: u32,
    body: generated::trade::Body,
}

/// The header of a piece on a bulk stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkHeader {
    pub exchange: u32,
    pub piece: u32,
    pub encoding: u8,
    /// Zero for a whole piece, else which part of it.
    pub part: u8,
    pub payload_bytes: u32,
}

/// Bytes that no honest peer of this version sends.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("a control frame is no protobuf of ours")]
    Protobuf(#[from] prost::DecodeError),
    #[error("a control frame without a body")]
    Empty,
    #[error("protocol version {0}, this build speaks {VERSION}")]
    Version(u32),
    #[error("{field} has {actual} where at most {max} is allowed")]
    TooMany { field: &'static str, actual: usize, max: usize },
    #[error("{field} is malformed: {why}")]
    Field { field: &'static str, why: String },
    #[error("piece {piece} of a list of {pieces}")]
    Piece { piece: u32, pieces: usize },
}

impl Frame {
    /// The protobuf bytes, without the length that precedes them on the stream.
    pub fn encode(self) -> Vec<u8> {
        use generated::frame::Body;
        let body = match self {
            Self::Hello(hello) => Body::Hello(generated::Hello {
                version: VERSION,
                role: match hello.role {
                    PeerRole::Node => generated::Role::Node.into(),
                    PeerRole::Seeder => generated::Role::Seeder.into(),
                },
                ports: hello.ports.into_iter().map(u32::from).collect(),
                rack: hello.rack.to_string(),
                members: hello.members,
            }),
            Self::PeersWanted => Body::PeersWanted(generated::PeersWanted {}),
            Self::Peers(peers) => Body::Peers(encode_peers(peers)),
            Self::Refused(peers) => Body::Refused(encode_peers(peers)),
            Self::Members(members) => Body::Members(encode_signed(&members)),
            Self::Barred { revoked } => Body::Barred(generated::Barred { revoked }),
            Self::Follow(follow) => Body::Follow(fleet::encode_follow(follow)),
            Self::Release(release) => Body::Release(encode_signed(&release)),
            Self::Report(report) => Body::Report(fleet::encode_report(*report)),
            Self::Orders(orders) => Body::Orders(fleet::encode_orders(orders)),
            Self::Query(query) => Body::Query(encode_query(&query)),
            Self::Answer(answer) => Body::Answer(generated::Answer {
                query: Some(encode_query(&answer.query)),
                name: answer.name.map(|signed| encode_signed(&signed)),
                root: answer.root.map(|signed| encode_signed(&signed)),
                assignment: answer.assignment.map(|signed| encode_signed(&signed)),
                refused: answer.refused.unwrap_or_default(),
            }),
            Self::Join { exchange, list } => {
                Body::Join(generated::Join { exchange, list: list.digest().to_vec() })
            }
            Self::Trade(trade) => {
                Body::Trade(generated::Trade { exchange: trade.exchange, body: Some(trade.body) })
            }
            Self::Arrived { exchange, piece } => Body::Arrived(generated::Arrived { exchange, piece }),
        };
        generated::Frame { body: Some(body) }.encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        use generated::frame::Body;
        at_most("a control frame", bytes.len(), FRAME_BYTES_MAX)?;
        Ok(match generated::Frame::decode(bytes)?.body.ok_or(DecodeError::Empty)? {
            Body::Hello(hello) => Self::Hello(decode_hello(hello)?),
            Body::PeersWanted(_) => Self::PeersWanted,
            Body::Peers(peers) => Self::Peers(decode_peers(peers)?),
            Body::Refused(peers) => Self::Refused(decode_peers(peers)?),
            Body::Members(members) => Self::Members(decode_signed(members)?),
            Body::Barred(barred) => Self::Barred { revoked: barred.revoked },
            Body::Follow(follow) => Self::Follow(fleet::decode_follow(follow)?),
            Body::Release(release) => Self::Release(decode_signed(release)?),
            Body::Report(report) => Self::Report(Box::new(fleet::decode_report(report)?)),
            Body::Orders(orders) => Self::Orders(fleet::decode_orders(orders)?),
            Body::Query(query) => Self::Query(decode_query(query)?),
            Body::Answer(answer) => Self::Answer(Answer {
                query: decode_query(answer.query.ok_or(DecodeError::Empty)?)?,
                name: answer.name.map(decode_signed).transpose()?,
                root: answer.root.map(decode_signed).transpose()?,
                assignment: answer.assignment.map(decode_signed).transpose()?,
                refused: decode_refusal(answer.refused)?,
            }),
            Body::Join(join) => {
                Self::Join { exchange: join.exchange, list: decode_digest("a list's name", &join.list)? }
            }
            Body::Trade(trade) => Self::Trade(TradeFrame {
                exchange: trade.exchange,
                body: trade.body.ok_or(DecodeError::Empty)?,
            }),
            Body::Arrived(arrived) => Self::Arrived { exchange: arrived.exchange, piece: arrived.piece },
        })
    }
}

impl TradeFrame {
    pub fn new(exchange: u32, message: Message) -> Self {
        use generated::trade::Body;
        let body = match message {
            Message::Announce(Announcement::Seeder) => {
                Body::Announce(generated::Announce { seeder: true, ..Default::default() })
            }
            Message::Announce(Announcement::Held(held)) => {
                Body::Announce(generated::Announce { bitfield: held.to_bytes(), ..Default::default() })
            }
            Message::Announce(Announcement::Selective { held, unwanted }) => {
                Body::Announce(generated::Announce {
                    seeder: false,
                    bitfield: held.to_bytes(),
                    unwanted: unwanted.to_bytes(),
                })
            }
            Message::Have(pieces) => {
                Body::Have(generated::Have { pieces: pieces.into_iter().map(PieceIndex::get).collect() })
            }
            Message::Grant(piece) => Body::Grant(generated::Grant { piece: piece.map(PieceIndex::get) }),
            Message::Request(piece) => Body::Request(piece.get()),
            Message::Decline(declined) => Body::Decline(generated::Decline {
                reason: match declined {
                    Declined::Busy => generated::Reason::Busy.into(),
                    Declined::Nothing => generated::Reason::Nothing.into(),
                },
            }),
            Message::Cancel(piece) => Body::Cancel(piece.get()),
            Message::Withdraw(piece) => Body::Withdraw(piece.get()),
            Message::Intent { piece, live } => {
                Body::Intent(generated::Intent { piece: piece.get(), over: !live })
            }
            Message::Covered(pieces) => Body::Covered(encode_covered(pieces)),
            Message::Uncovered(pieces) => Body::Uncovered(encode_covered(pieces)),
        };
        Self { exchange, body }
    }

    /// A request for a part of a piece.
    pub fn request_part(exchange: u32, piece: PieceIndex, part: &Part) -> Self {
        let request = generated::PartRequest {
            piece: piece.get(),
            part: part.number.get().into(),
            ranges: part.ranges.iter().flat_map(|range| [range.start, range.end - range.start]).collect(),
        };
        Self { exchange, body: generated::trade::Body::RequestPart(request) }
    }

    /// The message, and the part that it requests when that is not the whole piece, once its indexes, its bitfields
    /// and its ranges are known to fit the list that it speaks of.
    pub fn check(self, list: &PieceList) -> Result<(Message, Option<Part>), DecodeError> {
        match self.body {
            generated::trade::Body::RequestPart(request) => {
                let (piece, part) = decode_part(&request, list)?;
                Ok((Message::Request(piece), Some(part)))
            }
            body => Ok((check_message(body, list)?, None)),
        }
    }
}

impl BulkHeader {
    pub fn to_bytes(self) -> [u8; BULK_HEADER_BYTES] {
        let mut bytes = [0; BULK_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.exchange.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.piece.to_le_bytes());
        bytes[8] = self.encoding;
        bytes[9] = self.part;
        bytes[12..].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; BULK_HEADER_BYTES]) -> Result<Self, DecodeError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[10..12] != [0; 2] {
            return Err(DecodeError::Field {
                field: "a bulk header",
                why: "its spare bytes are not zero".into(),
            });
        }
        Ok(Self {
            exchange: word(0),
            piece: word(4),
            encoding: bytes[8],
            part: bytes[9],
            payload_bytes: word(12),
        })
    }
}

fn at_most(field: &'static str, actual: usize, max: usize) -> Result<(), DecodeError> {
    if actual > max { Err(DecodeError::TooMany { field, actual, max }) } else { Ok(()) }
}

fn check_message(body: generated::trade::Body, list: &PieceList) -> Result<Message, DecodeError> {
    use generated::trade::Body;
    let index = |piece| list.index(piece).ok_or(DecodeError::Piece { piece, pieces: list.len() });
    Ok(match body {
        Body::Announce(generated::Announce { seeder: true, bitfield, unwanted }) => {
            at_most("a hidden bitfield", bitfield.len() + unwanted.len(), 0)?;
            Message::Announce(Announcement::Seeder)
        }
        Body::Announce(generated::Announce { seeder: false, bitfield, unwanted }) => {
            let decode = |bytes: &[u8]| {
                Bitfield::from_bytes(bytes, list.len())
                    .map_err(|error| DecodeError::Field { field: "a bitfield", why: error.to_string() })
            };
            let held = decode(&bitfield)?;
            Message::Announce(if unwanted.is_empty() {
                Announcement::Held(held)
            } else {
                Announcement::Selective { held, unwanted: decode(&unwanted)? }
            })
        }
        Body::Have(have) => Message::Have(indexes("a have", have.pieces, list)?),
        Body::Grant(grant) => Message::Grant(grant.piece.map(index).transpose()?),
        Body::Request(piece) => Message::Request(index(piece)?),
        Body::RequestPart(request) => Message::Request(index(request.piece)?),
        Body::Decline(decline) => Message::Decline(match decline.reason() {
            generated::Reason::Busy => Declined::Busy,
            generated::Reason::Nothing => Declined::Nothing,
            generated::Reason::Unspecified => {
                return Err(DecodeError::Field {
                    field: "a decline",
                    why: "it gives no known reason".into(),
                });
            }
        }),
        Body::Cancel(piece) => Message::Cancel(index(piece)?),
        Body::Withdraw(piece) => Message::Withdraw(index(piece)?),
        Body::Intent(intent) => Message::Intent { piece: index(intent.piece)?, live: !intent.over },
        Body::Covered(covered) => {
            Message::Covered(indexes("a word of what is nearer", covered.pieces, list)?)
        }
        Body::Uncovered(covered) => {
            Message::Uncovered(indexes("a word of what is nearer", covered.pieces, list)?)
        }
    })
}

/// At most [`HAVES_PER_MESSAGE_MAX`] pieces of the list.
fn indexes(field: &'static str, pieces: Vec<u32>, list: &PieceList) -> Result<Vec<PieceIndex>, DecodeError> {
    at_most(field, pieces.len(), HAVES_PER_MESSAGE_MAX)?;
    let index = |piece| list.index(piece).ok_or(DecodeError::Piece { piece, pieces: list.len() });
    pieces.into_iter().map(index).collect()
}

fn encode_covered(pieces: Vec<PieceIndex>) -> generated::Covered {
    generated::Covered { pieces: pieces.into_iter().map(PieceIndex::get).collect() }
}

fn decode_part(
    request: &generated::PartRequest,
    list: &PieceList,
) -> Result<(PieceIndex, Part), DecodeError> {
    let wrong = |why: String| DecodeError::Field { field: "a request for a part", why };
    let piece =
        list.index(request.piece).ok_or(DecodeError::Piece { piece: request.piece, pieces: list.len() })?;
    let number = u8::try_from(request.part).ok().and_then(NonZeroU8::new);
    let number = number.ok_or_else(|| wrong(format!("its number is {}, not 1 to 255", request.part)))?;
    let (ranges, []) = request.ranges.as_chunks() else {
        return Err(wrong("a range without a length".into()));
    };
    let ranges =
        ByteRanges::check(ranges, list.piece(piece).raw_bytes).map_err(|error| wrong(error.to_string()))?;
    Ok((piece, Part { number, ranges }))
}

fn decode_hello(hello: generated::Hello) -> Result<Hello, DecodeError> {
    if hello.version != VERSION {
        return Err(DecodeError::Version(hello.version));
    }
    at_most("a port list", hello.ports.len(), ADDRESSES_PER_PEER_MAX)?;
    let role = match hello.role() {
        generated::Role::Node => PeerRole::Node,
        generated::Role::Seeder => PeerRole::Seeder,
        generated::Role::Unspecified => {
            return Err(DecodeError::Field { field: "a hello", why: "it gives no known role".into() });
        }
    };
    let port = |port: u32| match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(DecodeError::Field { field: "a port", why: port.to_string() }),
    };
    let ports = hello.ports.into_iter().map(port).collect::<Result<_, _>>()?;
    Ok(Hello { role, ports, rack: decode_rack(&hello.rack)?, members: hello.members })
}

fn encode_peers(peers: Vec<PeerAddresses>) -> generated::Peers {
    generated::Peers { peers: peers.into_iter().map(encode_peer).collect() }
}

fn decode_peers(peers: generated::Peers) -> Result<Vec<PeerAddresses>, DecodeError> {
    at_most("a peer list", peers.peers.len(), PEERS_PER_FRAME_MAX)?;
    peers.peers.into_iter().map(decode_peer).collect()
}

fn encode_peer(peer: PeerAddresses) -> generated::Peer {
    let addresses = peer.addresses.iter().map(ToString::to_string).collect();
    generated::Peer { id: peer.id.to_bytes(), addresses, rack: peer.rack.to_string() }
}

fn decode_peer(peer: generated::Peer) -> Result<PeerAddresses, DecodeError> {
    at_most("a peer's addresses", peer.addresses.len(), ADDRESSES_PER_PEER_MAX)?;
    let id = PeerId::from_bytes(&peer.id)
        .map_err(|error| DecodeError::Field { field: "a peer id", why: error.to_string() })?;
    let address = |text: &String| {
        at_most("an address", text.len(), ADDRESS_BYTES_MAX)?;
        text.parse().map_err(|_| DecodeError::Field { field: "an address", why: format!("{text:?}") })
    };
    Ok(PeerAddresses {
        id,
        addresses: peer.addresses.iter().map(address).collect::<Result<_, _>>()?,
        rack: decode_rack(&peer.rack)?,
    })
}

fn decode_rack(label: &str) -> Result<Zone, DecodeError> {
    label.parse().map_err(|error: ZoneError| DecodeError::Field { field: "a hello", why: error.to_string() })
}

fn encode_query(query: &Query) -> generated::Query {
    use generated::query::Wanted;
    generated::Query {
        wanted: Some(match query {
            Query::Name(name) => Wanted::Name(name.to_string()),
            Query::Image(image) => Wanted::Image(image.digest().to_vec()),
            Query::Host(query) => Wanted::Host(generated::HostQuery {
                host: query.host.to_string(),
                image: query.image.as_ref().map(ToString::to_string).unwrap_or_default(),
                overrides: query.overrides.iter().map(ToString::to_string).collect(),
            }),
        }),
    }
}

fn decode_query(query: generated::Query) -> Result<Query, DecodeError> {
    use generated::query::Wanted;
    Ok(match query.wanted.ok_or(DecodeError::Empty)? {
        Wanted::Name(name) => Query::Name(decode_image_name(&name)?),
        Wanted::Host(query) => Query::Host(Box::new(decode_host_query(&query)?)),
        Wanted::Image(digest) => Query::Image(decode_digest("an image id", &digest)?),
    })
}

fn decode_image_name(name: &str) -> Result<ImageName, DecodeError> {
    name.parse().map_err(|_| DecodeError::Field { field: "an image name", why: "see ImageName".into() })
}

fn decode_host_query(query: &generated::HostQuery) -> Result<HostQuery, DecodeError> {
    at_most("a query for a host", query.overrides.len(), LAYERS_MAX)?;
    let wrong = |why: String| DecodeError::Field { field: "a query for a host", why };
    Ok(HostQuery {
        host: query.host.parse().map_err(|error: crate::host::HostNameError| wrong(error.to_string()))?,
        image: (!query.image.is_empty()).then(|| decode_image_name(&query.image)).transpose()?,
        overrides: query
            .overrides
            .iter()
            .map(|name| name.parse::<LayerName>().map_err(|error| wrong(error.to_string())))
            .collect::<Result<_, _>>()?,
    })
}

fn decode_refusal(why: String) -> Result<Option<String>, DecodeError> {
    at_most("a refusal", why.len(), REFUSAL_BYTES_MAX)?;
    // It is shown on a terminal.
    let plain: String = why.chars().filter(|shown| !shown.is_control()).collect();
    Ok((!plain.is_empty()).then_some(plain))
}

fn encode_signed<T: crate::signing::Statement>(signed: &Signed<T>) -> generated::Signed {
    generated::Signed { payload: signed.payload().to_vec(), signature: signed.signature().to_vec() }
}

fn decode_signed<T: crate::signing::Statement>(signed: generated::Signed) -> Result<Signed<T>, DecodeError> {
    at_most("a signed payload", signed.payload.len(), SIGNED_BYTES_MAX)?;
    at_most("a signature", signed.signature.len(), SIGNATURE_BYTES)?;
    Ok(Signed::from_parts(signed.payload, signed.signature))
}

fn decode_digest(field: &'static str, bytes: &[u8]) -> Result<Cid, DecodeError> {
    <[u8; DIGEST_BYTES]>::try_from(bytes).map(Cid::from_digest).map_err(|_| DecodeError::Field {
        field,
        why: format!("{} bytes instead of {DIGEST_BYTES}", bytes.len()),
    })
}

#[cfg(test)]
mod tests;
