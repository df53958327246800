"""Clauses spread over worker processes: a worker that dies or hangs costs one clause, not the run.

The process that spreads them never loads the backend, so that it holds nothing of a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from .outcome import Done, Outcome, Result
from .record import Record
from .runner import CLAUSES, Begin, Here, Trial, trials_of

#: A forked process cannot use CUDA, and a fork of threads can hang.
SPAWN = multiprocessing.get_context("spawn")

#: Seconds between looks at workers that say nothing, and for one to end by itself before it is killed.
PATIENCE, FAREWELL = 0.2, 5.0


class Processes:
    """A backend that runs clauses in worker processes, each of which takes the next one as soon as it is free.

    Args:
        arguments: of Here, for every worker.
        count: how many workers.
        limit: seconds that a clause, or loading the backend, may take.
    """

    def __init__(self, arguments: tuple[str, str, int], count: int, limit: float):
        self.arguments, self.limit = arguments, limit
        self.workers = [Worker(arguments) for _ in range(count)]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for worker in self.workers:
            worker.connection.close()  # those that wait for work end
        for worker in self.workers:
            worker.end(0 if error else FAREWELL)

    @functools.cached_property
    def head(self) -> Record:
        """What runs where, as the first worker says; ValueError if it cannot load the backend."""
        return self.workers[0].head(self.limit)

    def clauses(self, chosen: Mapping[str, Sequence[Trial]], begin: Begin) -> Iterator[Done]:
        """Each clause as soon as it is done; they are begun in the order of chosen."""
        waiting, free, busy = list(chosen), list(self.workers), list[Worker]()
        while waiting or busy:
            while waiting and free:
                busy.append(worker := free.pop(0))
                begin(clause := waiting.pop(0))
                worker.begin(clause, chosen[clause])
            wait([worker.connection for worker in busy], PATIENCE)
            for worker in list(busy):
                if (done := worker.done(self.limit)) is None:
                    continue
                busy.remove(worker)
                free.append(self._alive(worker) if waiting else worker)
                yield done

    def _alive(self, worker: Worker) -> Worker:
        """The worker, or a new one in its place."""
        if not worker.ended:
            return worker
        self.workers.remove(worker)
        self.workers.append(Worker(self.arguments))
        return self.workers[-1]


class Worker:
    """A process that runs clauses one after the other, as the process that started it sees it."""

    def __init__(self, arguments: tuple[str, str, int]):
        self.connection, there = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(there, *arguments))
        self.process.start()
        there.close()  # else its end would stay open after the process's death
        self.ended = False
        self.since = time.monotonic()

    def head(self, limit: float) -> Record:
        """What runs where."""
        try:
            if not self.connection.poll(limit):
                raise ValueError(f"limit: expected a backend that loads in {limit:g} s, got none; pass a larger limit")
            kind, content = self.connection.recv()
        except (EOFError, OSError) as error:
            raise ValueError(
                f"backend: expected one that loads in a process of its own, got a process that {self._death()}; "
                "run without --processes to see why"
            ) from error
        if kind == "refused":
            raise ValueError(content)
        return content

    def begin(self, clause: str, trials: Sequence[Trial]) -> None:
        """Start a clause."""
        self.clause, self.trials, self.results, self.since = clause, trials, list[Result](), time.monotonic()
        with contextlib.suppress(OSError):  # a worker that has died: done says so
            self.connection.send(clause)

    def done(self, limit: float) -> Done | None:
        """The clause if it has come to its end, by itself, by death or by the limit."""
        alive = self.process.is_alive()  # before its last words are read
        try:
            while self.connection.poll():
                kind, content = self.connection.recv()
                if kind == "done":
                    return Done(self.clause, tuple(self.results), content)
                if kind == "result":
                    self.results.append(content)
                else:
                    self.since = time.monotonic()  # it was still loading the backend
        except (EOFError, OSError):
            alive = False
        if not alive:
            return self._cut(self._death())
        if time.monotonic() - self.since > limit:
            self.end(0)
            return self._cut(f"took more than {limit:g} s; pass a larger limit")
        return None

    def end(self, patience: float) -> None:
        """Kill the process if it still runs after so many seconds."""
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.ended = True

    def _death(self) -> str:
        self.end(FAREWELL)
        return f"died with exit code {self.process.exitcode}"

    def _cut(self, why: str) -> Done:
        """The results until then, and as failed the first trial that came to none, of several under way with --jobs."""
        kept = self.results[: len(self.trials) - 1]
        trial = self.trials[len(kept)]
        failed = Result(self.clause, trial.subject, trial.dtype, Outcome.FAIL, reason=f"the worker {why}")
        return Done(self.clause, (*kept, failed), time.monotonic() - self.since)


def work(connection: Connection, backend: str, products: str, jobs: int) -> None:
    """The worker's side: loads the backend, then runs the clauses it is sent, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        here = Here(backend, products, jobs)
    except (ValueError, OSError, ImportError) as error:
        connection.send(("refused", str(error)))
        return
    connection.send(("ready", here.head))
    with contextlib.suppress(EOFError, ConnectionError):  # there is no more work
        while True:
            _run(connection, here, connection.recv())


def _run(connection: Connection, here: Here, clause: str) -> None:
    seconds = 0.0
    for result, took in here.outcomes(list(trials_of(CLAUSES[clause], here.head["dtypes"], here.products))):
        connection.send(("result", result))
        seconds += took
    connection.send(("done", seconds))


def _end_with_parent() -> None:
    """A run that is killed leaves no workers."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)
