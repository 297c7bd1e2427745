"""Images with a label and a domain: their sources, and the order in which they are read."""

from metalora.data.dataset import SampleDataset
from metalora.data.images import decode
from metalora.data.load import load_table
from metalora.data.loaders import evaluation_loader, train_loader
from metalora.data.sampler import BatchSampler, epoch_order
from metalora.data.sources.embedded import plain_scans
from metalora.data.table import SPLITS, Store, Table

__all__ = [
    "SPLITS",
    "BatchSampler",
    "SampleDataset",
    "Store",
    "Table",
    "decode",
    "epoch_order",
    "evaluation_loader",
    "load_table",
    "plain_scans",
    "train_loader",
]
