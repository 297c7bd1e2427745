"""Validation and the final test of a training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.config import Config
from metalora.data.table import SPLITS, IntArray, Table
from metalora.errors import UserError
from metalora.evaluate.accuracy import Accuracy, as_report, metrics
from metalora.evaluate.given_seeds import GivenSeeds
from metalora.evaluate.knn import KnnResult, knn_accuracy
from metalora.evaluate.linear import linear_accuracy
from metalora.evaluate.seeds import write_seeds
from metalora.models.model import MetaLoRAModel
from metalora.models.persist import save
from metalora.train.feed import Feed
from metalora.train.kept import ConditionCache, Shared
from metalora.train.reporter import Write

STANDARDIZE_SAMPLE = 4096

KNN, ADAPTER, SEEDS = "knn.json", "adapter", "seeds/seeds.parquet"


def has_results(folder: Path) -> bool:
    """Tell whether a checkpoint holds the results of a finished training beside the state."""
    return (folder / KNN).is_file()


class Evaluator:
    """Validates and tests a training.

    Args:
        config: All settings.
        model: The model, on the feed's device and with a head.
        table: The data.
        feed: Feeds the model from the table.
        shared: Results that were computed once for several trainings.

    Raises:
        UserError: the held-out domains have too few images for k-NN.
    """

    def __init__(
        self, config: Config, model: MetaLoRAModel, table: Table, feed: Feed, shared: Shared | None = None
    ) -> None:
        self.config = config
        self.model = model
        self.table = table
        self.feed = feed
        self.group = feed.group
        self.autocast = feed.execution.autocast
        self.shared = shared
        self.cache: ConditionCache | None = None
        most, unseen = max(config.evaluate.knn), len(table.holdout_rows("train"))
        if table.holdout and most > unseen:  # found at the end only, it would cost a training
            raise UserError(f"k-NN with K = {most} needs as many train images of the held-out domains; got {unseen}")

    def condition(self, images: Tensor, rows: Tensor) -> Tensor | None:
        """Return the extractor features (B, F) of images, from the cache if they are known."""
        if self.model.extractor is None:
            return None
        known = self.cache.get(rows) if self.cache is not None else None
        if known is not None:
            return known.to(self.group.device, non_blocking=True)
        features: Tensor = self.model.extractor(images)
        return features

    def prepare(self) -> None:
        """Compute the extractor's features of the train split, for the mapping net's standardisation and the cache.

        A mapping net that was trained before keeps the standardisation that it was trained with.
        """
        mapping = self.model.network.mapping
        if mapping is None:
            return
        fresh = self.config.adapter.init_adapter is None
        rows = self.table.rows("train")
        if self.shared is not None:
            features = torch.tensor(self.shared.conditions[self.config.mapping.extractor_features])
            if fresh:
                mapping.standardize(features[rows])
            self.cache = ConditionCache(features, torch.ones(len(features), dtype=torch.bool))
            return
        if self.config.mapping.cache_features:
            rows = np.concatenate([rows, self.table.rows("val")])
        elif not fresh:
            return
        elif len(rows) > STANDARDIZE_SAMPLE:
            generator = np.random.default_rng(self.config.train.random_seed)
            chosen = generator.choice(len(rows), STANDARDIZE_SAMPLE, replace=False)
            rows = rows[np.sort(chosen)]
        found, (features,) = self._embed("extract features", rows, lambda x, r: (self._extract(x, r),))
        if fresh:
            train = torch.from_numpy(self.table.split[found.numpy()] == SPLITS.index("train"))
            mapping.standardize(features[train])
        if self.config.mapping.cache_features:
            self.cache = ConditionCache.of(found, features, len(self.table))

    def validate(self) -> dict[str, float]:
        """Compute loss, accuracy and k-NN accuracy on the validation split, if there is one; returned on rank 0."""
        queries = self.table.rows("val")
        if len(queries) == 0:
            return {}
        support = self.table.rows("train")
        given = self._task_seeds(support)
        gallery, (gallery_features, _) = self._features("validate", support, given)
        rows, (features, scores) = self._features("validate", queries, given)
        if not self.group.first:
            return {}
        labels = torch.from_numpy(self.table.label[rows.numpy()])
        return {
            "val/loss": float(F.cross_entropy(scores, labels)),
            "val/accuracy": float((scores.argmax(1) == labels).float().mean()),
            **metrics("val", self._knn(gallery, gallery_features, rows, features)),
        }

    def test(self) -> tuple[dict[str, float], Write]:
        """Compare adapted and original features on the test split, and on the test split of held-out domains.

        Returns:
            The metrics, and a function that writes the results (`KNN`, `ADAPTER`, and `SEEDS` if there are any) into a
            folder; on rank 0.
        """
        parts = [self.table.rows("train"), self.table.rows("test")]
        if self.table.holdout:
            parts += [self.table.holdout_rows("train"), self.table.holdout_rows("test")]
        before = [self._original(rows) for rows in parts]
        given = self._task_seeds(np.concatenate(parts[::2]))
        after = [self._features("test adapted", rows, given) for rows in parts]
        seeds = self._seeds(parts[1]) if self.model.network.mapping is not None else None
        shuffled = self._shuffled(parts, given) if seeds is not None and self.config.evaluate.shuffled_seeds else None
        if not self.group.first:
            return {}, lambda folder: None
        labels = torch.from_numpy(self.table.label[after[1][0].numpy()])
        accuracy = float((after[1][1][1].argmax(1) == labels).float().mean())
        original, adapted = self._accuracies(before), self._accuracies(after)
        values = {"test/accuracy": accuracy}
        for prefix, found in adapted.items():
            values |= {f"{prefix}/linear": found.linear, **metrics(prefix, found.knn)}
        for prefix, found in original.items():
            values |= {f"original/{prefix}/linear": found.linear, **metrics(f"original/{prefix}", found.knn)}
        report: dict[str, Any] = {
            "format": self.model.spec.format.name,
            "gallery": len(parts[0]),
            "queries": len(parts[1]),
            "test_accuracy": accuracy,
            "chance": float(labels.bincount().max() / len(labels)),
            "original": as_report(original),
            "adapted": as_report(adapted),
        }
        if shuffled is not None:
            report["shuffled"] = as_report(self._accuracies(shuffled))
        return values, lambda folder: self._write(folder, report, seeds)

    def _accuracies(self, parts: list[tuple[Tensor, tuple[Tensor, ...]]]) -> dict[str, Accuracy]:
        """Return, by the prefix of their metrics, the accuracies of galleries and queries.

        Args:
            parts: Rows and features of the gallery and the queries; then, if any, of the held-out domains' ones.
        """
        (seen, (seen_features, *_)), (queries, (features, *_)) = parts[:2]
        found = {"test": self._accuracy(seen, seen_features, queries, features)}
        if self.table.holdout:
            (unseen, (unseen_features, *_)), (queries, (features, *_)) = parts[2:]
            found["holdout"] = self._accuracy(seen, seen_features, queries, features)
            found["holdout/unseen"] = self._accuracy(unseen, unseen_features, queries, features)
        return found

    def _accuracy(self, gallery: Tensor, gallery_features: Tensor, queries: Tensor, features: Tensor) -> Accuracy:
        device = self.group.device
        linear = linear_accuracy(
            gallery_features.to(device),
            torch.from_numpy(self.table.label[gallery.numpy()]).to(device),
            features.to(device),
            torch.from_numpy(self.table.label[queries.numpy()]).to(device),
        )
        return Accuracy(self._knn(gallery, gallery_features, queries, features), linear)

    def _write(self, folder: Path, report: dict[str, Any], seeds: tuple[Tensor, Tensor] | None) -> None:
        save(self.model, folder / ADAPTER)
        (folder / KNN).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if seeds is not None:
            rows = seeds[0].numpy()
            table = self.table
            write_seeds(
                folder / SEEDS,
                [str(name) for name in table.id[rows]],
                [table.domains[d] for d in table.domain[rows]],
                [table.labels[y] for y in table.label[rows]],
                [SPLITS[s] for s in table.split[rows]],
                seeds[1].numpy(),
            )

    def _extract(self, images: Tensor, rows: Tensor) -> Tensor:
        features = self.condition(images, rows)
        assert features is not None
        return features

    def _features(self, phase: str, rows: Any, given: GivenSeeds | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return rows, and their features (N, D) and scores (N, C), by their own seeds or those given."""
        slot = self.model.network.slot

        def compute(images: Tensor, image_rows: Tensor) -> tuple[Tensor, Tensor]:
            seeds = None if given is None else given.get(image_rows).to(self.group.device)
            condition = self.condition(images, image_rows) if slot.enabled and given is None else None
            with self.autocast(), slot.given(seeds):
                features = self.model.network(images, condition)
                assert self.model.head is not None
                return features, self.model.head(features)

        found: tuple[Tensor, tuple[Tensor, ...]] = self._embed(phase, rows, compute)
        return found

    def _original(self, rows: IntArray) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return rows, and the features (N, D) of the backbone without adapters."""
        if self.shared is not None:
            return torch.from_numpy(rows), (torch.tensor(self.shared.original[rows]),)
        with self.model.disable_adapter():
            return self._features("test original", rows)

    def _task_seeds(self, support: IntArray) -> GivenSeeds | None:
        """Return the tasks' mean seeds over support images, if a seed is a task's and not an image's."""
        if self.model.network.mapping is None or self.config.mapping.seed_granularity == "sample":
            return None
        return GivenSeeds.of_tasks(*self._seeds(support), torch.from_numpy(self.table.domain))

    def _shuffled(self, parts: list[IntArray], given: GivenSeeds | None) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Return rows and features of the parts, each image with the seed of another of them."""
        rows = np.concatenate(parts)
        given = given or GivenSeeds.own(*self._seeds(rows), len(self.table))
        given = given.shuffled(torch.from_numpy(rows), self.config.train.random_seed)
        return [self._features("test shuffled seeds", part, given) for part in parts]

    def _seeds(self, rows: Any) -> tuple[Tensor, Tensor]:
        def compute(images: Tensor, image_rows: Tensor) -> tuple[Tensor]:
            return (self.model.seed(images, self._extract(images, image_rows)),)

        found, (seeds,) = self._embed("seeds", rows, compute)
        return found, seeds

    def _embed(self, phase: str, rows: IntArray, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> Any:
        self.model.eval()
        return self.feed.embed(phase, rows, function)

    def _knn(self, gallery: Tensor, gallery_features: Tensor, queries: Tensor, features: Tensor) -> KnnResult:
        settings = self.config.evaluate
        table = self.table
        return knn_accuracy(
            gallery_features.to(self.group.device),
            torch.from_numpy(table.label[gallery.numpy()]).to(self.group.device),
            features.to(self.group.device),
            torch.from_numpy(table.label[queries.numpy()]).to(self.group.device),
            torch.from_numpy(table.domain[queries.numpy()]).to(self.group.device),
            domains=table.domains,
            classes=len(table.labels),
            k=settings.knn,
            metric=settings.knn_metric,
            temperature=settings.knn_temperature,
        )
