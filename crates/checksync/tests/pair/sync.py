"""The app of the tests of `sync`: an ordinary HTTP client, over the manager's socket."""

import http.client
import json
import os
import socket
import sys
import threading
import time


class Manager(http.client.HTTPConnection):
    def __init__(self):
        super().__init__("checksync")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["CHECKSYNC_SOCKET"])

    def ask(self, method, target):
        self.request(method, target)
        answer = self.getresponse()
        return answer.status, json.load(answer)


def say(*words):
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def ask(method, target):
    status, told = Manager().ask(method, target)
    say(status, json.dumps(told, sort_keys=True))


def sync_until_refused():
    """Every call is answered, or this thread says nothing."""
    manager, last = Manager(), None
    while True:
        status, told = manager.ask("POST", "/v1/sync")
        if status != 200:
            return say("refused", status, told["error"])
        now = (told["term"], told["epoch"])
        if last is not None and now < last:
            return say("from", last, "back to", now)
        last = now


def report(work):
    try:
        work()
    except Exception as why:
        say("broken", repr(why))


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


if sys.argv[1] == "ask":
    ask(*sys.argv[2:])
elif sys.argv[1] == "ask-when":
    wait_for(sys.argv[2])
    say("asking")
    ask(*sys.argv[3:])
else:
    # A call is refused that is made before anybody protects, and all too late.
    wait_for(sys.argv[2])
    for _ in range(3):
        threading.Thread(target=report, args=[sync_until_refused]).start()
    say("calling")
    ask("GET", "/v1/role?after=1")
