"""The layers: frozen descriptions that define parameters, forms and modes; each is one file."""

from .dss import DSS
from .layer import STABILITY_MARGIN, Layer
from .s4 import S4
from .s4d import S4D
from .s5 import S5

#: Every layer by its name in files and on the command line.
LAYERS: dict[str, type[Layer]] = {"s4": S4, "s4d": S4D, "dss": DSS, "s5": S5}

__all__ = ["DSS", "LAYERS", "S4", "S4D", "S5", "STABILITY_MARGIN", "Layer"]
