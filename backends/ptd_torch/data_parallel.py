"""A learner on several devices: a TorchLearner on each, in processes of their own, that share the rows of every batch.

The first is in this process, which tells the others to do what it does. They hear of nothing else, no signals either,
and end with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Collection, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from ptd import checks
from ptd.model import SequenceModel
from ptd.optimization import Optimizer
from ptd.whole_sets import Placed, batches, checked_rows

from .ranks import Ranks
from .training import TorchLearner

#: What the further processes run, with a file descriptor and the path of modules behind it.
_SERVE = "import sys; sys.path[:] = sys.argv[2:]; from ptd_torch.data_parallel import serve; serve(int(sys.argv[1]))"


class DataParallelLearner:
    """The contract's Learner over as many devices from a backend's own on; on a CPU over so many processes.

    While it trains, no other learner of this process may. Once one of its processes has failed it is at an end.

    Args:
        backend: a TorchBackend.
        arguments: those of TorchLearner behind the backend.
        devices: how many, more than one.
        options: those of TorchLearner.

    Raises:
        ValueError: there are fewer devices, processes cannot sum over them here, or they cannot import what they need.
    """

    def __init__(self, backend: Any, *arguments: Any, devices: int, **options: Any):
        _check_can_be_sent(backend, *arguments)
        places = _places(backend.torch_device, devices)
        self._sets: dict[tuple[int, ...], int] = {}
        self._numbers = itertools.count()
        self._dropped: list[int] = []
        self._team = _Team([_Member(backend.on(place), rank, devices, arguments, options) for rank, place in places])
        self.learner = self._team.first

    def step(self, inputs: Any, targets: Any, lengths: Any = None) -> Tensor:
        """One optimiser step; the loss before it, as a 0-d tensor."""
        placed = self.learner.place(inputs, targets, lengths)
        self.learner.ranks.part(len(placed.targets))
        return self._all("step_of", placed)

    def outputs(self, inputs: Any, lengths: Any = None, layer_noise: list | None = None) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode, found by the first device alone."""
        return self.learner.outputs(inputs, lengths, layer_noise)

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""
        return self.learner.parameters()

    def place(self, inputs: Any, targets: Any, lengths: Any = None) -> Placed:
        """See ptd.contract.Learner; every device has all of it."""
        placed = self.learner.place(inputs, targets, lengths)
        self._number(placed)
        return placed

    def train(self, placed: Placed, order: NDArray[np.integer]) -> NDArray[np.float32]:
        """See ptd.contract.Learner."""
        rows = checked_rows("order", order, placed)
        self.learner.ranks.part(rows.shape[1])
        return self._all("train", placed, rows)

    def evaluate(self, placed: Placed, indices: NDArray[np.integer], batch: int) -> NDArray[np.float32]:
        """See ptd.contract.Learner."""
        rows = checked_rows("indices", indices, placed)
        batches(rows, batch)  # while the other processes need not know what is wrong
        return self._all("evaluate", placed, rows, batch)

    def snapshot(self) -> dict[str, NDArray]:
        """See ptd.contract.Learner."""
        return self.learner.snapshot()

    def restore(self, snapshot: Mapping[str, NDArray]) -> None:
        """See ptd.contract.Learner."""
        self.learner.restore(snapshot)
        with self._team.told("share_state"):
            self.learner.share_state()

    # --- calls and sets ----------------------------------------------------------------------------------------

    def _all(self, name: str, placed: Placed, *rest: Any) -> Any:
        """What a method of the learner here returns of a set, run by every process."""
        number = self._number(placed)
        # One by one: a finaliser may add another meanwhile.
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        with self._team.told(name, number, *rest, dropped=dropped):
            return getattr(self.learner, name)(placed, *rest)

    def _number(self, placed: Placed) -> int:
        """What the other processes know a set by; one that they do not have goes to them."""
        key = tuple(map(id, placed))
        if key not in self._sets:
            number = next(self._numbers)
            parts = [part for part in placed if part is not None]
            forms = [None if part is None else (part.shape, part.dtype) for part in placed]
            with self._team.told("hold", number, forms):
                for part in parts:
                    self.learner.ranks.first(part)
            self._sets[key] = number
            for part in parts:  # once freed, its memory and its id would be another's
                weakref.finalize(part, _forget, self._sets, key, self._dropped).atexit = False
        return self._sets[key]


