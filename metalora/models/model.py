"""The adapted model that users hold."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalora.adapters.inject import replace
from metalora.adapters.layer import AdaptedLayer
from metalora.adapters.seed_slot import Call
from metalora.errors import UserError
from metalora.models.extractor import Extractor
from metalora.models.inputs import Inputs
from metalora.models.network import AdaptedNetwork
from metalora.models.predictor import BATCH, Prediction, Predictor
from metalora.models.spec import AdapterSpec
from metalora.reading import short
from metalora.tensor_files import check_like


class Trainable(NamedTuple):
    """A trained parameter.

    Attributes:
        name: Its name in an adapter's file.
        parameter: The parameter.
        part: ``adapter``, ``saved`` (a module trained in full), ``mapping`` or ``head``.
    """

    name: str
    parameter: nn.Parameter
    part: str


class MetaLoRAModel(nn.Module):
    """A frozen backbone whose adapters are seeded by the image; `metalora.adapt` and `metalora.load` make it.

    >>> import metalora
    >>> model = metalora.adapt(metalora.build_backbone("resnet20", "none"), "cp", rank=2, target_modules="conv1")
    >>> images = torch.zeros(4, 3, 28, 28)
    >>> model(images).shape, model.seed(images).shape
    (torch.Size([4, 64]), torch.Size([4, 20]))

    Attributes:
        network: The adapted backbone and the mapping net.
        extractor: The frozen feature extractor; None for formats without generated seeds.
        head: A linear classifier of the features; None without labels.
        layers: The adapted layers by their name in the backbone.
        spec: The structure of the model.
        backbone_identity: Name, weights and hash of the backbone.
        extractor_identity: Name, weights and hash of the extractor; None if it is the backbone.
        inputs: The preprocessing that the backbone's weights expect, for `predict`; None if the backbone has none.
    """

    def __init__(
        self,
        network: AdaptedNetwork,
        extractor: Extractor | None,
        head: nn.Linear | None,
        layers: dict[str, AdaptedLayer],
        spec: AdapterSpec,
        backbone_identity: dict[str, Any],
        extractor_identity: dict[str, Any] | None,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.backbone_identity = backbone_identity
        self.extractor_identity = extractor_identity
        self.network = network
        self.extractor = extractor
        self.head = head
        self.layers = layers
        self.spec = spec
        self.inputs = inputs

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Any:
        """Compute the adapted backbone's output for images.

        Args:
            x: Images, (B, 3, H, W).
            condition: Extractor features (B, F), if they are already known.
        """
        if self.extractor is not None and condition is None and self._seeded():
            condition = self.extractor(x)
        return self.network(x, condition)

    def logits(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Compute the head's scores, (B, labels).

        Raises:
            UserError: the model was made without labels.
        """
        if self.head is None:
            raise UserError("this model has no classifier head: make it with labels=[...]")
        scores: Tensor = self.head(self(x, condition).to(self.head.weight.dtype))
        return scores

    def predict(self, images: Any, top: int = 1, features: bool = False, batch_size: int = BATCH) -> list[Prediction]:
        """Predict the labels of images as they are; all preprocessing is done here.

        >>> import metalora
        >>> from PIL import Image
        >>> model = metalora.adapt(metalora.build_backbone("resnet20", "none"), labels=["cat", "dog"])
        >>> (one,) = model.predict(Image.new("RGB", (200, 100)), top=2)
        >>> one.label == one.top[0][0], len(one.top)
        (True, 2)

        Args:
            images: One image or several: paths, the bytes of image files, Pillow images, arrays (H, W, 3) or (N, H, W,
                3), tensors (3, H, W) or (N, 3, H, W). Arrays and tensors hold uint8, or floats from 0 to 1.
            top: Number of labels to return for each image.
            features: Whether to return the adapted backbone's features too.
            batch_size: Images that are computed at a time.

        Returns:
            One `Prediction` for each image: ``label``, ``probability``, ``top``, ``features``.

        Raises:
            UserError: the model was made without labels or for a backbone without ``inputs``, or an image cannot be
                read.
        """
        training = self.training
        try:
            return Predictor(self, batch_size).predict(images, top, features)
        finally:
            self.train(training)

    def seed(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Generate the seeds of images, (B, S).

        Raises:
            UserError: the format has no generated seeds.
        """
        if self.network.mapping is None or self.extractor is None:
            raise UserError(f"format {self.spec.format.name!r} generates no seeds")
        seeds: Tensor = self.network.mapping(condition if condition is not None else self.extractor(x))
        return seeds

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name; freezing, counting, saving and optimizing all go by this list."""
        return {one.name: one.parameter for one in self.trained()}

    def trained(self) -> Iterator[Trainable]:
        """Yield the trained parameters, each with the part of the model that it belongs to."""
        for name, layer in self.layers.items():
            for own, parameter in layer.adapter_parameters():
                yield Trainable(f"layers.{name}.{own}", parameter, "adapter")
        for part, prefix, module in self._whole_modules():
            for own, parameter in module.named_parameters():
                yield Trainable(f"{prefix}.{own}", parameter, part)

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the tensors of an adapter file by name: `trainable`, and the buffers of all that is trained."""
        state = {
            f"layers.{name}.{part}": tensor
            for name, layer in self.layers.items()
            for part, tensor in layer.adapter_state()
        }
        for _, prefix, module in self._whole_modules():
            state.update({f"{prefix}.{name}": parameter.detach() for name, parameter in module.named_parameters()})
            state.update({f"{prefix}.{name}": buffer for name, buffer in module.named_buffers()})
        return state

    def check_adapter_state(self, state: Mapping[str, Tensor], exact: bool = False) -> None:
        """Check that tensors fit this model, so that `load_adapter_state` can load them.

        Args:
            state: The tensors.
            exact: Whether floats of another precision are refused.

        Raises:
            UserError: a tensor is missing, extra, or of another shape or type.
        """
        own = self.adapter_state()
        for name in sorted(own.keys() | state.keys()):
            if name not in state:
                raise UserError(f"tensor {name!r} is missing")
            if name not in own:
                raise UserError(f"tensor {short(name)} is not part of this model")
            check_like(state[name], own[name], name, exact)

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `adapter_state`; `check_adapter_state` says which are refused."""
        self.check_adapter_state(state)
        with torch.no_grad():
            for name, tensor in self.adapter_state().items():
                tensor.copy_(state[name])

    def count_parameters(self) -> tuple[int, int]:
        """Return the numbers of (trained, all) parameters; an extractor counts if it is not the backbone itself."""
        trained = sum(parameter.numel() for parameter in self.trainable().values())
        return trained, sum(parameter.numel() for parameter in self.parameters())

    def print_trainable_parameters(self) -> None:
        """Print the numbers of trained and all parameters, as PEFT does."""
        trained, total = self.count_parameters()
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Switch the adapters off, within the block and in this thread: the model then acts as its backbone.

        Raises:
            UserError: the adapters are merged.
        """
        if any(layer.merged for layer in self.layers.values()):
            raise UserError("the adapter is merged: unmerge it before switching it off")
        with self.network.slot.within(Call(enabled=False)):
            yield

    def merge(self, seed: Tensor | None = None) -> None:
        """Add every layer's update to its frozen weight.

        Args:
            seed: (S,), for formats with generated seeds; for example ``model.seed(images).mean(0)``.

        Raises:
            UserError: the adapters are merged already, or the seed is missing or has another size.
        """
        size = 0 if self.network.mapping is None else self.network.mapping.heads.out_features
        if size and (seed is None or seed.numel() != size):
            met = "none" if seed is None else f"one of shape {tuple(seed.shape)}"
            raise UserError(
                f"merging format {self.spec.format.name!r} needs one seed of {size} elements, "
                f"e.g. model.seed(images).mean(0); got {met}"
            )
        self.network.unfuse()  # what is fused does not ask whether layers are merged
        for layer in self.layers.values():
            layer.merge(seed)

    def unmerge(self) -> None:
        """Put the frozen weights back, bit for bit."""
        for layer in self.layers.values():
            layer.unmerge()

    def merge_and_unload(self, seed: Tensor | None = None) -> nn.Module:
        """Merge the adapters, and return the backbone as a plain network without adapters."""
        self.merge(seed)
        backbone = self.network.backbone
        replace(backbone, {layer: layer.base for layer in self.layers.values()})
        return backbone

    def _seeded(self) -> bool:
        """Tell whether the layers will read seeds: not while they are off or merged."""
        merged = any(layer.merged for layer in self.layers.values())
        return self.network.slot.enabled and not merged

    def _whole_modules(self) -> Iterator[tuple[str, str, nn.Module]]:
        """Yield the modules that are trained in full: their part, their name in an adapter's file, themselves."""
        for name, module in self.network.saved.items():
            yield "saved", f"saved.{name}", module
        if self.network.mapping is not None:
            yield "mapping", "mapping", self.network.mapping
        if self.head is not None:
            yield "head", "head", self.head
