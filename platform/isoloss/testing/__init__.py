"""Public test helpers: what a test of isoloss, or of a trainer on it, needs and must not write twice."""
