"""Files that another process writes."""

import os
import subprocess
import sys
from pathlib import Path


def bytes_of_another_process(module: Path, code: str, path: Path) -> bytes:
    """What `code` writes to `sys.argv[1]` where `module` is imported as `t`, with another order of
    hashes; the bytes of that file, beside `path`."""
    other, here = path.with_name("other"), module.parent
    folders = os.pathsep.join((str(here), str(here.parent)))
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": folders}
    program = f"import sys, jax, {module.stem} as t\n{code}"
    subprocess.run([sys.executable, "-c", program, str(other)], check=True, env=env)
    return other.read_bytes()
