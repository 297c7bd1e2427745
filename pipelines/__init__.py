"""The commands; importing them says where torch.compile keeps what it has compiled.

It lies beside the other caches, so that trials, restarts and, on a shared file system, nodes find it again. That has
to be said in the environment, which threads and processes share, before torch's compiler is imported; so here, as every
process of a run imports this first. Whole graphs are found again even with an autograd function of ours in them:
torch's key of a graph has what it traced and the kernels, but not the Python that launches these, so that each version
of that gets a folder.
"""

import hashlib
import os
from pathlib import Path

import metalora
from metalora.files import cache_path

_fused = sorted((Path(metalora.__file__).parent / "adapters" / "fused").glob("*.py"))
_version = hashlib.sha256(b"".join(file.read_bytes() for file in _fused)).hexdigest()[:12]
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_path("compiled") / _version))
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE_ALLOW_CUSTOM_AUTOGRAD", "1")
