"""What the tests of submitting share."""

import functools
from pathlib import Path

import yaml
from kfp_server import FakeKfp

from pipelines import cluster, submit, transfer_learning
from pipelines.pipeline_versions import compile_version

_build = transfer_learning.build
_built: dict[str, object] = {}
compiled: dict[str, object] = {}


def built_once(settings, **options):
    """The real pipeline, once for the same settings: kfp reads the whole stack for every option of a step."""
    key = repr((settings, options))
    if key not in _built:
        _built[key] = _build(settings, **options)
    return _built[key]


@functools.wraps(compile_version)
def compiled_once(*arguments, **options):
    """The real compilation, once for the same arguments."""
    key = repr((arguments, options))
    if key not in compiled:
        compiled[key] = compile_version(*arguments, **options)
    return compiled[key]


def prepare(monkeypatch) -> None:
    """Forget the environment's own cluster, and compile the same pipeline once."""
    for name in cluster.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(submit, "compile_version", compiled_once)
    monkeypatch.setattr(transfer_learning, "build", built_once)


def run(kfp: FakeKfp, *arguments: str) -> int:
    """The exit code of the command line."""
    return submit.main(["--host", kfp.url, "--poll-seconds", "0.01", *arguments])


def settings_file(folder: Path, **content) -> str:
    """A settings file with this content."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def one_line(text: str) -> str:
    """The last line of stderr, and that it is the only one that is no warning."""
    lines = [line for line in text.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    assert "Traceback" not in text
    return lines[0]
