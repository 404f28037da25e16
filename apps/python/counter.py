"""A threaded HTTP server with named counters in a dict: GET /NAME reads, POST /NAME adds one.

Usage: counter.py HOST PORT
"""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

counters = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        with lock:
            self.answer(counters.get(self.path, 0))

    def do_POST(self):
        with lock:
            counters[self.path] = counters.get(self.path, 0) + 1
            self.answer(counters[self.path])

    def answer(self, count):
        body = f"{count}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
