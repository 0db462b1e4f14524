//! uftp: one multicast stream at a fixed rate, what is lost sent again; unpacked when all has come.

use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "uftp",
    needs: &[Need::Program("uftp", "apt-get install uftp"), Need::Program("uftpd", "apt-get install uftp")],
    updates: false,
    prepare: &[],
    // It has no congestion control: what the shaper drops has to be sent again.
    server: Server::Along(
        r#"
uftp -I eth0 -R "$((KBIT * 93 / 100))" -b 1400 -L uftp.log image.tar.zst >&2
"#,
    ),
    client: r#"
mkfifo got
printf '#!/bin/sh\necho got > %s/got\n' "$HERE" > hook
chmod 755 hook
uftpd -d -I eth0 -D "$HERE" -s "$HERE/hook" > uftpd.log 2>&1 &
read -r got < got
unpack < image.tar.zst
"#,
    payload: Payload::Archive,
};
