"""Every release that is locked is asked about, whatever its marker; what could not be asked about is not clean."""

import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dependencies import advisories, audit, lock_files
from dependencies.lock_files import LOCKS, ROOT, Release

needs_pip_audit = pytest.mark.skipif(find_spec("pip_audit") is None, reason="pip-audit is not installed")
SIX = Release("six", "1.17.0")


def run_audit(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dependencies.audit", *flags]
    environment = {**os.environ, "PYTHONPATH": "docker"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@contextmanager
def advisory_service(vulnerable: str = "", *, broken_for: str = "") -> Iterator[tuple[str, set[Release]]]:
    """A loopback double of OSV's query, and what it was asked about. It knows one vulnerable distribution, every other
    one as clean, and fails for another."""
    asked_about: set[Release] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, version = asked["package"]["name"], asked["version"]
            asked_about.add(Release(name, version))
            advisory = {
                "id": "PYSEC-2026-1",
                "summary": "It breaks.",
                "details": "",
                "affected": [
                    {"package": {"name": name, "ecosystem": "PyPI"}, "versions": [version], "ranges": []}
                ],
            }
            answer = json.dumps({"vulns": [advisory]} if name == vulnerable else {}).encode()
            self.send_response(500 if name == broken_for else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *values: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked_about
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_audit_without_a_service_says_so_and_ends_with_a_code_of_its_own() -> None:
    result = run_audit("--offline")
    assert result.returncode == audit.NOT_AUDITED
    assert "locks and licences: well" in result.stdout
    assert "NOT AUDITED for known vulnerabilities" in result.stderr


@needs_pip_audit
def test_every_pin_is_asked_about_and_one_that_this_interpreter_would_not_install_can_fail_the_audit() -> (
    None
):
    pins = [pin for lock in LOCKS for pin in lock_files.read_lock(ROOT / lock)[0]]
    assert {pin.marker for pin in pins} > {"python_full_version >= '3.12'", "sys_platform == 'win32'"}
    with advisory_service("pywin32") as (url, asked_about):
        result = run_audit(f"--osv-url={url}")
    assert asked_about == {pin.release for pin in pins}
    assert f"{len(asked_about)} of {len(asked_about)} releases audited, 1 vulnerable" in result.stdout
    assert result.returncode == audit.BROKEN
    assert "error: requirements.lock: pywin32 312: PYSEC-2026-1" in result.stderr


@needs_pip_audit
def test_a_release_whose_answer_failed_is_not_clean() -> None:
    asked = [Release("scipy", "1.17.1"), Release("scipy", "1.18.1"), SIX]
    with advisory_service(broken_for="six") as (url, asked_about):
        answer = audit.ask(asked, osv_url=url)
    assert SIX in asked_about
    assert SIX not in answer.answered
    assert answer.reason


def test_no_question_holds_two_versions_of_one_name_and_none_is_left_out() -> None:
    releases = list(audit.releases_of())
    lists = audit.rounds(releases)
    assert sorted(release for asked in lists for release in asked) == releases
    assert len(lists) > 1
    for asked in lists:
        assert len({release.name for release in asked}) == len(asked)


def test_releases_that_a_service_does_not_know_or_leaves_out_are_not_counted_as_clean() -> None:
    """pip-audit ends with 0 where its service knows none of them."""
    unknown = {
        "name": "six",
        "skip_reason": "Dependency not found on PyPI and could not be audited: six (1.17.0)",
    }
    clean = {"name": "idna", "version": "3.20", "vulns": []}
    found = {"id": "PYSEC-1", "fix_versions": ["2.34"], "aliases": [], "description": ""}
    bad = {"name": "requests", "version": "2.33", "vulns": [found]}
    asked = [SIX, Release("idna", "3.20"), Release("requests", "2.33.0")]
    answer = audit.read_report(json.dumps({"dependencies": [unknown, clean, bad], "fixes": []}), asked)
    assert answer.answered == set(asked[1:])
    assert answer.reason.startswith("Dependency not found")
    assert answer.vulnerable == ((asked[2], "PYSEC-1 (mended in 2.34)"),)
    silent = audit.read_report(json.dumps({"dependencies": [clean]}), asked)
    assert silent.answered == {asked[1]}
    assert silent.reason
    for broken in ("", "[]", '{"fixes": []}', '{"dependencies": [1]}'):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever json says of it
            audit.read_report(broken, asked)


def record(name: str = "six", **fields: Any) -> dict[str, Any]:
    """A record of OSV; ``versions`` and ``ranges`` are those of what it affects, ``events`` of its one range."""
    entry = {"package": {"name": name, "ecosystem": fields.pop("ecosystem", "PyPI")}}
    if "events" in fields:
        entry["ranges"] = [{"type": "ECOSYSTEM", "events": fields.pop("events")}]
    entry |= {key: fields.pop(key) for key in ("versions", "ranges") if key in fields}
    return {"id": "PYSEC-2026-1", "modified": "2026-05-04T00:00:00Z", "affected": [entry], **fields}


def written(folder: Path, *records: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for number, each in enumerate(records):
        text = each if isinstance(each, str) else json.dumps(each)
        (folder / f"{number}.json").write_text(text, encoding="utf-8")
    return folder


def compare(folder: Path, *records: Any, releases: Collection[Release] = (SIX,)) -> advisories.Answer:
    return advisories.compare(releases, written(folder, *records))


ALWAYS = {"introduced": "0"}


@pytest.mark.parametrize(
    ("version", "fields", "affected"),
    [
        ("1.17.0", {"versions": ["1.16.0", "1.17"]}, True),
        ("1.17.0", {"versions": ["1.16.0", "2004d"]}, False),
        ("1.17.0", {"events": [ALWAYS]}, True),
        ("0.dev0", {"events": [ALWAYS]}, True),
        ("1.17.0", {"events": [ALWAYS, {"fixed": "1.17.1"}]}, True),
        ("1.17.0", {"events": [ALWAYS, {"fixed": "1.17"}]}, False),
        ("1.17.0rc1", {"events": [ALWAYS, {"fixed": "1.17.0"}]}, True),
        ("1.9", {"events": [{"introduced": "1.10"}]}, False),  # by number, not by letter
        ("1.10", {"events": [{"introduced": "1.10"}]}, True),
        ("1.17.0", {"events": [ALWAYS, {"last_affected": "1.17"}]}, True),
        ("1.17.0.post1", {"events": [ALWAYS, {"last_affected": "1.17"}]}, False),
        ("3", {"events": [{"introduced": "3"}, {"last_affected": "3"}]}, True),
        ("3.1", {"events": [{"last_affected": "3"}, {"introduced": "3"}]}, False),
        ("2.5", {"events": [ALWAYS, {"fixed": "1"}, {"introduced": "2"}, {"fixed": "3"}]}, True),
        ("1.5", {"events": [{"fixed": "3"}, {"introduced": "2"}, {"fixed": "1"}, ALWAYS]}, False),
        ("4", {"versions": ["4"], "events": [ALWAYS, {"fixed": "1"}]}, True),
        ("1", {"versions": ["2"], "ranges": [{"type": "GIT", "events": [ALWAYS]}]}, False),
    ],
)
def test_a_record_means_the_versions_that_osv_says_it_does(
    tmp_path: Path, version: str, fields: dict[str, Any], affected: bool
) -> None:
    release = Release("six", version)
    answer = compare(tmp_path, record(**fields), releases=[release])
    assert [found for found, _ in answer.vulnerable] == [release] * affected
    assert answer.answered == {release}


@pytest.mark.parametrize(
    ("changed", "affected"),
    [
        ({}, True),
        ({"name": "importlib-resources"}, True),
        ({"name": "importlib"}, False),
        ({"ecosystem": "npm"}, False),
        ({"withdrawn": "2026-05-05T00:00:00Z"}, False),
    ],
)
def test_what_a_record_is_of_decides(tmp_path: Path, changed: dict[str, str], affected: bool) -> None:
    """Names are compared in the index's normal form; a withdrawn record and one of another index mean nothing."""
    release = Release("importlib-resources", "7.0")
    told = record(**{"name": "Importlib_Resources", "events": [ALWAYS], **changed})
    answer = compare(tmp_path, told, record("another", events=[ALWAYS]), releases=[release])
    assert [found for found, _ in answer.vulnerable] == [release] * affected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"events": [ALWAYS, {"fixed": "r17-beta.x"}]}, "'r17-beta.x', which is not a version"),
        ({"ranges": [{"type": "GIT", "events": [ALWAYS]}]}, "names no versions"),
        ({}, "names no versions"),
    ],
)
def test_a_release_that_a_record_cannot_be_compared_with_is_not_clean(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    other = Release("idna", "3.20")
    answer = compare(tmp_path, record(**fields), releases=[SIX, other])
    assert answer.answered == {other}
    assert answer.vulnerable == ()
    assert "PYSEC-2026-1 of six 1.17.0" in answer.reason
    assert said in answer.reason


@pytest.mark.parametrize(
    "broken",
    [
        '{"id": "PY',
        "[]",
        "{}",
        '{"id": "A", "affected": 3}',
        '{"id": "A", "affected": [{"package": {"ecosystem": "PyPI"}}]}',
        '{"id": "A", "affected": [{"package": {"ecosystem": "PyPI", "name": "six"}, "ranges": [{}]}]}',
    ],
)
def test_a_broken_record_ends_the_comparison_and_is_named(tmp_path: Path, broken: str) -> None:
    with pytest.raises(ValueError, match=r"must be a record of OSV in JSON\. Received: .*1\.json"):
        compare(tmp_path, record(events=[ALWAYS]), broken)


def test_a_place_without_records_of_the_index_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none in"):
        compare(tmp_path, record(ecosystem="npm", events=[ALWAYS]))
    (tmp_path / "no.zip").write_bytes(b"PK")
    for place in (tmp_path / "no.zip", tmp_path / "gone.zip"):
        with pytest.raises(ValueError, match="a folder or a zip of OSV's records"):
            advisories.compare([SIX], place)


def test_files_of_advisories_audit_every_release_without_a_network(tmp_path: Path) -> None:
    clean = run_audit(f"--advisories={written(tmp_path / 'clean', record('not-locked', events=[ALWAYS]))}")
    assert clean.returncode == audit.CLEAN, clean.stderr
    total = len(audit.releases_of())
    told = "(1 records of OSV in clean, the newest of 2026-05-04)"
    assert f"{total} of {total} releases audited, 0 vulnerable {told}" in clean.stdout

    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("PYSEC-2026-1.json", json.dumps(record("PyWin32", events=[ALWAYS, {"fixed": "313"}])))
    found = run_audit(f"--advisories={archive}")
    assert found.returncode == audit.BROKEN
    assert "error: requirements.lock: pywin32 312: PYSEC-2026-1 (mended in 313)" in found.stderr

    broken = run_audit(f"--advisories={written(tmp_path / 'broken', '{')}")
    assert broken.returncode == audit.BROKEN
    assert "error: an advisory must be a record of OSV in JSON" in broken.stderr
    assert "NOT AUDITED" in broken.stderr
