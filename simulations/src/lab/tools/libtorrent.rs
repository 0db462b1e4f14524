//! libtorrent: BitTorrent by its Python binding, with its defaults but for what looks beyond the network, and without
//! its own transport over UDP, which yields to everything else.

use super::bittorrent::{MKTORRENT, PREPARE, PYTHON};
use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "libtorrent",
    needs: &[
        Need::Works(&["/usr/bin/python3", "-c", "import libtorrent"], "apt-get install python3-libtorrent"),
        MKTORRENT,
        PYTHON,
    ],
    updates: false,
    prepare: &[PREPARE, "cat > exchange.py << 'EXCHANGE'\n", include_str!("libtorrent.py"), "EXCHANGE\n"],
    server: Server::Before(
        r"
track
/usr/bin/python3 exchange.py image.torrent >&2
",
    ),
    client: r#"
mkfifo got
/usr/bin/python3 "$SHARED/exchange.py" "$SHARED/image.torrent" > got &
read -r got < got
unpack < image.tar.zst
"#,
    payload: Payload::Archive,
};
