"""Adam's second moments in the states of PyTorch's optimisers (`optimizer.state_dict()`).

Such a state numbers parameters, in the order in which the optimiser was given them, which is that
of the module's state dict without its buffers unless there are several groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.exchange import state_dict
from hyperjax.exchange.state_dict import Layout
from hyperjax.weights import STATISTICS

_PLACES = ("optimizer", "optimizer_state_dict", "optimizer_states")  # in a checkpoint


def of_checkpoint(found: Any) -> Any:
    """The state of the optimiser beside the weights in a checkpoint.

    Raises HyperJaxError if there is none.
    """
    for name in _PLACES if isinstance(found, Mapping) else ():
        state = found.get(name)
        if isinstance(state, list) and len(state) == 1:
            (state,) = state
        if isinstance(state, Mapping):
            return state
    raise HyperJaxError(f"no optimiser in it; expected a checkpoint with {' or '.join(_PLACES)}")


def second_moments(layout: Layout, tensors: Iterable[str], optimizer: Any) -> np.ndarray:
    """Second moments float32[D] of a network, zero for its running statistics.

    Args:
      layout: of the network.
      tensors: names of its tensors, in the order of its state dict.
      optimizer: the state; before the first step, which makes its tensors, they are zero.

    Raises HyperJaxError for what is no state of Adam or AdamW, or of another network's.
    """
    try:
        groups, states = list(optimizer["param_groups"]), dict(optimizer["state"])
        numbers = [int(number) for group in groups for number in group["params"]]
        told = [str(name) for group in groups for name in group.get("param_names") or ()]
        adam = all("betas" in group for group in groups)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HyperJaxError(f"no state of an optimiser: {error!r}") from error
    statistics = _statistics(layout)
    names = [name for name in tensors if name not in statistics]
    if len(told) == len(numbers):
        names = [state_dict.bare(name) for name in told]
    elif len(groups) != 1:
        raise HyperJaxError(
            f"an optimiser with {len(groups)} groups of parameters and without param_names: it "
            "does not tell which moments are whose"
        )
    if len(names) != len(numbers):
        raise HyperJaxError(
            f"an optimiser of {len(numbers)} parameters; the network has {len(names)}"
        )
    shapes = state_dict.shapes(layout)
    found = {name: np.zeros(shapes[name], np.float32) for name in statistics}
    for name, number in zip(names, numbers, strict=True):
        if not states and adam and name in shapes:
            found[name] = np.zeros(shapes[name], np.float32)
            continue
        state = states.get(number)
        values = state.get("exp_avg_sq") if isinstance(state, Mapping) else None
        if not isinstance(values, np.ndarray):
            raise HyperJaxError(f"an optimiser without exp_avg_sq of {name}; expected Adam's")
        found[name] = values
    return state_dict.to_vector(layout, found)


def to_optimizer(layout: Layout, moments: np.ndarray) -> dict[str, Any]:
    """Second moments float32[D] as the state of an optimiser that has nothing else: the inverse of
    `second_moments`, of which no training can go on."""
    tensors, statistics = state_dict.to_state(layout, moments), _statistics(layout)
    kept = [values for name, values in tensors.items() if name not in statistics]
    states = {number: {"exp_avg_sq": values} for number, values in enumerate(kept)}
    return {"state": states, "param_groups": [{"params": list(states)}]}


def _statistics(layout: Layout) -> Sequence[str]:
    """Names of the running statistics, which are buffers, not parameters."""
    return [
        name
        for layer, names in zip(layout.spec.layers, layout.names, strict=True)
        for value, name in zip(layer.values, names[1:], strict=True)
        if value in STATISTICS
    ]
