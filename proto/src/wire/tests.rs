use super::*;
use crate::image::Piece;
use crate::signing::Keypair;

fn list(pieces: u32) -> PieceList {
    PieceList::new(
        (0..pieces).map(|at| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1 + at }).collect(),
    )
    .unwrap()
}

fn peer(port: u16) -> PeerAddresses {
    let addresses = vec![([10, 0, 0, 1], port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()];
    PeerAddresses {
        id: Keypair::ed25519_from_bytes([port.to_le_bytes()[0]; 32]).unwrap().public().to_peer_id(),
        addresses,
        rack: "row3/r1".parse().unwrap(),
    }
}

fn name_record() -> Signed<NameRecord> {
    let record = NameRecord { name: "debian".parse().unwrap(), image: Cid::of(b"image") };
    Signed::sign(&record, &Keypair::ed25519_from_bytes([1; 32]).unwrap())
}

#[test]
fn every_frame_comes_back_as_it_went() {
    let list = list(70);
    let query = Query::Name("debian".parse().unwrap());
    let mut held = Bitfield::empty(list.len());
    held.insert(list.index(69).unwrap());
    let unwanted = Bitfield::full(list.len());
    let messages = [
        Message::Announce(Announcement::Seeder),
        Message::Announce(Announcement::Held(held.clone())),
        Message::Announce(Announcement::Selective { held, unwanted }),
        Message::Have(list.indexes().collect()),
        Message::Grant(None),
        Message::Grant(list.index(0)),
        Message::Request(list.index(0).unwrap()),
        Message::Decline(Declined::Busy),
        Message::Decline(Declined::Nothing),
        Message::Cancel(list.index(3).unwrap()),
        Message::Withdraw(list.index(4).unwrap()),
        Message::Intent { piece: list.index(5).unwrap(), live: true },
        Message::Intent { piece: list.index(5).unwrap(), live: false },
        Message::Covered(list.indexes().collect()),
        Message::Uncovered(vec![list.index(6).unwrap()]),
    ];
    for message in messages {
        let frame = Frame::Trade(TradeFrame::new(7, message.clone()));
        let Frame::Trade(back) = Frame::decode(&frame.clone().encode()).unwrap() else { panic!("{frame:?}") };
        assert_eq!(back.exchange, 7);
        assert_eq!(back.check(&list).unwrap(), (message, None));
    }
    let host_query = Query::Host(Box::new(HostQuery {
        host: "node07".parse().unwrap(),
        image: Some("debian".parse().unwrap()),
        overrides: vec!["web".parse().unwrap()],
    }));
    let frames = [
        Frame::Hello(Hello {
            role: PeerRole::Seeder,
            ports: vec![1, 65535],
            rack: "r/1".parse().unwrap(),
            members: 1 << 40,
        }),
        Frame::Members(Signed::from_parts(vec![1; 9], vec![2; SIGNATURE_BYTES])),
        Frame::Barred { revoked: true },
        Frame::Barred { revoked: false },
        Frame::PeersWanted,
        Frame::Peers(vec![peer(1), peer(2)]),
        Frame::Peers(Vec::new()),
        Frame::Refused(vec![peer(3)]),
        Frame::Query(query.clone()),
        Frame::Query(Query::Image(Cid::of(b"image"))),
        Frame::Query(host_query.clone()),
        Frame::Answer(Answer { name: Some(name_record()), ..Answer::nothing(query.clone()) }),
        Frame::Answer(Answer {
            assignment: Some(Signed::from_parts(vec![3; 9], vec![4; SIGNATURE_BYTES])),
            refused: Some("no".to_owned()),
            ..Answer::nothing(host_query)
        }),
        Frame::Join { exchange: 0, list: list.name() },
        Frame::Arrived { exchange: 1, piece: 2 },
    ];
    for frame in frames {
        assert_eq!(Frame::decode(&frame.clone().encode()).unwrap(), frame);
    }
}

#[test]
fn what_does_not_fit_the_list_is_refused() {
    let (long, short) = (list(70), list(60));
    let full = Message::Announce(Announcement::Held(Bitfield::full(long.len())));
    let outside = [
        full,
        Message::Have(vec![long.index(60).unwrap()]),
        Message::Request(long.index(69).unwrap()),
        Message::Intent { piece: long.index(60).unwrap(), live: true },
        Message::Covered(vec![long.index(60).unwrap()]),
        Message::Uncovered(vec![long.index(60).unwrap()]),
    ];
    let many = vec![short.index(0).unwrap(); HAVES_PER_MESSAGE_MAX + 1];
    for message in [Message::Have(many.clone()), Message::Covered(many.clone()), Message::Uncovered(many)] {
        assert!(matches!(TradeFrame::new(0, message).check(&short), Err(DecodeError::TooMany { .. })));
    }
    for message in outside {
        assert!(TradeFrame::new(0, message.clone()).check(&short).is_err(), "{message:?}");
    }
    let announced = |seeder, bitfield: &[u8], unwanted: &[u8]| {
        let (bitfield, unwanted) = (bitfield.to_vec(), unwanted.to_vec());
        let body = generated::trade::Body::Announce(generated::Announce { seeder, bitfield, unwanted });
        TradeFrame { exchange: 0, body }.check(&long)
    };
    assert!(announced(false, &[0; 9], &[0; 9]).is_ok());
    assert!(announced(false, &[0xff; 9], &[]).is_err(), "two stray bits after piece 69");
    assert!(announced(false, &[0; 9], &[0xff; 9]).is_err(), "two stray bits after piece 69");
    assert!(announced(false, &[0; 9], &[0; 8]).is_err(), "a byte too few");
    assert!(announced(true, &[0], &[]).is_err());
    assert!(announced(true, &[], &[0]).is_err());
}

fn part_request(piece: u32, part: u32, ranges: &[u32]) -> TradeFrame {
    let request = generated::PartRequest { piece, part, ranges: ranges.to_vec() };
    TradeFrame { exchange: 7, body: generated::trade::Body::RequestPart(request) }
}

#[test]
fn a_request_for_a_part_comes_back_as_it_went() {
    let list = list(70);
    let piece = list.index(69).unwrap();
    let ranges = ByteRanges::covering([3..9, 20..70]).unwrap();
    let part = Part { number: NonZeroU8::MAX, ranges };
    let frame = Frame::Trade(TradeFrame::request_part(7, piece, &part));
    let Frame::Trade(back) = Frame::decode(&frame.clone().encode()).unwrap() else { panic!("{frame:?}") };
    assert_eq!(back, part_request(69, 255, &[3, 6, 20, 50]));
    assert_eq!(back.check(&list).unwrap(), (Message::Request(piece), Some(part)));
}

#[test]
fn a_request_for_a_part_that_cannot_be_is_refused_in_words() {
    let list = list(70);
    let refused = [
        (part_request(70, 1, &[0, 1]), "piece 70 of a list of 70"),
        (part_request(69, 0, &[0, 1]), "its number is 0, not 1 to 255"),
        (part_request(69, 256, &[0, 1]), "its number is 256, not 1 to 255"),
        (part_request(69, 1, &[]), "0 ranges where 1 to 64 are allowed"),
        (part_request(69, 1, &[0, 1, 5]), "a range without a length"),
        (part_request(69, 1, &[1; 130]), "65 ranges where 1 to 64 are allowed"),
        (part_request(69, 1, &[0, 1, 5, 0]), "an empty range at 5"),
        (part_request(69, 1, &[0, 9, 8, 1]), "a range at 8 that overlaps"),
        (part_request(69, 1, &[0, 9, 9, 1]), "a range at 9 that overlaps, touches"),
        (part_request(69, 1, &[30, 9, 3, 1]), "a range at 3 that overlaps, touches or comes before"),
        (part_request(69, 1, &[60, 11]), "a range that ends at 71 in a piece of 70 bytes"),
    ];
    for (frame, why) in refused {
        let error = frame.clone().check(&list).unwrap_err().to_string();
        assert!(error.contains(why), "{frame:?}: {error}");
    }
}

#[test]
fn every_bound_is_kept() {
    use generated::frame::Body;
    let decode = |body| Frame::decode(&generated::Frame { body: Some(body) }.encode_to_vec());
    let hello = |version, role, ports, rack: &str| {
        Body::Hello(generated::Hello { version, role, ports, rack: rack.to_owned(), members: 0 })
    };
    assert!(decode(hello(1, 1, vec![4433], "r1")).is_ok());
    assert!(matches!(decode(hello(2, 1, vec![], "")), Err(DecodeError::Version(2))));
    let one = encode_peer(peer(1));
    let crowd = generated::Peers { peers: vec![one.clone(); PEERS_PER_FRAME_MAX + 1] };
    let roaming = generated::Peer { addresses: vec!["10.0.0.1:1".to_owned(); 5], ..one.clone() };
    let named = generated::Peer { addresses: vec!["example.org:80".to_owned()], ..one.clone() };
    let astray = generated::Peer { rack: "/".to_owned(), ..one.clone() };
    let nobody = generated::Peer { id: vec![1, 2, 3], ..one };
    let signed = |payload: usize, signature: usize| {
        let query = Some(encode_query(&Query::Image(Cid::of(b"image"))));
        let root = generated::Signed { payload: vec![0; payload], signature: vec![0; signature] };
        Body::Answer(generated::Answer { query, root: Some(root), ..Default::default() })
    };
    let one_peer = |peer| Body::Peers(generated::Peers { peers: vec![peer] });
    let refused = [
        hello(1, 0, vec![], ""),
        hello(1, 1, vec![0], ""),
        hello(1, 1, vec![65_536], ""),
        hello(1, 1, vec![1; 5], ""),
        hello(1, 1, vec![], &"r".repeat(65)),
        hello(1, 1, vec![], "row 3/rack07"),
        hello(1, 1, vec![], "row3//rack07"),
        one_peer(astray),
        Body::Peers(crowd),
        one_peer(roaming),
        one_peer(named),
        one_peer(nobody),
        Body::Join(generated::Join { exchange: 0, list: vec![0; 31] }),
        Body::Query(generated::Query { wanted: None }),
        Body::Query(generated::Query { wanted: Some(generated::query::Wanted::Name("../x".into())) }),
        signed(SIGNED_BYTES_MAX + 1, 64),
        signed(1, 65),
        Body::Trade(generated::Trade { exchange: 0, body: None }),
    ];
    for body in refused {
        assert!(decode(body.clone()).is_err(), "{body:?}");
    }
    assert!(matches!(Frame::decode(&[]), Err(DecodeError::Empty)));
    assert!(matches!(Frame::decode(&vec![0; FRAME_BYTES_MAX + 1]), Err(DecodeError::TooMany { .. })));
}

#[test]
fn a_bulk_header_is_sixteen_bytes_and_its_spare_ones_are_zero() {
    let header = BulkHeader { exchange: 1, piece: 0x0102_0304, encoding: 1, part: 9, payload_bytes: 5 };
    let bytes = header.to_bytes();
    assert_eq!(bytes, [1, 0, 0, 0, 4, 3, 2, 1, 1, 9, 0, 0, 5, 0, 0, 0]);
    assert_eq!(BulkHeader::from_bytes(&bytes).unwrap(), header);
    let mut stray = bytes;
    stray[10] = 1;
    assert!(BulkHeader::from_bytes(&stray).is_err());
}
