"""Scaling laws as pure functions: observations in, fits with their evidence out, forecasts with honest intervals."""
