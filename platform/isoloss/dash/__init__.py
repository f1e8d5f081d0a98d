"""Dashboards: panels as data, rendered as the built-in page and as Grafana's, over read-only views."""
