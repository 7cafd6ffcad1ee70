"""Make tests/golden/torch: small files by `torch.save`, of every kind that users have.
Needs PyTorch: `python tests/golden/make_torch.py`."""

import collections
import json
import pathlib
import sys
import types

import numpy as np
import torch
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "torch"


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))


def published_cnn(seed: int, dropout: float) -> nn.Module:
    """Indices as in the published zoos: with dropout they are others."""
    torch.manual_seed(seed)
    rest = [nn.Dropout(dropout)] if dropout else []
    layers = [
        nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.Tanh(), *rest,
        nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), nn.Tanh(), *rest,
        nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 20), nn.Tanh(), *rest, nn.Linear(20, 10),
    ]  # fmt: skip
    net = nn.Module()
    net.module_list = nn.ModuleList(layers)
    return net


def stepped(named: bool) -> tuple[dict, dict]:
    """A checkpoint after three steps of Adam, of a network with buffers, and its second moments by
    name; its optimiser numbers the parameters in their order, or has two groups with names."""
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    )
    parameters = dict(net.named_parameters())
    groups = [
        {"params": [(k, v) for k, v in parameters.items() if (v.ndim == 2) == whole]}
        for whole in (False, True)
    ]
    adam = torch.optim.Adam(groups if named else net.parameters(), lr=1e-2)
    for _ in range(3):
        adam.zero_grad()
        nn.functional.cross_entropy(net(torch.randn(8, 12)), torch.randint(3, (8,))).backward()
        adam.step()
    moments = {k: adam.state[v]["exp_avg_sq"].flatten().tolist() for k, v in parameters.items()}
    return {
        "model_state_dict": net.state_dict(),
        "optimizer_state_dict": adam.state_dict(),
    }, moments


class ModelDatasetBase:
    """As the published class of that name: pickled with its module's name."""


def dataset(seeds: list[int]) -> object:
    modules = ("checkpoints_to_datasets", "checkpoints_to_datasets.dataset_base")
    for name in modules:
        sys.modules[name] = types.ModuleType(name)
    ModelDatasetBase.__module__ = modules[1]
    sys.modules[modules[1]].ModelDatasetBase = ModelDatasetBase
    made = ModelDatasetBase()
    made.data_in = [[mlp(seed + epoch).state_dict() for epoch in (0, 100)] for seed in seeds]
    made.paths = [pathlib.PosixPath(f"/data/zoo/model_{seed}") for seed in seeds]
    made.properties = {
        "training_iteration": [[24, 25] for _ in seeds],
        "test_acc": [[np.float64(0.5), 0.25 + seed / 100] for seed in seeds],
    }
    made.layer_lst = [(1, "fc")]
    return made


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    state = mlp(0).state_dict()
    files = {
        "plain": state,
        "wrapped": {"epoch": 3, "state_dict": state, "lr": 0.1, "args": None},
        "parallel": collections.OrderedDict((f"module.{k}", v) for k, v in state.items()),
        "parameters": dict(mlp(0).named_parameters()),
        "half": {k: v.half() for k, v in state.items()},
        "bfloat16": {k: v.bfloat16() for k, v in state.items()},
        "views": {k: (v.t().contiguous().t() if v.ndim == 2 else v) for k, v in state.items()},
        "cnn": published_cnn(1, 0.0).state_dict(),
        "cnn_dropout": published_cnn(1, 0.5).state_dict(),
        "dataset": {"trainset": dataset([0, 1]), "valset": dataset([2]), "testset": dataset([3])},
    }
    for name, value in files.items():
        torch.save(value, FOLDER / f"{name}.pt")
    torch.save(state, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    adam = torch.optim.Adam(mlp(0).parameters())
    torch.save({"model": state, "optimizer": adam.state_dict()}, FOLDER / "training.ckpt")
    images = torch.linspace(-1, 1, 24).reshape(2, 1, 4, 3)
    expected = {k: v.flatten().tolist() for k, v in state.items()}
    expected = {"state": expected, "logits": mlp(0)(images).tolist()}
    for name in ("adam", "adam_groups"):
        checkpoint, expected[name] = stepped(named=name == "adam_groups")
        torch.save(checkpoint, FOLDER / f"{name}.pt")
    (FOLDER / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
