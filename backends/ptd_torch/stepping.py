"""Step mode with the states kept: on a GPU a step is one CUDA graph that updates them in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptd import checks
from ptd.layers import Layer
from ptd.model import SequenceModel

from .devices import current
from .graphs import captured
from .modules import Module


class Stepper:
    """A module in step mode: one sample in, one output out. Time and memory of a step do not depend on how many passed.

    The parameters are read where they are: a step after an optimiser's update uses the new values. Nothing is recorded
    for gradients.

    Args:
        module: a causal layer or model; see ptd.contract.Backend.module.
        batch: leading axes of the samples, fixed.
        compiled: compile a step; by default on a GPU only, where it is then replayed as one CUDA graph.

    Raises:
        ValueError: batch is no tuple of sizes; from the first step, the module is not one that can be stepped; see
            Layer.step, SequenceModel.step.

    >>> import ptd
    >>> module = ptd.backend("torch").on("cpu").S5(4, 8, init="legs")
    >>> stepper = Stepper(module, batch=(2,))
    >>> stepper(torch.ones(2, 4)).shape, stepper.state_bytes
    (torch.Size([2, 4]), 64)
    """

    def __init__(self, module: Module, batch: Sequence[int] = (), *, compiled: bool | None = None):
        checks.batch_axes(batch)
        self._module, self._batch = module, tuple(batch)
        self._states = [value.detach().clone() for value in self._initial()]
        gpu = self._states[0].is_cuda
        self._advance = module.backend.compiled(_advance) if (gpu if compiled is None else compiled) else _advance
        self._graph: tuple[Any, Tensor, Tensor] | None = None  # the graph, its input and its output

    @property
    def state_bytes(self) -> int:
        """The memory of all states."""
        return sum(value.numel() * value.element_size() for value in self._states)

    @property
    def state(self) -> Any:
        """A copy of the state after the last sample: of a layer an array, of a model one per block."""
        copies = [value.clone() for value in self._states]
        return copies if self._is_model() else copies[0]

    def reset(self, state: Any = None) -> None:
        """Go on from a state as of `state`; from zero if None.

        Raises:
            ValueError: state has another shape.
        """
        given = self._initial() if state is None else list(state) if self._is_model() else [state]
        shapes, expected = [tuple(v.shape) for v in given], [tuple(v.shape) for v in self._states]
        if shapes != expected:
            raise checks.fail("state", f"shapes {expected}", shapes, "take it from a stepper of the same batch")
        for kept, value in zip(self._states, given, strict=True):
            kept.copy_(value.detach())

    def __call__(self, u_k: Tensor) -> Tensor:
        """The output at the next sample u_k (*batch, H), or of a model (*batch, d_input) or tokens (*batch,).

        Raises:
            ValueError: u_k has not the batch axes, or on a GPU another shape or dtype than the first.
        """
        if tuple(u_k.shape[: len(self._batch)]) != self._batch:
            raise checks.fail("u_k", f"leading axes {self._batch}", tuple(u_k.shape), "make a stepper of this batch")
        with torch.no_grad(), current(self._states[0].device):
            return self._replay(u_k) if self._states[0].is_cuda else self._run(u_k)

    def _replay(self, u_k: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = self._capture(u_k)
        graph, taken, output = self._graph
        if (u_k.shape, u_k.dtype) != (taken.shape, taken.dtype):
            expected = f"{taken.dtype} {tuple(taken.shape)} as at first"
            raise checks.fail("u_k", expected, f"{u_k.dtype} {tuple(u_k.shape)}", "make a stepper of its own")
        taken.copy_(u_k)
        graph.replay()
        return output.clone()

    def _capture(self, u_k: Tensor) -> tuple[Any, Tensor, Tensor]:
        """The graph of a step; what the steps that warm it up do to the states is undone."""
        kept, taken = [value.clone() for value in self._states], u_k.clone()
        graph, output = captured(lambda: self._run(taken))
        for value, before in zip(self._states, kept, strict=True):
            value.copy_(before)
        return graph, taken, output

    def _run(self, u_k: Tensor) -> Tensor:
        return self._advance(self._module.description, self._module.arrays(), u_k, self._states)

    def _initial(self) -> list[Tensor]:
        found = self._module.initial_state(self._batch)
        return found if self._is_model() else [found]

    def _is_model(self) -> bool:
        return isinstance(self._module.description, SequenceModel)


def _advance(
    description: Layer | SequenceModel, params: dict[str, Tensor], u_k: Tensor, states: list[Tensor]
) -> Tensor:
    """One step, which puts the new states in the place of the old."""
    if isinstance(description, SequenceModel):
        y, new = description.step(params, u_k, states)
    else:
        y, end = description.step(params, u_k, states[0])
        new = [end]
    for old, value in zip(states, new, strict=True):
        old.copy_(value)
    return y
