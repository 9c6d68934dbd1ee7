"""Ways to serve a model that ``offramp bench`` runs against each other: one file a library, and ``ours.py``."""

from offramp.bench.deployments.base import Job, Server, Way, make_ready, open_server

__all__ = ["Job", "Server", "Way", "make_ready", "open_server"]
