//! What describes an image: its ticket, its root record, its manifest.

use shoal_proto::cid::Cid;
use shoal_proto::image::manifest::ManifestError;
use shoal_proto::image::{ImageName, RootRecord};
use shoal_proto::ticket::{HostPort, Ticket};
use shoal_proto::zone::Zone;

use crate::Script;
use crate::stream::{Stream, decode};

/// Totals that a root record states here at most: beyond them the manifest cannot agree.
const TOTAL_MAX: u64 = 4096;

/// A manifest under a root record that agrees with it as far as it can: what is read is written again to the byte.
pub fn manifest(input: &[u8]) {
    let Some((&run, bytes)) = input.split_first() else { return };
    if bytes.is_empty() {
        return;
    }
    let [pieces, chunks, entries] = totals(bytes);
    let mut stream = Stream {
        bytes: bytes.to_vec(),
        pieces,
        chunks,
        entries: entries.max(1),
        raw_bytes: 0,
        attributes: 0,
    };
    let run = usize::from(run) + 1;
    let decoded = match decode(&stream, run) {
        Err(ManifestError::Totals { what: "content bytes", said, .. }) => {
            stream.raw_bytes = said;
            decode(&stream, run)
        }
        decoded => decoded,
    };
    let Ok(manifest) = decoded else { return };
    let mut again = Vec::new();
    manifest.encode(|bytes| again.extend_from_slice(bytes));
    assert_eq!(again, stream.bytes);
    let places = manifest.places();
    for chunk in 0..u32::try_from(manifest.chunk_count()).expect("a chunk takes 33 bytes") {
        for place in places.of_chunk(chunk) {
            assert!(u64::from(manifest.chunk_bytes(chunk)) <= manifest.size(manifest.entry(place.entry)));
        }
    }
}

/// The three totals of a manifest's header, as far as it has them.
fn totals(bytes: &[u8]) -> [u64; 3] {
    let mut script = Script(bytes.get(6..).unwrap_or_default());
    [(); 3].map(|()| {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = script.byte();
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number.min(TOTAL_MAX)
    })
}

/// A root record: it has one spelling, and a piece list of the length that it states.
pub fn root(input: &[u8]) {
    let Ok(root) = RootRecord::decode(input) else { return };
    assert_eq!(root.encode(), input);
    assert_eq!(root.image_id(), Cid::of(input));
    assert_eq!(root.manifest().raw_bytes(), root.manifest_bytes());
}

/// A ticket, with a check sum that fits it: what is read can be written, and is read back the same. And the texts in it.
pub fn ticket(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let sum = blake3::hash(text.trim().as_bytes());
    let sum = data_encoding::BASE32_NOPAD.encode(&sum.as_bytes()[..5]).to_lowercase();
    for text in [format!("{}&check={sum}", text.trim()), text.to_string()] {
        let Ok(ticket) = text.parse::<Ticket>() else { continue };
        let again: Ticket = ticket.to_string().parse().expect("a ticket of ours");
        assert_eq!(again, ticket);
    }
    round_trip::<HostPort>(&text);
    round_trip::<ImageName>(&text);
    round_trip::<Zone>(&text);
    round_trip::<Cid>(&text);
}

fn round_trip<T: std::str::FromStr + ToString + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{text:?}");
    }
}
