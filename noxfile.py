"""One session per job; each installs what it needs into its own environment."""

from itertools import pairwise
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

#: What each backend's framework is installed as. A backend is a folder under backends/.
FRAMEWORKS = {"numpy": [], "jax": ["jax"], "mlx": ["mlx"], "torch": ["torch"]}
RESULTS = Path("conformance/results")


def install(session: nox.Session, *extras: str) -> None:
    """The project with extras; torch by its version, since a range takes the newest CUDA build of several GB."""
    pinned = ["torch==2.13.0"] if "torch" in extras else []
    session.install("-e", f".[{','.join(extras)}]", *pinned)


def chosen_backend(arguments: list[str]) -> str:
    """The backend that ptd quickstart takes: --backend NAME or --backend=NAME."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return dict(pairwise(words)).get("--backend", "jax")


@nox.session
def tests(session: nox.Session) -> None:
    """Core against mathematics, and the conformance suite against broken backends."""
    install(session, "test", "quickstart", "lra", "examples", "jax", "torch", "torch-export", "mlx")
    # XLA's older code generator for a CPU: half the compiler's time, which is most of what tests of jax take. An XLA
    # that does not know a flag ends the process.
    version = session.run("python", "-c", "import jaxlib; print(jaxlib.__version__)", silent=True, log=False)
    known = str(version).startswith("0.10.")
    environment = {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"} if known else {}
    session.run("python", "-m", "pytest", *session.posargs, env=environment)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train on real digits, test under Fourier-mode noise, draw the transfer functions; -- --backend NAME."""
    install(session, "quickstart", *FRAMEWORKS.get(chosen_backend(session.posargs), []))
    session.run("ptd", "quickstart", *session.posargs)


def conformance(backend: str) -> None:
    """Register the session that holds one backend to the reference."""

    @nox.session(name=f"conformance-{backend}")
    def run(session: nox.Session) -> None:
        install(session, "test", *FRAMEWORKS[backend])
        record = Path(session.create_tmp()) / f"{backend}-cpu.json"
        arguments = session.posargs or ["--json", str(record)]
        # mlx on a GPU: products in float32, not in TF32.
        environment = {"MLX_ENABLE_TF32": "0"}
        # Two threads: nearly all of a compiling backend's time goes into its compiler, which runs beside Python. mlx
        # compiles little, and a process that used it in several threads now and then aborts on its way out (0.32).
        jobs = "1" if backend == "mlx" else "2"
        session.run("ptd", "conformance", "--backend", backend, "--jobs", jobs, *arguments, env=environment)


for name in FRAMEWORKS:
    conformance(name)


@nox.session(name="triton-interpreter")
def triton_interpreter(session: nox.Session) -> None:
    """The Triton kernels of the torch backend on a CPU, through Triton's interpreter, against the reference."""
    install(session, "test", "torch")
    session.install("triton>=3.4")
    clauses = [
        part for clause in ("K1", "K2", "K3", "K6", "L2", "L15", "L17", "G4", "G5", "G7") for part in ("--only", clause)
    ]
    environment = {"TRITON_INTERPRET": "1"}
    names = (
        *("scan", "gate", "end", "norm", "layer_norm", "chunked", "states", "normed_states", "per_feature", "diagonal"),
        *("orbits", "convolution", "encoder", "fused_data_parallel"),
    )
    tests = [f"tests/test_torch_{name}.py" for name in names]
    session.run("python", "-m", "pytest", *tests, env=environment)
    command = ("python", "tests/interpreter.py", "conformance")
    session.run(*command, "--backend", "torch", *clauses, *session.posargs, env=environment)


@nox.session
def report(session: nox.Session) -> None:
    """Merge the records under conformance/results into report/index.html and the README's table."""
    session.install("-e", ".[test]")
    session.run("ptd", "report", str(RESULTS), "--html", "report/index.html", "--readme", "README.md")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff==0.17.6")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types of all packages."""
    session.install("mypy==2.4.1", "-e", ".[test]")
    session.run("mypy")
