"""--clean llm: a language model rewrites the reports, and guards look at every answer.

    refuse_others(cfg)                              # before anything is read
    answers = clean_all(cfg, path, texts)           # {key: answer}, as clean_study describes it

For MIMIC a report goes only to this machine, unless the user has verified that the host keeps
nothing (PhysioNet's statement of 24 September 2025). An answer that fails a guard is asked for once
more, with the complaint; if that fails too, the report is left to the rules and flagged. Answers
are appended to a file as they come, so that a run that stops loses nothing and nothing is asked
twice.
"""
import hashlib
import json
import os
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path

from tqdm import tqdm

from common.cli import InputError
from common.files import cut_torn_line, settings_hash
from mimic.cleaning.endpoint import Endpoint, Refused, host_of, on_this_machine
from mimic.cleaning.guards import guard, parse

PROMPTS = Path(__file__).with_name("prompts.txt")


# ---- what may be asked of whom ----

def refuse_others(cfg):
    """InputError if a report may not go to the host of --llm-url, or an option is of no use."""
    # the law first: who may see a report of MIMIC
    host = host_of(cfg.llm_url)
    far_away = not on_this_machine(cfg.llm_url)
    if cfg.dataset == "mimic" and far_away and not cfg.i_verified_zero_retention:
        raise InputError(
            f"{host} is not this machine, and PhysioNet's data use agreement forbids sending "
            "credentialed data to third parties, APIs included: run the model on a server of your "
            "own, or give --i-verified-zero-retention if you have verified that this host keeps "
            "nothing, trains on nothing and shows nothing to a human.")
    if cfg.llm_extra and not is_json_object(cfg.llm_extra):
        raise InputError(
            "--llm-extra wants a JSON object, as {\"thinking\": {\"type\": \"disabled\"}}.")
    # the key goes into a header of HTTP, where a line break would begin another header
    if not re.fullmatch("[!-~]*", os.environ.get(cfg.llm_key_env, "")):
        raise InputError(f"the key in ${cfg.llm_key_env} has characters that no key has (a line "
                         "break?); set it anew.")


def is_json_object(text):
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# ---- the prompts ----

@cache
def prompts():
    """The parts of prompts.txt: {"clean": ..., "example report": ..., "retry": ..., ...}."""
    # split by a pattern with a group: text before, then name, part, name, part
    _, *parts = re.split(r"(?m)^=== (.+) ===\n", PROMPTS.read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in zip(parts[0::2], parts[1::2])}


def prompt_hash(cfg):
    """What an answer depends on besides the report. Only if it is the same, answers are reused."""
    text = PROMPTS.read_text(encoding="utf-8")
    return settings_hash([text, cfg.llm_model, cfg.llm_extra, cfg.llm_judge])


def message(role, content):
    return {"role": role, "content": content}


def joined(findings, impression):
    """Both sections as one text, under their headers; a missing one is left out."""
    sections = []
    if findings:
        sections.append(f"FINDINGS:\n{findings}")
    if impression:
        sections.append(f"IMPRESSION:\n{impression}")
    return "\n".join(sections)


def fenced(text):
    """A report between marks that it cannot close itself: text to edit, never an instruction."""
    return "<<<REPORT\n" + text.replace("REPORT>>>", "REPORT") + "\nREPORT>>>"


# ---- one study ----

def clean_study(endpoint, cfg, findings, impression):
    """One study -> {"text": (findings, impression), "method": "llm", "flags": [...]}.

    After two failures, or if the server does not take the report, "text" is None and "method" is
    "rules".
    """
    # the task, one invented example with its answer, and then the report
    raw = joined(findings, impression)
    messages = [
        message("system", prompts()["clean"]),
        message("user", fenced(prompts()["example report"])),
        message("assistant", prompts()["example answer"]),
        message("user", fenced(raw)),
    ]
    # two attempts; the second one is told what was wrong with the first
    for flags_of_attempt in ([], ["retried"]):
        try:
            content, answer, complaints, warnings = ask_once(endpoint, cfg, messages, findings, raw)
        except Refused as reason:
            return left_to_rules([reason])
        if not complaints:
            return {"text": answer, "method": "llm", "flags": warnings + flags_of_attempt}
        retry = prompts()["retry"].replace("{complaints}", "; ".join(complaints))
        messages += [message("assistant", content), message("user", retry)]
    return left_to_rules(complaints)


def ask_once(endpoint, cfg, messages, findings, raw):
    """One request, and all guards -> (content, (findings, impression), complaints, warnings)."""
    content, finish_reason = endpoint.ask(messages)
    answer, complaints = parse(content, finish_reason, findings)
    if complaints:
        return content, None, complaints, []
    # the guards cost nothing, the judge a request: it sees only what they let pass
    clean = joined(*answer)
    complaints, warnings = guard(raw, clean)
    if cfg.llm_judge and not complaints:
        complaints = judge(endpoint, raw, clean)
    return content, answer, complaints, warnings


