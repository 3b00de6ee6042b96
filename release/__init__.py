"""Builds, tests and publishes ZFS module images for the kernels of Docker Desktop."""

__version__ = "0.1.0"
