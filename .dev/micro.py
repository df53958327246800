"""S4D by the fused kernel against its parts: agreement, times by tiling, and a learner's step. One GPU, about a minute.

python .dev/micro.py [time] [learner] [tilings]; all without arguments. Each failure is a line, and on it goes.
"""

import concurrent.futures
import dataclasses
import functools
import sys
import time
import traceback
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root / "core"), str(root / "backends")]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import ptd  # noqa: E402
from ptd.speed import TRAINING_STEPS, TrainingStep  # noqa: E402
from ptd_jax import JaxBackend, kernels, pallas_chunks, speed  # noqa: E402

BEGIN = time.perf_counter()
SHAPES = [(50, 128, 2048), (50, 256, 4096), (32, 128, 16384)]
FUSED = kernels.table("gpu", "pallas")
PARTS = dataclasses.replace(FUSED, per_feature_chunks=None)
PORTABLE = kernels.table("gpu", "tree")
HIGH, FAST = "highest", "tensorfloat32"
TILINGS = {"16x4": {16: 4}, "16x8": {16: 8}, "32x4": {32: 4}, "32x8": {32: 8}, "64x4": {64: 4}, "64x8": {64: 8}}


def say(*parts):
    print(f"[{time.perf_counter() - BEGIN:5.1f}]", *parts, flush=True)


