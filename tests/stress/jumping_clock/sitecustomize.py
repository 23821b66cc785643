"""In the folder of a process's search path: its clock, and its children's, is set every two seconds.

It is right, a day behind and ten years ahead in turn, by the machine's own steady clock: at the same time in every
process. What is written in C keeps the right clock, and so does gRPC, whose deadlines go there.
"""

import datetime
import sys
import time

PERIOD = 2.0
OFFSETS = (0, -24 * 3600, 3652 * 24 * 3600)  # seconds
# Of gRPC, and of what asks it how long a request may take: its part in C, between them, has no frame.
_GRPC = ("grpc", "graftflow.serving.grpc_api")
_time, _time_ns = time.time, time.time_ns


def _offset() -> int:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return 0 if caller.startswith(_GRPC) else OFFSETS[int(time.monotonic() / PERIOD) % len(OFFSETS)]


def _now() -> float:
    return _time() + _offset()


def _now_ns() -> int:
    return _time_ns() + 10**9 * _offset()


class _Kind(type(datetime.datetime)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


_datetime = datetime.datetime


class _Datetime(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return super().now(tz) + datetime.timedelta(seconds=_offset())


_Datetime.__name__ = _Datetime.__qualname__ = "datetime"  # by which it is pickled
_Datetime.__module__ = "datetime"
if __name__ == "sitecustomize":  # and not a test's own import
    time.time, time.time_ns = _now, _now_ns
    datetime.datetime = _Datetime
