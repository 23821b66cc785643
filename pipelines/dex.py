"""Logs in at Dex with a user and a password, as a browser does, and returns the session's cookie."""

import re
from urllib.parse import urljoin, urlsplit

import requests

from pipelines.cluster import Cluster

_TIMEOUT = (10, 60)  # seconds to connect, and to read


class LoginError(Exception):
    """A login that did not succeed; one line, without the password."""


def login(cluster: Cluster) -> str:
    """Return a Cookie header for ``cluster.host``, ``""`` where the host asks for no login.

    Follows the redirect to Dex (by way of oauth2-proxy's page, where there is one), takes the connector for local
    users and LDAP, and posts the form.

    Raises:
        LoginError: the host did not lead to Dex, or Dex refused.
        requests.RequestException: the host cannot be reached.
    """
    with requests.Session() as session:
        session.trust_env = False  # neither proxies nor .netrc: what is given is what is used
        session.verify = cluster.ca_cert or True
        page = session.get(cluster.host + "/", timeout=_TIMEOUT)
        if urlsplit(page.url).path.endswith("/oauth2/sign_in") or page.status_code in (401, 403):
            start = urljoin(page.url, "/oauth2/start")
            page = session.get(start, params={"rd": urlsplit(cluster.host).path or "/"}, timeout=_TIMEOUT)
        elif not page.history:
            return ""
        if re.search(r"/auth$", urlsplit(page.url).path):  # the choice of connectors
            chosen = re.sub(r"/auth\?", "/auth/local?", page.url)
            page = session.get(chosen, timeout=_TIMEOUT)
        if not re.search(r"/auth/[^/]+/login$", urlsplit(page.url).path):
            raise LoginError(
                f"auth 'dex' needs a host that leads to Dex's login. Received: '{cluster.host}', which leads to "
                f"{_without_query(page.url)} (status {page.status_code})"
            )
        answer = session.post(
            page.url, data={"login": cluster.user, "password": cluster.password}, timeout=_TIMEOUT
        )
        if not answer.history:
            raise LoginError(f"Dex refused the user or the password. Received: user '{cluster.user}'")
        if urlsplit(answer.url).path.endswith("/approval"):
            answer = session.post(answer.url, data={"approval": "approve"}, timeout=_TIMEOUT)
        cookie = "; ".join(f"{item.name}={item.value}" for item in session.cookies)
    if not cookie:
        raise LoginError(f"Dex's login gave no session. It ended at {_without_query(answer.url)}")
    return cookie


def _without_query(url: str) -> str:
    return url.partition("?")[0]
