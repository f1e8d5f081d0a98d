"""``python -m isoloss_worker``."""

import sys

from isoloss_worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
