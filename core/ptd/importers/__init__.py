"""Trained parameters of other programs as ptd's layers and models.

A function per kind of thing, from a checkpoint's arrays, ``arrays``, and the place of its names in it, ``prefix``:

>>> layer, leaves = s5(read("s5.msgpack"), "encoder/layers_0/seq")  # doctest: +SKIP

Arrays do not tell everything (which half of the modes they hold, which discretisation they were trained with): the
rest are keywords, whose defaults are those of the original's constructor. Importing this imports no framework.
"""

from collections.abc import Callable

from .arrays import places
from .dss_kernel import dss
from .files import read
from .minimal_lru import lru, lru_classifier
from .s4_kernel import s4
from .s4_kernel_v3 import s4_v3
from .s4d_minimal import s4d, s4d_classifier
from .s5_flax import s5, s5_classifier
from .s5_torch import s5_pytorch

__all__ = [
    "IMPORTERS",
    "SIGNS",
    "dss",
    "lru",
    "lru_classifier",
    "places",
    "read",
    "s4",
    "s4_v3",
    "s4d",
    "s4d_classifier",
    "s5",
    "s5_classifier",
    "s5_pytorch",
]

#: What can be imported, by name.
IMPORTERS: dict[str, Callable] = {
    "s5": s5,
    "s5_classifier": s5_classifier,
    "s5_pytorch": s5_pytorch,
    "lru": lru,
    "lru_classifier": lru_classifier,
    "s4": s4,
    "s4_v3": s4_v3,
    "s4d": s4d,
    "s4d_classifier": s4d_classifier,
    "dss": dss,
}

#: Of each the names by which its arrays are found in a checkpoint, from its prefix on.
SIGNS: dict[str, tuple[str, ...]] = {
    "s5": ("Lambda_re", "Lambda_im", "B", "D", "log_step"),
    "s5_classifier": ("encoder/layers_0/seq/Lambda_re", "encoder/encoder/kernel"),
    "s5_pytorch": ("Lambda", "B", "C", "D", "log_step"),
    "lru": ("nu_log", "theta_log", "gamma_log"),
    "lru_classifier": ("encoder/layers_0/seq/nu_log", "encoder/encoder/kernel"),
    "s4": ("kernel/inv_dt", "kernel/A_real", "kernel/B", "kernel/C", "D"),
    "s4_v3": ("kernel/kernel/log_dt", "kernel/kernel/B", "kernel/kernel/C", "D"),
    "s4d": ("kernel/log_A_real", "kernel/A_imag", "kernel/log_dt", "D"),
    "s4d_classifier": ("s4_layers/0/kernel/log_A_real", "norms/0/weight", "encoder/weight", "decoder/weight"),
    "dss": ("kernel/W", "kernel/log_dt", "D"),
}
