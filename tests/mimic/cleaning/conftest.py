"""How a line of the tables of cleaning is read, and a server that plays the language model."""
import pytest
from llm_server import Server

from mimic.cleaning import endpoint
from mimic.cleaning.rules import clean


@pytest.fixture
def holds():
    """Checks a line "raw -> clean"; the clean text may be "same" or "nothing"."""
    def check(line):
        raw, expected = line.strip().split(" -> ")
        expected = {"same": raw, "nothing": None}.get(expected, expected)
        assert clean(raw)[0] == expected
    return check


@pytest.fixture
def serve(monkeypatch):
    """serve(reply) starts a server; the waits between two tries are short."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    servers = []

    def start(reply):
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