def judge(endpoint, raw, clean):
    """Guard 8: a second request looks for what was lost, added, changed or left over."""
    content, _ = endpoint.ask([
        message("system", prompts()["judge"]),
        message("user", f"RAW\n{fenced(raw)}\nCLEAN\n{fenced(clean)}"),
    ])
    try:
        verdict = json.loads(content)
        kinds = [kind for kind in ("lost", "added", "changed", "leftover") if verdict.get(kind)]
    except (ValueError, AttributeError, RecursionError):
        return ["the judge gave no json"]
    return [f"the judge found something {kind}" for kind in kinds]


def left_to_rules(reasons):
    flags = [f"llm refused: {reason}" for reason in reasons]
    return {"text": None, "method": "rules", "flags": flags}


# ---- the file of answers ----

def is_entry(entry):
    """Whether a line of the file holds what clean_all writes: any other is damaged."""
    try:
        answer = entry["answer"]
        texts = answer["text"]
        flags = answer["flags"]
        method = answer["method"]
        names = [entry["key"], entry["prompt"], entry["raw"]]
    except (KeyError, TypeError):
        return False
    if not isinstance(flags, list) or not all(isinstance(text, str) for text in names + flags):
        return False
    # no text means that the rules must do it
    if texts is None:
        return method == "rules"
    if not isinstance(texts, list) or len(texts) != 2 or method != "llm":
        return False
    findings, impression = texts
    return isinstance(findings, str) and isinstance(impression, str | None)


def stored(path, prompt):
    """The answers of earlier runs to this prompt: {key: (hash of the raw text, answer)}.

    A last line that a kill has torn is cut off the file, so that the next one can be appended.
    """
    if not path.exists():
        return {}
    cut_torn_line(path)

    # answers to other prompts stay in the file: whoever goes back to them has them
    answers = {}
    damaged = 0
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not is_entry(entry):
            damaged += 1
        elif entry["prompt"] == prompt:
            answers[entry["key"]] = entry["raw"], entry["answer"]
    if damaged:
        print(f"{damaged} lines of {path} are damaged; what they held is asked for again")
    return answers


class AnswerFile:
    """Appends answers to a file, from many threads.

    Refusals are held back until the server has answered for the first time: only then is it clear
    that it refuses single reports and not everything.
    """

    def __init__(self, file, endpoint):
        self.file = file
        self.endpoint = endpoint
        self.lock = threading.Lock()
        self.held_back = []

    def add(self, entry):
        with self.lock:
            self.held_back.append(json.dumps(entry) + "\n")
            if self.endpoint.answered:
                self.file.writelines(self.held_back)
                self.file.flush()
                self.held_back.clear()


# ---- all studies ----

def hash_of(raw):
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


def known_answers(known, texts):
    """Split texts into {key: stored answer} and the list of those to ask for.

    An answer counts if the report is the same, and if the guards of today, which may have become
    stricter, still let it pass.
    """
    answers = {}
    to_ask = []
    for key, findings, impression in texts:
        raw = joined(findings, impression)
        raw_hash, answer = known.get(key, ("", None))
        # a report that has changed since is another report
        usable = raw_hash == hash_of(raw)
        if usable and answer["text"]:
            complaints, _ = guard(raw, joined(*answer["text"]))
            usable = not complaints
        if usable:
            answers[key] = answer
        else:
            to_ask.append((key, findings, impression))
    return answers, to_ask


def clean_all(cfg, path, texts):
    """Clean all studies -> {key: answer}, asking for what the file `path` does not hold yet.

    `texts` are (key, findings, impression). For the form of an answer see clean_study.
    """
    # what is known already, and what is to be asked
    prompt = prompt_hash(cfg)
    endpoint = Endpoint(cfg)
    answers, to_ask = known_answers(stored(path, prompt), texts)

    # the file holds reports: it is readable by the user alone, also if it was there before
    path.touch(0o600)
    path.chmod(0o600)
    pool = ThreadPoolExecutor(cfg.llm_workers)
    with open(path, "a", encoding="utf-8", newline="\n") as file, pool:
        answer_file = AnswerFile(file, endpoint)

        # threads are enough, because they do nothing but wait for the server
        def clean_and_store(key, findings, impression):
            answer = clean_study(endpoint, cfg, findings, impression)
            raw_hash = hash_of(joined(findings, impression))
            answer_file.add({"key": key, "prompt": prompt, "raw": raw_hash, "answer": answer})
            return key, answer

        try:
            futures = [pool.submit(clean_and_store, *study) for study in to_ask]
            for future in tqdm(as_completed(futures), total=len(futures), unit="reports",
                               desc="cleaning"):
                key, answers[key] = future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)      # after an error: no more requests

    # refusals alone, and never an answer: they were about the request, not about the reports
    if answer_file.held_back:
        raise endpoint.refusal("every request with a refusal (400 or the like)")
    counts = Counter(answer["method"] for answer in answers.values())
    print(f"cleaned by the model {counts['llm']:,}, "
          f"by the rules after a refusal {counts['rules']:,}")
    return answers
