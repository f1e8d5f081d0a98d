"""Checkpoints in a store of fsspec: there whole or not at all, fetched as they were published, removed with all they had."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from isoloss.client.held import checkpoint_root
from isoloss.errors import InvalidSpec
from isoloss.testing.cluster import free_port, wait_until
from isoloss_worker import checkpoint, objects, sums
from isoloss_worker.objects import Lost, Objects, fetch, fetched, sweep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An attempt's folder, with shards, sealed at step 4."""
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(objects, "PAUSES", (0.0, 0.0))
    folder = checkpoint_root(tmp_path / "home") / "p" / "s" / "3" / "1-7-2"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "0").write_bytes(b"abc")
    (folder / "DONE").write_text("4")
    return folder


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def published(folder: Path, store: Objects, step: int = 4) -> str:
    sealed = checkpoint.seal(folder, step)
    assert sealed is not None
    return store.publish(folder, sealed).path


@pytest.mark.parametrize("summed", [False, True])
def test_what_is_published_is_fetched_on_another_machine(tmp_path: Path, folder: Path, summed: bool) -> None:
    store = Objects(f"file://{tmp_path}/bucket/runs/")
    if summed:
        sums.write(folder)
    url = published(folder, store)
    assert url == f"file://{tmp_path}/bucket/runs/p/s/3/1-7-2/4"
    fetch(url, tmp_path / "there")
    assert (tmp_path / "there" / "shards" / "0").read_bytes() == b"abc"
    assert sums.beside(tmp_path / "there").exists() == summed
    if summed:
        (tmp_path / "bucket/runs/p/s/3/1-7-2/4/shards/0").write_bytes(b"abd")
        with pytest.raises(Lost, match="shards/0 is not what was saved, by its SHA-256 sum"):
            fetch(url, tmp_path / "there")
    store.remove(url)
    store.remove(url)
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
    with pytest.raises(Lost, match="it is not there"):
        fetch(url, tmp_path / "there")


def test_a_checkpoint_without_its_manifest_or_with_a_file_cut_short_is_lost(tmp_path: Path, folder: Path) -> None:
    url, place = published(folder, Objects(f"file://{tmp_path}/bucket")), tmp_path / "bucket/p/s/3/1-7-2/4"
    (place / "shards" / "0").write_bytes(b"ab")
    with pytest.raises(Lost, match="shards/0 has 2 bytes instead of 3"):
        fetch(url, tmp_path / "there")
    (place / "shards" / "0").unlink()
    with pytest.raises(Lost, match="0 is not there"):
        fetch(url, tmp_path / "there")
    place.with_name("4.manifest.json").unlink()
    with pytest.raises(Lost, match="it is not there"):
        fetch(url, tmp_path / "there")


@pytest.mark.parametrize("when", ["before", "meanwhile", "gone"])
def test_what_changes_while_it_is_published_never_appears(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    store, sealed = Objects(f"file://{tmp_path}/bucket"), checkpoint.seal(folder, 4)
    assert sealed is not None
    real = store._files.put_file
    match when:
        case "before":
            (folder / "shards" / "0").write_bytes(b"the next step's")
        case "gone":
            (folder / "shards" / "0").unlink()
        case _:

            def put(*given: str) -> None:
                real(*given)
                (folder / "shards" / "0").write_bytes(b"abd")  # as long as before

            monkeypatch.setattr(store._files, "put_file", put)
    with pytest.raises(Lost, match="the trainer (changed|removed)"):
        store.publish(folder, sealed)
    assert not list((tmp_path / "bucket").rglob("*.manifest.json"))


def test_of_a_trainer_that_goes_on_only_what_stood_at_its_done_is_sealed(folder: Path) -> None:
    (folder / "next").write_text("half of")
    os.utime(folder / "next", ns=(0, (folder / "DONE").stat().st_mtime_ns + 1))
    os.utime(folder / "shards" / "0", ns=(0, (folder / "DONE").stat().st_mtime_ns))
    going, ended = checkpoint.seal(folder, 4, goes_on=True), checkpoint.seal(folder, 4)
    assert going is not None and set(going.manifest) == {"DONE", "shards/0"}
    assert ended is not None and set(ended.manifest) == {"DONE", "next", "shards/0"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_store_that_takes_nothing_leaves_the_checkpoint_on_the_disk(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "bucket").mkdir(mode=0o500)
    assert published(folder, Objects(f"file://{tmp_path}/bucket")) == str(folder)


def test_a_store_that_fails_for_a_while_is_asked_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tries = Objects(f"file://{tmp_path}/bucket"), []
    real = store._files.put_file

    def put(*given: str) -> None:
        tries.append(given)
        if len(tries) < 3:
            raise ConnectionError("503 SlowDown")
        real(*given)

    monkeypatch.setattr(store._files, "put_file", put)
    fetch(published(folder, store), tmp_path / "there")
    monkeypatch.setattr(store._files, "rm", lambda *_, **__: 1 / 0)
    store.forget(f"{store.url}/p/s/3/1-7-2/4")
    monkeypatch.setattr(store._files, "put_file", lambda *_: 1 / 0)
    assert published(folder, store, step=5) == str(folder), "what no store takes stays where it is"


@pytest.mark.parametrize("url", ["s4://bucket", "nonsense://x"])
def test_a_store_that_nothing_speaks_to_is_refused_in_words(url: str) -> None:
    with pytest.raises(InvalidSpec, match=f"--store is '{url}', which this worker cannot speak to .*accepted is a URL"):
        Objects(url)


@pytest.mark.skipif(find_spec("s3fs") is None or find_spec("moto") is None, reason="s3fs and moto are not installed")
def test_an_s3_bucket_over_http(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    with subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]) as server:
        try:
            wait_until(lambda: listens(port), 30, what="the bucket's server")
            store = Objects("s3://checkpoints/team")
            store._files.mkdir("checkpoints")
            url = published(folder, store)
            assert url == "s3://checkpoints/team/p/s/3/1-7-2/4"
            fetch(url, tmp_path / "there")
            assert (tmp_path / "there" / "shards" / "0").read_bytes() == b"abc"
            store.remove(url)
            with pytest.raises(Lost, match="it is not there"):
                fetch(url, tmp_path / "there")
        finally:
            server.kill()


def test_what_a_killed_worker_had_fetched_is_swept_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = {
        f"{host}-{dead.pid}": False,
        fetched().name: True,
        f"elsewhere-{dead.pid}": True,
        f"{host}-1-{dead.pid}": True,
    }
    for name in names:
        (fetched().parent / name / "0-1-1").mkdir(parents=True)
    sweep()
    assert {name: (fetched().parent / name).exists() for name in names} == names
