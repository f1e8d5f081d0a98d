"""The contract tests share the store's cluster."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

STORE = Path(__file__).parents[1] / "store" / "conftest.py"
_spec = importlib.util.spec_from_file_location("store_fixtures", STORE)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["store_fixtures"] = _module
_spec.loader.exec_module(_module)
cluster, dsn, in_store = _module.cluster, _module.dsn, _module.in_store
