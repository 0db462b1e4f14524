//! uftp: one multicast stream at a fixed rate, what is lost sent again; unpacked when all has come.

use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "uftp",
    needs: &[Need::Program("uftp", "apt-get install uftp"), Need::Program("uftpd", "apt-get install uftp")],
    updates: false,
    prepare: &[],
    // It has no congestion control: what the shaper drops has to be sent again. Told who belongs to the group, it begins
    // when all are there; the first delay that it reckons with is how soon it asks again.
    server: Server::Along(
        r#"
uftp -I eth0 -R "$((KBIT * 93 / 100))" -b 1400 -L uftp.log -r 0.05:0.01:15 \
    -H "$(seq -s , -f '0x%08.0f' 2 $((HOSTS + 1)))" image.tar.zst >&2
"#,
    ),
    client: r#"
make_hook
uftpd -d -I eth0 -U "$(printf '0x%08d' "${ME##*.}")" -D "$HERE" -s "$HERE/hook" > uftpd.log 2>&1 &
read -r got < got
unpack < image.tar.zst
"#,
    payload: Payload::Archive,
};
