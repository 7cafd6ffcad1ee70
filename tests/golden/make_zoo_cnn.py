"""Make zoo_cnn.npz: what PyTorch computes for the zoo CNN, independently of HyperJAX.

Made with torch 2.13.0 (CPU build), numpy only besides, in a virtual environment of its own:

    python make_zoo_cnn.py

Torch computes in float64 and the results are stored as float32, so that differences are those
of the code under test. For c = 1 and 3 input channels the file holds

    c{c}/vector               float32[D]: weights, then biases, layer by layer (published order)
    c{c}/state/{i}.{name}     float32: the same as a state dict of the published module list
    c{c}/images               float32[4, 28, 28, c]
    c{c}/logits/{activation}  float32[4, 10]

and of the training of one member (c = 1, tanh) by three steps of torch.optim.Adam with L2, on
batches of 10, 10 and 3 images in the order in which they are stored

    train/pixels              uint8[23, 28, 28, 1], normalised with train/mean and train/std
    train/labels              int32[23]
    train/learning_rate, train/weight_decay
    train/vector              float32[2464]: the weights after the steps; before: c1/vector
    train/loss, train/accuracy  running means over the three steps
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
MEAN, STD, LEARNING_RATE, WEIGHT_DECAY = 0.45, 0.3, 3e-3, 1e-2


def make_net(channels: int, activation: str) -> nn.Sequential:
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5),
        nn.MaxPool2d(2, 2),
        act(),
        nn.Conv2d(8, 6, 5),
        nn.MaxPool2d(2, 2),
        act(),
        nn.Conv2d(6, 4, 2),
        act(),
        nn.Flatten(),
        nn.Linear(36, 20),
        act(),
        nn.Linear(20, 10),
    ).double()


def flat_vector(net: nn.Sequential) -> np.ndarray:
    """Weights row-major, then biases, layer by layer."""
    layers = [module for module in net if hasattr(module, "weight")]
    parts = [part for layer in layers for part in (layer.weight, layer.bias)]
    return torch.cat([part.detach().flatten() for part in parts]).float().numpy()


def random_net(channels: int) -> nn.Sequential:
    """Weights that float32 holds exactly, large enough for the nonlinearities to matter."""
    torch.manual_seed(channels)
    net = make_net(channels, "tanh")
    with torch.no_grad():
        for param in net.parameters():
            param.copy_((2 * param).float())
    return net


def forward_goldens(channels: int) -> dict[str, np.ndarray]:
    net = random_net(channels)
    images = torch.randn(4, channels, 28, 28)
    out = {"vector": flat_vector(net), "images": images.permute(0, 2, 3, 1).numpy()}
    out |= {f"state/{name}": value.float().numpy() for name, value in net.state_dict().items()}
    for activation in ACTIVATIONS:
        other = make_net(channels, activation)
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            out[f"logits/{activation}"] = other(images.double()).float().numpy()
    return {f"c{channels}/{name}": value for name, value in out.items()}


def training_goldens() -> dict[str, np.ndarray]:
    net = random_net(1)
    pixels = torch.randint(0, 256, (23, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (23,))
    images = (pixels.double() / 255 - MEAN) / STD
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_sum = correct = 0.0
    for part in (slice(0, 10), slice(10, 20), slice(20, 23)):
        adam.zero_grad()
        logits = net(images[part])
        loss = nn.functional.cross_entropy(logits, labels[part])
        loss.backward()
        adam.step()
        loss_sum += loss.item() * len(labels[part])
        correct += (logits.argmax(1) == labels[part]).sum().item()
    out = {
        "pixels": pixels.permute(0, 2, 3, 1).numpy(),
        "labels": labels.int().numpy(),
        "mean": np.float32([MEAN]),
        "std": np.float32([STD]),
        "learning_rate": np.float32(LEARNING_RATE),
        "weight_decay": np.float32(WEIGHT_DECAY),
        "vector": flat_vector(net),
        "loss": np.float32(loss_sum / 23),
        "accuracy": np.float32(correct / 23),
    }
    return {f"train/{name}": value for name, value in out.items()}


if __name__ == "__main__":
    arrays = forward_goldens(1) | forward_goldens(3) | training_goldens()
    np.savez_compressed(Path(__file__).parent / "zoo_cnn.npz", **arrays)
