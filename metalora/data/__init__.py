"""Images with a label and a domain: where they come from, in which order they are read."""

from metalora.data.dataset import ImageDataset
from metalora.data.images import decode
from metalora.data.load import load_table
from metalora.data.loaders import evaluation_loader, train_loader
from metalora.data.sampler import BatchSampler, epoch_order
from metalora.data.sources.embedded import plain_scans
from metalora.data.table import SPLITS, ImageStore, ImageTable

__all__ = [
    "SPLITS",
    "BatchSampler",
    "ImageDataset",
    "ImageStore",
    "ImageTable",
    "decode",
    "epoch_order",
    "evaluation_loader",
    "load_table",
    "plain_scans",
    "train_loader",
]
