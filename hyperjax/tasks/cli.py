"""What the three scripts share: devices, errors, interruption."""

import os
import sys
from collections.abc import Callable
from typing import Any

from absl import app, logging

from hyperjax.errors import HyperJaxError


def configure_jax() -> None:
    """One virtual CPU device per core, on which populations are spread; full float32 precision.

    XLA runs the many small operations of a zoo CNN on one core each. JAX_NUM_CPU_DEVICES and
    JAX_DEFAULT_MATMUL_PRECISION, where set, come first. Call before JAX starts its backend.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:  # float32 means float32 on GPU as well
        jax.config.update("jax_default_matmul_precision", "highest")


def run(task: Callable[[], Any]) -> None:
    """Run a task; print a mistake of the user's as one message and exit with 2."""
    logging.set_verbosity(logging.WARNING)  # Orbax narrates every checkpoint
    try:
        configure_jax()
        task()
    except HyperJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
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