def attempt(label, function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        say("FAILED", label, type(error).__name__, str(error)[:400].replace("\n", " | "), f"{where.name}:{where.lineno}")
        return None


def drawn(shape, dtype="float32"):
    B, H, L = shape
    layer = ptd.S4D(H, 64, bidirectional=True)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    params = {name: jnp.asarray(value, "float32") for name, value in leaves.items()}
    u, w = (jax.random.normal(jax.random.key(i), (B, L, H)).astype(dtype) for i in range(2))
    return layer, params, u, w


def gradient(layer, table):
    def both(params, u, w):
        y, pull = jax.vjp(lambda p, u: layer.apply(p, u, form="chunked", kernels=table), params, u)
        return y, pull(w)

    return jax.jit(both)


def lowered(shape, table, precision, dtype="float32"):
    layer, params, u, w = drawn(shape, dtype)
    with jax.default_matmul_precision(precision):
        return gradient(layer, table).lower(params, u, w)


def compiled(jobs):
    """By label the program of each (shape, table, precision, dtype) that compiles; XLA compiles them side by side."""
    with concurrent.futures.ThreadPoolExecutor(14) as pool:
        low = {label: attempt(f"lower {label}", lowered, *job) for label, job in jobs.items()}
        programs = {k: pool.submit(attempt, f"compile {k}", v.compile) for k, v in low.items() if v is not None}
        return {k: v.result() for k, v in programs.items() if v.result() is not None}


def seconds(program, *arguments):
    jax.block_until_ready(program(*arguments))
    taken = []
    while len(taken) < 5 or sum(taken) < 0.25:
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def distance(found, expected):
    """The largest error of outputs and of each gradient, relative to the largest entry."""
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    of = {jax.tree_util.keystr(path)[-16:]: float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for (path, x), y in pairs}
    return of


def check_and_time():
    jobs = {}
    for shape in SHAPES:
        jobs |= {(shape, "portable", HIGH): (shape, PORTABLE, HIGH)}
        for precision in (HIGH, FAST):
            jobs |= {(shape, "fused", precision): (shape, FUSED, precision)}
            jobs |= {(shape, "parts", precision): (shape, PARTS, precision)}
        jobs |= {(shape, name, "bf16"): (shape, t, FAST, "bfloat16") for name, t in (("fused", FUSED), ("parts", PARTS))}
    programs = compiled(jobs)
    say("compiled", len(programs), "of", len(jobs))
    for shape in SHAPES:
        _, params, u, w = drawn(shape)
        expected = attempt("portable", programs[shape, "portable", HIGH], params, u, w)
        for precision in (HIGH, FAST, "bf16"):
            x = [params, u, w] if precision != "bf16" else [params, u.astype("bfloat16"), w.astype("bfloat16")]
            taken = {}
            for name in ("fused", "parts"):
                program = programs.get((shape, name, precision))
                if program is None:
                    continue
                found = attempt(f"run {name} {shape} {precision}", program, *x)
                if found is None:
                    continue
                if expected is not None:
                    errors = distance(found, expected)
                    worst = sorted(errors, key=errors.get)[-3:]
                    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
                    say(shape, precision, name, "" if finite else "NOT FINITE", {k: f"{errors[k]:.1e}" for k in worst})
                del found
                taken[name] = attempt(f"time {name} {shape} {precision}", seconds, program, *x)
            if all(taken.get(name) for name in ("fused", "parts")):
                ratio = taken["parts"] / taken["fused"]
                memory = [programs[shape, n, precision].memory_analysis().temp_size_in_bytes / 2**20 for n in taken]
                numbers = [f"{taken[n] * 1e3:.3f}" for n in ("fused", "parts")]
                say(f"TIME {shape} {precision}: fused {numbers[0]} parts {numbers[1]} ms, {ratio:.2f}x; temp MiB", memory)
        del expected


def tilings():
    """Forward and backward of the first shape by rows and warps of a program."""
    usual, programs = pallas_chunks.WARPS, {}
    low = {}
    for name, warps in TILINGS.items():
        pallas_chunks.WARPS = warps
        for shape in SHAPES[::2]:
            for precision in (HIGH, FAST):
                label = (name, shape, precision)
                low[label] = attempt(f"lower {label}", lowered, shape, FUSED, precision)
    pallas_chunks.WARPS = usual
    with concurrent.futures.ThreadPoolExecutor(14) as pool:
        jobs = {k: pool.submit(attempt, f"compile {k}", v.compile) for k, v in low.items() if v is not None}
        programs = {k: v.result() for k, v in jobs.items() if v.result() is not None}
    say("tilings compiled", len(programs), "of", len(low))
    for shape in SHAPES[::2]:
        _, *arguments = drawn(shape)
        for precision in (HIGH, FAST):
            found = {}
            for name in TILINGS:
                program = programs.get((name, shape, precision))
                if program is not None:
                    taken = attempt(f"time {name}", seconds, program, *arguments)
                    found[name] = None if taken is None else round(taken * 1e3, 3)
            say("TILINGS, ms", shape, precision, found)


@dataclasses.dataclass(frozen=True)
class S4DStep(TrainingStep):
    def model(self):
        return dataclasses.replace(super().model(), layer=ptd.S4D(self.H, 64, bidirectional=True))


def learner():
    row = S4DStep(**dataclasses.asdict(TRAINING_STEPS["ListOps"]))
    usual = kernels.RECURRENCES["pallas"]
    for name, fused in (("fused", True), ("parts", False)):
        ways = usual() if fused else dataclasses.replace(usual(), per_feature_chunks=None)
        kernels.RECURRENCES["pallas"] = functools.partial(lambda ways: ways, ways)
        kernels.table.cache_clear()
        jax.clear_caches()
        for figure in speed.training_steps(JaxBackend(), rows={"ListOps, S4D": row}):
            say(f"LEARNER {name}: {figure.seconds * 1e3:.3f} ms a step, {figure.gibibytes:.2f} GiB, {figure.note}")
    kernels.RECURRENCES["pallas"] = usual
    kernels.table.cache_clear()
    jax.clear_caches()


if __name__ == "__main__":
    say(jax.__version__, jax.devices()[0].device_kind)
    chosen = sys.argv[1:] or ["time", "learner", "tilings"]
    for name, run in {"time": check_and_time, "learner": learner, "tilings": tilings}.items():
        if name in chosen:
            attempt(name, run)
