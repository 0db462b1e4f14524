"""BitTorrent by libtorrent: `make SOURCE TORRENT`, `seed TORRENT FOLDER`, `fetch TORRENT FOLDER PORT`.

With its defaults, but for what looks beyond the machine, and without its own transport over UDP. Unencrypted.
"""

import json
import os
import sys
import time

import libtorrent


def make(source, torrent):
    files = libtorrent.file_storage()
    libtorrent.add_files(files, source)
    creator = libtorrent.create_torrent(files, flags=libtorrent.create_torrent.v1_only)
    libtorrent.set_piece_hashes(creator, os.path.dirname(source))
    with open(torrent, "wb") as out:
        out.write(libtorrent.bencode(creator.generate()))


def exchange(torrent, folder, port=None):
    began = time.monotonic()
    session = libtorrent.session(
        {
            "listen_interfaces": "127.0.0.1:0",
            "allow_multiple_connections_per_ip": True,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
            "in_enc_policy": 2,
            "out_enc_policy": 2,
            "alert_mask": libtorrent.alert.category_t.status_notification,
        }
    )
    handle = session.add_torrent({"ti": libtorrent.torrent_info(torrent), "save_path": folder})
    if port:
        handle.connect_peer(("127.0.0.1", int(port)))
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, libtorrent.torrent_finished_alert):
                elapsed = time.monotonic() - began
                print(json.dumps({"port": session.listen_port(), "elapsed_s": elapsed}), flush=True)


if sys.argv[1] == "make":
    make(*sys.argv[2:])
else:
    exchange(*sys.argv[2:])
