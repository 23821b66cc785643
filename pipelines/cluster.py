"""Which Kubeflow Pipelines a run is sent to, and who sends it: settings file, then environment, then flags."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.setting_rules import SettingsError, read_yaml, shown

AUTH_KINDS = ("none", "token", "service-account", "cookie", "dex")
# Where the kubelet projects the token for KFP's audience, as kfp's own client expects it.
SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105  # nosec B105 # a path
# Keys of the settings file; secrets themselves are not among them, only the files that hold them.
FILE_KEYS = (
    "host",
    "ui",
    "namespace",
    "experiment",
    "auth",
    "token_file",
    "cookie_file",
    "user",
    "password_file",
    "ca_cert",
    "service_account",
)
_FILES = ("token_file", "cookie_file", "password_file", "ca_cert")
_SECRETS = ("token", "cookie", "password")
# Environment variables: kfp's own two, and GRAFTFLOW_HOST, GRAFTFLOW_TOKEN and so on, one a field. Of several for one
# field the last that is set wins.
ENVIRONMENT = {
    "KF_PIPELINES_ENDPOINT": "host",
    "KF_PIPELINES_UI_ENDPOINT": "ui",
    **{f"GRAFTFLOW_{name.upper()}": name for name in (*FILE_KEYS, *_SECRETS)},
}
# RFC 1123, as Kubernetes has it for names of objects.
_ACCOUNT = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class ClusterSettingsError(ValueError):
    """A setting of the cluster that breaks a rule; one line: rule, received value, choices; never a secret."""


@dataclass(frozen=True)
class Cluster:
    """Where to submit, and as whom.

    Attributes:
        host: address of KFP's API, e.g. ``http://localhost:8080`` or ``https://kubeflow.example/pipeline``.
        ui: address that a browser opens, where it is another one; empty for ``host``.
        namespace: the profile of a multi-user Kubeflow; not sent to a KFP that has none.
        experiment: name of the experiment, which is made where it does not exist.
        auth: one of :data:`AUTH_KINDS`.
        token: a bearer token; or ``token_file``, read again for every request, since a kubelet renews it.
        cookie: e.g. ``authservice_session=…`` or ``oauth2_proxy_kubeflow=…``.
        user: of Dex, with ``password``.
        ca_cert: file of the certificate authority, PEM; empty for the public ones.
        service_account: that the run's pods have, e.g. one with a cloud's workload identity; empty for KFP's default.
    """

    host: str
    ui: str = ""
    namespace: str = ""
    experiment: str = "graftflow"
    auth: str = "none"
    token: str = field(default="", repr=False)
    token_file: str = ""
    cookie: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    ca_cert: str = ""
    service_account: str = ""

    def page(self, fragment: str) -> str:
        """Return the address of a page of KFP's UI, e.g. of ``runs/details/1``."""
        return f"{self.ui or self.host}/#/{fragment}"

    def credentials(self) -> str:
        """Return in words what is sent as credentials, without any of it."""
        shown = {
            "none": "none",
            "token": f"bearer token from {self.token_file}" if self.token_file else "bearer token ***",
            "service-account": f"service-account token from {self.token_file}",
            "cookie": "cookie ***",
            "dex": f"Dex login of '{self.user}', password ***",
        }
        return shown[self.auth]


def load(path: str | Path | None, environment: Mapping[str, str], flags: Mapping[str, str | None]) -> Cluster:
    """Return the cluster that a settings file, the environment and flags describe; later ones win.

    A credential chooses its kind of authentication, unless ``auth`` stands beside it.

    Args:
        path: YAML with a mapping ``cluster``; other keys are not looked at. ``None`` for no file.
        environment: see :data:`ENVIRONMENT`.
        flags: fields of :class:`Cluster`, ``cookie_file`` and ``password_file``; ``None`` where not given.

    Raises:
        ClusterSettingsError: for the first value that breaks its rule.
    """
    from_environment = {key: environment[name] for name, key in ENVIRONMENT.items() if environment.get(name)}
    from_flags = {key: value for key, value in flags.items() if value is not None}
    values: dict[str, str] = {}
    auth = "none"
    for source in (_section(path), from_environment, from_flags):
        values.update(source)
        for secret in _SECRETS:  # a file given later replaces a secret given before, and the other way round
            if source.get(f"{secret}_file") and not source.get(secret):
                values.pop(secret, None)
            elif source.get(secret):
                values.pop(f"{secret}_file", None)
        auth = source.get("auth") or _kind_of(source, before=auth)
    values["auth"] = auth
    _check(auth in AUTH_KINDS, f"auth must be one of {', '.join(AUTH_KINDS)}", auth)
    return _complete(values)


def load_parameters(path: str | Path | None) -> dict[str, Any]:
    """Return the mapping ``parameters`` of a settings file, its names and values not yet checked.

    Raises:
        ClusterSettingsError: where it is no mapping.
    """
    found = _read(path).get("parameters")
    _check(found is None or isinstance(found, dict), "parameters must hold a mapping", found)
    return dict(found or {})


