//! Snippets for installers that a site has already: the fresh system fetches the node's binary from the seeder, checks
//! it against the hash in the snippet, and on its first boot replaces itself by an image.

pub mod binary;

use shoal_proto::image::ImageName;
use shoal_proto::ticket::Ticket;

/// An installer that runs a snippet in the system it just made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installer {
    /// Anaconda: Red Hat, Fedora, Rocky, Alma.
    Kickstart,
    /// Debian's.
    Preseed,
}

/// What a snippet is about.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Where the node's binary is.
    pub url: String,
    pub sha256: String,
    pub ticket: Ticket,
    pub image: ImageName,
}

impl Boot {
    /// The lines to put into the installer's file. They hold the ticket: whoever reads them may join the swarm.
    pub fn snippet(&self, installer: Installer) -> String {
        let script = self.script();
        match installer {
            Installer::Kickstart => format!("%post --erroronfail\n{script}%end\n"),
            Installer::Preseed => {
                let encoded = data_encoding::BASE64.encode(script.as_bytes());
                format!(
                    "d-i preseed/late_command string in-target sh -c 'echo {encoded} | base64 -d > /root/shoal-post && \
                     sh /root/shoal-post; code=$?; rm -f /root/shoal-post; exit $code'\n"
                )
            }
        }
    }

    /// What runs in the fresh system, in its installer's chroot or booted. A ticket and an image's name have no
    /// character that a shell minds.
    fn script(&self) -> String {
        let Self { url, sha256, ticket, image } = self;
        format!(
            r#"set -eu
umask 077
node=/usr/local/sbin/shoal-node
ticket=/etc/shoal/replace-root.ticket
url='{url}'
mkdir -p /usr/local/sbin /etc/shoal
if command -v curl > /dev/null; then
    curl -fsS --retry 5 -o "$node" "$url"
elif command -v wget > /dev/null; then
    wget -q -O "$node" "$url"
else
    python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' "$url" "$node"
fi
echo "{sha256}  $node" | sha256sum -c - > /dev/null || {{ rm -f "$node"; echo "shoal-node is not the one of this snippet" >&2; exit 1; }}
chmod 755 "$node"
echo '{ticket}' > "$ticket"
cat > /etc/systemd/system/shoal-replace-root.service << 'END'
[Unit]
Description=Replace this system by the image {image}
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/local/sbin/shoal-node install @/etc/shoal/replace-root.ticket --image {image} --replace-running-root --yes
Restart=on-failure
RestartSec=30
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
END
chmod 644 /etc/systemd/system/shoal-replace-root.service
systemctl enable shoal-replace-root.service
# In an installer's chroot this does nothing, and the unit starts when the machine boots.
systemctl --no-block start shoal-replace-root.service || true
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> Boot {
        let key = shoal_proto::signing::Keypair::ed25519_from_bytes([1; 32]).unwrap();
        let ticket = Ticket {
            seeder: key.public().to_peer_id(),
            addresses: vec!["10.0.2.2:4433".parse().unwrap()],
            publisher: key.public(),
            secret: shoal_proto::ticket::SwarmSecret::from_bytes([2; 32]),
            image: None,
            members: 0,
        };
        let url = "http://10.0.2.2:8080/shoal-node".to_owned();
        Boot { url, sha256: "5a".repeat(32), ticket, image: "debian".parse().unwrap() }
    }

    #[test]
    fn a_kickstart_section_pins_the_binary_and_names_the_image() {
        let text = boot().snippet(Installer::Kickstart);
        assert!(text.starts_with("%post --erroronfail\nset -eu\n") && text.ends_with("\n%end\n"), "{text}");
        for part in
            ["'http://10.0.2.2:8080/shoal-node'", &"5a".repeat(32), "--image debian --replace-running-root"]
        {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn a_preseed_line_carries_the_same_script() {
        let text = boot().snippet(Installer::Preseed);
        assert_eq!(text.lines().count(), 1);
        let encoded = text.split("echo ").nth(1).unwrap().split(' ').next().unwrap();
        let script = data_encoding::BASE64.decode(encoded.as_bytes()).unwrap();
        let script = String::from_utf8(script).unwrap();
        assert_eq!(boot().snippet(Installer::Kickstart), format!("%post --erroronfail\n{script}%end\n"));
    }

    #[test]
    fn the_script_is_one_to_a_shell() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, boot().script()).unwrap();
        assert!(std::process::Command::new("sh").arg("-n").arg(&path).status().unwrap().success());
    }
}
