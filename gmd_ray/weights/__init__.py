"""Model weights on object stores and shared disks, copied once to the disk of each node that needs them.

Every loader of a model asks `node_copy` for its path. A URL is then downloaded by the first process of the node that
asks, checked, and found by all others; a path on this machine is used as it is.
"""

from __future__ import annotations

from gmd_ray.weights.cache import is_model_folder, is_stored, node_copy, stored_model, verified_copy
from gmd_ray.weights.listing import StoredModel
from gmd_ray.weights.publish import publish

__all__ = [
    "StoredModel",
    "is_model_folder",
    "is_stored",
    "node_copy",
    "publish",
    "stored_model",
    "verified_copy",
]
