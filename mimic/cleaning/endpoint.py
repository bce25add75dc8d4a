"""A language model behind an OpenAI-compatible endpoint: which host an address names, and one request with patience."""
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

PATIENCE = 600          # seconds for one answer: servers queue
TRIES, FIRST_WAIT = 8, 1.0
OF_ONE = (400, 413, 414, 422)       # a refusal that may be about one report; so many of them before any answer are not
HOPELESS = 16

ADDRESS = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?(/[a-z0-9._~/-]*)?", re.I)


def host_of(url):
    """The one host that an address of a plain form names: everything that two readers could read differently is refused."""
    found = ADDRESS.fullmatch(url)
    host = found and found[2].strip("[]").lower()
    try:
        if not found or int(found[3] or 80) > 65535 or found[2].startswith("[") and not ipaddress.IPv6Address(host):
            raise ValueError
    except ValueError:
        raise InputError(f"--llm-url {url} is no address like http://127.0.0.1:8000/v1.") from None
    return host


def on_this_machine(url):
    host = host_of(url)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:          # another name
        return False


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None             # a report goes to the host that was named, and to no other


class Refused(Exception):
    """The server does not want this one request (400, 413, 422, …): too long, or of a form that it does not take."""


class Endpoint:
    """`ask(messages)` -> (content, finish_reason), with patience for a busy server. `answered`: how often it did."""

    def __init__(self, cfg):
        self.url, self.cfg = cfg.llm_url.rstrip("/") + "/chat/completions", cfg
        self.answered, self.refused = 0, 0
        key = os.environ.get(cfg.llm_key_env, "")
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        # a proxy from the environment would see what is meant for this machine
        direct = [urllib.request.ProxyHandler({})] if on_this_machine(cfg.llm_url) else []
        self.opener = urllib.request.build_opener(NoRedirect, *direct)

    def refusal(self, code):
        return InputError(f"{self.url} answers {code}: check --llm-url, --llm-model, --llm-extra, and the key in "
                          f"${self.cfg.llm_key_env}.")

    def ask(self, messages):
        body = {"model": self.cfg.llm_model, "messages": messages, "temperature": 0, "max_tokens": 2048,
                "response_format": {"type": "json_object"}, **json.loads(self.cfg.llm_extra or "{}")}
        request, wait = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers), FIRST_WAIT
        for attempt in range(TRIES):
            after = None
            try:
                with self.opener.open(request, timeout=PATIENCE) as response:
                    choice = json.loads(response.read())["choices"][0]
                    content, finish = choice["message"]["content"], choice.get("finish_reason")
                self.answered += 1
                return content if isinstance(content, str) else "", finish
            except urllib.error.HTTPError as error:         # its text may quote the report: the number alone is told
                if error.code < 500 and error.code not in (408, 425, 429):
                    self.refused += 1
                    if error.code not in OF_ONE or not self.answered and self.refused >= HOPELESS:
                        raise self.refusal(error.code) from None
                    raise Refused(f"the server answered {error.code}") from None
                after, problem = error.headers.get("Retry-After"), f"answers {error.code}"
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                problem = f"does not answer ({type(error).__name__})"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                problem = "answers something that is no chat completion"
            if attempt + 1 < TRIES:
                pause = float(after) if re.fullmatch("[0-9]{1,4}", after or "") else wait * random.uniform(0.5, 1.5)
                time.sleep(min(pause, 120))
                wait *= 2
        raise InputError(f"{self.url} {problem}, {TRIES} times in a row; is the server running? What was answered is kept.")