def _forget(sets: dict, key: tuple[int, ...], dropped: list[int]) -> None:
    """Have a set dropped with the next call: this may run in the middle of one."""
    if key in sets:
        dropped.append(sets.pop(key))


def _check_can_be_sent(backend: Any, model: SequenceModel, params: Any, optimizer: Optimizer, *rest: Any) -> None:
    for kind in map(type, (backend, model, model.layer, optimizer)):
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            need = "with several devices classes that other processes can import"
            raise checks.fail("devices", need, f"{kind.__module__}.{kind.__qualname__}", "define it in a module")


def _places(device: torch.device, devices: int) -> list[tuple[int, str]]:
    """Rank and device of every process."""
    sums = {"cpu": "gloo", "cuda": "nccl"}.get(device.type, "sums over processes")
    if not (torch.distributed.is_available() and torch.distributed.is_backend_available(sums)):
        raise checks.fail("devices", f"1 on {device.type}, for which this torch has no {sums}", devices)
    if sys.platform == "win32":
        raise checks.fail("devices", "1 on Windows, where processes do not take over sockets", devices)
    if device.type != "cuda":
        return [(rank, str(device)) for rank in range(devices)]
    first = torch.cuda.current_device() if device.index is None else device.index
    found = torch.cuda.device_count() - first
    if devices > found:
        need = f"at most the {found} that torch finds from cuda:{first} on"
        raise checks.fail("devices", need, devices, "pass fewer")
    return [(rank, f"cuda:{first + rank}") for rank in range(devices)]


@dataclasses.dataclass(frozen=True)
class _Member:
    """What one process is made from."""

    backend: Any
    rank: int
    size: int
    arguments: tuple
    options: dict[str, Any]

    def learner(self, meeting: str) -> TorchLearner:
        ranks = Ranks(self.rank, self.size, self.backend.torch_device, meeting)
        return TorchLearner(self.backend, *self.arguments, ranks=ranks, **self.options)


# --- this process's side -----------------------------------------------------------------------------------------


class _Failed(RuntimeError):
    """What a further process says of its end."""


class _Team:
    """The further processes of a learner: told what to do, and watched; first is the learner of this one."""

    def __init__(self, members: list[_Member]):
        folder = tempfile.TemporaryDirectory(prefix="ptd-")
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._others: list[tuple[Connection, subprocess.Popen]] = []
        ranks: list[Ranks] = []
        ended = threading.Event()
        # Not a method: it would keep this from being collected.
        self._end = weakref.finalize(self, _end, os.getpid(), self._others, folder, ended, ranks)
        meeting = str(Path(folder.name) / "meeting")
        messages = [pickle.dumps((member, meeting)) for member in members[1:]]
        with self._together():
            self._others += [_started() for _ in messages]
            watch = ([line for line, _ in self._others], self._replies, ranks, ended)
            threading.Thread(target=_watch, args=watch, daemon=True).start()
            for (line, _), message in zip(self._others, messages, strict=True):
                line.send_bytes(message)
            self._wait()  # all have imported what they need
            self.first = members[0].learner(meeting)
            ranks.append(self.first.ranks)

    @contextlib.contextmanager
    def told(self, name: str, *rest: Any, dropped: Collection[int] = ()) -> Any:
        """While the others do what this process does within it.

        Raises:
            RuntimeError: one of them failed, now or before.
        """
        if not self._end.alive:
            raise RuntimeError("this learner is at an end since one of its devices failed: make another, and restore")
        message = pickle.dumps((name, rest, dropped, _products()))
        with self._together():
            for line, _ in self._others:
                line.send_bytes(message)
            yield

    @contextlib.contextmanager
    def _together(self) -> Any:
        """To the end of what the others do too; whatever is raised here or there ends them."""
        try:
            yield
            self._wait()
        except _Failed:
            self._end()
            raise
        except BaseException as error:
            # What the others wait for will not come; if one of them was first, this is what came of it.
            failed = self._failure()
            self._end()
            if failed is None:
                raise
            raise _Failed(failed) from error

    def _wait(self) -> None:
        """Until each has said that it is done."""
        for _ in self._others:
            if (failed := self._replies.get()) is not None:
                raise _Failed(failed)

    def _failure(self) -> str | None:
        """What one of them says has failed, if it does so soon."""
        with contextlib.suppress(queue.Empty):
            for _ in self._others:
                if (reply := self._replies.get(timeout=1.0)) is not None:
                    return reply
        return None


