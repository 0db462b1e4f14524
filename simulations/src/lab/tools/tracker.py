"""A BitTorrent tracker for one torrent, on port 6969. Says `ready` when a seed has announced itself."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import inet_aton
from struct import pack
from urllib.parse import parse_qs, urlsplit

peers = {}


class Announce(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = parse_qs(urlsplit(self.path).query, encoding="latin-1")
        me = (self.client_address[0], int(asked["port"][0]))
        others = b"".join(inet_aton(host) + pack(">H", port) for host, port in peers if (host, port) != me)
        if asked.get("left") == ["0"] and not peers:
            print("ready", flush=True)
        peers[me] = True
        body = b"d8:intervali10e12:min intervali10e5:peers%d:" % len(others) + others + b"e"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer.request_queue_size = 1024
ThreadingHTTPServer(("", 6969), Announce).serve_forever()
