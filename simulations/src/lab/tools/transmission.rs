//! transmission-cli: BitTorrent, with its defaults but for what looks beyond the network.

use super::bittorrent::{MKTORRENT, PREPARE, PYTHON};
use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "transmission",
    needs: &[Need::Program("transmission-cli", "apt-get install transmission-cli"), MKTORRENT, PYTHON],
    updates: false,
    prepare: &[PREPARE],
    server: Server::Before(
        r#"
track
mkdir config
echo '{ "dht-enabled": false, "lpd-enabled": false, "utp-enabled": false }' > config/settings.json
transmission-cli --config-dir config --no-portmap --verify --download-dir "$HERE" image.torrent > transmission.log 2>&1
"#,
    ),
    client: r#"
make_hook
mkdir config
echo '{ "dht-enabled": false, "lpd-enabled": false, "utp-enabled": false }' > config/settings.json
transmission-cli --config-dir config --no-portmap --finish "$HERE/hook" --download-dir "$HERE" \
    "$SHARED/image.torrent" > transmission.log 2>&1 &
read -r got < got
unpack < image.tar.zst
"#,
    payload: Payload::Archive,
};
