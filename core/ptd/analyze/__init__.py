"""The figures of Yu et al. 2024, remade from core: numbers first, then a drawing of them.

A figure is two functions: one returns tables, the other draws from nothing but these tables. The tables are written
beside the picture, so every figure can be drawn again from its CSV files.
"""

from .catalogue import FIGURES, Figure, analyze

__all__ = ["FIGURES", "Figure", "analyze"]
