"""Bills of material of the images, from the locks that they are built by: CycloneDX 1.6, in JSON (`make sbom`).

The same locks give the same bytes: nothing in it tells of when or where it was made.
"""

import argparse
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dependencies import licences, lock_files
from dependencies.licences import Licence
from dependencies.lock_files import GPU, ROOT, RUN, Pin

# What each image installs (docker/Dockerfile): pip is told only these files.
TARGETS = {"cpu": (RUN,), "gpu": (RUN, GPU)}
OUTPUT = ROOT / "build" / "sbom"
_PYTHON = re.compile(r"python:(\d+\.\d+)")
_SPDX_NAMES = re.compile(r"[A-Za-z0-9.-]+")


def base_image() -> str:
    """Return the image that ``docker/Dockerfile`` builds on unless it is told another one."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("docker/Dockerfile must name its base image: ARG BASE_IMAGE=…")
    return found[1]


def environment_of(base: str) -> dict[str, str]:
    """Return the environment, as PEP 508 names it, that pip has in an image on Linux.

    Args:
        base: the base image's reference; its tag tells Python's version where it is one of ``python:3.x``.
    """
    found = _PYTHON.search(base)
    python = found[1] if found else "3.11"
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "extra": "",
    }


def pins_of(target: str, environment: Mapping[str, str]) -> list[Pin]:
    """Return what pip installs into an image, by name.

    Args:
        target: of :data:`TARGETS`.
        environment: of :func:`environment_of`.
    """
    found = {}
    for lock in TARGETS[target]:
        for pin in lock_files.read_lock(ROOT / lock)[0]:
            if pin.fits(environment):
                found[pin.name] = pin
    return [found[name] for name in sorted(found)]


def bill_of_materials(
    target: str, pins: Sequence[Pin], record: Mapping[tuple[str, str], Licence], base: str
) -> dict[str, Any]:
    """Return an image's bill of materials: itself, what it is built on, and every distribution in it.

    Args:
        target: ``cpu`` or ``gpu``.
        pins: of :func:`pins_of`.
        record: the licences.
        base: the base image's reference. What is inside it is not listed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    image = f"graftflow-python-{target}"
    library = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{project['name']}@{project['version']}",
        "name": project["name"],
        "version": project["version"],
        "licenses": [{"license": {"id": project["license"]}}],
        "purl": f"pkg:pypi/{project['name']}@{project['version']}",
    }
    components = [_base(base), library, *(_component(pin, record[pin.name, pin.version]) for pin in pins)]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": image,
                "name": image,
                "version": project["version"],
            },
            "properties": [{"name": "graftflow:lock", "value": lock} for lock in TARGETS[target]],
        },
        "components": components,
        "dependencies": [{"ref": image, "dependsOn": [part["bom-ref"] for part in components]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))
    return {**bill, "serialNumber": f"urn:uuid:{serial}"}


def _base(reference: str) -> dict[str, Any]:
    name, _, digest = reference.partition("@")
    name, colon, tag = name.rpartition(":") if ":" in name.rsplit("/", 1)[-1] else (name, "", "")
    part = {"type": "container", "bom-ref": f"base:{reference}", "name": name}
    if colon:
        part["version"] = tag
    if digest.startswith("sha256:"):
        return {**part, "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]}
    return part


def _component(pin: Pin, licence: Licence) -> dict[str, Any]:
    purl = f"pkg:pypi/{pin.name}@{pin.version}"
    # A release has a file a platform: which of them pip took, only the image knows. Each file is one of the index's.
    files = [
        {"type": "distribution", "url": f"{purl}#{number}", "hashes": [{"alg": "SHA-256", "content": digest}]}
        for number, digest in enumerate(pin.hashes, start=1)
    ]
    return {
        "type": "library",
        "bom-ref": purl,
        "name": pin.name,
        "version": pin.version,
        "licenses": [_licence(licence.expression)],
        "purl": purl,
        "externalReferences": files,
    }


def _licence(expression: str) -> dict[str, Any]:
    if expression == "BSD" or expression.startswith("LicenseRef-"):
        return {"license": {"name": expression}}
    if _SPDX_NAMES.fullmatch(expression):
        return {"license": {"id": expression}}
    return {"expression": expression} if "BSD " not in f"{expression} " else {"license": {"name": expression}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a bill of materials an image."""
    parser = argparse.ArgumentParser(prog="python -m dependencies.sboms", description=main.__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the folder to write to (build/sbom)")
    parser.add_argument(
        "--base-image", default=base_image(), help="as for make images (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    record = licences.read_record()
    environment = environment_of(options.base_image)
    options.output.mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        pins = pins_of(target, environment)
        missing = [f"{pin.name} {pin.version}" for pin in pins if (pin.name, pin.version) not in record]
        if missing:
            print(
                f"error: the licence of {missing[0]} must be recorded (make audit tells more)",
                file=sys.stderr,
            )
            return 1
        bill = bill_of_materials(target, pins, record, options.base_image)
        file = options.output / f"graftflow-python-{target}.cdx.json"
        file.write_text(json.dumps(bill, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file}: {len(pins)} distributions on {options.base_image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
