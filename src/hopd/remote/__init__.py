"""Servers of models, asked over HTTP: requests, faults, waiting. What is asked for, nothing here knows."""

from hopd.remote.backoff import Backoff
from hopd.remote.client import Client
from hopd.remote.fault import Fault, FaultKind, Losses
from hopd.remote.fingerprint import fingerprint_ids

__all__ = ["Backoff", "Client", "Fault", "FaultKind", "Losses", "fingerprint_ids"]
