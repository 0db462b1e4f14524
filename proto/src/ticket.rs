//! The ticket: one line that is all a node needs to join.
//!
//! ```text
//! shoal://PEER@HOST:PORT[,HOST:PORT…]/[IMAGE]?publisher=KEY&secret=SECRET[&members=NUMBER]&check=SUM
//! ```
//!
//! `PEER` is the seeder's peer id, `KEY` the publisher's ed25519 public key and `SECRET` the swarm secret, both 32
//! bytes in lower-case base32; `SUM` is the first five bytes of the BLAKE3 of everything before `&check=`, in base32,
//! so that a ticket cut short or mistyped is told from a wrong one. `NUMBER` is that of a list of members: a node trades
//! with nobody but the seeder before it knows that list or a newer one.

use std::fmt;
use std::str::FromStr;

use data_encoding::Encoding;
use libp2p_identity::{PeerId, PublicKey, ed25519};

use crate::image::ImageName;

/// Most bytes of a ticket's text.
pub const TICKET_BYTES_MAX: usize = 4096;
/// Most addresses in a ticket.
pub const ADDRESSES_MAX: usize = 8;
const SCHEME: &str = "shoal://";
const CHECK: &str = "&check=";
const CHECK_BYTES: usize = 5;

/// What a node needs to join a swarm and to know whom to believe. Its text form is a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub seeder: PeerId,
    /// `HOST:PORT`, 1 to [`ADDRESSES_MAX`]; an IPv6 host stands in brackets.
    pub addresses: Vec<HostPort>,
    pub publisher: PublicKey,
    pub secret: SwarmSecret,
    pub image: Option<ImageName>,
    /// Number of the list of members that there is at least; 0 when everybody is welcome.
    pub members: u64,
}

/// A host (name, IPv4 or IPv6) and a port, as a ticket writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// 32 random bytes that every member of the swarm knows. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmSecret([u8; 32]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    #[error("not a ticket: it does not begin with {SCHEME}")]
    Scheme,
    #[error("the ticket is cut short: its check sum is missing")]
    CutShort,
    #[error("the ticket is damaged: its check sum does not match (mistyped, or cut and pasted in part)")]
    Check,
    #[error("the ticket is longer than {TICKET_BYTES_MAX} bytes")]
    TooLong,
    #[error("the ticket's {field} is wrong: {why}")]
    Field { field: &'static str, why: String },
}

impl SwarmSecret {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For the file that keeps it, and for nothing else.
    pub const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// What enters the Noise handshake: derived, so that the secret itself never does.
    pub fn noise_prologue(&self) -> [u8; 32] {
        blake3::derive_key("shoal 2026 swarm membership, noise prologue v1", &self.0)
    }
}

