"""HyperJAX: hyper-representations as generative models of neural network weights."""

__version__ = "0.1.0"
