"""Work on a stream of items by several threads: results in order, a bounded number under way."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, in order; items are taken when they are needed.

    Args:
        work: called by ``workers`` threads at a time; with one worker by the caller's own thread.
        items: at most ``2 * workers`` of them are taken before their results are asked for.
        workers: 1 or more.

    Raises:
        Exception: what ``work`` raises, in the place of its result. Nothing is begun after that, and what is under way
            is not waited for: the threads end with the process.
    """
    if workers == 1:
        yield from map(work, items)
        return
    tasks: SimpleQueue[tuple[Item, Future[Result]] | None] = SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        while (task := tasks.get()) is not None:
            item, future = task
            if stop.is_set():
                continue
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

    # Daemons: whoever interrupts a command must not wait for an answer.
    threads = [threading.Thread(target=run, name="asking", daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    pending: deque[Future[Result]] = deque()
    done = False
    try:
        for item in items:
            future: Future[Result] = Future()
            tasks.put((item, future))
            pending.append(future)
            while pending and (len(pending) >= 2 * workers or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        done = True
    finally:
        stop.set()
        for _ in threads:
            tasks.put(None)
        if done:
            for thread in threads:
                thread.join()
