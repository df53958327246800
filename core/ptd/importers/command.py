"""The command ``ptd import``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from .. import checks
from ..parameters import save
from . import IMPORTERS, SIGNS, places, read

FLAGS = {"true": True, "false": False}


def command(
    file: Annotated[
        Path, typer.Argument(help="the checkpoint: .safetensors, .npz, .pt, .pth, .ckpt, .bin or .msgpack")
    ],
    source: Annotated[str | None, typer.Option(help="what it holds; without it, say what might fit")] = None,
    out: Annotated[Path | None, typer.Option(help="the file to write, which ptd.load reads")] = None,
    prefix: Annotated[str, typer.Option(help="where its names begin, as encoder/layers_0/seq")] = "",
    option: Annotated[list[str] | None, typer.Option(help="how the original was built, as conj_sym=false")] = None,
) -> None:
    """Read a trained layer or model of another program; without --source, list what a file holds."""
    from ..console import Lines

    console = Lines()
    if source is None:
        if option or out:
            raise checks.fail("source", f"one of {', '.join(IMPORTERS)}", "none", "pass --source")
        for line in contents(read(file)):
            console.say(line)
        return
    checks.choice("source", source, IMPORTERS)
    keywords = options(IMPORTERS[source], option or [])
    if out is None or out.resolve() == file.resolve():
        got = "none" if out is None else f"the checkpoint itself, {out}"
        raise checks.fail("out", "a file to write", got, "pass --out imported.safetensors")
    description, leaves = IMPORTERS[source](read(file), prefix, **keywords)
    save(out, description, leaves)
    console.say(f"wrote {out}: {description}")


def contents(arrays: Mapping[str, Any]) -> list[str]:
    """A line for every array, and one for every place at which the names of a source are.

    >>> lines = contents({"seq/nu_log": [0.0], "seq/theta_log": [0.0], "seq/gamma_log": [0.0]})
    >>> lines[0].split(), lines[-1]
    (['seq/nu_log', '(1,)'], "--source lru --prefix 'seq'")
    """
    shapes = [
        (name, checks.on_host(value) if isinstance(value, checks.HOST) else value) for name, value in arrays.items()
    ]
    lines = [f"{name}  {tuple(getattr(value, 'shape', ()))}" for name, value in shapes]
    found = [(source, place) for source, names in SIGNS.items() for place in places(arrays, names)]
    fitting = [f"--source {source} --prefix {place!r}" for source, place in found]
    return lines + (fitting or [f"no source has these names; known are {', '.join(IMPORTERS)}"])


def options(importer: Callable, given: list[str]) -> dict[str, Any]:
    """The keywords of an importer from texts "name=value", read as its annotations say.

    Raises:
        ValueError: no such option, or a value is none of its type.

    >>> options(IMPORTERS["s5"], ["conj_sym=false", "step_rescale=2"])
    {'conj_sym': False, 'step_rescale': 2.0}
    """
    parameters = inspect.signature(importer, eval_str=True).parameters.values()
    types = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in types:
            known = ", ".join(types) or "none: it takes no options"
            raise checks.fail(
                "option", f"name=value with a name of {known}", repr(text), "see the function's docstring"
            )
        values[name] = _value(name, value, types[name])
    return values


def _value(name: str, text: str, annotation: Any) -> Any:
    kinds = get_args(annotation) or (annotation,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        return FLAGS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        expected = "true or false" if kind is bool else f"a value of type {kind.__name__}"
        raise checks.fail(f"option {name}", expected, repr(text)) from error
