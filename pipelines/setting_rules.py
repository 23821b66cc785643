"""The rules of a settings file's values: names, labels, quantities and paths as Kubernetes and KFP take them.

Each function returns the value as the pipeline wants it, a text where YAML gave a number, or raises SettingsError,
whose one line says the rule, the received value and, where there are some, the choices. ``where`` is what the setting
is called, such as ``gpu.count``.
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DATA_KEY = re.compile(r"[-._A-Za-z0-9]+")
# What both KFP's SDK and Kubernetes read alike (KFP also takes K, which Kubernetes does not know).
_CPU = re.compile(r"([0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}|[0-9]{1,12}m)")
_BYTES = re.compile(r"([0-9]{1,19})(Ki|Mi|Gi|Ti|Pi|Ei|M|G|T|P|E)?")
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_IMAGE = re.compile(r"(?![:@/])[!-~]+")
# Kubernetes' and KFP's own limits, of 32 and of 64 bits.
_MOST, _MOST_BYTES = 2**31 - 1, 2**63 - 1
_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = 10
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 300
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")


class SettingsError(ValueError):
    """A settings file that breaks a rule; the message is one line: rule, received value, choices."""


def check(holds: bool, rule: str, received: Any) -> None:
    """Raise SettingsError with this rule and value where the rule does not hold."""
    if not holds:
        raise SettingsError(f"{rule}. Received: {shown(received)}")


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut: ten lines of YAML can name billions of elements, by its anchors."""
    try:
        text = _REPR.repr(value)
        return text if len(text) <= 1000 else f"{text[:999]}…"
    except ValueError:  # a whole number of thousands of digits
        return "a number that is too long to show"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        SettingsError: there is no such file, it is no YAML, or it holds something else.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The settings file must exist. Received: '{path}' ({error.strerror})") from error
    except RecursionError as error:
        raise SettingsError(
            f"The settings file must be YAML. Received: '{path}' (nested too deeply)"
        ) from error
    except Exception as error:  # PyYAML raises whatever a malformed date, number or tag leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingsError(f"The settings file must be YAML. Received: '{path}' ({reason})") from error
    check(isinstance(content, dict), "The settings file must hold a mapping", str(path))
    return dict(content)


def whole(value: Any, where: str, *, least: int = 0) -> int:
    """Return a whole number from ``least``, of 31 bits."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    check(is_whole and value >= least, f"{where} must be a whole number from {least}", value)
    check(value <= _MOST, f"{where} must be at most {_MOST}", value)
    return int(value)


def flag(value: Any, where: str) -> bool:
    """Return true or false."""
    check(isinstance(value, bool), f"{where} must be true or false", value)
    return bool(value)


def text(value: Any, where: str) -> str:
    """Return a text, or a number as one; YAML's true, no and null must be quoted to be texts."""
    holds = isinstance(value, str | int | float) and not isinstance(value, bool)
    holds = holds and not (isinstance(value, int) and abs(value) > _MOST_BYTES)
    check(holds, f"{where} must be a text (in quotes, where YAML would read it as something else)", value)
    return str(value)


def choice(value: Any, where: str, choices: tuple[str, ...]) -> str:
    """Return one of the choices."""
    check(value in choices, f"{where} must be one of {', '.join(choices)}", value)
    return str(value)


def sequence(value: Any, where: str) -> list[Any]:
    """Return a list."""
    check(isinstance(value, list), f"{where} must be a list", value)
    return list(value)


