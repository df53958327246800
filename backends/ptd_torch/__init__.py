"""The torch backend: real leaves, one operator for the recurrence, matrix products for the rest."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import array_api_compat
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptd import arrays, checks
from ptd.kernels import Kernels
from ptd.layers import Layer
from ptd.model import SequenceModel
from ptd.optimization import Optimizer
from ptd.portable import PortableBackend

from .chunked import mixing_chunks
from .compilation import compiled, traced
from .devices import current, found
from .fused import PARTS
from .host import on_host
from .kernels import KERNELS, chunk_length_beside_states, exact_matmul
from .norm import Normed
from .normed_states import mixing_states
from .scan import kernel_path
from .transforms import plain

_compatible = array_api_compat.array_namespace(torch.zeros(0))
xp = types.ModuleType(_compatible.__name__)
vars(xp).update(vars(_compatible), moveaxis=torch.movedim)  # torch.func.vmap has no rule for moveaxis (torch 2.13)
# array_api_compat's eye writes ones through a view; torch.func.linearize folds constants without them (torch 2.13).
# Its clip, up to 1.12, copies limits to the device and sets by a mask: both wait, and no CUDA graph captures them.
vars(xp).update(eye=torch.eye, clip=torch.clip, exact_matmul=exact_matmul, on_host=on_host)
arrays.NAMESPACES[torch.Tensor] = arrays.NAMESPACES[torch.nn.Parameter] = xp

#: What arrays have to be here: see ptd.checks.array.
TENSOR = Tensor, "a torch tensor"


class TorchBackend(PortableBackend):
    """PyTorch on one device: the first GPU if there is one, else the CPU; on() names another.

    Under autocast products run in its dtype, recurrences in that of the parameters.
    """

    name = "torch"
    xp = xp
    distributions = ("torch",)
    kernels = KERNELS["cpu"]

    def __init__(self, device: str | None = None):
        self.torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.kernels = _kernels_of(self.torch_device)

    def on(self, device: str) -> TorchBackend:
        """This backend on another device, "cpu" or "cuda:1"; ValueError if torch finds none of that name here."""
        found(device)
        other = copy.copy(self)
        TorchBackend.__init__(other, device)
        return other

    def device(self) -> str:
        gpu = self.torch_device.type == "cuda"
        return torch.cuda.get_device_name(self.torch_device) if gpu else "cpu"

    def kernel_path(self) -> str:
        """What runs recurrences and sums of convolution kernels here: "triton", "triton interpreter" or "torch"."""
        return kernel_path(self.torch_device)

    @contextlib.contextmanager
    def fast_products(self) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def asarray(self, host: Any, dtype: str | None = None) -> Tensor:
        found = host if isinstance(host, Tensor) else torch.from_numpy(np.array(host))
        if dtype is not None:
            checks.choice("dtype", dtype, self.dtypes)
            found = found.to(getattr(torch, dtype))
        return found.to(self.torch_device)

    def to_numpy(self, array: Tensor) -> NDArray:
        return array.detach().cpu().numpy()

    def apply(
        self,
        layer: Layer,
        params: Mapping[str, Tensor],
        u: Tensor,
        *,
        fused: Collection[str] = (),
        normed: Normed | None = None,
        **call: Any,
    ) -> Any:
        """See ptd.contract.Backend; fused names kernels with a first derivative only: "chunks", "states", "tiles", and
        with "full_end" outputs over chunks may lie in memory with features first, as that reads them.

        normed is what u is the batch norm of; "states" may then find the gradient of both together.

        On a GPU so are the kernels of form "convolution" in float32, and those of form "chunked" but for S5's. In
        forward mode, and under torch.func where they have no rule, core's definitions run; named kernels are refused.
        What torch compiles or exports takes no form by size: there S4D and DSS run in chunks. An exporter may leave the
        batch open, but not L.
        """
        checks.array("u", u, *TENSOR)
        _check_device("u", u, params)
        for name in fused:
            checks.choice("fused", name, PARTS)
        if fused and not plain():
            raise checks.fail("fused", "no kernels by name under torch.func or in forward mode", sorted(fused))
        kernels = _kernels_of(u.device)
        if traced():  # a comparison would bind sizes that an exporter leaves open
            of = kernels.fastest_form
            kernels = dataclasses.replace(kernels, fastest_form=lambda layer, size: of(layer, None))
        tiled = "tiles" in fused
        if "chunks" in fused:
            kernels = dataclasses.replace(kernels, mixing_chunks=functools.partial(mixing_chunks, tiled=tiled))
        if "states" in fused:
            by_states = functools.partial(mixing_states, tiled=tiled, normed=normed)
            chunk_length = chunk_length_beside_states if u.is_cuda else kernels.chunk_length
            kernels = dataclasses.replace(kernels, mixing_states=by_states, chunk_length=chunk_length)
        if "full_end" in fused and kernels.per_feature_chunks is not None:
            # It reads features first as well, so that nothing is turned between.
            turned = functools.partial(kernels.per_feature_chunks, features_first=True)
            kernels = dataclasses.replace(kernels, per_feature_chunks=turned)
        layer.check_call(params, u, activations=kernels.activations, **call)  # with lists and numbers as given
        with current(u.device):
            return layer.apply(params, _autocast(u), kernels=kernels, **_as_tensors(call, u))

    def apply_model(self, model: SequenceModel, params: Mapping[str, Tensor], u: Tensor, **call: Any) -> Any:
        checks.array("u", u, *TENSOR)
        _check_device("u", u, params)
        return super().apply_model(model, params, u, **call)

    def step(self, layer: Layer, params: Mapping[str, Tensor], u_k: Tensor, state: Tensor, **call: Any) -> Any:
        checks.array("u_k", u_k, *TENSOR)
        _check_device("u_k", u_k, params)
        if call:
            layer.check_step(params, u_k, state, **call)  # with lists and numbers as given
        return layer.step(params, u_k, state, **_as_tensors(call, u_k))

    def gradients(self, function: Callable[..., Tensor], arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in arguments.items()}
        found = torch.autograd.grad(function(**leaves), list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), found, strict=True)
        }

    def compiled(self, function: Callable) -> Callable:
        return compiled(function)

    def module(self, description: Layer | SequenceModel, params: Mapping[str, NDArray], dtype: str = "float32") -> Any:
        from .modules import Module

        description.check(params)
        return Module(self, description, {name: self.asarray(value, dtype).clone() for name, value in params.items()})

    def parameter_groups(self, module: torch.nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
        from .modules import parameter_groups

        return parameter_groups(module, optimizer)

    def stepper(self, module: Any, batch: tuple[int, ...] = ()) -> Any:
        """A module in step mode that keeps its states, on a GPU as one CUDA graph; see ptd_torch.stepping.Stepper."""
        from .stepping import Stepper

        return Stepper(module, batch)

    def learner(
        self,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        *,
        activations: str | None = None,
        devices: int = 1,
        **options: Any,
    ) -> Any:
        """See ptd.contract.Backend; options are those of ptd_torch.training.TorchLearner.

        Several devices are those from this backend's on, each with a process of its own: ptd_torch.data_parallel.
        """
        from .data_parallel import DataParallelLearner
        from .training import TorchLearner

        checks.positive_integer("devices", devices)
        self.check_learner(model, params, activations)
        options["activations"] = activations
        if devices > 1:
            return DataParallelLearner(self, model, params, optimizer, seed, devices=devices, **options)
        return TorchLearner(self, model, params, optimizer, seed, **options)


def _check_device(argument: str, u: Tensor, params: Mapping[str, Any]) -> None:
    """Raise unless u lies where the parameters do: a kernel does not ask where what it is given lies."""
    leaf = next(iter(params.values()), u)
    if isinstance(leaf, Tensor) and leaf.device != u.device:
        raise checks.fail(
            argument, f"a tensor on {leaf.device}, as the parameters", f"one on {u.device}", "move either"
        )


def _as_tensors(call: dict[str, Any], u: Any) -> dict[str, Any]:
    """Host values of the call as tensors beside u, in the precision that NumPy gives them; numbers stay."""
    return {
        name: torch.as_tensor(np.asarray(value), device=u.device)
        if isinstance(value, (list, tuple, np.ndarray))
        else value
        for name, value in call.items()
    }


def _kernels_of(device: torch.device) -> Kernels:
    if device.type not in KERNELS:
        raise checks.fail("device", "one of " + ", ".join(KERNELS), device.type, "move the parameters and u")
    return KERNELS[device.type]


def _autocast(u: Tensor) -> Tensor:
    """u in the dtype of an active autocast."""
    if not u.is_floating_point() or u.dtype == torch.float64:
        return u
    kind = u.device.type
    return u.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else u


backend = TorchBackend()
