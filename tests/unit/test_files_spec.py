from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from isoloss.errors import InvalidSpec, NotFound
from isoloss.files.spec import apply_sets, beside, load_spec, parse_spec

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", categories=["L", "N"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-3E5", -3e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("yes", "yes"),
        ("on", "on"),
        ("7B", "7B"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("-.inf", -math.inf),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("-", None),
    ],
)
def test_scalars_are_as_in_yaml_1_2(text: str, value: object) -> None:
    read = parse_spec(f"x: {text}" if text != "-" else "x: ~")["x"]
    assert (read, type(read)) == (value, type(value))


@given(value=st.dictionaries(st.text("abcxyz", min_size=1), plain, max_size=4))
def test_json_is_read_as_json(value: dict[str, Any]) -> None:
    import json

    assert parse_spec(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is written twice"),
        ("o:\n  x: 1\n  x: 2", "line 3"),
        ("[1, 2]", "mapping"),
        ("a: [1", "line"),
        ("a: !!python/object/apply:os.system [ls]", "YAML or JSON"),
        ("1: 2", "mapping of names"),
        ("", "mapping"),
        ("a: &x [*x]\nb: *nope", "line 2"),
    ],
)
def test_what_cannot_be_a_spec_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(text, source="s.yaml")
    assert words in caught.value.message
    assert caught.value.message.startswith("s.yaml")


def test_no_loader_of_others_is_changed() -> None:
    assert yaml.safe_load("a: yes") == {"a": True}


def test_set_reaches_into_mappings_and_lists_and_leaves_the_spec_alone() -> None:
    spec = {"method": {"eta": 3}, "sizes": [{"n": 1}, {"n": 2}]}
    changed = apply_sets(spec, ["method.max_budget=81", "sizes.1.n=1e-4", "limits.wall=2h", "tags=[a, b]"])
    assert changed["method"] == {"eta": 3, "max_budget": 81}
    assert changed["sizes"] == [{"n": 1}, {"n": 1e-4}]
    assert (changed["limits"], changed["tags"]) == ({"wall": "2h"}, ["a", "b"])
    assert spec == {"method": {"eta": 3}, "sizes": [{"n": 1}, {"n": 2}]}


@pytest.mark.parametrize("assignment", ["a", "=1", "a..b=1", "sizes.7.n=1", "sizes.x=1", "name.x=1", "a=[1"])
def test_a_set_that_leads_nowhere_is_refused(assignment: str) -> None:
    with pytest.raises(InvalidSpec, match="--set"):
        apply_sets({"sizes": [{"n": 1}], "name": "x"}, [assignment])


def test_a_spec_comes_from_a_file_or_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: x\nlr: 1e-4\n")
    assert load_spec(tmp_path / "s.yaml", ["name=y"]) == {"name": "y", "lr": 1e-4}
    with pytest.raises(NotFound):
        load_spec(tmp_path / "t.yaml")
    with pytest.raises(InvalidSpec, match="cannot be read"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("run", "moved"),
    [
        ({"function": "train:main"}, True),
        ({"function": "package.train:main"}, True),
        ({"function": "elsewhere:main"}, False),
        ({"function": "train:main", "cwd": "."}, False),
        ({"command": ["python", "train.py", "{lr}"]}, True),
        ({"command": ["python", "-m", "train"]}, False),
        ({"command": "no list"}, False),
        ({"gpt": {}}, False),
        (None, False),
    ],
)
def test_what_lies_beside_its_spec_runs_there(tmp_path: Path, run: Any, moved: bool) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    spec = {"name": "x", "run": run}
    assert beside(spec, tmp_path) == ({"name": "x", "run": run | {"cwd": str(tmp_path)}} if moved else spec)
