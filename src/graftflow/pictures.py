"""What every source hands on: a picture's name, its class and how to read its encoded bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


class Unusable(Exception):  # noqa: N818
    """One picture cannot be used; the message is the reason written to ``left_out.csv``."""


@dataclass(frozen=True)
class Picture:
    """One labelled picture that is not read yet.

    Attributes:
        path: its name in the data set, ``class/file`` (or as a table of labels names it) with forward
            slashes, never a path of the machine.
        label: the name of its class.
        read: returns the encoded bytes; raises :class:`Unusable` or ``OSError`` where it cannot.
        split: ``train``, ``validation`` or ``test`` where the source divides its pictures, all of them;
            ``""`` where it does not.
        group: pictures of one group, such as one patient's, stay in one split; ``""`` for none.
        stamp: what tells without reading that the bytes are those of an earlier run, e.g. size and time
            of change of a file; ``""`` where only the bytes tell.
    """

    path: str
    label: str
    read: Callable[[], bytes]
    split: str = ""
    group: str = ""
    stamp: str = ""


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        pictures: the pictures, once, in an order that is the same on every machine.
        total: how many of them there are.
        note: what a reader of the results should know, or ``""``.
        left_out: ``(path, reason)`` of what the source holds but cannot be a picture of a class.
    """

    pictures: Iterator[Picture]
    total: int
    note: str = ""
    left_out: tuple[tuple[str, str], ...] = ()
