"""Calls of the three scripts, as a user makes them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMOKE = "configs/digits.py:smoke"
SLOW = 600  # seconds; a hang is a failure


def call(env, *arguments):
    """Run a script from the repository's root."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=SLOW,
    )  # fmt: skip
