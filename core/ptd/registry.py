"""Backends by name, found through the entry-point group "ptd.backends", the same door for ours and a stranger's."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, metadata
from typing import Any

from . import checks
from .contract import Backend

GROUP = "ptd.backends"


class BackendUnavailable(ImportError):
    """A known backend that cannot be imported, for want of its framework most often."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be loaded, and if not, why and what would add it."""

    name: str
    loadable: bool
    reason: str = ""


def backend(name: str) -> Backend:
    """A backend by name.

    Args:
        name: a registered name ("numpy" is the reference), or "module:object" for one that is not registered; its
            module may lie in the working folder, which then is the first of sys.path.

    Returns:
        The backend object.

    Raises:
        ValueError: no backend of that name.
        BackendUnavailable: its framework or module is not installed, or broken; the message has the pip command.

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
        return _load(found[name])
    except Exception as error:  # a framework that is there and broken raises what it likes: OSError, RuntimeError
        loadable = ", ".join(other for other in sorted(found) if other != name and _can_load(found[other]))
        command = _install_command(name, found[name])
        raise BackendUnavailable(
            f"backend {name!r}: {_reason(error)}; available: {loadable}; to add it: {command}"
        ) from error


def backends() -> dict[str, Availability]:
    """Every registered backend by name, with whether it loads and why not.

    >>> backends()["numpy"].loadable
    True
    """
    return {name: _availability(name) for name in sorted(_registered())}


def _unregistered(name: str) -> Backend:
    module, _, attribute = name.partition(":")
    # an installed script has its own folder there, not the one that its user works in
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        remedy = f"install the package that has {module!r}, or work in its folder"
        raise BackendUnavailable(f"backend {name!r}: {error}; {remedy}") from error
    except (AttributeError, ValueError) as error:
        raise checks.fail("name", "module:object of a backend", f"{name!r}: {error}") from error
    return _checked("name", name, found)


def _load(point: EntryPoint) -> Backend:
    return _checked("entry point", point.value, point.load())


def _checked(argument: str, name: str, found: Any) -> Backend:
    """What was found under a name, unless it is no object with the contract's attributes."""
    if isinstance(found, type) or not all(hasattr(found, part) for part in ("name", "kernels", "apply")):
        got = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise checks.fail(argument, "module:object of a backend", f"{name!r}, {got}", "name an instance of a backend")
    return found


def _reason(error: Exception) -> str:
    """An error in one line; ImportError, the usual one, goes without saying."""
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _availability(name: str) -> Availability:
    try:
        backend(name)
    except BackendUnavailable as error:
        return Availability(name, False, str(error))
    return Availability(name, True)


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _can_load(point: EntryPoint) -> bool:
    try:
        _load(point)
    except Exception:
        return False
    return True


def _install_command(name: str, point: EntryPoint) -> str:
    """The pip command that adds what a backend lacks: an extra of its own distribution if it has one of that name."""
    owner = point.dist.name if point.dist else "ptd"
    extras = metadata(owner).get_all("Provides-Extra") or []
    return f'pip install "{owner}[{name}]"' if name in extras else f"pip install --force-reinstall {owner}"


def _install_hint(name: str) -> str:
    return f"pip install the package that registers {name!r} in the entry-point group {GROUP!r}, or pass module:object"