def _products() -> tuple[str, dict[str, torch.dtype]]:
    """How products round here and now."""
    narrow = {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}
    return torch.get_float32_matmul_precision(), narrow


def _started() -> tuple[Connection, subprocess.Popen]:
    """A process that serves, and the line to it; in a session of its own: what is typed at this one is not for it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", _SERVE, str(theirs.fileno()), *sys.path]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
    theirs.close()
    return Connection(ours.detach()), process


def _watch(lines: list[Connection], replies: queue.Queue, ranks: list[Ranks], ended: threading.Event) -> None:
    """Pass on what processes say, and once one failed or is gone end what waits for it."""
    while True:
        ready: list[Any] = wait(lines)
        for line in ready:
            try:
                reply = line.recv()
            except (OSError, EOFError):
                reply = "a process of one of the devices ended; its last words may stand above"
            if ended.is_set():
                return
            replies.put(reply)
            if reply is not None:
                for each in ranks:
                    each.leave()
                return


def _end(
    owner: int,
    others: list[tuple[Connection, subprocess.Popen]],
    folder: tempfile.TemporaryDirectory,
    ended: threading.Event,
    ranks: list[Ranks],
) -> None:
    """Close the lines, by which processes end, but not in a fork of the process whose they are."""
    if os.getpid() != owner:
        return
    ended.set()
    for each in ranks:
        each.leave()
    for line, _ in others:
        # Closed alone it would stay open as long as another thread waits for it.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(line.fileno())) as half:
            half.shutdown(socket.SHUT_RDWR)
    for _, process in others:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    folder.cleanup()


# --- the others' side --------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Be one of the further processes until the line is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # some send them to every process of a job
        signal.signal(number, signal.SIG_IGN)
    line = Connection(descriptor)
    calls: queue.Queue[bytes] = queue.Queue()
    member, meeting = pickle.loads(line.recv_bytes())
    threading.Thread(target=_listen, args=(line, calls), daemon=True).start()
    if member.backend.torch_device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // member.size))
    else:
        torch.cuda.set_device(member.backend.torch_device)  # the first would hold a context for each process
    try:
        line.send(None)
        learner = member.learner(meeting)
        sets: dict[int, Placed] = {}
        line.send(None)
        while True:
            name, rest, dropped, products = pickle.loads(calls.get())
            for number in dropped:
                sets.pop(number, None)
            with _rounding(*products):
                _answer(learner, sets, name, *rest)
            line.send(None)
    except BaseException:
        which = f"{member.backend.torch_device}, {member.rank + 1} of {member.size},"
        line.send(f"{which} failed:\n{traceback.format_exc()}")
        sys.exit(1)


def _answer(learner: TorchLearner, sets: dict[int, Placed], name: str, number: Any = None, *rest: Any) -> None:
    if name == "hold":
        (forms,) = rest
        where = learner.torch_device
        parts = (form and torch.empty(form[0], dtype=form[1], device=where) for form in forms)
        sets[number] = Placed(*(None if part is None else learner.ranks.first(part) for part in parts))
    else:
        getattr(learner, name)(*(() if number is None else (sets[number], *rest)))


@contextlib.contextmanager
def _rounding(precision: str, narrow: dict[str, torch.dtype]) -> Any:
    """Products as _products says."""
    torch.set_float32_matmul_precision(precision)
    with contextlib.ExitStack() as stack:
        for kind, dtype in narrow.items():
            stack.enter_context(torch.autocast(kind, dtype))
        yield


def _listen(line: Connection, calls: queue.Queue) -> None:
    """Hear calls, and end with whom they come from, whatever is waited for."""
    while True:
        try:
            calls.put(line.recv_bytes())
        except (OSError, EOFError):
            os._exit(0)
