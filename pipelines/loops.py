"""Loops on this machine that an interrupt ends: kfp.local's own executor first runs every iteration that is left."""

import contextlib
import sys
from collections.abc import Iterator
from concurrent import futures

import psutil


class _Loop(futures.ThreadPoolExecutor):
    """What runs a loop's iterations in kfp.local; an interrupt ends the one at work and starts no other."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the iterations; after an interrupt, end the one at work first."""
        if isinstance(sys.exception(), KeyboardInterrupt):
            super().shutdown(wait=False, cancel_futures=True)
            end_children()
        super().shutdown(wait=wait, cancel_futures=cancel_futures)


@contextlib.contextmanager
def interruptible_loops() -> Iterator[None]:
    """Let kfp.local run its loops in an executor that an interrupt ends."""
    original = futures.ThreadPoolExecutor
    futures.ThreadPoolExecutor = _Loop  # type: ignore[misc]
    try:
        yield
    finally:
        futures.ThreadPoolExecutor = original  # type: ignore[misc]


def end_children() -> None:
    """End every process that this one started: asked first, killed after 5 seconds."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
