"""Cleaning by a language model behind an OpenAI-compatible endpoint, with guards; by default a server on this machine.

A report goes out only to the host of --llm-url, and for MIMIC only to this machine unless the user has verified zero retention
(PhysioNet's rule of 24 Sep 2025). An answer that fails a guard is asked for once more with the complaint; then the text
of the rules is taken, and flagged. Answers are appended to a JSONL as they come, so a run that stops loses nothing.
"""
import hashlib
import json
import os
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from common.cli import InputError
from mimic.cleaning.endpoint import Endpoint, Refused, host_of, on_this_machine
from mimic.cleaning.guards import guard, parse

PROMPTS = Path(__file__).with_name("prompts.txt")


def prompts():
    parts = re.split(r"(?m)^=== (.+) ===\n", PROMPTS.read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2])}


def prompt_hash(cfg):
    """Answers are reused for the same prompts, model and request alone."""
    about = [PROMPTS.read_text(encoding="utf-8"), cfg.llm_model, cfg.llm_extra, cfg.llm_judge]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


# ---- where a report may go ----

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
