"""Timm's classification networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalora.errors import UserError
from metalora.models.backbones.base import LIBRARIES, Kept, Parts, kept_by_torch, shapes_of
from metalora.models.inputs import ImageInputs
from metalora.places import WEIGHT_FILES
from metalora.registry import nearest


@LIBRARIES.register("timm")
class Timm:
    """Timm's classification networks."""

    def names(self) -> Sequence[str]:
        """Return the names of timm's networks. See `Library.names`."""
        import timm

        return timm.list_models()

    def build(self, model: str, weights: str, image_size: int | None, fetch: bool) -> Parts:
        """Build a network of timm. See `Library.build`."""
        import timm
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        full_name = _timm_name(model, weights)
        # Networks with a fixed input take its size at construction; the others do not know the argument.
        published: Any = timm.get_pretrained_cfg(full_name)
        size: dict[str, Any] = {"img_size": image_size} if image_size and published.fixed_input_size else {}
        net: Any = timm.create_model(full_name, pretrained=fetch and weights != "none", **size)
        shapes = shapes_of(net)
        net.reset_classifier(0)
        data = resolve_model_data_config(net)
        if image_size:
            data["input_size"] = (3, image_size, image_size)
        first = net.pretrained_cfg.get("first_conv")
        return Parts(
            net=net,
            shapes=shapes,
            inputs=ImageInputs(
                create_transform(**data, is_training=False, normalize=False),
                tuple(data["mean"]),
                tuple(data["std"]),
                tuple(data["input_size"]),
            ),
            stem=first if isinstance(first, str) or first is None else first[0],
        )

    def kept(self, model: str, weights: str) -> Kept | None:
        """Return the folder of the Hugging Face hub, or torch's. See `Library.kept`."""
        import timm
        from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

        published: Any = timm.get_pretrained_cfg(_timm_name(model, weights))
        if published.hf_hub_id:
            folder = f"models--{published.hf_hub_id.replace('/', '--')}"
            return Kept(Path(HF_HUB_CACHE) / folder / "snapshots", Path(HF_HOME), "HF_HOME")
        return kept_by_torch(published.url) if published.url else None


def _timm_name(model: str, weights: str) -> str:
    """Return ARCHITECTURE or ARCHITECTURE.TAG, checked."""
    import timm

    architecture, _, tag = model.partition(".")
    architectures = timm.list_models()
    if architecture not in architectures:
        raise UserError(f"unknown timm network {architecture!r}{nearest(architecture, architectures)}")
    published = timm.list_models([architecture, f"{architecture}.*"], pretrained=True)
    tags = [name.partition(".")[2] for name in published]
    asked = weights if weights not in ("default", "none") else tag
    if tag and asked != tag:
        raise UserError(f"backbone 'timm/{model}' names the weights {tag!r}, but weights are {weights!r}")
    if asked and asked not in tags:
        raise UserError(
            f"backbone 'timm/{architecture}' has no weights {asked!r}{nearest(asked, tags)} (accepted: "
            f"{', '.join(['default', 'none', *tags])}, or a path ending in {', '.join(WEIGHT_FILES)})"
        )
    if weights == "default" and not tags:
        raise UserError(f"backbone 'timm/{model}' has no pretrained weights: give a path, or 'none'")
    return f"{architecture}.{asked}" if asked else architecture
