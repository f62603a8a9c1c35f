"""The instance metadata service of EC2, version 2, on loopback, for tests.

    python imds.py          prints the port that it listens on, and serves until it is killed

It refuses what EC2 refuses: a question without a token, or with one that it never gave (401), a
token asked for without a time to live, or with a wrong one (400), or through a proxy (403). What EC2
does is our reading of its User Guide; requests come from the real SDK.

POST /_fake/paths  {path: text}: all that is there from now on; anything else is not (404)
GET  /_fake/calls  "METHOD PATH STATUS" of all calls since the last time this was asked
"""

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TTL_MAX = 21600


class Service:
    """What is there, who may ask, and who did."""

    lock = threading.Lock()
    paths = {}
    tokens = set()
    calls = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nobody reads it."""

    def answer(self, status, text="", headers=()):
        data = text.encode()
        if not self.path.startswith("/_fake/"):
            with Service.lock:
                Service.calls.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seconds = self.headers.get(TTL) or ""
        if self.path != "/latest/api/token":
            self.answer(404)
        elif self.headers.get("X-Forwarded-For"):
            self.answer(403)
        elif not seconds.isdigit() or not 1 <= int(seconds) <= TTL_MAX:
            self.answer(400)
        else:
            token = secrets.token_urlsafe(40)
            with Service.lock:
                Service.tokens.add(token)
            self.answer(200, token, [(TTL, seconds)])

    def do_GET(self):
        if self.path == "/_fake/calls":
            with Service.lock:
                calls, Service.calls = Service.calls, []
            self.answer(200, json.dumps(calls))
        elif self.headers.get("X-aws-ec2-metadata-token") not in Service.tokens:
            self.answer(401)
        elif self.path not in Service.paths:
            self.answer(404)
        else:
            self.answer(200, Service.paths[self.path])

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with Service.lock:
            Service.paths = json.loads(body)
        self.answer(200)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
