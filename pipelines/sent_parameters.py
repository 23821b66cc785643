"""The parameters that a submission sends: read from file and flags, typed and checked as far as this machine can."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from pipelines import parameters
from pipelines.cluster import ClusterSettingsError, refuse_unknown
from pipelines.setting_rules import shown

_WORDS = {str: "text (in quotes where it looks like a number)", int: "a whole number", float: "a number"}


def read(
    pipeline: Any, *, from_file: Mapping[str, Any], pairs: Iterable[str], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every parameter with the type of the pipeline's signature; later sources win over its defaults.

    All are sent, so that the page of a run tells each of them.

    Args:
        pipeline: the pipeline.
        from_file: the mapping ``parameters`` of the settings file.
        pairs: ``name=value`` of ``--param``.
        flags: values of the pipeline's own flags; ``None`` where not given.

    Raises:
        ClusterSettingsError: an unknown name, or a value of another type.
    """
    defaults = parameters.defaults(pipeline)
    refuse_unknown(from_file, defaults)
    values = dict(defaults)
    values.update({name: _of_type(name, value, type(defaults[name])) for name, value in from_file.items()})
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign:
            raise ClusterSettingsError(f"--param must be name=value. Received: '{pair}'")
        refuse_unknown([name], defaults)
        values[name] = _of_text(name, text, type(defaults[name]))
    values.update({name: value for name, value in flags.items() if name in defaults and value is not None})
    return values


def check(values: Mapping[str, Any]) -> None:
    """Check the parameters by the pipeline's own rules, but for those that only the cluster can answer.

    Whether a file or folder is there, and a store can be written, is seen by the step ``check_settings``. A path must
    be absolute: it is one of the pods, and of a volume mounted there.

    Raises:
        ValueError: for the first parameter that breaks its rule.
    """
    from graftflow import archives, backbones, checks, sources

    kind, place = sources.parse_source(values["dataset"])
    skipped = {"cache", "store"}
    if kind in ("directory", "archive") and not archives.is_url(place):
        _absolute("dataset", place)
        skipped.add("dataset")
    if backbones.is_file(values["weights"]):
        _absolute("weights", values["weights"])
        skipped.add("weights")
    if not values["store"].strip():
        raise ClusterSettingsError(
            "store must be a folder or an address such as gs://bucket/models. Received: ''"
        )
    for name in ("store", "cache"):
        if values[name] and "://" not in values[name]:
            _absolute(name, values[name])
    checks.check_run({name: value for name, value in values.items() if name not in skipped})


def _absolute(name: str, path: str) -> None:
    if not PurePosixPath(path).is_absolute():
        raise ClusterSettingsError(
            f"{name} must be an absolute path in the pods of the cluster, or an address. Received: '{path}'"
        )


def _of_type(name: str, value: Any, kind: type) -> Any:
    """Return a value of YAML in the type of the signature; whole numbers are numbers, and nothing else is guessed."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML reads 3e-5 as text
        return _of_text(name, value, kind)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ClusterSettingsError(f"parameters.{name} must be {_WORDS[kind]}. Received: {shown(value)}")
    return value


def _of_text(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ClusterSettingsError(f"{name} must be {_WORDS[kind]}. Received: '{text}'") from error
