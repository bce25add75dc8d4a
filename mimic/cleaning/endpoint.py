"""A language model behind a server that speaks OpenAI's protocol: its host, and one request to it.

    endpoint = Endpoint(cfg)                            # cfg.llm_url, by default on this machine
    content, finish_reason = endpoint.ask(messages)

A report goes to the host that the address names and to no other: no redirect is followed, and no
proxy sees what is meant for this machine. Servers queue, so a request waits long and tries again;
what the server says about an error is never shown, because it may quote the report.
"""
import http.client
import ipaddress
import json
import os
import random
import re
import time
import urllib.error
import urllib.request

from common.cli import InputError

PATIENCE = 600          # seconds for one answer
TRIES = 8               # for one request
FIRST_WAIT = 1.0        # seconds before the second try; they double from try to try
LONGEST_WAIT = 120

BUSY = (408, 425, 429)              # "later": tried again, as are all from 500 on
ABOUT_ONE_REPORT = (400, 413, 414, 422)     # too long, or of a form that the server does not take
HOPELESS = 16           # so many of these before any answer are not about single reports


# ---- the address ----

# A plain form: protocol, host or [IPv6 address], port, path. There is no user name, query or
# escape, in which two programs could see two hosts. It is ASCII: else U+212A would pass for a "k".
ADDRESS = re.compile(
    r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?(?:/[a-z0-9._~/-]*)?",
    re.IGNORECASE | re.ASCII)


def host_of(url):
    """The one host that an address names, in lower case; InputError if the form is not plain.

    >>> host_of("http://[::1]:8000/v1")
    '::1'
    """
    wrong = InputError(f"--llm-url {url} is no address like http://127.0.0.1:8000/v1.")
    match = ADDRESS.fullmatch(url)
    if match is None:
        raise wrong
    # the pattern lets some ports and IPv6 addresses pass that do not exist
    host, port = match.groups()
    if port is not None and int(port) > 65535:
        raise wrong
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host.strip("[]"))
        except ValueError:
            raise wrong from None
    return host.strip("[]").lower()


def on_this_machine(url):
    """Whether an address names this machine: "localhost", or a loopback address in numbers."""
    host = host_of(url)
    if host == "localhost":
        return True
    try:
        # 127.0.0.0/8 and ::1; a name may lead anywhere, whatever it looks like
        return ipaddress.ip_address(host).is_loopback
    except ValueError:                                  # another name
        return False


# ---- one request ----

class Refused(Exception):
    """The server does not take this one request; others it may."""


class Busy(Exception):
    """The server may answer later: what is wrong now, and how many seconds it asks to wait."""

    def __init__(self, problem, retry_after=None):
        super().__init__(problem)
        self.retry_after = retry_after


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


class Endpoint:
    """The server of cfg.llm_url. It counts its answers, and the requests that it did not take."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.url = cfg.llm_url.rstrip("/") + "/chat/completions"
        self.answered = 0
        self.refused = 0

        # a server of one's own usually wants no key
        self.headers = {"Content-Type": "application/json"}
        key = os.environ.get(cfg.llm_key_env, "")
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

        # left alone, urllib follows redirects and obeys http_proxy: both lead to other hosts
        handlers = [NoRedirect]
        if on_this_machine(cfg.llm_url):
            handlers.append(urllib.request.ProxyHandler({}))    # no proxy from the environment
        self.opener = urllib.request.build_opener(*handlers)

    def ask(self, messages):
        """A list of chat messages -> (content, finish_reason), with patience for a busy server.

        Raises Refused if the server does not take this request, and InputError if it takes none, or
        does not answer TRIES times in a row.
        """
        # eight tries with doubled waits last one to three minutes: a server may restart meanwhile
        request = self.request(messages)
        wait = FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            try:
                content, finish_reason = self.answer_to(request)
            except Busy as busy:
                problem = busy
            else:
                self.answered += 1
                return content, finish_reason
            if attempt < TRIES:
                time.sleep(pause(problem, wait))
                wait *= 2
        raise InputError(f"{self.url} {problem}, {TRIES} times in a row; is the server running? "
                         "What was answered is kept.")

    def request(self, messages):
        # temperature 0: the likeliest words, so that a rerun gives the same text if the server can
        body = {
            "model": self.cfg.llm_model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": 2048,
            "response_format": {"type": "json_object"},
        }
        # last, so that what the user wants replaces what stands above
        if self.cfg.llm_extra:
            body.update(json.loads(self.cfg.llm_extra))
        return urllib.request.Request(self.url, json.dumps(body).encode(), self.headers)

    def answer_to(self, request):
        """One try -> (content, finish_reason). Raises Busy, Refused or InputError."""
        # all that can be wrong with an answer, from no connection to JSON of another form
        try:
            with self.opener.open(request, timeout=PATIENCE) as response:
                choice = json.loads(response.read())["choices"][0]
                content = choice["message"]["content"]
                finish_reason = choice.get("finish_reason")
        except urllib.error.HTTPError as error:
            raise self.meaning_of(error) from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            raise Busy(f"does not answer ({type(error).__name__})") from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Busy("answers something that is no chat completion") from None
        if not isinstance(content, str):
            content = ""                                # the guards will refuse it
        return content, finish_reason

    def meaning_of(self, error):
        """The exception to raise for an HTTP error. Of its text nothing is told."""
        if error.code >= 500 or error.code in BUSY:
            return Busy(f"answers {error.code}", error.headers.get("Retry-After"))
        # a wrong model name can look like a bad report (400): after many of them it is not one
        self.refused += 1
        hopeless = self.answered == 0 and self.refused >= HOPELESS
        if error.code in ABOUT_ONE_REPORT and not hopeless:
            return Refused(f"the server answered {error.code}")
        return self.refusal(error.code)

    def refusal(self, code):
        """The error that ends a run: the server takes no request."""
        return InputError(f"{self.url} answers {code}: check --llm-url, --llm-model, --llm-extra, "
                          f"and the key in ${self.cfg.llm_key_env}.")


def pause(busy, wait):
    """Seconds until the next try: what the server asks for, or about `wait`.

    Chance keeps the many workers of a run from coming back all at once.
    """
    seconds = wait * random.uniform(0.5, 1.5)
    if busy.retry_after and re.fullmatch("[0-9]{1,4}", busy.retry_after):
        seconds = float(busy.retry_after)
    return min(seconds, LONGEST_WAIT)
