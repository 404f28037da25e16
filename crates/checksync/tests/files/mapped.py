"""Writes records into a file through a shared mapping, remembers the file, and compares when it is asked.

The mapping is made once ("kept"), or anew for some records each ("anew")."""

import mmap
import select
import socket
import struct
import sys

path, mode, host, port = sys.argv[1:]
SIZE = 4 << 20
RECORD = struct.Struct("<QQ")
# Spread over the pages.
STRIDE = 4096 * 7 + 16

file = open(path, "w+b")
file.truncate(SIZE)
remembered = bytearray(SIZE)
mapping = mmap.mmap(file.fileno(), SIZE)
written = 0

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, int(port)))
listener.listen()


def compare():
    with open(path, "rb") as found:
        same = found.read() == remembered
    return "ok" if same else "the file is not what it was written to be"


def answer():
    stream, _ = listener.accept()
    try:
        stream.recv(64)
        stream.sendall(f"{written} {compare()}\n".encode())
    except OSError:
        pass
    stream.close()


while True:
    ready, _, _ = select.select([listener], [], [], 0.001)
    if ready:
        answer()
    if mode == "anew":
        mapping.close()
        mapping = mmap.mmap(file.fileno(), SIZE)
    for n in range(written + 1, written + 6):
        at = n * STRIDE % (SIZE - RECORD.size)
        RECORD.pack_into(mapping, at, n, n * n)
        RECORD.pack_into(remembered, at, n, n * n)
    written += 5
    if mode == "anew" and written % 3 == 0:
        mapping.close()
        select.select([listener], [], [], 0.015)
        mapping = mmap.mmap(file.fileno(), SIZE)
