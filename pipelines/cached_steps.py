"""kfp.local's cache of finished steps, with its trust in disks taken away: what is damaged is no hit and made anew."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kfp.local import cache

from pipelines.run_index import CACHE_DIGEST

_ARTIFACT = "__kfp_artifact__"


class CheckedCache(cache.LocalCache):
    """A cache whose entries carry a digest, and that answers only with artifacts whose seals hold.

    An entry that is cut or altered, and one whose artifacts are, is dropped: the step runs again.

    Args:
        cache_root: folder of the entries.
        say: takes one line for each entry that is dropped.
    """

    def __init__(self, cache_root: str, say: Callable[[str], None]) -> None:
        super().__init__(cache_root)
        self._say = say

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keep what a step has returned and written."""
        digest = _digest(self._serialize_outputs(outputs))
        super().put(key, {**outputs, CACHE_DIGEST: digest})

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what a step returned and wrote, or ``None`` where it must run."""
        entry = Path(self._entry_path(key))
        if not entry.exists():
            return None
        content = read_entry(entry)
        damage = f"its entry '{entry}' is cut or altered" if content is None else _damage_of(content)
        if content is None or damage:
            entry.unlink(missing_ok=True)
            self._say(f"A step that was cached runs again: {damage}")
            return None
        return self._deserialize_outputs(content)


def read_entry(path: Path) -> dict[str, Any] | None:
    """Return what an entry says of a step's outputs by name; ``None`` for one that is cut or altered."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop(CACHE_DIGEST)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return content if digest == _digest(content) else None


@contextlib.contextmanager
def checked_cache(cache_root: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let kfp.local use a :class:`CheckedCache` of this folder while the block runs."""
    cache._cache_singleton, cache._cache_singleton_root = CheckedCache(cache_root, say), cache_root
    try:
        yield
    finally:
        cache.reset_local_cache_singleton()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damage_of(content: dict[str, Any]) -> str:
    """Return what is wrong with the artifacts of an entry, or ``""``."""
    from graftflow.files import sha256_file
    from graftflow.seals import find_damage

    artifacts = [value for value in content.values() if isinstance(value, dict) and _ARTIFACT in value]
    for artifact in artifacts:
        uri, noted = artifact["uri"], artifact["metadata"].get("sha256")
        if "://" in uri:
            continue
        if not Path(uri).exists():
            return f"its '{artifact['name']}' is gone from '{uri}'"
        if Path(uri).is_dir():
            if damage := find_damage(uri):
                return f"its artifact '{artifact['name']}' has {damage[1]}"
        # What a page's step noted; files of metrics hold what the entry says of them too, and nothing reads them.
        elif noted and sha256_file(uri) != noted:
            return f"its '{artifact['name']}' at '{uri}' is cut or altered"
    return ""
