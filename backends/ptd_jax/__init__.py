"""The jax backend: pure functions on a dict pytree, compiled; flax NNX modules over them; optax training."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ptd import arrays, checks
from ptd.arrays import Array
from ptd.layers import S5, Layer
from ptd.model import SequenceModel
from ptd.optimization import Optimizer
from ptd.portable import PortableBackend

from . import blocks
from .host import on_host
from .kernels import choice, exact_matmul, table

xp = types.ModuleType(jnp.__name__)
vars(xp).update(vars(array_api_compat.array_namespace(jnp.zeros(0))), exact_matmul=exact_matmul, on_host=on_host)
arrays.NAMESPACES[type(jnp.zeros(0))] = arrays.NAMESPACES[jax.core.Tracer] = xp

#: By platform, for programs that run once. Where XLA chooses between kernels by timing them, it compiles dozens for
#: each product and fusion: minutes for the gradient of S4's chunked form, whose powers and their gradients are
#: products of dozens of shapes.
UNTUNED = {"gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_experimental_enable_fusion_autotuner": False}}


class JaxBackend(PortableBackend):
    """JAX on its default device. Arrays of float64 live inside ``with backend.precision("float64")``.

    Args:
        platform: whose kernels and forms to take: "cpu", "gpu", "tpu"; by default the one jax computes on. Pass
            another to export for it; results are the same.
        recurrence: how recurrences run, "loop", "tree" or, without forward-mode derivatives, "pallas" on a GPU and
            "pallas-tpu" on a TPU; by default "loop" on a CPU and "tree" elsewhere, and in a learner on a GPU "pallas",
            which also runs the chunked form of S4D and DSS as one kernel (ptd_jax.pallas_chunks) where it fits into
            the GPU's shared memory; see lacking.
        chunk: samples per chunk of the chunked form; by default by size.
    """

    name = "jax"
    xp = xp
    distributions = ("jax", "jaxlib", "flax", "optax")
    not_run: Mapping[str, str] = {
        'the scan kernel for TPUs, recurrence="pallas-tpu"': "tested in TPU interpret mode; measured on no TPU, which "
        "therefore takes the tree"
    }

    def __init__(self, platform: str | None = None, recurrence: str | None = None, *, chunk: int | None = None):
        self.platform = platform or jax.default_backend()
        usual = choice(self.platform)
        self._forced, self.chunk = recurrence, chunk
        if chunk is not None:
            checks.positive_integer("chunk", chunk)
        self.recurrence = recurrence or usual.recurrence
        self.kernels = table(self.platform, self.recurrence, chunk)

    def __reduce__(self) -> tuple:
        return functools.partial(JaxBackend, self.platform, self._forced, chunk=self.chunk), ()

    @functools.cached_property
    def training(self) -> JaxBackend:
        """This backend with the recurrence that is fastest where first gradients are all that is asked for."""
        recurrence = self._forced or choice(self.platform).training
        return self if recurrence == self.recurrence else JaxBackend(self.platform, recurrence, chunk=self.chunk)

    def device(self) -> str:
        return jax.devices()[0].device_kind

    @contextlib.contextmanager
    def precision(self, dtype: str) -> Iterator[None]:
        checks.choice("dtype", dtype, self.dtypes)
        # jax rounds the factors of float32 products on GPUs and TPUs unless told otherwise.
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            yield

    def fast_products(self) -> AbstractContextManager:
        return jax.default_matmul_precision("tensorfloat32")

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        if dtype == "float64" and not jax.config.jax_enable_x64:
            remedy = 'run it inside `with backend.precision("float64")`'
            raise checks.fail("dtype", "float32, all that jax has by default", repr(dtype), remedy)
        return super().asarray(host, dtype)

    def apply(self, layer: Layer, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        layer.check_call(params, u, **call, activations=self.kernels.activations)
        T = self.block_length(layer, u.shape, **call)
        static = {name: call.pop(name) for name in ("return_state", "form") if name in call}
        return _apply(layer, (self.platform, self.recurrence, self.chunk), T, params, u, **_as_arrays(call), **static)

    def block_length(self, layer: Layer, shape: tuple[int, ...], **call: Any) -> int | None:
        """The samples per block where a call of apply runs the scan form in blocks of time, else None.

        On a CPU that of S5 does; another recurrence than the loop takes the whole sequence at once.
        """
        if self.recurrence != "loop" or layer.form_of(self.kernels, shape, **call) != "scan":
            return None
        T = blocks.block_length(layer, shape)
        return T if blocks.fits(layer, shape, T, call) else None

    def lacking(self, layer: Layer, L: int, dtype: str = "float32") -> str | None:
        """What keeps chunks of a layer on L samples of dtype from running as one kernel, in words; None where they do.

        A learner asks backend.training. Without the kernel the chunks' parts run one by one, with the same results.
        """
        if self.kernels.per_feature_chunks is None:
            return f"recurrence='pallas', not {self.recurrence!r}"
        if layer.kind not in ("s4d", "dss"):
            return f"an S4D or DSS layer, not {layer.kind}"
        if dtype == "float64":
            return "states of float32, not float64"
        from .pallas_chunks import device_limit, lacking

        return lacking(self.kernels.chunk_length(layer, L), layer.modes, dtype, device_limit())

    def step(self, layer: Layer, params: Mapping[str, Array], u_k: Array, state: Array, **call: Any) -> Any:
        if call or not all(isinstance(value, (jax.Array, np.ndarray, np.generic)) for value in (u_k, state)):
            # While values are not traced, and before jax names an argument of its own.
            layer.check_step(params, u_k, state, **call)
        return _step(layer, params, u_k, state, **_as_arrays(call))

    def gradients(self, function: Callable[..., Array], arguments: dict[str, Array]) -> dict[str, Array]:
        gradient = jax.grad(lambda arguments: function(**arguments))
        return jax.jit(gradient, compiler_options=UNTUNED.get(self.platform))(arguments)

    def compiled(self, function: Callable) -> Callable:
        return jax.jit(function)

    def module(
        self,
        description: Layer | SequenceModel,
        params: Mapping[str, NDArray],
        dtype: str = "float32",
        *,
        rngs: Any = None,
    ) -> Any:
        """See ptd.contract.Backend; rngs for dropout, an nnx.Rngs or nnx.RngStream, as nnx.Dropout takes it."""
        from .modules import Module

        description.check(params)
        return Module(self, description, {name: self.asarray(value, dtype) for name, value in params.items()}, rngs)

    def parameter_groups(self, module: Any, optimizer: Optimizer) -> Any:
        from .training import parameter_groups

        return parameter_groups(optimizer)

    def learner(
        self,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        *,
        activations: str | None = None,
        devices: int = 1,
        mesh: jax.sharding.Mesh | None = None,
    ) -> Any:
        """See ptd.contract.Backend; over the first devices that jax finds, or over those of a mesh, if there is one.

        train and evaluate split batches over them, of any size. Every device holds the whole state and the data sets of
        place; outputs runs whole on each.
        """
        from .placement import Placement
        from .training import JaxLearner

        self.check_learner(model, params, activations)
        placement = Placement.over(mesh, devices)
        return JaxLearner(self.training, model, params, optimizer, seed, activations, placement)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames=("return_state", "form"))
def _apply(layer: Layer, choice: tuple, T: int | None, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
    if isinstance(layer, S5) and T is not None:
        return blocks.apply(
            layer, params, u, T, **{name: call[name] for name in call if name not in ("form", "resets")}
        )
    return layer.apply(params, u, kernels=table(*choice), **call)


@functools.partial(jax.jit, static_argnums=0)
def _step(layer: Layer, params: Mapping[str, Array], u_k: Array, state: Array, **call: Any) -> Any:
    return layer.step(params, u_k, state, **call)


def _as_arrays(call: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value) if isinstance(value, (list, tuple)) else value for name, value in call.items()}


backend = JaxBackend()
