"""isoloss: tune small, predict big."""
