"""To which host a report goes, and patience with a busy server."""
import urllib.request

import pytest
from prepare_mimic import Settings

from common.cli import InputError
from mimic.cleaning.endpoint import Endpoint, Refused, host_of, on_this_machine

MESSAGES = [{"role": "user", "content": "Small effusion."}]


@pytest.mark.parametrize("url, host, here", [
    ("http://127.0.0.1:8000/v1", "127.0.0.1", True),
    ("http://LOCALHOST:8000", "localhost", True),
    ("http://[::1]:8000/v1", "::1", True),
    ("https://api.example-1.com:80/v1/", "api.example-1.com", False),
    ("http://localhost.example.com/v1", "localhost.example.com", False),
    ("http://127.0.0.1.example.com/v1", "127.0.0.1.example.com", False),
    ("http://10.0.0.4:8000/v1", "10.0.0.4", False),
    ("http://2130706433/v1", "2130706433", False),
    ("http://[::ffff:8.8.8.8]/v1", "::ffff:8.8.8.8", False),
])
def test_the_host_of_an_address_is_the_one_that_requests_go_to(url, host, here):
    assert host_of(url) == host and on_this_machine(url) == here
    request = urllib.request.Request(Endpoint(Settings(llm_url=url)).url)
    assert urllib.request.urlsplit(request.full_url).hostname == host


@pytest.mark.parametrize("url", [
    "", "here", "ftp://localhost/v1", "http://127.0.0.1/v1 x", "http://127.0.0.1:99999/v1",
    "http://127.0.0.1/v1?x=1", "http://127.0.0.1/v1\r\nHost: a.com",
    "http://127.0.0.1@example.com/v1", "http://example.com#@127.0.0.1/",
    "http://example.com\\@127.0.0.1/v1", "http://[::1", "http://[::1].example.com/v1",
    "http://[1:2]/", "http://[::1%25eth0]/", "http://\u2460.0.0.1/", "http://localho\u017ft/v1",
])
def test_addresses_that_two_readers_could_read_differently_are_refused(url):
    with pytest.raises(InputError, match="is no address"):
        host_of(url)


def test_a_busy_server_is_waited_for_until_it_stays_busy(serve):
    """Waiting helps against a queue, an error of the server, and what is no chat completion."""
    busy = {1: 429, 2: 503, 3: b"{}", 4: b"\xff", 5: b'{"choices": [3]}', 6: {"findings": "Clear."}}
    server = serve(lambda number, body: busy.get(number, 503))
    endpoint = Endpoint(Settings(llm_url=server.url))
    assert endpoint.ask(MESSAGES) == ('{"findings": "Clear."}', "stop")
    assert len(server.bodies) == 6 and endpoint.answered == 1
    with pytest.raises(InputError, match="answers 503, 8 times in a row; is the server running"):
        endpoint.ask(MESSAGES)


@pytest.mark.parametrize("status, error", [
    (400, Refused), (413, Refused),                                 # about this report
    (401, InputError), (404, InputError), (302, InputError),
])
def test_a_refusal_is_about_one_report_or_about_all(serve, status, error):
    """No redirect is followed either. What the server says is not told: it may quote the report."""
    server = serve(lambda number, body: status)
    with pytest.raises(error, match=str(status)) as raised:
        Endpoint(Settings(llm_url=server.url)).ask(MESSAGES)
    assert "effusion" not in str(raised.value) and len(server.bodies) == 1


def test_a_request_wants_json_takes_more_settings_and_passes_no_proxy(serve, monkeypatch):
    proxy = serve(lambda number, body: "from the proxy")
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda number, body: "from the server")
    cfg = Settings(llm_url=server.url, llm_extra='{"thinking": 1, "temperature": 0.5}')
    endpoint = Endpoint(cfg)
    assert endpoint.ask(MESSAGES)[0] == "from the server" and proxy.bodies == []
    body = server.bodies[0]
    assert body["messages"] == MESSAGES and body["response_format"] == {"type": "json_object"}
    assert (body["thinking"], body["temperature"]) == (1, 0.5)
    assert endpoint.headers["Authorization"] == "Bearer secret"
