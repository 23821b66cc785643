"""What is uploaded to Kubeflow Pipelines: the compiled pipeline, under a version name that tells its commit."""

import hashlib
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines import settings as settings_file
from pipelines.compile import compile_pipeline

ROOT = Path(__file__).resolve().parents[1]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it


@dataclass(frozen=True)
class Version:
    """One version of a pipeline.

    Attributes:
        pipeline: name of the pipeline.
        name: of the version: ``1a2b3c4d5e6f``, with ``-dirty-<digest>`` where the checkout has changes, or
            ``-<digest>`` where settings or flags change what is compiled.
        description: what a person reads beside it.
        text: the compiled YAML.
    """

    pipeline: str
    name: str
    description: str
    text: str


def compile_version(
    settings: settings_file.Settings, *, changed: bool, caching: bool = True, root: Path = ROOT
) -> Version:
    """Compile the pipeline and name its version.

    Args:
        settings: placement of the steps.
        changed: whether they differ from ``pipelines/settings.yaml``.
        caching: whether KFP may take steps from its cache.
        root: the checkout.
    """
    with tempfile.TemporaryDirectory(prefix="graftflow-") as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(path, settings)
        text = path.read_text(encoding="utf-8")
    documents: list[dict[str, Any]] = list(yaml.load_all(text, _LOADER))
    if not caching:
        for dag in _dags(documents[0]):
            for task in dag["tasks"].values():
                task["cachingOptions"] = {}
        text = yaml.safe_dump_all(documents, sort_keys=True)
    commit = _commit(root)
    # Two checkouts with the same commit, settings and flags must agree, whatever the order of keys.
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()[:8]
    plain = commit and not commit.endswith("-dirty") and not changed and caching
    return Version(
        pipeline=str(documents[0]["pipelineInfo"]["name"]),
        name=commit if plain else f"{commit or 'source'}-{digest}",
        description=f"graftflow at commit {commit or 'unknown'}{'' if caching else ', without caching'}",
        text=text,
    )


def _dags(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]


def _commit(root: Path) -> str:
    """Return the first 12 digits of the checkout's commit, with ``-dirty`` behind it where files differ."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
