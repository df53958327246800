"""One session per job; each installs what it needs into its own environment."""

from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

#: What each backend's framework is installed as. A backend is a folder under backends/.
FRAMEWORKS = {"numpy": [], "jax": ["jax"]}
RESULTS = Path("conformance/results")


@nox.session
def tests(session: nox.Session) -> None:
    """Core against mathematics, and the conformance suite against broken backends."""
    session.install("-e", ".[test,quickstart,jax,examples]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train on real digits, test under Fourier-mode noise, draw the transfer functions."""
    session.install("-e", ".[quickstart,jax]")
    session.run("ptd", "quickstart", *session.posargs)


def conformance(backend: str) -> None:
    """Register the session that holds one backend to the reference."""

    @nox.session(name=f"conformance-{backend}")
    def run(session: nox.Session) -> None:
        extras = ",".join(["test", *FRAMEWORKS[backend]])
        session.install("-e", f".[{extras}]")
        record = Path(session.create_tmp()) / f"{backend}-cpu.json"
        arguments = session.posargs or ["--json", str(record)]
        # Two threads: nearly all of a compiling backend's time goes into its compiler, which runs beside Python.
        session.run("ptd", "conformance", "--backend", backend, "--jobs", "2", *arguments)


for name in FRAMEWORKS:
    conformance(name)


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
    """Types of core and the contract."""
    session.install("mypy==2.4.1", "-e", ".[test]")
    session.run("mypy")
