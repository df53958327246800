"""All clauses; importing this package registers them."""

from . import errors, gradients, kernels, layers, models, modes, parameters

__all__ = ["errors", "gradients", "kernels", "layers", "models", "modes", "parameters"]
