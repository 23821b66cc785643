"""The audit of what is locked: `make audit`.

Always, without a network: every requirement is pinned by version and hash and comes from the package index, the locks
agree, every licence is known and allowed. Where an advisory service answers: pip-audit asks it about every release.
A release that could not be asked about is never counted as clean.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dependencies import licences, lock_files
from dependencies.lock_files import LOCKS, ROOT

CLEAN, BROKEN, NOT_AUDITED = 0, 1, 3
_SECONDS = 600


@dataclass(frozen=True)
class Advisories:
    """What an advisory service says of the releases of a lock.

    Attributes:
        asked: how many releases it told something of.
        vulnerable: one line a finding.
        unanswered: how many releases it told nothing of.
        reason: why, of the first one; ``""`` where all were answered.
    """

    asked: int
    vulnerable: tuple[str, ...] = ()
    unanswered: int = 0
    reason: str = ""


def check_offline(root: Path = ROOT) -> list[str]:
    """Return what is wrong with locks and licences, one line each; needs no network.

    Args:
        root: the folder of the lock files.
    """
    read = {lock: lock_files.read_lock(root / lock) for lock in LOCKS}
    locks = {lock: pins for lock, (pins, _) in read.items()}
    problems = [problem for _, found in read.values() for problem in found]
    problems += lock_files.disagreements(locks)
    record = licences.read_record()
    everything = [pin for pins in locks.values() for pin in pins]
    of_licences = licences.problems_of(everything, record, licences.installed())
    if not of_licences and licences.PAGE.read_text(encoding="utf-8") != licences.render_page(locks, record):
        of_licences.append(
            f"{licences.PAGE.name} must be what `make licences` writes. Received: another text"
        )
    return problems + of_licences


def read_report(text: str) -> Advisories:
    """Return what a report of ``pip-audit --format json`` says.

    pip-audit ends well where the service knows no release at all; such releases are unanswered here.

    Raises:
        ValueError: where it is no such report.
    """
    try:
        rows = json.loads(text)["dependencies"]
        skipped = [row["skip_reason"] for row in rows if "skip_reason" in row]
        vulnerable = [
            f"{row['name']} {row['version']}: {found['id']} "
            f"(mended in {', '.join(found['fix_versions']) or 'no release yet'})"
            for row in rows
            for found in row.get("vulns", ())
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no report of pip-audit: {type(error).__name__} {error}") from error
    reason = " ".join(skipped[0].split()) if skipped else ""
    return Advisories(len(rows) - len(skipped), tuple(vulnerable), len(skipped), reason)


def ask(lock: Path, *, osv_url: str = "") -> Advisories:
    """Ask an advisory service about every release of a lock, by pip-audit.

    Args:
        lock: the lock file.
        osv_url: address of a service that speaks OSV's protocol; ``""`` asks the package index's own first, then OSV.
    """
    services = (
        [["--vulnerability-service=osv", f"--osv-url={osv_url}"]]
        if osv_url
        else [["-s", "pypi"], ["-s", "osv"]]
    )
    answers = []
    for service in services:
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--disable-pip",
            "--require-hashes",
            "--requirement",
            str(lock),
        ]
        command += ["--format=json", "--progress-spinner=off", "--timeout=15", *service]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            answers.append(read_report(done.stdout))
        except subprocess.TimeoutExpired:
            answers.append(Advisories(0, unanswered=1, reason=f"no answer within {_SECONDS} s"))
        except ValueError:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            answers.append(Advisories(0, unanswered=1, reason=last[:200]))
        if answers[-1].asked:
            break
    return max(answers, key=lambda answer: answer.asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit the locks.

    Returns 0 where all is well and every release was asked about, 1 where something is wrong, 3 where nothing is known
    to be wrong but releases were not audited: no advisory service answered.
    """
    parser = argparse.ArgumentParser(prog="python -m dependencies.audit", description="Audit the lock files.")
    parser.add_argument("--offline", action="store_true", help="locks and licences alone")
    parser.add_argument(
        "--osv-url", default="", help="an advisory service of your own that speaks OSV's protocol"
    )
    options = parser.parse_args(arguments)
    problems = check_offline()
    print(f"locks and licences: {'well' if not problems else f'{len(problems)} problems'}", flush=True)
    asked = unanswered = 0
    reason = "it was not asked for" if options.offline else ""
    if not options.offline and importlib.util.find_spec("pip_audit") is None:
        reason = "pip-audit is not installed"
    elif not options.offline:
        for lock in LOCKS:
            answer = ask(ROOT / lock, osv_url=options.osv_url)
            print(f"{lock}: {answer.asked} releases audited, {len(answer.vulnerable)} vulnerable", flush=True)
            problems += [f"{lock}: {line}" for line in answer.vulnerable]
            asked, unanswered = asked + answer.asked, unanswered + answer.unanswered
            reason = reason or answer.reason
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if reason:
        which = f"{unanswered} releases were not" if asked else "no advisory service reachable, nothing was"
        print(f"NOT AUDITED for known vulnerabilities: {which} ({reason})", file=sys.stderr)
    if problems:
        return BROKEN
    return NOT_AUDITED if reason else CLEAN


if __name__ == "__main__":
    sys.exit(main())
