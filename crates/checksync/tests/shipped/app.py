"""A program with an executable and a library of its own, that is asked for them: a line in, a line out."""

import ctypes
import hashlib
import os
import socket
import subprocess
import sys
import _ctypes

ADDRESS, LIBRARY, OPENED = sys.argv[1:4]

library = ctypes.CDLL(LIBRARY)
opened = open(OPENED, "rb") if OPENED else None
plugins = []
count = 0


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def again():
    global library
    _ctypes.dlclose(library._handle)
    library = ctypes.CDLL(LIBRARY)
    library.zlibVersion.restype = ctypes.c_char_p
    return library.zlibVersion().decode()


def answer(words):
    global count
    if words[0] == "count":
        count += 1
        return str(count)
    if words[0] == "exe":
        return f"{os.readlink('/proc/self/exe')} {digest('/proc/self/exe')}"
    if words[0] == "file":
        return digest(words[1])
    if words[0] == "opened":
        opened.seek(0)
        return hashlib.sha256(opened.read()).hexdigest()
    if words[0] == "again":
        return again()
    if words[0] == "plugin":
        plugins.append(ctypes.CDLL(words[1]))
        return str(len(plugins))
    if words[0] == "run":
        return subprocess.check_output([sys.executable, "-c", "print(6 * 7)"]).decode().strip()
    if words[0] == "where":
        return os.getcwd()
    raise ValueError(words)


host, port = ADDRESS.rsplit(":", 1)
server = socket.create_server((host, int(port)))
while True:
    client, _ = server.accept()
    with client, client.makefile("rw") as lines:
        for line in lines:
            try:
                said = answer(line.split())
            except Exception as why:
                said = f"failed: {why!r}"
            lines.write(said + "\n")
            lines.flush()
