"""Whether a version's files are still those that were published, as the history beside the model notes them."""

import logging
from pathlib import Path

from graftflow import release_histories
from graftflow.errors import InputError
from graftflow.files import sha256_directory
from graftflow.serving.status import Code, ServingError

log = logging.getLogger("graftflow.serving")


def refuse_damaged(path: Path) -> None:
    """Refuse a version whose bytes changed since it was published; one that no history tells of is let through.

    TensorFlow itself checks the variables of a SavedModel, but neither its graph nor its assets.

    Args:
        path: folder of the version, ``<store>/<model>/<version>``; ``<store>/releases.json`` notes its sha256.

    Raises:
        ServingError: DATA_LOSS where the files have another one.
    """
    model, history = path.parent, path.parent.parent / release_histories.FILE
    try:
        text = history.read_text(encoding="utf-8")
        events = release_histories.Histories(text, str(history)).events(model.name)
    except FileNotFoundError:
        return
    except (InputError, OSError, UnicodeDecodeError) as error:
        # The history is for people and for `promote`; models do not stop for it.
        log.warning(
            "version %s of %s is not compared with what was published: %s", path.name, model.name, error
        )
        return
    noted = release_histories.noted_sha256(events, int(path.name))
    if noted and (found := sha256_directory(path)) != noted:
        raise ServingError(
            Code.DATA_LOSS,
            f"its files have the sha256 {found}, not {noted}, which {history} notes: they were changed or damaged",
        )