impl fmt::Debug for SwarmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmSecret(…)")
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} is not HOST:PORT"))?;
        let port: u16 = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let address = |byte: u8| byte.is_ascii_hexdigit() || b":.%".contains(&byte);
        let fits = match bracketed {
            Some(host) => host.contains(':') && host.bytes().all(address),
            None => host.bytes().all(name),
        };
        if port == 0 || host.is_empty() || host.len() > 253 || !fits {
            return Err(format!("{text:?} is not HOST:PORT"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{body}{CHECK}{}", check_of(&body))
    }
}

impl Ticket {
    fn body(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(HostPort::to_string).collect();
        let key =
            self.publisher.clone().try_into_ed25519().expect("a ticket's publisher is ed25519").to_bytes();
        format!(
            "{SCHEME}{}@{}/{}?publisher={}&secret={}{}",
            self.seeder,
            addresses.join(","),
            self.image.as_ref().map_or("", ImageName::as_str),
            base32().encode(&key),
            base32().encode(self.secret.reveal()),
            if self.members == 0 { String::new() } else { format!("&members={}", self.members) },
        )
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        if text.len() > TICKET_BYTES_MAX {
            return Err(TicketError::TooLong);
        }
        if !text.starts_with(SCHEME) {
            return Err(TicketError::Scheme);
        }
        let (body, check) = text.rsplit_once(CHECK).ok_or(TicketError::CutShort)?;
        if check.len() < check_of(body).len() {
            return Err(TicketError::CutShort);
        }
        if check != check_of(body) {
            return Err(TicketError::Check);
        }
        parse_body(&body[SCHEME.len()..])
    }
}

fn parse_body(body: &str) -> Result<Ticket, TicketError> {
    let (seeder, rest) = body.split_once('@').ok_or_else(|| wrong("seeder", "no @ after it"))?;
    let (addresses, rest) = rest.split_once('/').ok_or_else(|| wrong("addresses", "no / after them"))?;
    let (image, query) = rest.split_once('?').ok_or_else(|| wrong("image", "no ? after it"))?;
    let mut publisher = None;
    let mut secret = None;
    let mut members = 0;
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("publisher", text)) => publisher = Some(bytes32("publisher", text)?),
            Some(("members", text)) => members = text.parse().map_err(|error| wrong("members", error))?,
            Some(("secret", text)) => secret = Some(bytes32("secret", text)?),
            // A later version may say more; what this build needs is checked below.
            _ => {}
        }
    }
    let publisher = publisher.ok_or_else(|| wrong("publisher", "it is missing"))?;
    let publisher =
        ed25519::PublicKey::try_from_bytes(&publisher).map_err(|error| wrong("publisher", error))?;
    let addresses: Vec<HostPort> = addresses
        .split(',')
        .map(|text| text.parse().map_err(|why: String| wrong("addresses", why)))
        .collect::<Result<_, _>>()?;
    if addresses.len() > ADDRESSES_MAX {
        return Err(wrong(
            "addresses",
            format!("{} where at most {ADDRESSES_MAX} are allowed", addresses.len()),
        ));
    }
    Ok(Ticket {
        seeder: seeder.parse().map_err(|error| wrong("seeder", error))?,
        addresses,
        publisher: publisher.into(),
        secret: SwarmSecret(secret.ok_or_else(|| wrong("secret", "it is missing"))?),
        image: match image {
            "" => None,
            name => Some(name.parse().map_err(|error| wrong("image", error))?),
        },
        members,
    })
}

fn wrong(field: &'static str, why: impl fmt::Display) -> TicketError {
    TicketError::Field { field, why: why.to_string() }
}

fn bytes32(field: &'static str, text: &str) -> Result<[u8; 32], TicketError> {
    let bytes = base32().decode(text.as_bytes()).map_err(|error| wrong(field, error))?;
    bytes.try_into().map_err(|bytes: Vec<u8>| wrong(field, format!("{} bytes instead of 32", bytes.len())))
}

fn check_of(body: &str) -> String {
    base32().encode(&blake3::hash(body.as_bytes()).as_bytes()[..CHECK_BYTES])
}

/// RFC 4648 base32 without padding, in lower case: survives being read aloud and double-clicked.
fn base32() -> &'static Encoding {
    static BASE32: std::sync::LazyLock<Encoding> = std::sync::LazyLock::new(|| {
        let mut spec = data_encoding::Specification::new();
        spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
        spec.encoding().expect("32 distinct symbols")
    });
    &BASE32
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p_identity::Keypair;

    fn ticket(image: Option<&str>) -> Ticket {
        let key = Keypair::ed25519_from_bytes([7; 32]).unwrap();
        Ticket {
            seeder: key.public().to_peer_id(),
            addresses: ["10.0.0.1:4433", "[fd00::1]:4433", "images.example:1"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            publisher: Keypair::ed25519_from_bytes([8; 32]).unwrap().public(),
            secret: SwarmSecret::from_bytes([9; 32]),
            image: image.map(|name| name.parse().unwrap()),
            members: if image.is_some() { 12 } else { 0 },
        }
    }

    #[test]
    fn round_trips_with_and_without_an_image() {
        for ticket in [ticket(None), ticket(Some("debian-12"))] {
            assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }
    }

    #[test]
    fn cut_anywhere_it_says_so_and_never_passes() {
        let text = ticket(Some("debian")).to_string();
        for end in 0..text.len() {
            let error = text[..end].parse::<Ticket>().unwrap_err();
            let expected = if end < SCHEME.len() { TicketError::Scheme } else { TicketError::CutShort };
            assert_eq!(error, expected, "cut at {end}");
        }
    }

    #[test]
    fn one_changed_letter_is_noticed() {
        let text = ticket(Some("debian")).to_string();
        for at in SCHEME.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(changed.parse::<Ticket>().is_err(), "changed at {at}: {changed}");
        }
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let ticket = ticket(None);
        let secret = base32().encode(ticket.secret.reveal());
        assert!(!format!("{ticket:?}").contains(&secret));
        assert!(format!("{ticket:?}").contains("SwarmSecret(…)"));
    }
}
