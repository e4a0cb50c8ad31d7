"""`python -m tests.chaos --schedules N --seed S`: N random schedules; exit code 1 if an invariant was broken."""

from __future__ import annotations

import sys

from tests.chaos.campaign import main

if __name__ == "__main__":
    sys.exit(main())
