"""Generated files: write them (`--write`), or fail when they differ from what their sources generate.

proto     proto/ → platform/isoloss/v1, by pinned generators in a throw-away environment
client    platform/isoloss/client/aio.py → blocking.py
grafana   the panels of platform/isoloss/dash → dash/grafana/*.json
reference the invariants and the task's states → platform/docs/reference/invariants.md
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

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


PARTS = {"proto": proto, "client": client, "grafana": grafana, "reference": reference}


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
