"""`python -m MODULE` for scripts under test, forked from a process that has imported the libraries: it starts at once.

The first process of a test imports once (`serve`); a program in front of PATH sends each command to it with its
arguments, folder, environment and standard files, and ends with its exit status. Everything else is the real Python.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread


def ask(address: str, words: list[str]) -> int:
    """Have a command run by the server; its exit status."""
    if words[:1] != ["-m"]:
        os.execv(sys.executable, [sys.executable, *words])
    request = {"words": words[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        status = server.recv(1)
    return status[0] if status else 1


def serve(address: str) -> None:
    """Import what commands need, then fork for each request."""
    import train.tokenizer_trainer
    import train.trainer  # noqa: F401

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                run(connection)
            connection.close()


def run(connection: socket.socket) -> None:
    """The command of a request, in a process that ends with it, or when the program that asked for it is killed."""
    message, files, *_ = socket.recv_fds(connection, 2**20, 3)
    request, status = json.loads(message), 1
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["words"]
    Thread(target=end_with, args=[connection], daemon=True).start()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([status & 255]))
        os._exit(status)


def end_with(connection: socket.socket) -> None:
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def forked_python(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A program `python` in this new folder that forks; within, its server runs."""
    folder.mkdir()
    address, program = str(folder / "socket"), folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {Path(__file__)} {address} "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, "-m", "tests.forked_python", address]
    server = subprocess.Popen(command, cwd=folder, env=dict(environment))  # not in a folder that hides others
    try:
        end = time.monotonic() + 180
        while not (folder / "socket").exists():
            assert server.poll() is None and time.monotonic() < end, "the server of commands does not start"
            time.sleep(0.05)
        yield program
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
