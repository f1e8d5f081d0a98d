"""Generated files: write them (`--write`), or fail when they differ from what their sources generate.

proto     proto/ → platform/isoloss/v1, by pinned generators in a throw-away environment
client    platform/isoloss/client/aio.py → blocking.py
fields    proto/ → proto/fields.txt, from which nothing ever goes: a number is not used again, a name not for another
grafana   the panels of platform/isoloss/dash → dash/grafana/*.json
reference the invariants and the task's states → platform/docs/reference/invariants.md
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[1]
PINS = ("grpcio-tools==1.76.0", "mypy-protobuf==5.1.0")  # gencode that runs on protobuf 6.31 to 7.x
ISOLOSS = ROOT / "platform" / "isoloss"

REPLACE = (
    (r"async def ", "def "),
    (r"async with ", "with "),
    (r"async for ", "for "),
    (r"await ", ""),
    (r"__aenter__", "__enter__"),
    (r"__aexit__", "__exit__"),
    (r"AsyncIterator", "Iterator"),
    (r"AsyncTransport", "BlockingTransport"),
)


def proto() -> dict[Path, bytes]:
    """The wire code, made by the pinned generators."""
    with tempfile.TemporaryDirectory() as folder:
        tools, out = Path(folder) / "tools", Path(folder) / "out"
        out.mkdir()
        venv.create(tools, with_pip=True)
        subprocess.run([tools / "bin" / "pip", "install", "-q", *PINS], check=True, stdout=sys.stderr)
        outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "proto").rglob("*.proto"))
        path = {"PATH": f"{tools / 'bin'}:/usr/bin:/bin"}
        command = [tools / "bin" / "python", "-m", "grpc_tools.protoc", "-Iproto", *outputs, *sources]
        subprocess.run(command, check=True, cwd=ROOT, env=path, stderr=subprocess.DEVNULL)
        made = {ROOT / "platform" / p.relative_to(out): p.read_bytes() for p in out.rglob("*.py*")}
    made[ISOLOSS / "v1" / "__init__.py"] = (
        b'"""Generated from `proto/isoloss/v1` by `poe proto`; never edited by hand."""\n'
    )
    return made


def fields() -> dict[Path, bytes]:
    """What every field, enum value and method of the wire is, or was once."""
    from isoloss.v1 import campaign_pb2, common_pb2, study_pb2, work_pb2

    path, now = ROOT / "proto" / "fields.txt", dict[str, str]()
    for module in (campaign_pb2, common_pb2, study_pb2, work_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        now |= _said(file.package, file.message_type, file.enum_type)
        now |= {
            f"{file.package}.{service.name}.{method.name}": f"{method.input_type} {method.output_type}"
            for service in file.service
            for method in service.method
        }
    landed = dict(line.split(" = ") for line in path.read_text().splitlines()) if path.exists() else {}
    made = kept(landed, now)
    return {path: "".join(f"{name} = {what}\n" for name, what in sorted(made.items())).encode()}


def _said(scope: str, messages: Iterable[Any], enums: Iterable[Any]) -> dict[str, str]:
    said = {f"{scope}.{enum.name}.{value.name}": str(value.number) for enum in enums for value in enum.value}
    for message in messages:
        inner = f"{scope}.{message.name}"
        for field in message.field:
            label, kind = field.Label.Name(field.label), field.type_name or field.Type.Name(field.type)
            said[f"{inner}.{field.name}"] = f"{field.number} {label} {kind}"
        said |= _said(inner, message.nested_type, message.enum_type)
    return said


def kept(landed: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """All that there is and was; exits where a name means another thing, or a number another name, than it did."""
    both = {**landed, **now}
    numbers: dict[tuple[str, str], str] = {}
    for name, what in both.items():
        if landed.get(name, what) != what:
            sys.exit(f"{name} is {what} and was {landed[name]}: old programs would misread it; add another field.")
        number = what.split()[0]
        first = numbers.setdefault((name.rpartition(".")[0], number), name) if number.isdecimal() else name
        if first != name:
            sys.exit(f"{first} and {name} are both number {number}: old programs would misread it; take a new number.")
    return both


def client() -> dict[Path, bytes]:
    """The blocking SDK: the async one without its awaits."""
    text = (ISOLOSS / "client" / "aio.py").read_text()
    head, body = text.split('"""\n', 1)[0], text.split('"""\n', 1)[1]
    del head
    body = re.sub(r"            if inspect\.iscoroutinefunction\(function\):\n.*\n            else:\n    ", "", body)
    body = body.replace("import inspect\n", "")
    for pattern, replacement in REPLACE:
        body = re.sub(pattern, replacement, body)
    made = '"""The SDK, blocking: generated from ``aio.py`` by `poe generate`; never edited by hand."""\n' + body
    for command in (("check", "--fix", "--select", "I", "-q"), ("format",)):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(ISOLOSS / "client" / "blocking.py"), "-"],
            input=made.encode(), stdout=subprocess.PIPE, check=True, cwd=ROOT,
        )  # fmt: skip
        made = done.stdout.decode()
    return {ISOLOSS / "client" / "blocking.py": made.encode()}


def grafana() -> dict[Path, bytes]:
    """The Grafana dashboards, from the same panels as the built-in page."""
    from isoloss.dash.grafana import dashboards

    return {ISOLOSS / "dash" / "grafana" / name: text.encode() for name, text in dashboards().items()}


def reference() -> dict[Path, bytes]:
    """The invariants and the chart of the states."""
    from isoloss.testing.invariants import document

    return {ROOT / "platform" / "docs" / "reference" / "invariants.md": document().encode()}


PARTS = {"proto": proto, "fields": fields, "client": client, "grafana": grafana, "reference": reference}


def main() -> int:
    """Write or compare; 1 when something drifted."""
    arguments = [a for a in sys.argv[1:] if a != "--write"]
    drifted = []
    for name in arguments or PARTS:
        for path, content in PARTS[name]().items():
            if "--write" in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            elif not path.exists() or path.read_bytes() != content:
                drifted.append(str(path.relative_to(ROOT)))
    if drifted:
        print(f"drifted, run `poe generate`: {', '.join(drifted)}", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
