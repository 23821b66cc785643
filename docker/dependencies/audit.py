"""The audit of what is locked: `make audit`.

Always, without a network: every requirement is pinned by version and hash and comes from the package index, the locks
agree, every licence is known and allowed. Where an advisory service answers: pip-audit asks it about every release that
any of the locks pins, for whichever Python and system. Where none may be asked: OSV's records, from files.
A release that could not be asked about is never counted as clean.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

from dependencies import advisories, licences, lock_files
from dependencies.advisories import Answer
from dependencies.lock_files import LOCKS, ROOT, Release

CLEAN, BROKEN, NOT_AUDITED = 0, 1, 3
_SECONDS = 600


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


def releases_of(root: Path = ROOT) -> dict[Release, list[str]]:
    """Return every release that is locked, by name, and the lock files that pin it, whatever the markers say."""
    found: dict[Release, list[str]] = {}
    for lock in LOCKS:
        for pin in lock_files.read_lock(root / lock)[0]:
            found.setdefault(pin.release, []).append(lock)
    return {release: sorted(set(found[release])) for release in sorted(found)}


def rounds(releases: Sequence[Release]) -> list[list[Release]]:
    """Return the releases in as few lists as there can be without two versions of one name in a list.

    pip-audit leaves out what a marker keeps from this interpreter, and refuses two versions of one name: so it is told
    no markers, and one version at a time.
    """
    lists: list[list[Release]] = []
    seen: dict[str, int] = {}
    for release in releases:
        number = seen.get(release.name, 0)
        seen[release.name] = number + 1
        if number == len(lists):
            lists.append([])
        lists[number].append(release)
    return lists


def read_report(text: str, asked: Sequence[Release]) -> Answer:
    """Return what a report of ``pip-audit --format json`` says of the releases that it was asked about.

    pip-audit ends well where the service knows no release at all; such releases are unanswered here, and so is what the
    report does not name.

    Raises:
        ValueError: where it is no such report.
    """
    known = {(release.name, Version(release.version)): release for release in asked}
    try:
        rows = json.loads(text)["dependencies"]
        skipped = [row["skip_reason"] for row in rows if "skip_reason" in row]
        answered, vulnerable = set(), []
        for row in rows:
            if "skip_reason" in row:
                continue
            release = known[row["name"], Version(row["version"])]
            answered.add(release)
            for found in row["vulns"]:
                mended = ", ".join(found["fix_versions"]) or "no release yet"
                vulnerable.append((release, f"{found['id']} (mended in {mended})"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no report of pip-audit: {type(error).__name__} {error}") from error
    reason = " ".join(skipped[0].split()) if skipped else ""
    if not reason and len(answered) < len(known):
        reason = "pip-audit's report leaves some out"
    return Answer(frozenset(answered), tuple(vulnerable), reason)


def ask(releases: Sequence[Release], *, osv_url: str = "") -> Answer:
    """Ask advisory services about releases, by pip-audit; the next one about what the one before did not answer.

    Args:
        releases: what is asked about.
        osv_url: address of a service that speaks OSV's protocol; ``""`` asks the package index's own first, then OSV.
    """
    services = (
        [["--vulnerability-service=osv", f"--osv-url={osv_url}"]]
        if osv_url
        else [["-s", "pypi"], ["-s", "osv"]]
    )
    answers: list[Answer] = []
    left = list(releases)
    for service in services:
        for asked in rounds(left):
            answers.append(_ask_once(asked, service))
            if not answers[-1].answered:
                break  # nor would it answer the next ones
        known = frozenset[Release]().union(*(answer.answered for answer in answers))
        left = [release for release in releases if release not in known]
    return Answer(
        known,
        tuple(finding for answer in answers for finding in answer.vulnerable),
        next((answer.reason for answer in answers if answer.reason), "") if left else "",
        "pip-audit",
    )


def _ask_once(asked: Sequence[Release], service: Sequence[str]) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        question = Path(folder) / "requirements.txt"
        question.write_text(
            "".join(f"{release.name}=={release.version}\n" for release in asked), encoding="utf-8"
        )
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--disable-pip",
            "--no-deps",
            f"--requirement={question}",
        ]
        command += ["--format=json", "--output=-", "--progress-spinner=off", "--timeout=15", *service]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            return read_report(done.stdout, asked)
        except subprocess.TimeoutExpired:
            return Answer(reason=f"no answer within {_SECONDS} s")
        except ValueError:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            return Answer(reason=last[:200])


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit the locks.

    Returns 0 where all is well and every release that is locked was asked about, 1 where something is wrong, 3 where
    nothing is known to be wrong but releases were not audited: no advisory service answered.
    """
    parser = argparse.ArgumentParser(prog="python -m dependencies.audit", description="Audit the lock files.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--offline", action="store_true", help="locks and licences alone")
    source.add_argument(
        "--osv-url", default="", help="an advisory service of your own that speaks OSV's protocol"
    )
    source.add_argument(
        "--advisories", type=Path, help="a folder or a zip of OSV's records of PyPI, instead of a service"
    )
    options = parser.parse_args(arguments)
    problems = check_offline()
    print(f"locks and licences: {'well' if not problems else f'{len(problems)} problems'}", flush=True)
    releases = releases_of()
    answer = Answer()
    if options.offline:
        answer = Answer(reason="it was not asked for")
    elif options.advisories:
        try:
            answer = advisories.compare(releases, options.advisories)
        except ValueError as error:
            problems.append(str(error))
            answer = Answer(reason="the advisories cannot be read")
    elif importlib.util.find_spec("pip_audit") is None:
        answer = Answer(reason="pip-audit is not installed")
    else:
        answer = ask(list(releases), osv_url=options.osv_url)
    if answer.answered:
        vulnerable = len({release for release, _ in answer.vulnerable})
        print(
            f"{len(answer.answered)} of {len(releases)} releases audited, {vulnerable} vulnerable ({answer.by})"
        )
    problems += [f"{', '.join(releases[release])}: {release}: {line}" for release, line in answer.vulnerable]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    left = [release for release in releases if release not in answer.answered]
    if left:
        which = (
            f"{len(left)} of {len(releases)} releases, such as {left[0]}"
            if answer.answered
            else f"none of {len(releases)} releases"
        )
        print(f"NOT AUDITED for known vulnerabilities: {which} ({answer.reason})", file=sys.stderr)
    if problems:
        return BROKEN
    return NOT_AUDITED if left else CLEAN


if __name__ == "__main__":
    sys.exit(main())
