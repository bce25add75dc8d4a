"""Cleaning by a language model behind an OpenAI-compatible endpoint, with guards; by default a server on this machine.

A report goes out only to the host of --llm-url, and for MIMIC only to this machine unless the user has verified zero retention
(PhysioNet's rule of 24 Sep 2025). An answer that fails a guard is asked for once more with the complaint; then the text
of the rules is taken, and flagged. Answers are appended to a JSONL as they come, so a run that stops loses nothing.
"""
import hashlib
import http.client
import ipaddress
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from common.processes import InputError
from mimic.cleaning.guards import guard, parse

PROMPTS = Path(__file__).with_name("prompts.txt")
PATIENCE = 600          # seconds for one answer: servers queue
TRIES, FIRST_WAIT = 8, 1.0
OF_ONE = (400, 413, 414, 422)       # a refusal that may be about one report; so many of them before any answer are not
HOPELESS = 16


def prompts():
    parts = re.split(r"(?m)^=== (.+) ===\n", PROMPTS.read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2])}


def prompt_hash(cfg):
    """Answers are reused for the same prompts, model and request alone."""
    about = [PROMPTS.read_text(encoding="utf-8"), cfg.llm_model, cfg.llm_extra, cfg.llm_judge]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


# ---- the endpoint ----

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


def refuse_others(cfg):
    """Before anything is read: MIMIC may not be sent to a host that keeps it."""
    host = host_of(cfg.llm_url)
    if cfg.dataset == "mimic" and not on_this_machine(cfg.llm_url) and not cfg.i_verified_zero_retention:
        raise InputError(
            f"{host} is not this machine, and PhysioNet's data use agreement forbids sending credentialed data to third parties, "
            "APIs included: run the model on a server of your own, or give --i-verified-zero-retention if you have verified "
            "that this host keeps nothing, trains on nothing and shows nothing to a human.")
    try:
        if cfg.llm_extra and not isinstance(json.loads(cfg.llm_extra), dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError("--llm-extra wants a JSON object, as {\"thinking\": {\"type\": \"disabled\"}}.") from None
    if not re.fullmatch("[!-~]*", os.environ.get(cfg.llm_key_env, "")):
        raise InputError(f"the key in ${cfg.llm_key_env} has characters that no key has (a line break?); set it anew.")


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


# ---- one study, and all of them ----

def joined(findings, impression):
    return "\n".join(f"{name}:\n{text}" for name, text in (("FINDINGS", findings), ("IMPRESSION", impression)) if text)


def fenced(text):
    return "<<<REPORT\n" + text.replace("REPORT>>>", "REPORT") + "\nREPORT>>>"


def judged(endpoint, texts, raw, clean):
    """Guard 8: a second request that looks for what was lost, added, changed or left over."""
    content, _ = endpoint.ask([{"role": "system", "content": texts["judge"]},
                               {"role": "user", "content": f"RAW\n{fenced(raw)}\nCLEAN\n{fenced(clean)}"}])
    try:
        verdict = json.loads(content)
        return [f"the judge found something {key}" for key in ("lost", "added", "changed", "leftover") if verdict.get(key)]
    except (ValueError, AttributeError, RecursionError):
        return ["the judge gave no json"]


def clean_study(endpoint, cfg, findings, impression):
    """-> {"text": (findings, impression), "method": "llm", "flags": [...]}, or method "rules" without text after one retry."""
    texts, raw = prompts(), joined(findings, impression)
    messages = [{"role": "system", "content": texts["clean"]}, {"role": "user", "content": fenced(texts["example report"])},
                {"role": "assistant", "content": texts["example answer"]}, {"role": "user", "content": fenced(raw)}]
    for attempt in range(2):
        try:
            content, finish = endpoint.ask(messages)
            answer, complaints = parse(content, finish, findings)
            if answer:
                clean = joined(*answer)
                complaints, warnings = guard(raw, clean)
                if not complaints and cfg.llm_judge:
                    complaints = judged(endpoint, texts, raw, clean)
                if not complaints:
                    return {"text": answer, "method": "llm", "flags": warnings + ["retried"] * attempt}
        except Refused as reason:
            return {"text": None, "method": "rules", "flags": [f"llm refused: {reason}"]}
        messages += [{"role": "assistant", "content": content},
                     {"role": "user", "content": texts["retry"].replace("{complaints}", "; ".join(complaints))}]
    return {"text": None, "method": "rules", "flags": ["llm refused: " + one for one in complaints]}


def usable(line):
    """A line of the answers -> its entry, or None where it is damaged."""
    try:
        entry = json.loads(line)
        answer = entry["answer"]
        texts = answer["text"] or [None, None]
        whole = all(isinstance(entry[key], str) for key in ("key", "prompt", "raw")) and len(texts) == 2 and \
            all(isinstance(one, str | None) for one in texts) and all(isinstance(one, str) for one in answer["flags"]) and \
            answer["method"] == ("llm" if isinstance(texts[0], str) else "rules")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entry if whole else None


def stored(path, prompt):
    """The answers of earlier runs {key: (hash of the raw text, answer)}; a line that a kill has torn is cut off the file."""
    answers, damaged = {}, 0
    if path.exists():
        content = path.read_bytes()
        whole = content[:content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            entry = usable(line)
            damaged += not entry
            if entry and entry["prompt"] == prompt:
                answers[entry["key"]] = entry["raw"], entry["answer"]
    if damaged:
        print(f"{damaged} lines of {path} are damaged; what they held is asked for again")
    return answers


def clean_all(cfg, path, texts):
    """texts: (key, findings, impression) -> {key: answer}, asking for what `path` does not hold yet."""
    prompt, endpoint, lock = prompt_hash(cfg), Endpoint(cfg), threading.Lock()
    known, answers, todo, held = stored(path, prompt), {}, [], []
    for key, findings, impression in texts:
        raw = hashlib.sha256(joined(findings, impression).encode()).hexdigest()[:16]
        found, answer = known.get(key, ("", None))
        if found == raw and not (answer["text"] and guard(joined(findings, impression), joined(*answer["text"]))[0]):
            answers[key] = answer           # the guards may be stricter than when it was stored
        else:
            todo.append((key, raw, findings, impression))
    path.touch(0o600), path.chmod(0o600)         # it may be there from before
    with open(path, "a", encoding="utf-8") as file, ThreadPoolExecutor(cfg.llm_workers) as pool:
        def one(key, raw, findings, impression):
            answer = clean_study(endpoint, cfg, findings, impression)
            with lock:                      # refusals count once it is clear that the server answers at all
                held.append(json.dumps({"key": key, "prompt": prompt, "raw": raw, "answer": answer}) + "\n")
                if endpoint.answered:
                    file.writelines(held)
                    file.flush()
                    held.clear()
            return key, answer
        try:
            futures = [pool.submit(one, *job) for job in todo]
            for future in tqdm(as_completed(futures), total=len(futures), unit="reports", desc="cleaning"):
                key, answers[key] = future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if held:
        raise endpoint.refusal("every request with a refusal (400 or the like)")
    counts = Counter(answer["method"] for answer in answers.values())
    print(f"cleaned by the model {counts['llm']:,}, by the rules after a refusal {counts['rules']:,}")
    return answers
