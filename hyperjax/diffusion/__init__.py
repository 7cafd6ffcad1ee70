"""Diffusion of weights: a denoiser on the networks' own graph, and samples from it."""

from hyperjax.diffusion.denoiser import UNKNOWN, Denoiser, denoise
from hyperjax.diffusion.wiener import Wiener
