"""Whatever goes wrong, the command line says it in one sentence; and it never takes a stranger for its controller."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isoloss import cli
from isoloss.client.locate import Local, home
from isoloss.controller.settings import load
from isoloss.errors import InvalidSpec


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/no/fit.json"), 2, "error: /no/fit.json: No such file"),
        (ModuleNotFoundError("no scipy", name="scipy.optimize"), 1, "pip install 'isoloss[laws]'"),
        (ValueError("odd"), 1, "isoloss failed unexpectedly: ValueError: odd; --debug shows the traceback"),
    ],
)
def test_any_error_is_a_sentence_and_debug_adds_the_traceback(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> None:
        def root(words: list[str], **how: object) -> None:
            raise error

        return root  # type: ignore[return-value]

    monkeypatch.setattr(cli, "build", explode)
    assert cli.run(["law"]) == code
    plain = capsys.readouterr()
    assert said in plain.err and "Traceback" not in plain.err and plain.out == ""
    assert cli.run(["--debug", "law"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_strangers_process_is_not_our_controller() -> None:
    def alive(pid: int) -> bool:
        return Local(address="a", dash="d", pid=pid, dsn="").alive

    for name in ("stranger", "isoloss"):
        words = [sys.executable, "-c", "print(flush=True); input()", name]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            assert alive(process.pid) == (name == "isoloss")
            process.communicate(b"\n")
        assert not alive(process.pid)


def test_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOLOSS_HOME", "here")
    assert home() == tmp_path / "here" and load().home == str(home())
    monkeypatch.setenv("ISOLOSS_HOME", "~/here")
    assert home() == Path.home() / "here"


def test_only_the_two_versions_of_postgres_that_come_along_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path))
    monkeypatch.setenv("ISOLOSS_PG_MAJOR", "16")
    assert load().pg_major == 16
    monkeypatch.setenv("ISOLOSS_PG_MAJOR", "17")
    with pytest.raises(InvalidSpec, match="pg_major"):
        load()
