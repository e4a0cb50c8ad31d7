"""`python -m tests.fuzz [--seconds 60] [--target NAME]`: fuzz with atheris; says how many inputs were tried."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.campaign import CORPUS, has_atheris, run_campaign
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Fuzz each target in turn; returns 1 if one broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long each target is fuzzed (60)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be repeated")
    arguments = parser.parse_args()
    if not has_atheris():
        print("fuzz: skipped: atheris is not installed here; it comes with `make setup` on Linux x86-64")
        return 0
    total, num_broken = 0, 0
    for name in arguments.target or TARGETS:
        outcome = run_campaign(name, TARGETS[name].seeds(), arguments.seconds)
        total += outcome.num_inputs
        print(f"{name:16} {outcome.num_inputs:>12,} inputs   {'BROKEN' if outcome.defect else 'ok'}", flush=True)
        if outcome.defect:
            num_broken += 1
            print(f"{outcome.defect}\nThe input is in {CORPUS / name}; `make test` tries it again.", file=sys.stderr)
    print(f"{'all':16} {total:>12,} inputs   {num_broken} targets broken")
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.exit(main())
