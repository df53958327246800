"""Training a SequenceModel: on a GPU whole steps, optimiser included, are one CUDA graph over compiled code."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptd import checks
from ptd.contract import Backend
from ptd.model import SequenceModel, Training
from ptd.optimization import Optimizer
from ptd.whole_sets import Placed, as_set, batches, checked_rows

from .adamw import AdamW
from .compilation import compiled as compile_once
from .devices import current
from .dropout import Dropout, derived
from .fused import parts
from .graphs import captured
from .program import Program
from .ranks import ALONE, Part, Ranks


def _in_own_place(method: Callable) -> Callable:
    """A method of a learner that runs where its device is the current one, among its ranks."""

    @functools.wraps(method)
    def run(learner: Any, *args: Any, **call: Any) -> Any:
        with current(learner.torch_device), learner.ranks.current():
            return method(learner, *args, **call)

    return run


class TorchLearner:
    """The contract's Learner. All it changes is in _leaves and _adamw, and stays where it is in memory.

    Args:
        activations: a narrower dtype for all between encoder and pooling, "bfloat16"; None for float32.
        compiled: compile forward and backward and, on a GPU, replay steps as CUDA graphs; by default on a GPU only.
        fused: which parts of a block run as kernels rather than array code, of ptd_torch.fused.PARTS; by default those
            that can and that were measured to be faster, ptd_torch.fused.WIDEST.
        ranks: the processes that share every batch; each has such a learner, and all are called alike.

    Attributes:
        torch_device: where the leaves lie.
        fused: the parts that run as kernels.

    Raises:
        ValueError: a part named in fused cannot run on this device or in this model.
    """

    def __init__(
        self,
        backend: Backend,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        *,
        activations: str | None = None,
        compiled: bool | None = None,
        fused: Collection[str] | None = None,
        ranks: Ranks = ALONE,
    ):
        self._model, self._seed, self.ranks = model, seed, ranks
        self._leaves = {name: backend.asarray(value, "float32").clone() for name, value in params.items()}
        self.torch_device = next(iter(self._leaves.values())).device
        self._adamw = AdamW(optimizer, self._leaves)
        on_gpu = self.torch_device.type == "cuda"
        compiled = on_gpu if compiled is None else compiled
        # A run that is resumed, perhaps beside others, goes on bit for bit.
        run: Callable = functools.partial(compile_once, repeatable=True) if compiled else (lambda function: function)
        self._clock = run(self._clock_of)
        dtype = torch.float32 if activations is None else getattr(torch, activations)
        self.fused = parts(model, torch.empty(0, dtype=dtype, device=self.torch_device), fused)
        self._program = Program(backend, model, activations, self.fused, run)
        self._graphs: dict[Any, tuple[Any, Tensor, Tensor, list[weakref.ref]]] = {}
        self._replays = on_gpu and compiled

    # --- the contract ------------------------------------------------------------------------------------------

    @_in_own_place
    def step(self, inputs: Any, targets: Any, lengths: Any = None) -> Tensor:
        """One optimiser step; the loss before it, as a 0-d tensor."""
        return self.step_of(self.place(inputs, targets, lengths))

    @_in_own_place
    def step_of(self, batch: Placed) -> Tensor:
        """step, of a batch that is placed."""
        part = self.ranks.part(len(batch.targets))
        own = Placed(*(None if value is None else value[part.rows] for value in batch))
        return self.ranks.total(self._step(own, part))

    @_in_own_place
    def outputs(self, inputs: Any, lengths: Any = None, layer_noise: list | None = None) -> NDArray[np.float32]:
        """The model's outputs in evaluation mode."""
        self._model.check_samples(inputs, lengths=lengths)
        noise = None if layer_noise is None else [self._tensor(value) for value in layer_noise]
        lengths = None if lengths is None else self._tensor(lengths)
        with torch.no_grad():
            return self._outputs_of(self._tensor(inputs), lengths, noise).cpu().numpy()

    def parameters(self) -> dict[str, NDArray]:
        """The current leaves, on the host."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._leaves.items()}

    def place(self, inputs: Any, targets: Any, lengths: Any = None) -> Placed:
        """See ptd.contract.Learner."""
        host = as_set(self._model, inputs, targets, lengths)
        return Placed(*(None if part is None else self._tensor(part) for part in host))

    @_in_own_place
    def train(self, placed: Placed, order: NDArray[np.integer]) -> NDArray[np.float32]:
        """See ptd.contract.Learner."""
        host = checked_rows("order", order, placed)
        part = self.ranks.part(host.shape[1])
        rows = torch.as_tensor(host[:, part.rows], device=self.torch_device).long()
        losses = torch.zeros(len(rows), dtype=torch.float32, device=self.torch_device)
        for k, index in enumerate(rows):
            losses[k] = self._run(self._indexed, placed, index, part)
        return self.ranks.total(losses).cpu().numpy()

    @_in_own_place
    def evaluate(self, placed: Placed, indices: NDArray[np.integer], batch: int) -> NDArray[np.float32]:
        """See ptd.contract.Learner."""
        pieces = np.stack(batches(checked_rows("indices", indices, placed), batch))
        rank, size = self.ranks.rank, self.ranks.size
        each = -(-len(pieces) // size)
        pieces = np.resize(pieces, (each * size, batch))  # as many to each process
        rows = torch.as_tensor(pieces[rank::size], device=self.torch_device).long()
        # A replay writes where the one before it wrote.
        outputs = [self._run(self._evaluated, placed, index, once=each == 1).clone() for index in rows]
        # of all processes (size, each, batch, ...), dealt in turns
        found = self.ranks.gathered(torch.stack(outputs)).transpose(0, 1).flatten(0, 2)
        return found[: len(indices)].cpu().numpy()

    def snapshot(self) -> dict[str, NDArray]:
        """See ptd.contract.Learner."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._state().items()}

    def restore(self, snapshot: Mapping[str, NDArray]) -> None:
        """See ptd.contract.Learner."""
        state = self._state()
        checks.shapes("this learner", snapshot, {name: tuple(value.shape) for name, value in state.items()})
        found = {name: torch.as_tensor(np.asarray(snapshot[name])) for name in state}  # all, or nothing changes
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(found[name])

    def share_state(self) -> None:
        """Take over the state of the first process."""
        with torch.no_grad():
            for value in self._state().values():
                self.ranks.first(value.detach())

    # --- one step ----------------------------------------------------------------------------------------------

    def _step(self, batch: Placed, part: Part) -> Tensor:
        """A step by all processes' parts of a batch; this one's share of the loss."""
        rates, keys = self._clock(self._adamw.steps)
        loss, statistics = self._loss_of(batch, keys, part)
        trained = self._adamw.trained
        found = torch.autograd.grad(loss, list(trained.values()))
        # The fused update reads memory in order, whatever the strides say.
        grads = dict(zip(trained, self._total(found), strict=True))
        with torch.no_grad():
            if statistics:
                torch._foreach_copy_([self._leaves[name] for name in statistics], list(statistics.values()))
            self._adamw.update(grads, rates)
        return loss.detach()

    def _total(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The sum over processes of each, contiguous."""
        if self.ranks.size == 1:
            return [grad.contiguous() for grad in grads]
        # in one go: each sum would take its own way between the devices
        flat = self.ranks.total(torch.cat([grad.reshape(-1) for grad in grads]))
        pieces = flat.split([grad.numel() for grad in grads])
        return [piece.view(grad.shape) for piece, grad in zip(pieces, grads, strict=True)]

    def _indexed(self, placed: Placed, index: Tensor, part: Part) -> Tensor:
        return self._step(placed.rows(index), part)

    @torch.no_grad()
    def _evaluated(self, placed: Placed, index: Tensor) -> Tensor:
        rows = placed.rows(index)
        return self._outputs_of(rows.inputs, rows.lengths, None)

    def _clock_of(self, steps: Tensor) -> tuple[list[Tensor], Tensor]:
        """What follows from the step count alone: the rate of each group, and every block's key, a row of each."""
        key = derived(derived(steps, 0), self._seed)
        # Rows of 16 bytes: the compiled block copies arguments that do not begin at a multiple of these.
        block = torch.arange(1, self._model.n_layers + 1, device=steps.device)[:, None].expand(-1, 4)
        return self._adamw.rates(steps), derived(key, block * 0x27D4EB2F)

    def _loss_of(self, batch: Placed, keys: Tensor, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        training = Training(Dropout(keys[0, 0]))
        call = {"lengths": batch.lengths, "training": training}
        loss, statistics = self._program(self._leaves, batch.inputs, keys, batch.targets, part, **call)
        return (loss if part.share == 1 else loss * part.share), statistics

    def _outputs_of(self, inputs: Tensor, lengths: Tensor | None, noise: list[Tensor] | None) -> Tensor:
        return self._program(self._leaves, inputs, None, None, None, lengths=lengths, layer_noise=noise)

    # --- CUDA graphs -------------------------------------------------------------------------------------------

    def _run(
        self, of_rows: Callable[..., Tensor], placed: Placed, index: Tensor, *how: Any, once: bool = False
    ) -> Tensor:
        """What a method makes of rows of a data set, on a GPU by the graph of that method, set and number of rows.

        A graph goes with the first array of its set: once freed, its memory and its id would be another's. What runs
        once is not worth one.
        """
        if not self._replays or once:
            return of_rows(placed, index, *how)
        key = (of_rows.__name__, *map(id, placed), tuple(index.shape), *how, *self._rounding())
        if key not in self._graphs:
            arrays = [part for part in placed if part is not None]
            kept = [weakref.ref(part, lambda _: self._graphs.pop(key, None)) for part in arrays]
            self._graphs[key] = (*self._capture(of_rows, placed, index, *how), kept)
        graph, static_index, result, _ = self._graphs[key]
        static_index.copy_(index)
        graph.replay()
        return result

    def _rounding(self) -> tuple:
        """What decides how products round here and now, which a graph keeps from its capture."""
        kind = self.torch_device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return torch.get_float32_matmul_precision(), narrow

    def _capture(
        self, of_rows: Callable[..., Tensor], placed: Placed, index: Tensor, *how: Any
    ) -> tuple[Any, Tensor, Tensor]:
        """A graph of one run; the steps that warm it up are undone."""
        kept = {name: value.detach().clone() for name, value in self._state().items()}
        index = index.clone()
        graph, result = captured(lambda: of_rows(placed, index, *how), watched=self.ranks.size > 1)
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(kept[name])
        return graph, index, result

    # --- state -------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        return {f"leaves.{name}": leaf for name, leaf in self._leaves.items()} | self._adamw.state()

    def _tensor(self, host: Any) -> Tensor:
        if isinstance(host, Tensor):
            return host.to(self.torch_device)
        return torch.tensor(np.asarray(host), device=self.torch_device)
