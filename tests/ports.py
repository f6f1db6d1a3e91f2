"""Free ports for processes that must agree on one before they start."""

import socket


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now, so that several test runs can work at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
