"""What the three scripts share: devices, errors, interruption."""

import os
import sys
from collections.abc import Callable
from typing import Any

from absl import app, logging

from hyperjax.errors import HyperJaxError


def use_all_cores() -> None:
    """One virtual CPU device per core, on which populations are spread.

    XLA runs the many small operations of a zoo CNN on one core each. Has no effect on
    accelerators, nor where JAX_NUM_CPU_DEVICES is set. Call before JAX starts its backend.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def run(task: Callable[[], Any]) -> None:
    """Run a task; print a mistake of the user's as one message and exit with 2."""
    logging.set_verbosity(logging.WARNING)  # Orbax narrates every checkpoint
    try:
        use_all_cores()
        task()
    except HyperJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; a mistake in a configuration is one message too, not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (HyperJaxError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)


def refuse_arguments(argv: list[str]) -> None:
    """A forgotten `--` is a mistake, not something to pass over."""
    if len(argv) > 1:
        raise HyperJaxError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
