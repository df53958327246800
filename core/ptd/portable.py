"""A backend from an array namespace alone: every definition of core, run by any framework that speaks the standard."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arrays import Array
from .contract import Learner, Unsupported
from .initialization import INITIALIZERS, initialize, options_of
from .kernels import PORTABLE, Kernels
from .layers import DSS, S4, S4D, S5, Layer
from .model import SequenceModel
from .optimization import Optimizer


class PortableBackend:
    """The contract of ptd.contract.Backend, filled in from an array namespace.

    Derive, set name and xp, and override what the framework does better.
    """

    name: str
    #: The array namespace, as array_api_compat gives it.
    xp: Any
    #: Distributions whose versions are reported.
    distributions: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float64")
    unsupported: Mapping[str, str] = {}
    known_failures: Mapping[str, str] = {}
    not_run: Mapping[str, str] = {}
    kernels: Kernels = PORTABLE

    def __repr__(self) -> str:
        return f"<ptd backend {self.name}>"

    # --- the contract ------------------------------------------------------------------------------------------

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("ptd", *self.distributions)}

    def device(self) -> str:
        return "cpu"

    def precision(self, dtype: str) -> AbstractContextManager:
        checks.choice("dtype", dtype, self.dtypes)
        return contextlib.nullcontext()

    def fast_products(self) -> AbstractContextManager:
        return contextlib.nullcontext()

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        if dtype is not None:
            checks.choice("dtype", dtype, self.dtypes)
        return self.xp.asarray(np.asarray(host), dtype=None if dtype is None else getattr(self.xp, dtype))

    def to_numpy(self, array: Array) -> NDArray:
        return np.asarray(array)

    def apply(self, layer: Layer, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        return layer.apply(params, u, kernels=self.kernels, **call)

    def form(self, layer: Layer, shape: tuple[int, ...], **call: Any) -> str:
        """The form in which apply runs a call on u of that shape: "scan", "convolution" or "chunked"; see Layer.apply.

        >>> from ptd.reference import backend
        >>> backend.form(S4D(2, 4), (1, 8, 2)), backend.form(S4D(2, 4), (1, 8, 2), form="chunked")
        ('convolution', 'chunked')
        """
        if call.get("form") is not None:
            checks.choice("form", call["form"], layer.forms)
        return layer.form_of(self.kernels, shape, **call)

    def step(self, layer: Layer, params: Mapping[str, Array], u_k: Array, state: Array, **call: Any) -> Any:
        return layer.step(params, u_k, state, **call)

    def apply_model(self, model: SequenceModel, params: Mapping[str, Array], u: Array, **call: Any) -> Any:
        checks.activations(call.get("activations"), self.kernels.activations)
        return model.apply(params, u, run=self.apply, **call)

    def gradients(self, function: Callable[..., Array], arguments: dict[str, Array]) -> dict[str, Array]:
        raise self._lacks("gradients")

    def compiled(self, function: Callable) -> Callable:
        raise self._lacks("compilation")

    def module(self, description: Layer | SequenceModel, params: Mapping[str, NDArray], dtype: str = "float32") -> Any:
        raise self._lacks("modules")

    def parameter_groups(self, module: Any, optimizer: Optimizer) -> Any:
        raise self._lacks("training")

    def learner(
        self,
        model: SequenceModel,
        params: Mapping[str, NDArray],
        optimizer: Optimizer,
        seed: int,
        *,
        activations: str | None = None,
        devices: int = 1,
    ) -> Learner:
        raise self._lacks("training")

    def check_learner(self, model: SequenceModel, params: Mapping[str, NDArray], activations: str | None) -> None:
        """Raise ValueError where the arguments of learner do not fit; a backend that trains calls this first."""
        if not isinstance(model, SequenceModel):
            got = f"a {type(model).__name__}"
            raise checks.fail(
                "model", "a SequenceModel", got, "of a module pass module.description and module.leaves()"
            )
        for name, value in params.items():
            checks.host(name, value)
        model.check(params)
        checks.activations(activations, self.kernels.activations)

    # --- constructors ------------------------------------------------------------------------------------------

    def S4(self, d_model: int, d_state: int, **options: Any) -> Any:
        """A module of S4 with initial parameters; see new."""
        return self.new(S4, d_model, d_state, **options)

    def S4D(self, d_model: int, d_state: int, **options: Any) -> Any:
        """A module of S4D, or S4-PTD with init="ptd", with initial parameters; see new."""
        return self.new(S4D, d_model, d_state, **options)

    def DSS(self, d_model: int, d_state: int, **options: Any) -> Any:
        """A module of DSS with initial parameters; see new."""
        return self.new(DSS, d_model, d_state, **options)

    def S5(self, d_model: int, d_state: int, **options: Any) -> Any:
        """A module of S5 with initial parameters, S5-PTD unless init says otherwise; see new.

        The first init="ptd" of an order is searched for: 13 s at blocks of N = 128, 60 to 100 s at 256, measured on one
        core; init="ptd-closed" is not.
        """
        return self.new(S5, d_model, d_state, **options)

    def new(
        self,
        kind: type[Layer],
        d_model: int,
        d_state: int,
        *,
        seed: int = 0,
        dtype: str = "float32",
        **options: Any,
    ) -> Any:
        """A module of one layer with freshly drawn parameters.

        Args:
            kind: the layer's class.
            d_model: H.
            d_state: N.
            seed: of the random draws.
            dtype: of the leaves.
            options: fields of the layer (blocks, bidirectional, conj_sym, ...) and of its initialisation (init,
                dt_min, dt_max, ...), told apart by name.

        Raises:
            TypeError: neither knows an option.
            ValueError: a value does not fit.
        """
        fields = {field.name for field in dataclasses.fields(kind)}
        layer = kind(d_model, d_state, **{name: value for name, value in options.items() if name in fields})
        drawn = {name: value for name, value in options.items() if name not in fields}
        if kind in INITIALIZERS:
            known = {*fields, *options_of(kind), "seed", "dtype"} - {"d_model", "d_state"}
            checks.options(kind.__name__, options, known)
        return self.module(layer, initialize(layer, np.random.default_rng(seed), **drawn), dtype)

    def _lacks(self, feature: str) -> Unsupported:
        return Unsupported(f"{self.name}: no {feature}; {self.unsupported.get(feature, 'not implemented')}")
