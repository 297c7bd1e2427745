"""Predict labels from images as people have them: files, Pillow images, arrays, tensors."""

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from metalora.config import DataConfig
from metalora.errors import UserError
from metalora.limits import limits
from metalora.models.inputs import Inputs
from metalora.reading import short

if TYPE_CHECKING:
    from metalora.models.model import MetaLoRAModel

BATCH = 64
WANTED = "wanted: a path, the bytes of an image file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W)"
THREADS = 8  # that decode images


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        label: The most probable label.
        probability: Its probability, the softmax of the head's scores.
        top: The most probable labels with their probabilities, as many as were asked for.
        features: The adapted backbone's features, (D,), on the CPU; None if they were not asked for.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    features: Tensor | None = None


class Predictor:
    """Predicts with one model, on the device that it is on. Many threads may share one.

    Args:
        model: A model with labels; it is put into eval mode.
        batch_size: Images that the model gets at a time.
        threads: Threads that decode images.

    Raises:
        UserError: the model has no classifier, or its backbone no ``inputs``.
    """

    def __init__(self, model: "MetaLoRAModel", batch_size: int = BATCH, threads: int = THREADS) -> None:
        if model.head is None:
            raise UserError("this model has no classifier head: make it with labels=[...]")
        if model.inputs is None:
            raise UserError(
                "this model's backbone does not say what it takes: set model.inputs (see metalora.models.inputs), or "
                "give preprocessed tensors to model.logits"
            )
        self.model = model.eval()
        self.head = model.head
        self.inputs = model.inputs
        self.batch_size = batch_size
        self.threads = min(threads, os.cpu_count() or 1)

    def predict(self, images: Any, top: int = 1, features: bool = False) -> list[Prediction]:
        """Predict one image or several; see `MetaLoRAModel.predict`."""
        found = []
        for one in self.stream(each_image(images), top, features):
            if isinstance(one, UserError):
                raise one
            found.append(one)
        return found

    def stream(
        self, images: Iterable[Any], top: int = 1, features: bool = False, names: Iterable[str] | None = None
    ) -> Iterator[Prediction | UserError]:
        """Yield the predictions of images, in their order; one batch is in memory at a time.

        Args:
            images: Each as for `encode_image`.
            top: As for `MetaLoRAModel.predict`; ``features`` likewise.
            features: See there.
            names: Names of the images in error messages; None: their numbers.

        Yields:
            A `Prediction`, or for an image that cannot be read the error.
        """
        if top < 1:
            raise UserError(f"top must be 1 or more, got {top}")
        named = zip(images, names or (f"number {number}" for number in itertools.count()), strict=False)
        with ThreadPoolExecutor(self.threads) as threads:
            while batch := list(itertools.islice(named, self.batch_size)):
                codes = list(threads.map(lambda one: self._try(*one), batch))
                good = [code for code in codes if isinstance(code, Tensor)]
                found = self._batch(torch.stack(good), top, features) if good else iter(())
                yield from (next(found) if isinstance(code, Tensor) else code for code in codes)

    def _try(self, image: Any, name: str) -> Tensor | UserError:
        try:
            return encode_image(self.inputs, image, name)
        except UserError as error:
            return error

    @torch.no_grad()
    def _batch(self, codes: Tensor, top: int, features: bool) -> Iterator[Prediction]:
        found = self.model(self.inputs.prepare(codes.to(next(self.model.parameters()).device)))
        scores = self.head(found.to(self.head.weight.dtype)).float().softmax(1)
        best = scores.topk(min(top, scores.shape[1]), dim=1)
        names = self.model.spec.labels
        kept = found.float().cpu() if features else None
        for row, (values, labels) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            several = tuple((names[label], value) for label, value in zip(labels, values, strict=True))
            yield Prediction(*several[0], several, None if kept is None else kept[row])


def each_image(images: Any) -> Iterable[Any]:
    """Return the images of a value that may be one image, a batch of them, or a series of images."""
    if isinstance(images, str | Path | bytes | bytearray | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim == 4:
            return list(images)
        return [images]
    if isinstance(images, Iterable):
        return images
    raise UserError(f"cannot predict from {type(images).__name__}; {WANTED}, or several of these")


def encode_image(inputs: Inputs, image: Any, name: str, most: int = DataConfig().max_pixels) -> Tensor:
    """Encode an image for a network, as for its training.

    Args:
        inputs: The network's inputs.
        image: A path, the bytes of an image file, a Pillow image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4),
            or a tensor (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors hold uint8, or floats from 0 to 1.
        name: Name of the image in error messages.
        most: Largest number of pixels that is decoded.

    Raises:
        UserError: the image cannot be read, or is of none of these kinds.
    """
    if isinstance(image, str | Path):
        return inputs.encode(_read(Path(image)), str(image), most)
    if isinstance(image, bytes | bytearray):
        return inputs.encode(bytes(image), name, most)
    if isinstance(image, np.ndarray | Tensor):
        image = _from_numbers(image, name)
    if not isinstance(image, Image.Image):
        raise UserError(f"image {name} is {short(image)}; {WANTED}")
    pixels: Callable[[Image.Image], Tensor] | None = getattr(inputs, "pixels", None)
    if pixels is not None and image.mode == "RGB" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return pixels(image)
    return inputs.encode(_as_file(image, name), name, most)


def _read(file: Path) -> bytes:
    try:
        with file.expanduser().open("rb") as opened:
            return opened.read(limits().image_bytes + 1)
    except OSError as error:
        raise UserError(f"cannot read image {short(str(file))}: {error.strerror}") from None


def _as_file(image: Image.Image, name: str) -> bytes:
    """Return an image as the bytes of a file: orientation and transparency are treated in one place, `decode`."""
    if image.mode == "F" or (image.mode.startswith("I") and image.mode != "I;16"):
        met = f"pixels of mode {image.mode}"
        raise UserError(f"image {name}: no one knows which number is white in {met}; wanted: 8 bits")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, exif=image.getexif())
    return file.getvalue()


def _from_numbers(image: Any, name: str) -> Image.Image:
    """Make a Pillow image of an array or a tensor."""
    what = f"image {name}, {'a tensor' if isinstance(image, Tensor) else 'an array'} of shape {tuple(image.shape)},"
    wanted = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
    if isinstance(image, Tensor):
        wanted = "(H, W), (1, H, W), (3, H, W) or (4, H, W)"
        image = image.movedim(0, -1) if image.ndim == 3 else image
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        raise UserError(f"{what} is no image; wanted: {wanted}")
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not 0 <= low <= high <= 1:  # also if one is not a number
            raise UserError(
                f"{what} has values from {low:.3g} to {high:.3g}; wanted: 0 to 1, or uint8. What is preprocessed "
                "already goes to model.logits"
            )
        image = (image * 255).round().astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"{what} is of type {image.dtype}; wanted: uint8, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(image))
