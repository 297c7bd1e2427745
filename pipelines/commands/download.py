"""``metalora download``: fetch the weights and data that a training needs, for machines without internet."""

from collections.abc import Callable, Sequence

from rich.console import Console

from metalora.build import build_networks
from metalora.config import Config
from metalora.data.sources.embedded import embedded_file
from metalora.files import SUMS, cache_path
from metalora.models.backbones.base import LIBRARIES, Kept
from metalora.models.backbones.small_networks import EMBEDDED
from metalora.places import is_weight_file
from pipelines.command_line import make_parser, parse
from pipelines.commands.train import begun_with
from pipelines.options import add_settings, resolve
from pipelines.run.console import inform, terminal

OFFLINE = {"HF_HOME": " HF_HUB_OFFLINE=1"}  # so that the library does not ask its server first


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``metalora download`` with command-line arguments.

    Raises:
        UserError: the command line or the settings cannot be used, or something cannot be fetched.
    """
    parser = make_parser(
        "metalora download",
        "Fetch the weights, and make the embedded data, that a training with the same options needs.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, below the command line")
    add_settings(parser)
    options = parse(parser, arguments)
    download(resolve(options, begun_with(options)), terminal())


def download(config: Config, console: Console) -> None:
    """Put what a training needs into the caches of the libraries, and print where it is.

    Raises:
        UserError: a network is unknown, or its weights cannot be fetched.
    """
    networks = {"backbone": (config.backbone.backbone, config.backbone.weights)}
    if config.mapping.extractor != "backbone":
        networks["extractor"] = (config.mapping.extractor, config.mapping.extractor_weights)
    places = {part: _weights(*network, lambda text: inform(console, text)) for part, network in networks.items()}
    build_networks(config, lambda text: inform(console, text))  # fetches what is missing, and checks all of it
    lines = [
        f"{part:10}{name}, weights {weights}: {_where(*places[part])}" for part, (name, weights) in networks.items()
    ]
    found = [kept for kept, _ in places.values() if kept is not None]
    if config.data.data == "embedded":
        kept, there = _embedded_data()
        lines.append(f"data      embedded: {_where(kept, there)}")
        found.append(kept)
    else:
        lines.append(f"data      {config.data.data}: yours; all nodes must reach it")
    for line in (*lines, *_for_nodes(found)):
        console.print(line, soft_wrap=True)


def _weights(name: str, weights: str, say: Callable[[str], None]) -> tuple[Kept | None, bool]:
    """Return where the weights of a network are kept once they are fetched, and whether they are there already.

    The place is None if nothing is to be fetched. Those of this project's own networks are trained now.
    """
    if weights == "none" or is_weight_file(weights):
        return None, True
    if name in EMBEDDED and weights == "default":
        from metalora.train.pretrain import embedded_weights

        told: list[str] = []
        file = embedded_weights(name, told.append)
        for text in told:
            say(text)
        return Kept(file, cache_path(""), "METALORA_CACHE"), not told
    library, _, model = name.rpartition("/")
    kept = LIBRARIES.make(library).kept(model, weights) if library in LIBRARIES else None
    return kept, kept is not None and kept.path.exists()


def _embedded_data() -> tuple[Kept, bool]:
    """Make the embedded data, if the cache lacks them; see `_weights`."""
    before = {sums.parent for sums in cache_path("data").glob(f"*/{SUMS}")}
    file = embedded_file()
    return Kept(file, cache_path(""), "METALORA_CACHE"), file.parent in before


def _where(kept: Kept | None, there: bool) -> str:
    if kept is None:
        return "nothing to fetch"
    return f"{'already there' if there else 'now there'}, {kept.path}"


def _for_nodes(found: Sequence[Kept]) -> list[str]:
    """Return the lines that say how machines without internet find what was fetched."""
    if not found:
        return []
    roots = {kept.variable: kept.root for kept in found}
    settings = "  ".join(f"{variable}={root}{OFFLINE.get(variable, '')}" for variable, root in roots.items())
    return [
        f"On machines without internet that share {'these folders' if len(roots) > 1 else 'this folder'}, set:",
        f"  {settings}",
        "On others, copy what was named above to the same place below a folder of theirs, and set that.",
    ]
