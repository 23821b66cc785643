"""The process that a run forks its steps from: what steps import is then imported once, not once a step.

Started by ``forked_steps`` as a file, with the number of a socket. Each message on it is one step to run, with the pipe
that takes what the step prints; the answer is the step's exit code. Standard library only, until it is told what to
load: a step of a cached run waits for nothing.

A fork keeps only the thread that forks. That is safe while no library has started threads of its own but OpenBLAS,
which starts its threads anew in the child: importing TensorFlow and Keras starts none; their first operation does, and
that happens in a step. ``has_runtime`` looks before each fork.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

# A message holds the step's code and its inputs; the pipe travels beside it.
_LENGTH = 8


def main() -> None:
    """Fork a step for each message, one at a time, until the other end is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what ends.
    silence = os.open(os.devnull, os.O_WRONLY)
    # As `python -m` has it; this file's own folder holds modules with names such as `console`.
    sys.path[0] = os.getcwd()
    while message := receive(channel):
        request, output = message
        speak_to(output)  # what an import says belongs to the step's log
        os.close(output)
        load(request["modules"])
        child = -1 if has_runtime() else os.fork()
        if child == 0:
            channel.close()
            leave(become(request))
        speak_to(silence)  # else the step's log would not end with the step
        send(channel, {"exit": None if child < 0 else end_of(child, channel)})


def end_of(child: int, channel: socket.socket) -> int:
    """Return a step's exit code; where the run that asked for the step is killed, the step is too."""
    try:
        ended = os.pidfd_open(child)
    except OSError:
        # Before Linux 5.3, or forbidden in a sandbox: a step then outlives a killed run, as it does with kfp.
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Nothing is sent while a step runs: a channel that can be read then has lost its other end.
    readable, _, _ = select.select([ended, channel], [], [])
    os.close(ended)
    if ended not in readable:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def load(modules: list[str]) -> None:
    """Import modules; one that cannot be imported is left to the step, whose log then says why."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"{name} could not be imported beforehand: {error!r}", file=sys.stderr, flush=True)
    # A step's collections need not look at, and so copy the memory of, what it never frees.
    gc.freeze()


def has_runtime() -> bool:
    """Say whether TensorFlow has begun to work in this process: its threads would be missing after a fork."""
    context = sys.modules.get("tensorflow.python.eager.context")
    made = getattr(context, "_context", None)
    return bool(made is not None and getattr(made, "_initialized", True))


def speak_to(output: int) -> None:
    """Send what this process prints to another place."""
    sys.stdout.flush()
    os.dup2(output, 1)
    os.dup2(output, 2)


def become(request: dict[str, Any]) -> int:
    """Run the step in this process, as ``python -m kfp.dsl.executor_main`` would; returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["executor_main", *request["arguments"]]
    try:
        from kfp.dsl.executor_main import executor_main

        executor_main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        traceback.print_exc()
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def leave(code: int) -> NoReturn:
    """End this process as Python does, but for taking its modules apart: with TensorFlow that takes a second."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def send(channel: socket.socket, content: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message: its length, then JSON; descriptors beside the length."""
    body = json.dumps(content).encode()
    length = len(body).to_bytes(_LENGTH, "big")
    if descriptors:
        socket.send_fds(channel, [length], list(descriptors))
    else:
        channel.sendall(length)
    channel.sendall(body)


def receive(channel: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Return the next message and its descriptor, -1 where it has none; None once the other end is closed."""
    try:
        head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH, 1, socket.MSG_WAITALL)
        rest = int.from_bytes(head, "big") if len(head) == _LENGTH else 0
        body = bytearray()
        while len(body) < rest and (part := channel.recv(rest - len(body))):
            body += part
    except ConnectionError:
        return None
    if not body or len(body) < rest:
        return None
    return json.loads(body), next(iter(descriptors), -1)


if __name__ == "__main__":
    main()
