"""Licences by name: what metadata writes → SPDX, and how far a licence reaches."""

import re
from collections.abc import Sequence

_APACHE, _BSD3, _MIT = "Apache-2.0", "BSD-3-Clause", "MIT"
# What authors write where SPDX has a name for it; compared in lower case, without punctuation.
_WRITTEN = {
    "apache": _APACHE,
    "apache 2 0": _APACHE,
    "apache license 2 0": _APACHE,
    "apache license version 2 0": _APACHE,
    "apache software license": _APACHE,
    "bsd 3 clause": _BSD3,
    "bsd 3 clause license": _BSD3,
    "3 clause bsd license": _BSD3,
    "bsd": "BSD",
    "bsd license": "BSD",
    "mit": _MIT,
    "mit license": _MIT,
    "isc license iscl": "ISC",
    "python software foundation license": "PSF-2.0",
    "mozilla public license 2 0 mpl 2 0": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "gnu general public license v2 gplv2": "GPL-2.0-only",
    "gnu general public license v3 gplv3": "GPL-3.0-only",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gnu lesser general public license v3 lgplv3": "LGPL-3.0-only",
}
# Most reaching last: of licences that all apply the last one counts, of those one may choose from the first.
CLASSES = ("permissive", "weak copyleft", "proprietary", "strong copyleft", "unknown")
_PERMISSIVE = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT",
        "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
    }
)  # fmt: skip
_WEAK = re.compile(r"(MPL|LGPL|EPL|CDDL)-[\w.-]+")
_STRONG = re.compile(r"(A?GPL|OSL|EUPL|SSPL|CC-BY-SA|CC-BY-NC[\w-]*)-[\w.-]+")
_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+-]+")


def expression_of(expression: str, text: str, classifiers: Sequence[str]) -> tuple[str, str]:
    """Return the SPDX expression that a distribution's metadata means, and which field told it; ``("", …)`` if none.

    Args:
        expression: ``License-Expression``.
        text: ``License``: an expression, a name in the author's words, or a whole licence.
        classifiers: ``Classifier``; those of licences count.
    """
    if expression:
        return expression, "License-Expression"
    short = " ".join(text.split()) if len(text) <= 80 and "\n" not in text.strip() else ""
    if short and (written := _WRITTEN.get(_plain(short), short)) != "BSD" and class_of(written) != "unknown":
        return written, "License"
    named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ")]
    named = [name for name in named if name != "OSI Approved"]
    meant = sorted({_WRITTEN.get(_plain(name), "") for name in named})
    if named and all(meant):
        # Several mean a choice by one author and a sum by another: the sum is the careful reading.
        return " AND ".join(meant), "classifier"
    if _plain(short) in _WRITTEN:
        return _WRITTEN[_plain(short)], "License"
    title = " ".join(text.split()[:2])
    if _plain(title) == "mit license":
        return _MIT, "text of License"
    return "", "nothing"


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def class_of(expression: str) -> str:
    """Return how far a licence reaches: one of :data:`CLASSES`.

    Args:
        expression: SPDX: names joined by AND, OR and WITH, in brackets or not. What cannot be read is ``unknown``.
    """
    tokens = _TOKEN.findall(expression)
    if "".join(tokens) != "".join(expression.split()):
        return "unknown"
    try:
        rank, rest = _either(tokens)
    except IndexError:
        return "unknown"
    return "unknown" if rest else CLASSES[rank]


def _either(tokens: list[str]) -> tuple[int, list[str]]:
    rank, rest = _both(tokens)
    while rest and rest[0] == "OR":
        other, rest = _both(rest[1:])
        rank = min(rank, other)
    return rank, rest


def _both(tokens: list[str]) -> tuple[int, list[str]]:
    rank, rest = _one(tokens)
    while rest and rest[0] == "AND":
        other, rest = _one(rest[1:])
        rank = max(rank, other)
    return rank, rest


def _one(tokens: list[str]) -> tuple[int, list[str]]:
    if tokens[0] == "(":
        rank, rest = _either(tokens[1:])
        # Raises IndexError where the bracket stays open, as for every expression that ends too early.
        return (rank if rest[0] == ")" else len(CLASSES) - 1), rest[1:]
    rest = tokens[1:]
    if rest and rest[0] == "WITH":
        # An exception only allows more.
        rest[1]
        rest = rest[2:]
    return CLASSES.index(_class_of_name(tokens[0])), rest


def _class_of_name(name: str) -> str:
    if name in _PERMISSIVE:
        return "permissive"
    if _WEAK.fullmatch(name):
        return "weak copyleft"
    if _STRONG.fullmatch(name):
        return "strong copyleft"
    return "proprietary" if name.startswith("LicenseRef-") else "unknown"
