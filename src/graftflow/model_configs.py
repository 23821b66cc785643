"""``models.config``: TensorFlow Serving's ``ModelServerConfig`` in text form, which both servers read and poll.

Only the entry of one model is ever changed; other entries, and fields that are not ours, stay. Comments do not.
Importing this module loads no TensorFlow.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import text_format

from graftflow.errors import InputError

FILE = "models.config"
LABELS = ("stable", "canary")
_HEADER = (
    "# Which versions a model server loads (--model_config_file), and their labels. graftflow writes base_path,\n"
    "# model_version_policy and the labels stable and canary of its models; all else is kept, but comments.\n"
    "# Change labels with: python -m graftflow.releases\n"
)


def read_config(text: str | None, place: str) -> Any:
    """Return a ``ModelServerConfig``; one without models for ``None`` or nothing but space.

    Args:
        text: of the file.
        place: of the file, for messages.

    Raises:
        InputError: where it does not parse, is of another kind, or lists a model twice.
    """
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text or "", config)
    except text_format.ParseError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{place} must be a ModelServerConfig in text form. Received: {reason}. Nothing was changed: put it right, "
            "or move it away to have it written anew from releases.json"
        ) from error
    kind = config.WhichOneof("config")
    if kind not in ("model_config_list", None):
        raise InputError(f"{place} must hold a model_config_list. Received: {kind}")
    names = [entry.name for entry in config.model_config_list.config]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{place} must list each model once. Received: {', '.join(twice)} more than once")
    return config


def find_entry(config: Any, model_name: str) -> Any:
    """Return a model's ``ModelConfig``, or ``None``."""
    return next((e for e in config.model_config_list.config if e.name == model_name), None)


def labels_of(config: Any, model_name: str) -> dict[str, int] | None:
    """Return the labels ``stable`` and ``canary`` of a model, or ``None`` where it has no entry."""
    entry = find_entry(config, model_name)
    if entry is None:
        return None
    return {label: int(entry.version_labels[label]) for label in LABELS if label in entry.version_labels}


def with_model(
    config: Any, model_name: str, *, base_path: str, labels: Mapping[str, int], versions: Iterable[int]
) -> str:
    """Return the file's text with a model's entry as it shall be; ``config`` is changed.

    Args:
        config: a ``ModelServerConfig``.
        model_name: the model.
        base_path: of a new entry; that of an old one stays.
        labels: of ``stable`` and ``canary``; other labels of the entry stay.
        versions: numbers to load beside those that have a label.
    """
    entry = find_entry(config, model_name)
    if entry is None:
        entry = config.model_config_list.config.add(name=model_name, base_path=base_path)
    if not entry.model_type:
        entry.model_platform = "tensorflow"
    for label in LABELS:
        if label in labels:
            entry.version_labels[label] = labels[label]
        elif label in entry.version_labels:
            del entry.version_labels[label]
    loaded = sorted({*versions, *(int(number) for number in entry.version_labels.values())})
    entry.model_version_policy.Clear()
    entry.model_version_policy.specific.versions.extend(loaded)
    return _HEADER + str(text_format.MessageToString(config, as_utf8=True))
