"""Renders the overlays and checks what they render to, offline: ``python -m manifests.render``.

Each overlay becomes one YAML file that `kubectl apply -f` takes. It is written only where Kubernetes' schemas know
every field, the objects fit each other, and no pod asks for more rights than a model server needs.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from graftflow.errors import InputError, unknown_name
from graftflow.files import atomic_file, remove
from manifests import hardening, kustomizations, references, schemas
from manifests.documents import Document, checked, dump, ordered, parse

OVERLAYS = Path(__file__).with_name("overlays")
OUTPUT = Path("build") / "manifests"
BUILT_IN = "built-in"
COMMANDS = {"kustomize": ("kustomize", "build"), "kubectl": ("kubectl", "kustomize")}
_PATIENCE = 60  # seconds for one rendering by kustomize or kubectl


def overlays() -> list[str]:
    """Return the names of all overlays, such as ``local/cpu``."""
    return sorted(
        file.parent.relative_to(OVERLAYS).as_posix() for file in OVERLAYS.rglob(kustomizations.FILE)
    )


def renderer(wanted: str) -> str:
    """Return what renders: for ``auto`` Kustomize itself where it is installed, else the built-in part of it.

    Raises:
        InputError: where the wanted one is not on the PATH.
    """
    if wanted == "auto":
        return next((name for name in COMMANDS if shutil.which(name)), BUILT_IN)
    if wanted != BUILT_IN and not shutil.which(wanted):
        raise InputError(f"The renderer must be installed. Received: '{wanted}'. Choices: {BUILT_IN}")
    return wanted


def render(folder: Path, renderer: str) -> list[Document]:
    """Return the objects of an overlay, in the order in which they are to be applied.

    Args:
        folder: the folder of a ``kustomization.yaml``.
        renderer: ``built-in``, ``kubectl`` or ``kustomize``.

    Raises:
        InputError: where it cannot be rendered.
    """
    if renderer == BUILT_IN:
        return kustomizations.render(folder)
    try:
        done = subprocess.run(
            [*COMMANDS[renderer], str(folder)],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except (subprocess.SubprocessError, OSError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise InputError(f"{renderer} must render '{folder}'. Received: {reason}") from error
    source = f"the output of {renderer}"
    return ordered([checked(document, source) for document in parse(done.stdout, source)])


def problems(documents: list[Document], releases: Sequence[str] = schemas.RELEASES) -> list[str]:
    """Return all that is wrong with the objects of an overlay, one line each; none where all is well.

    Args:
        documents: the objects.
        releases: of Kubernetes, against whose schemas they are checked.
    """
    found = [line for release in releases for d in documents for line in schemas.problems(d, release)]
    # The other checks rely on the form.
    return list(dict.fromkeys(found)) or [*references.problems(documents), *hardening.problems(documents)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 where an overlay is wrong, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m manifests.render", description=__doc__)
    parser.add_argument("overlays", nargs="*", metavar="OVERLAY", help="such as local/cpu; default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder; default: {OUTPUT}")
    parser.add_argument(
        "--kubernetes",
        default=",".join(schemas.RELEASES),
        help="releases to check against, with commas; default: %(default)s",
    )
    parser.add_argument(
        "--with",
        dest="renderer",
        default="auto",
        choices=["auto", BUILT_IN, *COMMANDS],
        help="default: kustomize or kubectl where installed, else built-in",
    )
    given = parser.parse_args(arguments)
    try:
        known = overlays()
        for name in given.overlays:
            if name not in known:
                raise unknown_name("OVERLAY", name, known)
        return _render_all(given.overlays or known, given.output, given.kubernetes.split(","), given.renderer)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _render_all(names: list[str], output: Path, releases: list[str], wanted: str) -> int:
    tool, wrong = renderer(wanted), 0
    width = max(map(len, names))
    for name in names:
        documents = render(OVERLAYS / name, tool)
        file = output / f"{name.replace('/', '-')}.yaml"
        found = problems(documents, releases)
        if found:
            wrong += 1
            remove(file)
            print("\n".join(f"error: {name}: {line}" for line in found), file=sys.stderr)
            continue
        with atomic_file(file) as aside:
            aside.write_text(dump(documents), encoding="utf-8")
        kinds = ", ".join(document["kind"] for document in documents)
        print(f"{name:{width}}  {file}  {kinds}")
    against = " and ".join(releases)
    right = len(names) - wrong
    print(
        f"{right} of {len(names)} overlays are sound: rendered with {tool}, checked for Kubernetes {against}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
