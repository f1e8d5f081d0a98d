"""Files in and out: tables of observations (CSV, JSONL, parquet) and specs (YAML, JSON)."""
