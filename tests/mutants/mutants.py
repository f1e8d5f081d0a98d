"""Mutations: every defence is taken away in turn, and some test must notice. ``poe mutants`` prints who did.

A copy of the tree is changed in one place, and the tests named beside the change run against it until one fails. A
mutant that lives is a test that is missing.
"""

# ruff: noqa: T201  it prints a table

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
STORE: Final = "tests/store/test_leases.py"
MANY: Final = "tests/store/test_controllers.py"
ACCESS: Final = "tests/e2e/test_access.py"
TELLS: Final = "tests/store/test_tells.py"
GPUS: Final = "tests/e2e/test_worker_gpus.py"
STUDIES: Final = "tests/store/test_many_studies.py"
TASKS, LEDGER = "platform/isoloss/store/tasks.py", "platform/isoloss/store/ledger.py"
DECIDER, LEASE = "platform/isoloss/controller/decider.py", "platform/isoloss/domain/lease.py"


@dataclass(frozen=True)
class Mutant:
    """A defence, where it stands, what is left without it, and the tests that must notice."""

    defence: str
    file: str
    before: str
    after: str
    tests: str = f"{STORE} {MANY}"


MUTANTS: Final = (
    Mutant("an ending shows the current epoch", TASKS, "lease.task_id = said.id AND lease.epoch = said.epoch AND lease.secret_hash = sha256(said.secret::bytea)\n    JOIN task",
           "lease.task_id = said.id AND lease.secret_hash = sha256(said.secret::bytea)\n    JOIN task"),
    Mutant("an ending shows the lease's secret", TASKS, "AND lease.secret_hash = sha256(said.secret::bytea)\n    JOIN task", "\n    JOIN task"),
    Mutant("a heartbeat shows the lease's secret", TASKS, "AND lease.secret_hash = sha256(said.secret::bytea)\n        ORDER BY lease.task_id", "\n        ORDER BY lease.task_id"),
    Mutant("a checkpoint shows the current epoch", TASKS, "AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)\n    ON CONFLICT", "\n    ON CONFLICT"),
    Mutant("points show the current epoch", "platform/isoloss/store/curves.py", "AND lease.epoch = %(epoch)s AND lease.secret_hash = sha256(%(secret)s::bytea)", ""),
    Mutant("a lease is locked with its task", TASKS, 'ORDER BY task.id FOR UPDATE OF task, lease"""\n\nEND', 'ORDER BY task.id FOR UPDATE OF task"""\n\nEND'),
    Mutant("a task is leased to one", TASKS, "LIMIT (SELECT count(*) FROM slot) FOR UPDATE SKIP LOCKED", "LIMIT (SELECT count(*) FROM slot)"),
    Mutant("no more are leased than wanted", TASKS, "LIMIT (SELECT count(*) FROM slot)", "LIMIT 1000"),
    Mutant("a task that backs off waits", TASKS, "AND state = 'ready' AND not_before <= now()", "AND state = 'ready'"),
    Mutant("leases are extended after an outage", TASKS, '    await conn.execute(EXTEND_ALL, {"ttl": ttl})\n    return True', "    return False"),
    Mutant("a lost lease comes under a new secret", TASKS, "UPDATE lease SET secret_hash = sha256((secret.secret || secret.project)::bytea), expires_at", "UPDATE lease SET expires_at"),
    Mutant("NaN is a divergence", LEASE, "if not all(math.isfinite(ending.values[metric]) for metric in needed):", "if False:"),
    Mutant("a missing metric is a failure", LEASE, "    if missing:\n", "    if False:\n"),
    Mutant("an exception is retried twice only", LEASE, "if retryable and failures + 1 < MAX_FAILURES:", "if retryable:"),
    Mutant("a task that kills workers is given up", LEASE, "if infra_failures + 1 < MAX_INFRA_FAILURES:", "if True:"),
    Mutant("what is cancelled ends cancelled", LEASE, "    if state is TaskState.CANCELLING:", "    if False:"),
    Mutant("the cap on the budget", "platform/isoloss/controller/book.py", "[room for room in rooms if not room.fits(cost)]:", "[]:"),
    Mutant("what is created takes of the room at once", "platform/isoloss/store/limits.py", "self.left -= self.price(budget) if self.shared else 0.0", "pass", "tests/store/test_limits.py"),
    Mutant("time is not used up by what runs beside", "platform/isoloss/store/limits.py", "shared=False,\n", "shared=True,\n", "tests/store/test_limits.py"),
    Mutant("open tasks reserve device hours", "platform/isoloss/store/limits.py", "left = float(stated.gpu_hours) - used[row.id].hours - reserved[row.id]", "left = float(stated.gpu_hours) - used[row.id].hours", "tests/store/test_limits.py"),
    Mutant("a campaign's open tasks reserve device hours", "platform/isoloss/store/limits.py", "- sum(use.hours for use in used.values()) - sum(reserved.values())", "- sum(use.hours for use in used.values())", "tests/store/test_limits.py"),
    Mutant("what the others hold may come back", "platform/isoloss/store/limits.py", "held=held, price=hours", "price=hours", "tests/store/test_limits.py"),
    Mutant("an added trial fits below the limits", "platform/isoloss/controller/book.py", "if not room.fits(cost := task.budget_to - task.budget_from):", "if (cost := task.budget_to - task.budget_from) < 0:", "tests/store/test_limits.py"),
    Mutant("a campaign's FLOPs are reserved by one study at a time", "platform/isoloss/store/limits.py", "pg_advisory_xact_lock('study_use'::regclass::integer, id::integer)",
           "0", "tests/store/test_limits.py"),
    Mutant("the study's row is locked", LEDGER, "FROM study WHERE id = %(study_id)s FOR NO KEY UPDATE OF study", "FROM study WHERE id = %(study_id)s"),
    Mutant("results seen before the lock are looked at again", DECIDER, "        return replace(opened, undecided=tuple(await ledger.undecided(conn, row.id))), folded", "        return opened, folded"),
    Mutant("the fold follows other controllers", DECIDER, "        if folded and folded.seq == row.next_seq - 1 and", "        if folded and"),
    Mutant("a fold is dropped when its transaction fails", DECIDER, "                if before is not None and not before.is_ahead:", "                if before is not None:", "tests/store/test_folds.py"),
    Mutant("a caller's transaction folds a copy", DECIDER, "if kept is None else kept.copy())", "if kept is None else kept)", "tests/store/test_folds.py"),
    Mutant("what is told waits for nobody's decision", LEDGER, "OPEN_UNLESS_TAKEN if ending else OPEN", "OPEN", TELLS),
    Mutant("what is told waits for no history", "platform/isoloss/controller/dispatch.py", "line is None or not self.decider.is_at_hand(study_id)", "line is None", TELLS),
    Mutant("what is told needs no decision", "platform/isoloss/controller/dispatch.py", "        except Exception as error:  # noqa: BLE001 - no trouble", "        except TimeoutError as error:  # no trouble", TELLS),
    Mutant("who comes again together is served together", "platform/isoloss/controller/line.py", "(answered if self._hope >= 0.5 else 0)", "0", "tests/unit/test_controller_line.py"),
    Mutant("who does not come again is not waited for", "platform/isoloss/controller/line.py", "                self._hope /= 2\n", "                pass\n", "tests/unit/test_controller_line.py"),
    Mutant("a repeated call is answered once", "platform/isoloss/controller/idempotency.py", "        if stored is not None:", "        if False:", "tests/store/test_retries.py"),
    Mutant("a method that no rule names is denied", "platform/isoloss/controller/access.py", "if rule is None or principal.role not in rule.roles:", "if rule is not None and principal.role not in rule.roles and False:", ACCESS),
    Mutant("another project does not exist", "platform/isoloss/controller/access.py", "and not principal.sees(named := _named(request).project):", "and False:", ACCESS),
    Mutant("a token ends", "platform/isoloss/controller/access.py", "        if not found.alive:", "        if False:", ACCESS),
    Mutant("a token's secret is compared", "platform/isoloss/controller/access.py", "if found is None or not found.is_shown_by(secret):", "if found is None:", ACCESS),
    Mutant("a lease is bound to a project", "platform/isoloss/controller/dispatch.py", "return replace(key, secret=key.secret + project) if project else key", "return key", ACCESS),
    Mutant("a task of many GPUs does not starve", "platform/isoloss/controller/dispatch.py", "kept(lacking, able, shares, self.ttl.total_seconds() * LONG_WAIT)", "able", GPUS),
    Mutant("what fits nowhere has a task that is seen to wait", "platform/isoloss/controller/dispatch.py", "            if await self._announce(squeezed_out(lacking, able)):\n                continue  # who comes after them may have one\n", "", GPUS),
    Mutant("a large task that has none to run hides no other", "platform/isoloss/controller/dispatch.py", "                continue  # who comes after them may have one\n", "                pass\n", STUDIES),
    Mutant("who was asked in vain is not asked again at once", "platform/isoloss/controller/dispatch.py", "since = time.monotonic() - VAIN_SECONDS", "since = time.monotonic()", STUDIES),
    Mutant("a result that nobody has decided makes its study looked at", "platform/isoloss/store/studies.py", "                    UNION ALL SELECT study_id FROM result WHERE decided_seq IS NULL)", "                    )", STUDIES),
    Mutant("as many of a kind are looked at as there are slots", "platform/isoloss/store/studies.py", "WHERE place <= %(most)s)", "WHERE place < %(most)s)", STUDIES),
    Mutant("of those that nobody runs too", "platform/isoloss/store/studies.py", "ORDER BY weight DESC, id LIMIT %(most)s", "ORDER BY id LIMIT %(most)s", STUDIES),
    Mutant("what may begin something says so", "platform/isoloss/controller/book.py", "startable = self.search.startable_now(MOST_STARTABLE)\n", "startable = int(self.search.idle)\n", STUDIES),
    Mutant("a GPU is one worker's", "workers/isoloss_worker/gpus.py", "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", GPUS),
    Mutant("a freed slot is told of", "workers/isoloss_worker/agent.py", "{calling, changed}, return_when", "{calling}, return_when", GPUS),
    Mutant("no listener for strangers without TLS", "platform/isoloss/controller/settings.py", "    if host not in LOOPBACK and not settings.tls_cert:", "    if False:", ACCESS),
)  # fmt: skip


