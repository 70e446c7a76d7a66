"""Sends requests to servers of models over HTTP, with retries. The room knows no teacher, rollout or model: its callers
say what to send and how to read an answer."""

from hopd.remote.backoff import Backoff
from hopd.remote.client import Client
from hopd.remote.fault import Fault, FaultKind, RequestStats
from hopd.remote.fingerprint import fingerprint_ids

__all__ = ["Backoff", "Client", "Fault", "FaultKind", "RequestStats", "fingerprint_ids"]
