"""What a worker can run: a command, a function, the built-in GPT. All keep one contract (``job``)."""
