//! udpcast: one multicast stream, acknowledged slice by slice; unpacked while it comes.

use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "udpcast",
    needs: &[Need::Program("udp-sender", "apt-get install udpcast")],
    updates: false,
    prepare: &[],
    // A little below the link's rate: what the shaper drops has to be sent again. The interval is also how long it waits
    // after the last receiver came, 2 s otherwise.
    server: Server::Along(
        r#"
udp-sender --interface eth0 --nokbd --no-progress --full-duplex --min-receivers "$HOSTS" \
    --rexmit-hello-interval 50 --max-bitrate "$((KBIT * 95 / 100))k" --file image.tar.zst >&2
"#,
    ),
    client: r"
udp-receiver --interface eth0 --nokbd --no-progress --exit-wait 0 | unpack
",
    payload: Payload::Archive,
};
