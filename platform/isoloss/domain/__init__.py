"""Frozen values that every room speaks: specs, spaces, tasks and the words for their states. No IO, no clock."""
