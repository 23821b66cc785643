"""The mutants of a file: every one of mutmut's changes that could change a result."""

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import libcst as cst
import libcst.metadata as positions
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "graftflow"
# What only people read: messages are matched by tests where they matter, and progress is no result.
WORDS = ("InputError", "unknown_name", "Progress", "track")


@dataclass
class Mutant:
    """One change: ``name`` is its file, line, column and number there."""

    name: str
    file: str
    diff: str
    source: str = field(repr=False)
    outcome: str = ""
    killer: str = ""
    seconds: float = 0.0


class Places(cst.CSTVisitor):
    """Collects every node that may change, with what it may become, in the order of the source."""

    METADATA_DEPENDENCIES = (positions.PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, cst.CSTNode, cst.CSTNode]] = []
        self._numbers: dict[str, int] = {}

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _is_left_alone(node):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for changed in operator(node):
                    start = self.get_metadata(positions.PositionProvider, node).start
                    place = f"{start.line}:{start.column}"
                    self._numbers[place] = self._numbers.get(place, 0) + 1
                    self.found.append((f"{place}.{self._numbers[place]}", node, changed))
        return True


def _is_left_alone(node: cst.CSTNode) -> bool:
    match node:
        case cst.Annotation() | cst.Decorator() | cst.Import() | cst.ImportFrom() | cst.Raise():
            return True
        case cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString()):  # a docstring
            return True
        case cst.Call(func=cst.Name(value=name)):
            return name in WORDS
        case cst.Assign(value=cst.Subscript()) | cst.Assign(targets=[cst.AssignTarget(cst.Name("__all__"))]):
            return True  # the names of types, or of the module
    return False


def mutants_of(
    files: Sequence[str], *, sample: int, seed: int, only: Sequence[str]
) -> tuple[list[Mutant], int]:
    """Return mutants of files, ``sample`` of them drawn by ``seed`` (0: all), and how many there are."""
    found = []
    for file in files:
        wrapper = positions.MetadataWrapper(cst.parse_module((SOURCES / file).read_text(encoding="utf-8")))
        places = Places()
        wrapper.visit(places)
        found += [(f"{file}:{name}", file, wrapper.module, node, new) for name, node, new in places.found]
    chosen = range(len(found))
    if only:
        chosen = [i for i in chosen if found[i][0] in only]
    elif sample:  # unsorted: what is cut short is still drawn by lot
        chosen = random.Random(seed).sample(chosen, min(sample, len(found)))
    mutants = []
    for name, file, module, node, changed in (found[i] for i in chosen):
        source = module.deep_replace(node, changed).code
        try:
            compile(source, file, "exec")
        except SyntaxError:
            continue
        diff = difflib.unified_diff(module.code.splitlines(), source.splitlines(), lineterm="", n=0)
        mutants.append(Mutant(name, file, "\n".join([*diff][3:]), source))
    return mutants, len(found)
