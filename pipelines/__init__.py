import os

from metalora.files import cache_path

# What torch.compile makes lies beside the other caches, so that trials, restarts and, on a shared file system, nodes
# find it again. Here, as every process of a run imports this first, and torch settles on a folder when it is compiling.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_path("compiled")))
