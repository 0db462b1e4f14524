//! A relay chain made by hand: each host passes on to the next what it receives, and unpacks it meanwhile.

use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "chain",
    needs: &[
        Need::Program("socat", "apt-get install socat"),
        Need::Program("tee", "apt-get install coreutils"),
    ],
    updates: false,
    prepare: &[],
    server: Server::Along(
        r#"
socat -u -b 65536 FILE:image.tar.zst "TCP:$NEXT:7000,retry=1000,interval=0.01"
"#,
    ),
    client: r#"
if [ -n "$NEXT" ]; then
    mkfifo next
    socat -u -b 65536 OPEN:next,rdonly "TCP:$NEXT:7000,retry=1000,interval=0.01" &
    socat -u -b 65536 TCP-LISTEN:7000,reuseaddr STDOUT | tee next | unpack
else
    socat -u -b 65536 TCP-LISTEN:7000,reuseaddr STDOUT | unpack
fi
"#,
    payload: Payload::Archive,
};
