//! aria2: BitTorrent, with its defaults but for what looks beyond the network.

use super::bittorrent::{MKTORRENT, PREPARE, PYTHON};
use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "aria2",
    needs: &[Need::Program("aria2c", "apt-get install aria2"), MKTORRENT, PYTHON],
    updates: false,
    prepare: &[PREPARE],
    server: Server::Before(
        r"
track
aria2c --no-conf --quiet --enable-dht=false --seed-ratio=0.0 --bt-seed-unverified=true --allow-overwrite=true \
    --dir=. image.torrent >&2
",
    ),
    client: r#"
make_hook
aria2c --no-conf --quiet --enable-dht=false --seed-ratio=0.0 --file-allocation=none --dir=. \
    --on-bt-download-complete="$HERE/hook" "$SHARED/image.torrent" >&2 &
read -r got < got
unpack < image.tar.zst
"#,
    payload: Payload::Archive,
};
