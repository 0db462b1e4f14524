//! rqbit: BitTorrent, with its defaults but for what looks beyond the network.

use super::bittorrent::{MKTORRENT, PREPARE, PYTHON};
use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "rqbit",
    needs: &[Need::Program("rqbit", "cargo install rqbit"), MKTORRENT, PYTHON],
    updates: false,
    prepare: &[PREPARE],
    server: Server::Before(
        r"
track
rqbit --disable-dht --disable-lsd download --disable-http-api --overwrite -o . image.torrent > rqbit.log 2>&1
",
    ),
    client: r#"
mkfifo said
rqbit --disable-dht --disable-lsd download --disable-http-api -o . "$SHARED/image.torrent" > said 2>&1 &
tee rqbit.log < said | grep -q -m 1 finished
unpack < image.tar.zst
"#,
    payload: Payload::Archive,
};