def mapping(value: Any, where: str, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a mapping, whose keys are among ``keys`` where some are given."""
    check(isinstance(value, dict), f"{where} must hold a mapping", value)
    for key in value if keys else ():
        check(key in keys, f"a setting in {where} must be one of {', '.join(keys)}", key)
    return dict(value)


def image(value: Any, where: str) -> str:
    """Return the name of an image."""
    holds = isinstance(value, str) and bool(_IMAGE.fullmatch(value))
    check(holds, f"{where} must be an image such as registry/name:tag, without spaces", value)
    return str(value)


def dns_label(value: Any, where: str) -> str:
    """Return a name as RFC 1123 has it for a label: what a volume, and so what is mounted, may be called."""
    holds = isinstance(value, str) and len(value) <= 63 and bool(_DNS_LABEL.fullmatch(value))
    rule = f"{where} must be at most 63 small letters, digits and hyphens, a letter or digit at both ends"
    check(holds, rule, value)
    return str(value)


def object_name(value: Any, where: str) -> str:
    """Return a name as RFC 1123 has it for a subdomain: labels with dots between them."""
    rule = (
        f"{where} must be at most 253 small letters, digits, hyphens and dots, a letter or digit at both ends"
    )
    check(_is_subdomain(value), rule, value)
    return str(value)


def label_key(value: Any, where: str) -> str:
    """Return the key of a label, an annotation, a taint or a resource: ``[domain/]name``."""
    rule = (
        f"a key in {where} must be a name of at most 63 letters, digits, '-', '_' and '.', "
        "with a domain and '/' before it or not"
    )
    domain, slash, name = str(value).rpartition("/")
    holds = isinstance(value, str) and (not slash or _is_subdomain(domain)) and _is_qualified(name)
    check(holds, rule, value)
    return str(value)


def label_value(value: Any, where: str) -> str:
    """Return the value of a label: empty, or at most 63 letters, digits, ``-``, ``_`` and ``.``."""
    given = text(value, where)
    rule = f"{where} must be at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends"
    check(not given or _is_qualified(given), rule, value)
    return given


def labels(value: Any, where: str) -> dict[str, str]:
    """Return a mapping of label keys to label values."""
    return _pairs(value, where, label_key, label_value)


def annotations(value: Any, where: str) -> dict[str, str]:
    """Return a mapping of annotation keys to texts."""
    return _pairs(value, where, label_key, text)


def env_name(value: Any, where: str) -> str:
    """Return the name of an environment variable that is not one of those that graftflow and KFP set."""
    rule = f"an environment variable in {where} must be letters, digits and '_', no digit first"
    check(isinstance(value, str) and bool(_ENV.fullmatch(value)), rule, value)
    ours = value in ("GRAFTFLOW_IMAGE", "GRAFTFLOW_RUN_ID") or value.startswith("KFP_")
    check(not ours, f"{where} must leave GRAFTFLOW_IMAGE, GRAFTFLOW_RUN_ID and KFP_… to the pipeline", value)
    return str(value)


def env(value: Any, where: str) -> dict[str, str]:
    """Return a mapping of environment variables to texts."""
    return _pairs(value, where, env_name, text)


def keys_to_env(value: Any, where: str) -> dict[str, str]:
    """Return a mapping of the keys of a secret or a config map to environment variables."""
    check(isinstance(value, dict) and bool(value), f"{where} must map keys to environment variables", value)
    for key in value:
        holds = isinstance(key, str) and len(key) <= 253 and bool(_DATA_KEY.fullmatch(key))
        check(holds, f"a key in {where} must be letters, digits, '-', '_' and '.'", key)
    return {key: env_name(name, where) for key, name in value.items()}


def mount_path(value: Any, where: str) -> str:
    """Return an absolute path, without a slash at its end, that is not one of those that KFP mounts."""
    holds = isinstance(value, str) and value.startswith("/") and bool(value.strip("/"))
    holds = holds and ":" not in value and ".." not in value.split("/") and not re.search(r"\s", value)
    check(holds, f"{where} must be an absolute path below /, without '..', ':' and spaces", value)
    path = re.sub("/+", "/", value).rstrip("/")
    check(path not in KFP_MOUNTS.values(), f"{where} must not be a path that KFP mounts itself", value)
    return path


def sub_path(value: Any, where: str) -> str:
    """Return a path inside a volume."""
    given = text(value, where)
    holds = bool(given) and not given.startswith("/") and ".." not in given.split("/")
    check(
        holds, f"{where} must be a path inside the volume, without '/' at its start and without '..'", value
    )
    return given


# Volumes that KFP gives every step's pod, and where they lie.
KFP_MOUNTS = {
    "kfp-launcher": "/kfp-launcher",
    "gcs-scratch": "/gcs",
    "s3-scratch": "/s3",
    "minio-scratch": "/minio",
    "dot-local-scratch": "/.local",
    "dot-cache-scratch": "/.cache",
    "dot-config-scratch": "/.config",
}


def cpu(value: Any, where: str) -> str:
    """Return a number of cores, such as ``2``, ``0.5`` or ``500m``."""
    given = text(value, where)
    holds = bool(_CPU.fullmatch(given)) and cores(given) > 0
    check(holds, f"{where} must be a number of cores above 0 such as 2, 0.5 or 500m", value)
    return given


def cores(quantity: str) -> float:
    """Return the number of cores that a checked quantity means."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def memory(value: Any, where: str) -> str:
    """Return an amount of memory, such as ``4Gi`` or ``500M``."""
    given = text(value, where)
    holds = bool(_BYTES.fullmatch(given)) and 0 < octets(given) <= _MOST_BYTES
    check(
        holds,
        f"{where} must be a whole number above 0 with Ki, Mi, Gi, Ti, M, G, T or nothing after it",
        value,
    )
    return given


def octets(quantity: str) -> int:
    """Return the number of bytes that a checked quantity means."""
    found = _BYTES.fullmatch(quantity)
    number, unit = found.groups() if found else ("0", None)
    base = 1024 if unit and unit.endswith("i") else 1000
    return int(number) * base ** (" KMGTPE".index(unit[0]) if unit else 0)


def resources(value: Any, where: str) -> dict[str, str]:
    """Return the CPU and memory of a step: requests, and limits where they are given."""
    given = mapping(value, where, ("cpu", "memory", "cpu_limit", "memory_limit"))
    read: dict[str, Callable[[Any, str], str]] = {"cpu": cpu, "cpu_limit": cpu}
    return {key: read.get(key, memory)(amount, f"{where}.{key}") for key, amount in given.items()}


def duration(value: Any, where: str) -> str:
    """Return a pause such as ``30s``, ``5m`` or ``1h``; a number means seconds."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    given = f"{whole(value, where)}s" if is_whole else value if isinstance(value, str) else ""
    check(bool(_DURATION.fullmatch(given)), f"{where} must be a time such as 30s, 5m, 1h or 2d", value)
    return given


def seconds(value: Any, where: str) -> int:
    """Return the seconds of a time such as ``30s``, ``5m`` or ``1h``, above 0; a number means seconds."""
    given = duration(value, where)
    read = int(given[:-1]) * _SECONDS[given[-1]]
    check(read > 0, f"{where} must be a time above 0", value)
    check(read <= _MOST, f"{where} must be a time of at most {_MOST} seconds", value)
    return read


def toleration(value: Any, where: str) -> dict[str, Any]:
    """Return a toleration as ``kfp.kubernetes.add_toleration`` takes it."""
    given = mapping(value, where, ("key", "operator", "value", "effect", "toleration_seconds"))
    read = dict(given)
    operator = choice(given.get("operator", "Equal"), f"{where}.operator", ("Equal", "Exists"))
    if given.get("key") in (None, ""):
        check(
            operator == "Exists",
            f"{where} must have a key, or operator Exists, which tolerates every taint",
            given,
        )
    else:
        label_key(given["key"], where)
    if "value" in given:
        read["value"] = label_value(given["value"], f"{where}.value")
        check(
            operator == "Equal" or not read["value"],
            f"{where} must have no value with operator Exists",
            given,
        )
    if "effect" in given:
        choice(given["effect"], f"{where}.effect", _EFFECTS)
    if "toleration_seconds" in given:
        whole(given["toleration_seconds"], f"{where}.toleration_seconds")
        rule = f"{where} must have effect NoExecute with toleration_seconds"
        check(given.get("effect") == "NoExecute", rule, given)
    return {**read, "operator": operator}


def node_affinity(value: Any, where: str) -> dict[str, Any]:
    """Return a term of node affinity: ``{"expressions": […], "weight": 1 to 100 or None}``."""
    given = mapping(value, where, ("expressions", "weight"))
    weight = given.get("weight")
    if weight is not None:
        check(1 <= whole(weight, f"{where}.weight") <= 100, f"{where}.weight must be 1 to 100", weight)
    expressions = sequence(given.get("expressions"), f"{where}.expressions")
    check(bool(expressions), f"{where}.expressions must hold one expression at least", expressions)
    read = [_expression(e, f"{where}.expressions[{i}]") for i, e in enumerate(expressions)]
    return {"expressions": read, "weight": weight}


def _expression(value: Any, where: str) -> dict[str, Any]:
    given = mapping(value, where, ("key", "operator", "values"))
    operator = choice(given.get("operator"), f"{where}.operator", _OPERATORS)
    values = [label_value(v, f"{where}.values") for v in sequence(given.get("values", []), f"{where}.values")]
    if operator in ("In", "NotIn"):
        check(bool(values), f"{where}.values must hold one value at least with operator {operator}", values)
    elif operator in ("Gt", "Lt"):
        holds = len(values) == 1 and values[0].isdigit()
        check(holds, f"{where}.values must hold one whole number with operator {operator}", values)
    else:
        check(not values, f"{where} must have no values with operator {operator}", values)
    return {"key": label_key(given.get("key"), where), "operator": operator, "values": values}


def _pairs(
    value: Any, where: str, key: Callable[[Any, str], str], content: Callable[[Any, str], str]
) -> dict[str, str]:
    check(isinstance(value, Mapping), f"{where} must hold a mapping", value)
    return {key(name, where): content(given, f"{where}.{name}") for name, given in value.items()}


def _is_qualified(value: str) -> bool:
    return len(value) <= 63 and bool(_QUALIFIED.fullmatch(value))


def _is_subdomain(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= 253
        and all(_DNS_LABEL.fullmatch(part) for part in value.split("."))
    )