def kill(mutant: Mutant, tree: Path) -> tuple[str, float]:
    """The test that fails without the defence, and how long it took; ``LIVES`` when none does."""
    file, begun = tree / mutant.file, time.monotonic()
    text = file.read_text()
    if text.count(mutant.before) != 1:
        return f"STANDS NOWHERE, OR TWICE ({text.count(mutant.before)})", 0.0
    file.write_text(text.replace(mutant.before, mutant.after))
    try:
        path = os.pathsep.join(str(tree / root) for root in ("platform", "workers"))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()],
            cwd=tree, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        file.write_text(text)
    failed = [
        line.partition("::")[2].partition(" ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")
    ]
    return (failed[0] if failed else "LIVES" if done.returncode == 0 else "an error"), time.monotonic() - begun


def main() -> None:
    """Print the table; fail when a mutant lives. An argument names the defences to take away."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(word in m.defence for word in sys.argv[1:])]
    lives = 0
    with tempfile.TemporaryDirectory(prefix="isoloss-mutants-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "node_modules"))
        for mutant in wanted:
            killer, seconds = kill(mutant, tree)
            lives += killer == "LIVES" or killer.startswith("STANDS")
            print(f"{mutant.defence:52s} {killer:96s} {seconds:5.1f} s", flush=True)
    print(f"{len(wanted) - lives} of {len(wanted)} were noticed")
    sys.exit(lives > 0)


if __name__ == "__main__":
    main()