def _complete(values: dict[str, str]) -> Cluster:
    host = _address("host", values.get("host", ""))
    for name in _FILES:
        if values.get(name):
            given = Path(values[name]).expanduser()
            _check(given.is_file(), f"{name} must be a file", str(given))
            values[name] = str(given)
    for name in ("cookie", "password"):
        if values.get(f"{name}_file"):
            values[name] = _secret_of(f"{name}_file", values[f"{name}_file"])
    auth = values["auth"]
    if auth == "service-account" and not values.get("token_file"):
        values["token_file"] = SERVICE_ACCOUNT_TOKEN
        _check(
            Path(SERVICE_ACCOUNT_TOKEN).is_file(),
            "auth 'service-account' needs a projected token with audience pipelines.kubeflow.org, in a pod, "
            "or --token-file",
            f"no file {SERVICE_ACCOUNT_TOKEN}",
        )
    if values.get("token_file"):
        _secret_of("token_file", values["token_file"])
    for kind, need in (("token", "token"), ("cookie", "cookie"), ("dex", "user"), ("dex", "password")):
        there = values.get(need) or (need == "token" and values.get("token_file"))
        _check(
            auth != kind or bool(there),
            f"auth '{kind}' needs a {need}: GRAFTFLOW_{need.upper()}"
            + ("" if need == "user" else f" or {need}_file"),
            "none",
        )
    for name in _SECRETS:
        _check(
            values.get(name, "").isprintable(), f"a {name} must be one line of printable characters", "***"
        )
    account = values.get("service_account", "")
    _check(
        not account or _ACCOUNT.fullmatch(account) is not None,
        "service_account must be the name of one in the run's namespace: small letters, digits, - and .",
        account,
    )
    return Cluster(
        host=host,
        ui=_address("ui", values["ui"]) if values.get("ui") else "",
        namespace=values.get("namespace", ""),
        experiment=values.get("experiment") or "graftflow",
        auth=auth,
        **{
            name: values.get(name, "")
            for name in ("token", "token_file", "cookie", "user", "password", "ca_cert", "service_account")
        },
    )


def _kind_of(source: Mapping[str, str], *, before: str) -> str:
    """Return the kind of authentication that the credentials of one source choose."""
    if source.get("cookie") or source.get("cookie_file"):
        return "cookie"
    if source.get("token"):
        return "token"
    if source.get("token_file"):
        return before if before == "service-account" else "token"
    return "dex" if source.get("user") else before


def _section(path: str | Path | None) -> dict[str, str]:
    """Return the mapping ``cluster`` of a settings file; its paths start at the file's folder."""
    section = _read(path).get("cluster")
    _check(section is None or isinstance(section, dict), "cluster must hold a mapping", section)
    found: dict[str, str] = {}
    for key, value in (section or {}).items():
        if key in _SECRETS:
            raise ClusterSettingsError(
                f"cluster.{key} must not stand in a settings file: give {key}_file, or GRAFTFLOW_{key.upper()} in "
                "the environment. Received: ***"
            )
        _check(key in FILE_KEYS, f"a key of cluster must be one of {', '.join(FILE_KEYS)}", key)
        _check(value is None or isinstance(value, str), f"cluster.{key} must be text", value)
        if value:
            folder = Path(path or ".").parent
            found[key] = str(folder / Path(value).expanduser()) if key in _FILES else value
    return found


def _read(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return read_yaml(path)
    except SettingsError as error:
        raise ClusterSettingsError(str(error)) from error


def _address(name: str, text: str) -> str:
    """Return an address without its fragment (of a page copied from a browser) and without a last slash."""
    _check(bool(text), f"{name} must be given: --host, GRAFTFLOW_HOST or cluster.host in --settings", "none")
    try:
        parts = urlsplit(text.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid, parts = False, urlsplit("")
    shown = f"***@{text.rpartition('@')[2]}" if "@" in text else text
    _check(valid, f"{name} must be an address such as http://localhost:8080", shown)
    _check("@" not in parts.netloc, f"{name} must carry no user and password: give user and password", shown)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}".removesuffix("/apis/v2beta1")


def _secret_of(name: str, path: str) -> str:
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterSettingsError(
            f"{name} must be a text file that can be read. Received: '{path}'"
        ) from error
    _check(bool(secret), f"{name} must hold a secret", f"'{path}', which is empty")
    _check_printable(name, secret)
    return secret


def _check_printable(name: str, secret: str) -> None:
    printable = secret.isprintable() and (secret.isascii() or name.startswith("password"))
    _check(printable, f"{name} must be one line of printable characters", "***")


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ClusterSettingsError for the first name that is no parameter of the pipeline."""
    choices = list(known)
    for name in names:
        close = difflib.get_close_matches(str(name), choices, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Choices: {', '.join(choices)}"
        if name not in choices:
            raise ClusterSettingsError(
                f"a parameter must be one of the pipeline's. Received: {name!r}. {hint}"
            )


def _check(holds: bool, rule: str, received: Any) -> None:
    if not holds:
        plain = isinstance(received, str) and received.isprintable()
        raise ClusterSettingsError(f"{rule}. Received: {received if plain else shown(received)}")
