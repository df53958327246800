"""Optimised perturbations of HiPPO-LegS against the published ones, row by row.

    python benchmarks/perturbations.py                      # every row, about three minutes
    python benchmarks/perturbations.py --sizes 8 16 32      # some orders
    python benchmarks/perturbations.py --cache              # with cached results, whose seconds mean little

A row is met where, within the published ||E||_2, kappa(V) and the deviation are not above the published ones,
max Re Lambda < 0, and the time is within its limit. The closed form (1024) is met with kappa(V) <= 1/rho and
a backward error below 1e-12. Seconds are of processor time on one thread, so that other work on the machine
does not lose a row. The exit status is 1 if any row is lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import time

# at these orders the eigensolver gains nothing from a second thread, and loses much where the core is taken
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from ptd import Diagonalization, hippo, perturb_then_diagonalize


@dataclasses.dataclass(frozen=True)
class Row:
    """A perturbation to beat: order, where its figures come from, ||E||_2, kappa(V), deviation."""

    n: int
    source: str
    norm: float
    kappa: float
    deviation: float


# Computed from the matrices published with Yu et al. 2024. The one for n = 128 is unstable (max Re Lambda is
# 3.4) and has no deviation: that of n = 64 stands for it.
PUBLISHED = (
    Row(8, "published", 4.010, 5.114, 0.0505),
    Row(16, "published, first", 8.243, 6.555, 0.0140),
    Row(16, "published, second", 13.343, 4.454, 0.0660),
    Row(32, "published", 24.731, 8.312, 0.0399),
    Row(64, "published", 88.92, 9.168, 0.0521),
    Row(128, "published", 336.87, 8.011, 0.0521),
)
SECONDS = {32: 2.0, 64: 6.0, 128: 40.0, 256: 200.0}
CLOSED_FORM_ORDER, CLOSED_FORM_SECONDS, RHO = 1024, 15.0, 0.1
LAYOUT = "{:>5}  {:<23} {:>8} {:>8}  {:>7} {:>7}  {:>8} {:>8}  {:>7} {:>8}  {}"
HEADINGS = (
    "n",
    "figures",
    "budget",
    "||E||",
    "kappa",
    "theirs",
    "dev.",
    "theirs",
    "max Re",
    "seconds",
    "met",
)


def between(n: int, low: Row, high: Row, source: str) -> Row:
    """The row on the straight line in log n against the logarithm of each figure, through two rows."""
    t = math.log(n / low.n) / math.log(high.n / low.n)
    norm, kappa, deviation = (
        getattr(low, name) ** (1 - t) * getattr(high, name) ** t for name in ("norm", "kappa", "deviation")
    )
    return Row(n, source, norm, kappa, deviation)


def rows() -> list[Row]:
    """The published rows, those between them, and n = 256 with the figures of n = 128.

    Beyond 128 the last two rows are no guide: kappa falls between them because the one for 64 is poor, and
    the line through them asks for ever smaller kappa and ||E|| / ||A|| at once: for a product of .214, where .24
    to .25 is the best found at every order from 32 on. So both are kept.
    """
    first, second, r32, r64, r128 = PUBLISHED[1:]
    made = [
        between(24, first, r32, "between 16 first and 32"),
        between(24, second, r32, "between 16 second, 32"),
        between(48, r32, r64, "between 32 and 64"),
        between(96, r64, r128, "between 64 and 128"),
        Row(256, "as 128, ||E|| ~ n^2", 4 * r128.norm, r128.kappa, r128.deviation),
    ]
    return sorted([*PUBLISHED, *made], key=lambda row: row.n)


def is_met(row: Row, found: Diagonalization, seconds: float) -> bool:
    """Whether a row is won on every count at once."""
    limit = next(limit for order, limit in SECONDS.items() if order >= row.n)
    return (
        found.perturbation_norm <= row.norm
        and found.condition_number <= row.kappa
        and found.deviation is not None
        and found.deviation <= row.deviation
        and found.spectral_abscissa < 0
        and seconds <= limit
    )


def optimized(row: Row, cache: bool) -> bool:
    """Print one row; whether it is met."""
    start = time.process_time()
    found = perturb_then_diagonalize(*hippo.legs(row.n), size=row.norm, cache=cache)
    seconds = time.process_time() - start
    met = is_met(row, found, seconds)
    report(row.n, row.source, f"{row.norm:.5g}", f"{row.kappa:.3f}", f"{row.deviation:.4f}", found, seconds, met)
    return met


def closed_form(cache: bool) -> bool:
    """Print the closed form's row; whether it is met."""
    start = time.process_time()
    A, B = hippo.legs(CLOSED_FORM_ORDER)
    found = perturb_then_diagonalize(A, B, method="closed-form", rho=RHO, cache=cache)
    seconds = time.process_time() - start
    met = found.condition_number <= 1 / RHO and found.backward_error < 1e-12 and seconds <= CLOSED_FORM_SECONDS
    report(CLOSED_FORM_ORDER, f"closed form, rho {RHO}", "-", f"{1 / RHO:.3f}", "-", found, seconds, met)
    print(f"{'':7}backward error {found.backward_error:.1e} (limit 1e-12)")
    return met


def report(
    n: int,
    source: str,
    budget: str,
    kappa: str,
    deviation: str,
    found: Diagonalization,
    seconds: float,
    met: bool,
) -> None:
    """Print ours beside theirs."""
    ours = found.perturbation_norm, found.condition_number, found.deviation, found.spectral_abscissa
    e, k, d, re = (f"{x:.{digits}g}" for x, digits in zip(ours, (5, 4, 3, 3), strict=True))
    verdict = "yes" if met else "LOST"
    print(LAYOUT.format(n, source, budget, e, k, kappa, d, deviation, re, f"{seconds:.2f}", verdict), flush=True)


def main() -> int:
    """The table; 1 if a row is lost."""
    orders = [*dict.fromkeys(row.n for row in rows()), CLOSED_FORM_ORDER]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=orders, default=orders, metavar="N")
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=False)
    chosen = parser.parse_args()
    print(LAYOUT.format(*HEADINGS))
    met = [optimized(row, chosen.cache) for row in rows() if row.n in chosen.sizes]
    if CLOSED_FORM_ORDER in chosen.sizes:
        met.append(closed_form(chosen.cache))
    print(f"{sum(met)} of {len(met)} rows met")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
