//! rsync: a daemon, which compresses for each client.

use super::{Need, Payload, Server, Tool};

pub(super) const TOOL: Tool = Tool {
    name: "rsync",
    needs: &[Need::Program("rsync", "apt-get install rsync")],
    updates: true,
    prepare: &[r#"
printf '%s\n' 'uid = 0' 'gid = 0' 'use chroot = no' 'max connections = 0' '[image]' "path = $TREE" > rsyncd.conf
"#],
    server: Server::Before(
        r"
rsync --daemon --no-detach --config=rsyncd.conf --port=8730 &
ready_on 8730
wait
",
    ),
    client: r#"
rsync -aHAX --numeric-ids --delete -z --zc=zstd --zl=3 --stats --no-human-readable \
    "rsync://$SERVER:8730/image/" "$TARGET/" > stats
"#,
    payload: Payload::Said { file: "stats", before: "Total bytes received:" },
};
