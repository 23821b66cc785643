"""What is locked: pinned, hashed, of known and allowed licences; and what no service was asked about is not clean.

`tests/unit/test_advisories.py` has the advisories themselves.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from dependencies import audit, licences, lock_files
from dependencies.licence_names import class_of, expression_of
from dependencies.lock_files import LOCKS, ROOT, Pin

DIGEST = "0" * 64


def write_lock(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_locks_and_licences_of_this_project_are_in_order() -> None:
    assert audit.check_offline() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("requests>=2", "must be name==version"),
        ("requests==2.33.0", "must have SHA-256 hashes"),
        ("requests==2.33.0 --hash=md5:0123", "must have SHA-256 hashes"),
        (f"requests @ https://example.org/requests.whl --hash=sha256:{DIGEST}", "must be name==version"),
        ("--extra-index-url https://example.org/simple", "must be name==version"),
        ("-e .", "must be name==version"),
        (f"requests==2.33.0 ; python --hash=sha256:{DIGEST}", "marker must be as PEP 508 has it"),
        (f"requests==2.* --hash=sha256:{DIGEST}", "version must be as PEP 440 has it"),
        (f"requests==2.33.0 --hash=sha256:{DIGEST} --no-binary=requests", "and no other option"),
    ],
)
def test_a_lock_that_pip_could_be_led_astray_by_is_told(tmp_path: Path, line: str, said: str) -> None:
    lock = write_lock(tmp_path / "requirements.lock", f"six==1.17.0 --hash=sha256:{DIGEST}", line)
    _, problems = lock_files.read_lock(lock)
    assert len(problems) == 1
    assert problems[0].startswith("requirements.lock:2:")
    assert said in problems[0]


def test_pins_are_read_with_their_markers_and_every_hash(tmp_path: Path) -> None:
    lock = write_lock(
        tmp_path / "a.lock",
        "Pywin32.Core==312 ; sys_platform == 'win32' \\",
        f"    --hash=sha256:{DIGEST} \\",
        f"    --hash=sha256:{'1' * 64}",
        "    # via",
        "    #   kfp",
    )
    assert lock_files.read_lock(lock) == (
        [Pin("pywin32-core", "312", "sys_platform == 'win32'", (DIGEST, "1" * 64))],
        [],
    )


def test_locks_that_cannot_be_installed_together_are_told() -> None:
    def pin(version: str) -> Pin:
        return Pin("numpy", version, "", (DIGEST,))

    agreeing = {"requirements.lock": [pin("2.4.6"), pin("2.5.5")], "requirements-gpu.lock": [pin("2.5.5")]}
    assert lock_files.disagreements(agreeing) == []
    (problem,) = lock_files.disagreements({**agreeing, "requirements-gpu.lock": [pin("1.26.0")]})
    assert "2.4.6, 2.5.5" in problem
    assert problem.endswith("Received: 1.26.0")


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("Apache-2.0 AND MIT", "permissive"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "weak copyleft"),
        ("GPL-3.0-only OR MIT", "permissive"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "strong copyleft"),
        ("MIT AND AGPL-3.0-or-later", "strong copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("MIT AND", "unknown"),
        ("(MIT", "unknown"),
        ("MIT MIT", "unknown"),
        ("Free for all, really!", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_licence_reaches_as_far_as_its_expression_says(expression: str, kind: str) -> None:
    assert class_of(expression) == kind


@pytest.mark.parametrize(
    ("text", "classifiers", "meant"),
    [
        ("Apache 2.0", [], "Apache-2.0"),
        ("GPLv7 or whatever", ["License :: OSI Approved :: MIT License"], "MIT"),
        ("GPL-3.0-only", ["License :: OSI Approved :: MIT License"], "GPL-3.0-only"),
        ("BSD", ["License :: OSI Approved :: BSD License"], "BSD"),
        ("", ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], "GPL-3.0-only"),
        ("UNKNOWN", [], ""),
        ("All rights reserved", ["License :: Other/Proprietary License"], ""),
    ],
)
def test_licences_are_read_from_what_authors_write(text: str, classifiers: list[str], meant: str) -> None:
    assert expression_of("", text, classifiers)[0] == meant


def test_a_new_dependency_needs_a_known_and_allowed_licence() -> None:
    record, pins = {}, []
    for name, expression in (
        ("free", "MIT"),
        ("copyleft", "GPL-3.0-only"),
        ("closed", "LicenseRef-Mine"),
        ("odd", ""),
    ):
        pins.append(Pin(name, "1", "", (DIGEST,)))
        record[name, "1"] = licences.Licence(name, "1", expression, "License")
    pins.append(Pin("fresh", "1", "", (DIGEST,)))
    record["gone", "1"] = licences.Licence("gone", "1", "MIT", "License")
    problems = licences.problems_of(pins, record, {})
    assert [problem.split()[0].rstrip(":") for problem in problems] == [
        "closed",
        "copyleft",
        "fresh",
        "odd",
        "gone",
    ]
    assert "its licence not recorded" in problems[2]


def test_a_record_that_the_installed_metadata_contradicts_is_told() -> None:
    pins = [Pin("six", "1", "", (DIGEST,))]
    recorded = {("six", "1"): licences.Licence("six", "1", "MIT", "License")}
    here = {("six", "1"): licences.Licence("six", "1", "Apache-2.0", "License")}
    (problem,) = licences.problems_of(pins, recorded, here)
    assert "recorded as 'MIT', but its metadata says 'Apache-2.0'" in problem


def test_the_bill_of_materials_is_what_is_installed_and_always_the_same(tmp_path: Path) -> None:
    from importlib import metadata

    from dependencies import sboms

    def bills(folder: Path) -> dict[str, bytes]:
        assert sboms.main([f"--output={folder}"]) == 0
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = bills(tmp_path / "one")
    assert first == bills(tmp_path / "two")
    assert sorted(first) == ["graftflow-python-cpu.cdx.json", "graftflow-python-gpu.cdx.json"]
    cpu, gpu = (json.loads(first[f"graftflow-python-{target}.cdx.json"]) for target in ("cpu", "gpu"))
    held = {part["purl"] for part in cpu["components"] if part["type"] == "library"}
    assert held < {part["purl"] for part in gpu["components"] if part["type"] == "library"}
    assert any("nvidia-cudnn" in part["name"] for part in gpu["components"])
    assert cpu["components"][0] == {
        "type": "container",
        "bom-ref": "base:python:3.11-slim-bookworm",
        "name": "python",
        "version": "3.11-slim-bookworm",
    }
    references = [part["bom-ref"] for part in gpu["components"]]
    assert len(references) == len(set(references))
    assert gpu["dependencies"][0]["dependsOn"] == references
    for part in gpu["components"][2:]:
        assert part["licenses"]
        for reference in part["externalReferences"]:
            assert len(reference["hashes"][0]["content"]) == 64
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux":
        # What pip installed here from the same lock, asked of the installation itself.
        pins = sboms.pins_of("cpu", sboms.environment_of("python:3.11-slim-bookworm"))
        assert {pin.name: pin.version for pin in pins} == {
            pin.name: metadata.version(pin.name) for pin in pins
        }


def test_bills_follow_the_base_images_python_and_digest() -> None:
    from dependencies import sboms

    def numpy(base: str) -> str:
        (pin,) = [pin for pin in sboms.pins_of("cpu", sboms.environment_of(base)) if pin.name == "numpy"]
        return pin.version

    assert numpy("python:3.11-slim-bookworm") != numpy("mirror.example:5000/library/python:3.12-slim")
    base = f"mirror.example:5000/python@sha256:{DIGEST}"
    part = sboms.bill_of_materials("cpu", [], {}, base)["components"][0]
    assert part["name"] == "mirror.example:5000/python"
    assert part["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]


def test_a_changed_lock_is_noticed(tmp_path: Path) -> None:
    for lock in LOCKS:
        shutil.copy(ROOT / lock, tmp_path)
    lock = tmp_path / "requirements.lock"
    lock.write_text(lock.read_text(encoding="utf-8").replace("urllib3==", "urllib4==", 1), encoding="utf-8")
    problems = audit.check_offline(tmp_path)
    assert any(problem.startswith("urllib4 ") and "not recorded" in problem for problem in problems)
