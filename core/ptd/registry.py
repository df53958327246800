"""Backends by name, found through the entry-point group "ptd.backends", the same door for ours and a stranger's."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, metadata

from . import checks
from .contract import Backend

GROUP = "ptd.backends"


class BackendUnavailable(ImportError):
    """A known backend whose framework cannot be imported."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be loaded, and if not, why and what would add it."""

    name: str
    loadable: bool
    reason: str = ""


def backend(name: str) -> Backend:
    """A backend by name.

    Args:
        name: a registered name ("numpy" is the reference), or "module:object" for one that is not registered.

    Returns:
        The backend object.

    Raises:
        ValueError: no backend of that name.
        BackendUnavailable: its framework or module is not installed; the message has the pip command.

    >>> backend("numpy").name
    'numpy'
    """
    checks.instance("name", name, str, "the name of a backend")
    if ":" in name:
        return _unregistered(name)
    found = _registered()
    if name not in found:
        raise checks.fail("name", f"one of {', '.join(sorted(found))}", repr(name), _install_hint(name))
    try:
        return found[name].load()
    except ImportError as error:
        loadable = ", ".join(other for other in sorted(found) if other != name and _can_load(found[other]))
        raise BackendUnavailable(
            f"backend {name!r}: {error}; available: {loadable}; to add it: {_install_command(name, found[name])}"
        ) from error


def backends() -> dict[str, Availability]:
    """Every registered backend by name, with whether it loads and why not.

    >>> backends()["numpy"].loadable
    True
    """
    return {name: _availability(name) for name in sorted(_registered())}


def _unregistered(name: str) -> Backend:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise BackendUnavailable(f"backend {name!r}: {error}; install the package that has {module!r}") from error
    except (AttributeError, ValueError) as error:
        raise checks.fail("name", "module:object of a backend", f"{name!r}: {error}") from error


def _availability(name: str) -> Availability:
    try:
        backend(name)
    except ImportError as error:
        return Availability(name, False, str(error))
    return Availability(name, True)


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _can_load(point: EntryPoint) -> bool:
    try:
        point.load()
    except ImportError:
        return False
    return True


def _install_command(name: str, point: EntryPoint) -> str:
    """The pip command that adds what a backend lacks: an extra of its own distribution if it has one of that name."""
    owner = point.dist.name if point.dist else "ptd"
    extras = metadata(owner).get_all("Provides-Extra") or []
    return f'pip install "{owner}[{name}]"' if name in extras else f"pip install --force-reinstall {owner}"


def _install_hint(name: str) -> str:
    return f"pip install the package that registers {name!r} in the entry-point group {GROUP!r}, or pass module:object"
