"""Generated from `proto/isoloss/v1` by `poe proto`; never edited by hand."""
