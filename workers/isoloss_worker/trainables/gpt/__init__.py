"""The built-in trainable: a small decoder-only transformer on bytes, constant rate, decay branches, exact resume."""
