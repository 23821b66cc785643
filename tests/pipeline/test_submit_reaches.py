"""The way to a cluster: credentials, namespaces, TLS, and what is told where no KFP answers."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kfp_server import FakeKfp, serving
from submissions import one_line, prepare, run, settings_file

from tests.unit.certificates import self_signed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kfp(monkeypatch):
    prepare(monkeypatch)
    with serving(FakeKfp()) as server:
        yield server


PAGE = (200, "text/html; charset=utf-8", b"<html>log in</html>")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (PAGE, "answered with a page (text/html; charset=utf-8) instead of KFP's API: a login is needed"),
        ((302, "text/html", b"", {"Location": "/dex/auth"}), "answered with a redirect (302)"),
        ((401, "application/json", b'{"message": "no identity"}'), "expired: no identity"),
        (
            (403, "text/plain", b"RBAC: access denied"),
            "does not allow this to these credentials (auth: none)",
        ),
        ((404, "text/html", b"nothing here"), "has no KFP API at /apis/v2beta1"),
        ((503, "text/plain", b"no healthy upstream"), "answered 503"),
        ((200, "application/json", b"[1]"), "has no KFP API"),
        ((502, "text/plain", b"\xff\xfe"), "has no KFP API"),
        ("drop", "cannot reach"),
    ],
)
def test_what_is_no_kfp_is_told_in_one_line(kfp, capsys, fault, said):
    kfp.faults["*"] = [fault]
    assert run(kfp) == 3
    assert said in one_line(capsys.readouterr().err)
    assert len(kfp.requests) == 1


def test_a_login_page_in_the_middle_is_not_taken_for_a_run(kfp, capsys):
    kfp.faults["/apis/v2beta1/runs"] = [PAGE]
    assert run(kfp) == 3
    assert "a login is needed" in one_line(capsys.readouterr().err)
    assert not kfp.runs


def test_an_answer_without_an_id_is_not_taken_for_a_run(kfp, capsys):
    kfp.faults["/apis/v2beta1/runs"] = [(200, "application/json", b"{}")]
    assert run(kfp) == 3
    assert "KFP must answer with the id of the run" in one_line(capsys.readouterr().err)


def test_an_unreachable_host_is_told_at_once_by_the_command():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        command = [
            sys.executable,
            "-m",
            "pipelines.submit",
            "--host",
            f"http://127.0.0.1:{taken.getsockname()[1]}",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    line = one_line(done.stderr)
    assert "Connection refused" in line
    assert "port-forward" in line


def test_a_token_is_sent_and_a_wrong_one_is_told_without_it(kfp, capsys, tmp_path, monkeypatch):
    kfp.token = "right-token"
    token_file = tmp_path / "token"
    token_file.write_text("right-token\n", encoding="utf-8")
    assert run(kfp, "--token", "right-token") == 0
    assert run(kfp, "--token-file", str(token_file)) == 0
    assert run(kfp, "--auth", "service-account", "--token-file", str(token_file)) == 0
    file = settings_file(tmp_path, cluster={"token_file": "token"})
    assert run(kfp, "--settings", file) == 0
    monkeypatch.setenv("GRAFTFLOW_TOKEN", "wrong-token")
    capsys.readouterr()
    assert run(kfp, "--settings", file) == 3
    line = one_line(capsys.readouterr().err)
    assert "(auth: token)" in line
    assert "wrong-token" not in line


def test_a_cookie_is_sent(kfp, capsys, monkeypatch):
    kfp.cookie = "authservice_session=abc"
    assert run(kfp) == 3
    assert "a login is needed (auth is 'none')" in one_line(capsys.readouterr().err)
    monkeypatch.setenv("GRAFTFLOW_COOKIE", "authservice_session=abc")
    assert run(kfp) == 0


def test_a_namespace_is_sent_to_a_multi_user_kubeflow_only(kfp, capsys):
    assert run(kfp, "--namespace", "team") == 0  # single-user: a namespace would be refused
    kfp.multi_user = True
    assert run(kfp, "--namespace", "team", "--experiment", "mine") == 0
    assert list(kfp.experiments.values())[-1]["namespace"] == "team"
    capsys.readouterr()
    assert run(kfp) == 2
    assert "namespace must name your profile" in one_line(capsys.readouterr().err)
    assert run(kfp, "--namespace", "nobody") == 3
    assert "in namespace 'nobody': does it exist" in one_line(capsys.readouterr().err)


def test_an_archived_experiment_is_told(kfp, capsys):
    assert run(kfp) == 0
    next(iter(kfp.experiments.values()))["storage_state"] = "ARCHIVED"
    capsys.readouterr()
    assert run(kfp) == 2
    assert "the experiment must not be archived. Received: 'graftflow'" in one_line(capsys.readouterr().err)


def test_tls_is_checked_against_the_authority_that_is_named(tmp_path, capsys):
    key, certificate = self_signed()
    both, authority = tmp_path / "server.pem", tmp_path / "ca.pem"
    both.write_bytes(key + certificate)
    authority.write_bytes(certificate)
    with serving(FakeKfp(), certificate=both) as kfp:
        assert run(kfp) == 3
        line = one_line(capsys.readouterr().err)
        assert "cannot trust https://127.0.0.1" in line
        assert "self-signed certificate" in line
        assert run(kfp, "--ca-cert", str(authority)) == 0
        assert len(kfp.runs) == 1
