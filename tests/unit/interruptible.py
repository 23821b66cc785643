"""A Python program that Ctrl-C can end, started by tests."""

import sys

_HEED = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


def interruptible(*arguments: str) -> list[str]:
    """Return the command of a Python program that heeds Ctrl-C, even where the test run itself was told not to.

    What runs in a shell's background inherits that it is ignored. The new process itself sets that right, not a
    ``preexec_fn``: with one, Python forks, and gRPC's handlers of forks end the child now and then.
    """
    return [sys.executable, "-c", _HEED, sys.executable, *arguments]
