"""The worker: an agent with slots, a child process each, and the trainables they run."""
