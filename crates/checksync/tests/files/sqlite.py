"""Writes rows into an SQLite database, remembers how many, and compares when it is asked."""

import select
import socket
import sqlite3
import sys

path, mode, host, port = sys.argv[1:]


def connect():
    opened = sqlite3.connect(path, isolation_level=None)
    opened.execute(f"PRAGMA journal_mode={mode}")
    opened.execute("PRAGMA synchronous=OFF")
    opened.execute("PRAGMA wal_autocheckpoint=100")
    return opened


database = connect()
database.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, text TEXT)")
written = 0
total = 0

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, int(port)))
listener.listen()


def compare():
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        return verdict
    count, highest, numbers = database.execute("SELECT count(*), max(n), sum(n) FROM rows").fetchone()
    if (count, highest or 0, numbers or 0) != (written, written, total):
        return f"{count} rows up to {highest}, remembered are {written}"
    return "ok"


def answer():
    stream, _ = listener.accept()
    try:
        stream.recv(64)
        stream.sendall(f"{written} {compare()}\n".encode())
    except (OSError, sqlite3.Error) as why:
        try:
            stream.sendall(f"{written} {why}\n".encode())
        except OSError:
            pass
    stream.close()


while True:
    ready, _, _ = select.select([listener], [], [], 0.001)
    if ready:
        answer()
    try:
        database.execute("BEGIN")
        for n in range(written + 1, written + 6):
            database.execute("INSERT INTO rows VALUES (?, ?)", (n, f"row {n} " * 20))
        database.execute("COMMIT")
    except sqlite3.OperationalError as why:
        # SQLite, with a rollback journal, writes to no file whose inode has another number than it remembers.
        if mode != "delete" or "readonly" not in str(why):
            raise
        database.close()
        database = connect()
        continue
    total += sum(range(written + 1, written + 6))
    written += 5
