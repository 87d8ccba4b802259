"""A TCP proxy that adds latency and takes away nothing else: a store in another city.

    python -m benchmarks.peers.latency UPSTREAM_PORT MILLISECONDS

Prints its port and runs until its standard input ends. Each piece of a request waits for one round
trip, and so does a new connection, for its handshake; answers pass at once and at full speed, moved
by the kernel (splice), so that the proxy takes little of the processor that is measured.
"""

import fcntl
import os
import socket
import sys
import threading
import time

_PIPE_BYTES = 1 << 20


def serve(listener: socket.socket, upstream: int, delay: float) -> None:
    """Pass on every connection, `delay` seconds late. Never returns."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_pair, args=(client, upstream, delay), daemon=True).start()


def _pair(client: socket.socket, upstream: int, delay: float) -> None:
    time.sleep(delay)
    server = socket.create_connection(("127.0.0.1", upstream))
    for each in (client, server):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = threading.Thread(target=_pass_at_once, args=(server, client), daemon=True)
    answers.start()
    _pass_late(client, server, delay)
    answers.join()
    client.close()
    server.close()


def _pass_late(source: socket.socket, sink: socket.socket, delay: float) -> None:
    try:
        while data := source.recv(1 << 16):
            time.sleep(delay)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # One side has gone; the other thread finds out by itself.
        return


def _pass_at_once(source: socket.socket, sink: socket.socket) -> None:
    outlet, inlet = os.pipe()
    fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        while waiting := os.splice(source.fileno(), inlet, _PIPE_BYTES):
            while waiting:
                waiting -= os.splice(outlet, sink.fileno(), waiting)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
    finally:
        os.close(outlet)
        os.close(inlet)


def main(upstream: int, milliseconds: float) -> None:
    """Serve on a free port of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    arguments = (listener, upstream, milliseconds / 1000)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
