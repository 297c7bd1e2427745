"""Read a tree of image files, root/domain/class/image, also with folders of splits."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from metalora.config import DataConfig
from metalora.data.domains import check_named
from metalora.data.images import extensions
from metalora.data.names import ONE_DOMAIN, SPLIT_NAMES, composed, printable
from metalora.data.sources.base import SOURCES, DataSource, is_parquet
from metalora.data.sources.image_files import ImageFile, draw_splits, stamp_of, table_of
from metalora.data.table import Table, hash_of
from metalora.errors import UserError

_WANTED = (
    "wanted: a tree root/domain/class/image, root/split/class/image or root/split/domain/class/image, its splits "
    "called train, val and test"
)

Parts = tuple[str, ...]  # a path below the root, as the file system has it
Place = tuple[int, int]  # a folder's device and inode

_MOST_LINKS = 100  # to one folder


@dataclass(frozen=True)
class _Tree:
    """The visible files below a root, in the order of their names."""

    name: str
    folders: list[Parts]
    images: dict[Parts, str]  # to a stamp that changes when the file does
    others: list[Parts]


def load_tree(root: Path, val_fraction: float, test_fraction: float, excluded: Collection[str] = ()) -> Table:
    """Read the tree ``root/domain/class/image``, ``root/split/class/image`` or ``root/split/domain/class/image``.

    Folders of splits are called train, val and test (or training, valid, validation, testing), in any case. Splits
    without a folder are drawn from the train images, within each class of each domain, by a hash of the path below
    ``root``. So a new image moves at most a few others of its class, and none of another class. Without folders of
    domains, the domain is "all". Hidden files are passed over. All other files that are no images, or do not lie in a
    class, are in ``ignored``.

    Args:
        root: Top folder of the tree.
        val_fraction: Share of each class for validation, at least one image if the class has three.
        test_fraction: Share of each class for the test, at least one image.
        excluded: Names of domains that are not read.

    Raises:
        UserError: there are no images; there are folders of splits beside others, or none to train on; a domain folder
            has no images; a class has fewer than two; a folder or a file cannot be read.
    """
    tree = read_tree(root, excluded)
    levels = _levels(tree)
    classes = _classes(tree, levels, excluded)
    images = draw_splits(classes.values(), val_fraction, test_fraction)
    said = (part for image in images for part in (image.id, image.stamp, image.split))
    ignored = tuple(_path(parts) for parts in sorted([*tree.others, *_misplaced(tree, levels)]))
    return replace(table_of(root, images, hash_of(said)), ignored=ignored)


def _levels(tree: _Tree) -> Parts:
    """Return the meaning of each folder level above an image (split, domain, label), from the outermost on."""
    tops = sorted({parts[0] for parts in tree.images if len(parts) > 2})
    splits = [name for name in tops if name.casefold() in SPLIT_NAMES]
    others = [name for name in tops if name not in splits]
    if not splits:
        return ("domain", "label")
    met = f"{tree.name} has folders of splits ({', '.join(splits)})"
    if others:
        raise UserError(f"{met} beside others ({', '.join(map(printable, others))}); {_WANTED}")
    if "train" not in {SPLIT_NAMES[name.casefold()] for name in splits}:
        raise UserError(f"{met} and none to train on; {_WANTED}")
    at_depth = {len(parts): _path(parts) for parts in tree.images if len(parts) in (3, 4)}
    if len(at_depth) == 2:
        raise UserError(f"{met} with images at two depths ({at_depth[3]}, {at_depth[4]}); {_WANTED}")
    return ("split", "label") if 3 in at_depth else ("split", "domain", "label")


def _classes(tree: _Tree, levels: Parts, excluded: Collection[str]) -> dict[tuple[str, str], list[ImageFile]]:
    """Return the images of each domain and label; folders whose names are one in NFC are one."""
    folders = [parts for parts in tree.folders if levels[0] != "split" or parts[0].casefold() in SPLIT_NAMES]
    above = levels.index("label")  # folders above those of the classes
    domains = {_domain(parts, levels) for parts in folders if len(parts) == above}
    check_named(excluded, domains)
    classes: dict[tuple[str, str], list[ImageFile]] = {
        (_domain(parts, levels), _name(parts[above])): [] for parts in folders if len(parts) == len(levels)
    }
    for parts, stamp in tree.images.items():
        if len(parts) == len(levels) + 1:
            domain, label = _domain(parts, levels), _name(parts[above])
            split = SPLIT_NAMES[parts[0].casefold()] if levels[0] == "split" else "train"
            file = "/".join(parts)
            classes[domain, label].append(ImageFile(file, printable(file), stamp, domain, label, split))
    classes = {place: images for place, images in classes.items() if place[0] not in excluded}
    _check_found(tree, classes, domains - set(excluded), _misplaced(tree, levels))
    return classes


def _check_found(
    tree: _Tree, classes: dict[tuple[str, str], list[ImageFile]], domains: set[str], misplaced: list[Parts]
) -> None:
    met = f" but {_path(misplaced[0])}" if misplaced else ""
    if not any(classes.values()):
        flat = misplaced and all(len(parts) == 2 for parts in misplaced)
        hint = "; this looks like class/image: put the class folders into one domain's folder" if flat else ""
        raise UserError(f"no images found in {tree.name}{met}; {_WANTED}{hint}")
    empty = sorted(domains - {domain for domain, _ in classes})
    if empty:
        raise UserError(f"no images found in domain folder {tree.name}/{empty[0]}; {_WANTED}")
    for (domain, label), images in classes.items():
        if len(images) < 2:
            raise UserError(
                f"class {domain}/{label} in {tree.name} has {'one image' if images else f'no images{met}'}; "
                "at least 2 are needed: one to train on, one to test"
            )


def _misplaced(tree: _Tree, levels: Parts) -> list[Parts]:
    return [parts for parts in tree.images if len(parts) != len(levels) + 1]


def _domain(parts: Parts, levels: Parts) -> str:
    return _name(parts[levels.index("domain")]) if "domain" in levels else ONE_DOMAIN


def read_tree(root: Path, excluded: Collection[str] = ()) -> _Tree:
    """List what is visible below a root; top folders that are excluded are not looked into.

    Raises:
        UserError: a folder cannot be listed, or a file is not there (a broken link, say).
    """
    tree = _Tree(printable(str(root)), [], {}, [])
    for parts, status in _walk(root, (), frozenset(excluded), frozenset(), Counter()):
        if stat.S_ISDIR(status.st_mode):
            tree.folders.append(parts)
        elif stat.S_ISREG(status.st_mode) and Path(parts[-1]).suffix.lower() in extensions():
            tree.images[parts] = stamp_of(status)
        else:
            tree.others.append(parts)
    return tree


def _walk(
    folder: Path, parts: Parts, excluded: Collection[str], above: frozenset[Place], met: Counter[Place]
) -> Iterator[tuple[Parts, os.stat_result]]:
    """Yield what is visible below a folder, links followed: a path below the root, and its status.

    ``above`` are the folders above, since a link may lead back to one of them; ``met`` counts how often each folder is
    reached.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read folder {printable(str(folder))}: {error.strerror}") from None
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            kind = "image" if path.suffix.lower() in extensions() else "file or folder"
            raise UserError(f"cannot read {kind} {printable(str(path))}: {error.strerror}") from None
        place = status.st_dev, status.st_ino
        if place in above and path.is_symlink():
            raise UserError(f"folder {printable(str(path))} is a link to a folder that it is in; wanted: none such")
        met[place] += stat.S_ISDIR(status.st_mode)
        if met[place] > _MOST_LINKS:  # a few links in each of many folders would lead to any number of paths
            raise UserError(f"folder {printable(str(path))} is reached by more than {_MOST_LINKS} links")
        yield (*parts, path.name), status
        if stat.S_ISDIR(status.st_mode) and (parts or _name(path.name) not in excluded):
            yield from _walk(path, (*parts, path.name), excluded, above | {place}, met)


def _name(name: str) -> str:
    return composed(printable(name))


def _path(parts: Parts) -> str:
    return printable("/".join(parts))


@SOURCES.register("folder")
class Folder(DataSource):
    """A folder of images: root/domain/class/image."""

    wanted = "a folder root/domain/class/image"

    def opens(self, data: str) -> bool:
        """Tell whether there is a folder that holds no Parquet. See `DataSource.opens`."""
        return "://" not in data and not is_parquet(Path(data)) and Path(data).is_dir()

    def open(self, config: DataConfig) -> Table:
        """Read the tree. See `load_tree`."""
        return load_tree(Path(config.data), config.val_fraction, config.test_fraction, config.exclude_domains)
