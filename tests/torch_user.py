"""Somebody who has PyTorch and not HyperJAX: trains networks in a loop of their own, saves them,
and loads what comes back. Imports torch alone.

    python torch_user.py train MODEL IMAGES.npz FOLDER COUNT EPOCHS
    python torch_user.py load MODEL IMAGES.npz FOLDER LOGITS.npz
"""

import pathlib
import sys

import numpy as np
import torch
from torch import nn


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


class CNN3(nn.Module):
    """With the indices of the published zoos' larger network."""

    def __init__(self):
        super().__init__()
        act, pool = nn.GELU(), nn.MaxPool2d(2)
        self.module_list = nn.Sequential(
            nn.Conv2d(1, 16, 3), pool, act, nn.Dropout(0.0), nn.Conv2d(16, 32, 3), pool, act,
            nn.Dropout(0.0), nn.Conv2d(32, 15, 3), pool, act, nn.Flatten(), nn.Dropout(0.0),
            nn.Linear(60, 20), act, nn.Dropout(0.0), nn.Linear(20, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.module_list(x)


MODELS = {"mlp": MLP, "cnn3": CNN3}


def train(model: str, images: dict, folder: pathlib.Path, count: int, epochs: int) -> None:
    x, y = torch.tensor(images["x"]), torch.tensor(images["y"]).long()
    for seed in range(count):
        torch.manual_seed(seed)
        net = MODELS[model]()
        adam = torch.optim.Adam(net.parameters(), lr=3e-3)
        for epoch in range(1, epochs + 1):
            for index in torch.randperm(len(x)).split(32):
                loss = nn.functional.cross_entropy(net(x[index]), y[index])
                adam.zero_grad()
                loss.backward()
                adam.step()
            place = folder / f"net_{seed}"
            place.mkdir(parents=True, exist_ok=True)
            torch.save({"epoch": epoch, "state_dict": net.state_dict()}, place / f"{epoch}.pth")


def load(model: str, images: dict, folder: pathlib.Path, output: str) -> None:
    net, logits = MODELS[model](), []
    for path in sorted(folder.glob("*.pt")):
        net.load_state_dict(torch.load(path, weights_only=True), strict=True)
        with torch.no_grad():
            logits.append(net.eval()(torch.tensor(images["test"])).numpy())
    np.savez(output, logits=np.stack(logits))


if __name__ == "__main__":
    torch.set_num_threads(1)
    job, model, images, folder, *rest = sys.argv[1:]
    arrays, folder = dict(np.load(images)), pathlib.Path(folder)
    if job == "train":
        train(model, arrays, folder, *map(int, rest))
    else:
        load(model, arrays, folder, *rest)
