"""Exchanges the torrent named by its argument, in the current folder; says `got` when all is there, and goes on."""

import sys

import libtorrent

session = libtorrent.session(
    {
        "listen_interfaces": "0.0.0.0:6881",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "alert_mask": libtorrent.alert.category_t.status_notification,
    }
)
session.add_torrent({"ti": libtorrent.torrent_info(sys.argv[1]), "save_path": "."})
while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if isinstance(alert, libtorrent.torrent_finished_alert):
            print("got", flush=True)
