"""The login at Dex, against a Dex and an authenticating proxy in front of a Kubeflow Pipelines, over HTTP."""

import secrets
from urllib.parse import parse_qs

import pytest
from kfp_server import FakeKfp, serving
from submissions import one_line, prepare, run, settings_file


class FakeDex(FakeKfp):
    """A Kubeflow whose every page leads to Dex until the session's cookie is there."""

    proxy = False  # oauth2-proxy's own page comes first
    connectors = False  # Dex offers a choice of connectors first
    approval = False  # Dex asks for consent
    sessions = ()

    def respond(self, method, path, query, body, headers):
        """An answer before KFP's own, or None: (status, content type, body, headers)."""
        here, there = "/dex/auth/local/login", "/dex/auth" if self.connectors else "/dex/auth/local/login"
        session = (headers.get("Cookie") or "").removeprefix("oauth2_proxy_kubeflow=")
        match method, path:
            case "GET", "/dex/auth":
                return 200, "text/html", b"<a href='/dex/auth/local'>Log in with e-mail</a>"
            case "GET", "/dex/auth/local":
                return 302, "text/html", b"", {"Location": f"{here}?state=s"}
            case "GET", "/dex/auth/local/login":
                return 200, "text/html", b"<form method=post>"
            case "POST", "/dex/auth/local/login":
                given = {name: value[0] for name, value in parse_qs(body.decode()).items()}
                if given != {"login": "me@example.com", "password": "pass&word"}:
                    return 200, "text/html", b"Invalid Email Address and password."
                return (
                    303,
                    "text/html",
                    b"",
                    {"Location": "/dex/approval" if self.approval else "/oauth2/callback"},
                )
            case "GET", "/dex/approval":
                return 200, "text/html", b"<form method=post>"
            case "POST", "/dex/approval":
                assert parse_qs(body.decode()) == {"approval": ["approve"]}
                return 303, "text/html", b"", {"Location": "/oauth2/callback"}
            case "GET", "/oauth2/callback":
                made = secrets.token_hex(8)
                self.sessions = (*self.sessions, made)
                cookie = f"oauth2_proxy_kubeflow={made}; Path=/; HttpOnly"
                return 302, "text/html", b"", {"Location": "/pipeline/", "Set-Cookie": cookie}
            case "GET", "/oauth2/start":
                return 302, "text/html", b"", {"Location": f"{there}?state=s"}
        if session in self.sessions:
            return (200, "text/html", b"<html>Kubeflow") if path == "/pipeline/" else None
        if self.proxy:
            return 403, "text/html", b"<html>Sign in with OpenID Connect"
        return 302, "text/html", b"", {"Location": f"{there}?state=s"}


@pytest.fixture
def kfp(monkeypatch):
    prepare(monkeypatch)
    monkeypatch.setenv("GRAFTFLOW_PASSWORD", "pass&word")
    with serving(FakeDex()) as server:
        yield server


@pytest.mark.parametrize("ways", [(), ("proxy",), ("connectors",), ("proxy", "connectors", "approval")])
def test_a_user_and_a_password_open_the_way(kfp, ways):
    for way in ways:
        setattr(kfp, way, True)
    assert run(kfp, "--user", "me@example.com") == 0
    assert len(kfp.runs) == len(kfp.sessions) == 1


def test_a_wrong_password_is_told_without_it(kfp, capsys, monkeypatch):
    monkeypatch.setenv("GRAFTFLOW_PASSWORD", "guess-at-it")
    assert run(kfp, "--user", "me@example.com") == 3
    line = one_line(capsys.readouterr().err)
    assert "Dex refused the user or the password. Received: user 'me@example.com'" in line
    assert "guess-at-it" not in line


def test_a_host_that_leads_elsewhere_is_told(kfp, capsys):
    kfp.faults["/"] = [(302, "text/html", b"", {"Location": "/elsewhere"})]
    kfp.faults["/elsewhere"] = [(200, "text/html", b"a page of somebody else")]
    assert run(kfp, "--user", "me@example.com") == 3
    assert "needs a host that leads to Dex's login" in one_line(capsys.readouterr().err)


def test_the_password_may_stand_in_a_file_beside_the_settings(kfp, tmp_path, monkeypatch):
    monkeypatch.delenv("GRAFTFLOW_PASSWORD")
    (tmp_path / "password").write_text("pass&word\n", encoding="utf-8")
    given = settings_file(tmp_path, cluster={"user": "me@example.com", "password_file": "password"})
    assert run(kfp, "--settings", given) == 0


def test_an_unreachable_host_is_told(kfp, capsys):
    kfp.faults["*"] = ["drop"]
    assert run(kfp, "--user", "me@example.com") == 3
    assert "cannot reach http://127.0.0.1" in one_line(capsys.readouterr().err)
