//! What the BitTorrent programs share: the torrent, and a tracker beside the server.

use super::Need;

/// Makes torrents.
pub(super) const MKTORRENT: Need = Need::Program("mktorrent", "apt-get install mktorrent");
/// Runs the tracker.
pub(super) const PYTHON: Need = Need::Works(&["/usr/bin/python3", "--version"], "apt-get install python3");

/// Makes `image.torrent` and writes the tracker's program.
pub(super) const PREPARE: &str = concat!(
    r#"
mktorrent -l 18 -a "http://$SERVER:6969/announce" -o image.torrent image.tar.zst >&2
cat > tracker.py << 'TRACKER'
"#,
    include_str!("tracker.py"),
    "TRACKER\n"
);
