"""Validation and the final test of a training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.config import Config
from metalora.data.table import SPLITS, IntArray, Table
from metalora.errors import UserError
from metalora.evaluate.accuracy import as_report, metrics
from metalora.evaluate.given_seeds import GivenSeeds
from metalora.models.model import MetaLoRAModel
from metalora.train.feed import Feed
from metalora.train.kept import ConditionCache, Shared
from metalora.train.reporter import Write
from metalora.train.results import Embedded, Scorer, gain_errors, write_results

STANDARDIZE_SAMPLE = 4096


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
        self.scorer = Scorer(config.evaluate, table, self.group.device)
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
        gallery, images = (self._features("validate", rows, given) for rows in (support, queries))
        if not self.group.first:
            return {}
        assert images.scores is not None
        labels = self.scorer.labels(images.rows)
        return {
            "val/loss": float(F.cross_entropy(images.scores, labels)),
            "val/accuracy": float((images.scores.argmax(1) == labels).float().mean()),
            **metrics("val", self.scorer.knn(gallery, images)),
        }

    def test(self) -> tuple[dict[str, float], Write]:
        """Compare adapted and original features on the test split, and on the test split of held-out domains.

        Returns:
            The metrics, and a function that writes the results into a folder; on rank 0.
        """
        parts = [self.table.rows("train"), self.table.rows("test")]
        if self.table.holdout:
            parts += [self.table.holdout_rows("train"), self.table.holdout_rows("test")]
        before = [self._original(rows) for rows in parts]
        given = self._task_seeds(np.concatenate(parts[::2]))
        after = [self._features("test adapted", rows, given) for rows in parts]
        seeds = self._seeds(parts[1])[1] if self.model.network.mapping is not None else None
        shuffled = self._shuffled(parts, given) if seeds is not None and self.config.evaluate.shuffled_seeds else None
        if not self.group.first:
            return {}, lambda folder: None
        queries = after[1]
        assert queries.scores is not None
        labels = self.scorer.labels(queries.rows)
        accuracy = float((queries.scores.argmax(1) == labels).float().mean())
        original, adapted = self.scorer.accuracies(before), self.scorer.accuracies(after)
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
            "gain_error": gain_errors(original["test"], adapted["test"]),
        }
        if shuffled is not None:
            report["shuffled"] = as_report(self.scorer.accuracies(shuffled))
        tested = Embedded(*(torch.cat(parts) for parts in zip(*after[1::2], strict=True)))
        predictions = self.scorer.predictions(tested)
        return values, lambda folder: write_results(folder, self.model, report, predictions, seeds)

    def _extract(self, images: Tensor, rows: Tensor) -> Tensor:
        features = self.condition(images, rows)
        assert features is not None
        return features

    def _features(self, phase: str, rows: Any, given: GivenSeeds | None = None) -> Embedded:
        """Return the features and scores of rows, by their own seeds or those given."""
        slot = self.model.network.slot

        def compute(images: Tensor, image_rows: Tensor) -> tuple[Tensor, Tensor]:
            seeds = None if given is None else given.get(image_rows).to(self.group.device)
            condition = self.condition(images, image_rows) if slot.enabled and given is None else None
            with self.autocast(), slot.given(seeds):
                features = self.model.network(images, condition)
                assert self.model.head is not None
                return features, self.model.head(features)

        found, (features, scores) = self._embed(phase, rows, compute)
        return Embedded(found, features, scores)

    def _original(self, rows: IntArray) -> Embedded:
        """Return the features of rows by the backbone without adapters."""
        if self.shared is not None:
            return Embedded(torch.from_numpy(rows), torch.tensor(self.shared.original[rows]))
        with self.model.disable_adapter():
            return self._features("test original", rows)

    def _task_seeds(self, support: IntArray) -> GivenSeeds | None:
        """Return the tasks' mean seeds over support images, if a seed is a task's and not an image's."""
        if self.model.network.mapping is None or self.config.mapping.seed_granularity == "sample":
            return None
        return GivenSeeds.of_tasks(*self._seeds(support), torch.from_numpy(self.table.domain))

    def _shuffled(self, parts: list[IntArray], given: GivenSeeds | None) -> list[Embedded]:
        """Return the features of the parts, each image with the seed of another of them."""
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
