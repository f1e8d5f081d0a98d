"""What a worker measures of its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoloss.domain.quantity import format_bytes, parse_bytes
from isoloss.errors import InvalidSpec
from isoloss_worker.quota import Quota, identity, used


def test_a_worker_measures_what_lies_below_its_root_as_manifests_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOLOSS_HOME", str(tmp_path))
    quota = Quota(1000)
    assert quota.news() is None
    quota.measure()
    empty = quota.news()
    assert empty is not None and empty.quota_bytes == 1000 and empty.seconds_ago >= 0
    own = len(identity(quota.root))
    assert (empty.root, empty.used_bytes) == (f"{tmp_path}/checkpoints/", own)
    quota.heard(empty)
    quota.measure()
    assert quota.news() is None, "nothing has changed"
    attempt = quota.root / "default" / "s" / "0" / "0-1-1"
    attempt.mkdir(parents=True)
    (attempt / "weights").write_bytes(bytes(1000))
    (attempt / "latest").symlink_to(attempt / "weights")
    (attempt / "loop").symlink_to(attempt.parent)
    quota.measure()
    news = quota.news()
    assert news is not None and 1000 + own <= news.used_bytes < 1000 + own + 400, "links count for themselves"
    quota.heard(empty)
    assert quota.news() is news, "what was heard was an earlier one"
    quota.heard(news)
    assert quota.news() is None
    quota.measure()
    assert quota.news() is not None, "too much is said again and again"
    assert used(tmp_path / "nowhere") == 0


def test_a_folder_names_itself_once_for_all_who_see_it(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.symlink_to(tmp_path / "folder")
    assert identity(tmp_path / "folder") == identity(seen) == Path(seen, ".disk").read_text() != ""


def test_sizes_are_written_as_people_write_them() -> None:
    assert [parse_bytes(text, "f") for text in ("200GB", "1.5 TiB", "1e3", "7b")] == [200 * 10**9, 3 * 2**39, 1000, 7]
    assert [format_bytes(n) for n in (0, 999, 1500, 1_260_000_000)] == ["0 bytes", "999 bytes", "1.5 KB", "1.26 GB"]
    for text in ("", "GB", "-1", "0.5", "3 parsecs", "inf", "1e30TB", "1GBB"):
        with pytest.raises(InvalidSpec, match=r"^f is .*; accepted is a size from 1 byte, such as 200GB or 1.5TiB"):
            parse_bytes(text, "f")
