"""A worker's end: one gradient in, fresh parameters out."""

from distnet.client.client import Client
from distnet.client.connecting import connect
from distnet.client.handle import Handle

__all__ = ["Client", "Handle", "connect"]
