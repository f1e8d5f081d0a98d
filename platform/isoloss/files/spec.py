"""Specs as people write them: a YAML or JSON mapping, and ``--set path=value`` on top of it.

PyYAML reads YAML 1.1, where ``1e-4`` is a word and a key may be written twice with the last one winning in silence.
Both have cost people experiments, so here floats are as in YAML 1.2 (its core schema) and a repeated key is refused
with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from isoloss.errors import InvalidSpec, NotFound

FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
BOOL: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
BASE: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(BASE):  # type: ignore[misc, valid-type]  # C loader where PyYAML was built with it
    """A safe loader whose scalars are YAML 1.2's and whose mappings have each key once."""

    yaml_implicit_resolvers: Final = {
        key: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            raise InvalidSpec(
                f"line {key.start_mark.line + 1}: the key {key.value!r} is written twice; accepted is once."
            )
        seen.add(str(key.value))
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


for _pattern, _tag, _first in ((FLOAT, "float", "-+.0123456789"), (INT, "int", "-+0123456789"), (BOOL, "bool", "tTfF")):
    anchored = re.compile(rf"(?:{_pattern.pattern})\Z")
    for _letter in _first:  # first in the list wins: int before float, as both start with a digit
        _Loader.yaml_implicit_resolvers.setdefault(_letter, []).insert(0, (f"tag:yaml.org,2002:{_tag}", anchored))
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_spec(text: str, *, source: str = "spec") -> dict[str, Any]:
    """The mapping written in ``text`` (YAML, of which JSON is a part).

    Raises ``InvalidSpec`` naming ``source`` and the line of what cannot be read.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, with other scalars
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise InvalidSpec(f"{source}:{line} {error.problem or 'cannot be read'}; accepted is YAML or JSON.") from error
    except yaml.YAMLError as error:
        raise InvalidSpec(f"{source}: {error}; accepted is YAML or JSON.") from error
    except InvalidSpec as error:
        raise InvalidSpec(f"{source}: {error.message}", hint=error.hint) from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidSpec(f"{source} is {type(value).__name__}; accepted is a mapping of names to values.")
    return value


def load_spec(path: Path, sets: Iterable[str] = ()) -> dict[str, Any]:
    """The mapping in the file ``path`` with every ``path=value`` of ``sets`` applied; ``NotFound`` without the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path} cannot be read: {error}.") from error
    return apply_sets(parse_spec(text, source=str(path)), sets)


def beside(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same with ``folder``, where its file is, as ``run.cwd``, if it says none and what it runs lies there."""
    run = spec.get("run")
    if not isinstance(run, dict) or run.get("cwd") is not None:
        return dict(spec)
    module = str(run.get("function") or "").partition(":")[0].partition(".")[0]
    parts = run["command"] if isinstance(run.get("command"), list) else []
    names = [f"{module}.py", f"{module}/__init__.py"] if module else [str(part) for part in parts if part]
    lies_there = any((folder / name).is_file() for name in names if not Path(name).is_absolute())
    return {**spec, "run": {**run, "cwd": str(folder.absolute())}} if lies_there else dict(spec)


def apply_sets(spec: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """A copy of ``spec`` with each ``a.b.0.c=value`` set; values are YAML, list elements are numbers from 0.

    Missing mappings on the way are made. Raises ``InvalidSpec`` naming the path that leads through something that is
    neither mapping nor list.
    """
    changed: Any = _copy(spec)
    for assignment in sets:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise InvalidSpec(f"--set is {assignment!r}; accepted is path=value, such as method.max_budget=81.")
        _assign(changed, keys, parse_spec(f"value: {text}", source=f"--set {path}")["value"], path)
    assert isinstance(changed, dict)  # noqa: S101 - a copy of a mapping
    return changed


def _assign(target: Any, keys: list[str], value: Any, path: str) -> None:
    for place, key in enumerate(keys):
        last = place == len(keys) - 1
        if isinstance(target, dict):
            index: Any = key
            if not last:
                target.setdefault(key, {})
        elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            index = int(key)
        else:
            raise InvalidSpec(f"--set {path}: there is no {key!r} inside {'.'.join(keys[:place])!r}.")
        if last:
            target[index] = value
        else:
            target = target[index]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value
