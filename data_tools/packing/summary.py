"""What a pack took and what it passed over: the table that it ends with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from data_tools.errors import printable
from data_tools.packing.labelling import Entry, Labelled
from data_tools.packing.listing import Listing, Reason, rows
from data_tools.shards.class_names import plain_name

_SHOWN = 8
_FEW = 3  # images that may well be of as many classes


@dataclass(frozen=True)
class Account:
    """What became of all files of a source.

    images: how many are in shards. of: of what they are, such as 3 classes. passed: paths by the reason why
    they are passed over. unlabelled: images and samples left out for want of a label. empty: classes
    without images, and why they have none. notes: sentences on what was done. warnings: on what may be
    wrong.
    """

    images: int
    of: str
    passed: dict[Reason, list[str]]
    unlabelled: list[str]
    empty: list[str]
    notes: list[str]
    warnings: list[str]

    def __str__(self) -> str:
        """The table, a line each."""
        lines = [f"taken: {self.images} images {self.of}"]
        lines += [f"  {note}" for note in self.notes]
        lines.append(f"passed over: {sum(map(len, self.passed.values()))} files and folders")
        lines += [f"  {row}" for row in rows(self.passed)]
        first = f", first '{self.unlabelled[0]}'" if self.unlabelled else ""
        lines.append(f"without a label, and left out: {len(self.unlabelled)}{first}")
        lines.append(f"classes without images: {len(self.empty)}")
        lines += [f"  {one}" for one in self.empty[:_SHOWN]]
        if len(self.empty) > _SHOWN:
            lines.append(f"  and {len(self.empty) - _SHOWN} more")
        return "\n".join(map(printable, lines + [f"warning: {warning}" for warning in self.warnings]))


def account_for(
    labelled: Labelled,
    listing: Listing,
    written: list[Entry],
    unusable: set[str],
    notes: list[str],
    folders: bool,
) -> Account:
    """The account of a pack that wrote these entries.

    unusable: paths of images in shards that training cannot read. folders: the folders are the classes.
    """
    with_images = set().union(*(_labels(entry) for entry in written if entry.path not in unusable))
    names = labelled.classes
    empty = [_empty(name, listing, folders) for n, name in enumerate(names) if n not in with_images]
    if folders:
        filled = {path.partition("/")[0] for path in listing.images}
        others = {plain_name(folder) for folder in listing.folders - filled} - set(names)
        empty += [_empty(name, listing, folders) for name in sorted(others)]
    warnings = []
    if not any(_labels(entry) for entry in written):
        warnings.append(
            "no image has a label, so that there are 0 classes: only masked patches can be trained on them. "
            + _advice(written, listing.name)
        )
    elif len(names) == 1:
        warnings.append(f"all images are of one class, '{names[0]}': a classifier needs two or more")
    elif names and _FEW < len(with_images) == len(written):
        warnings.append(
            "every image is of a class of its own: perhaps the label is a name of the image and no class"
        )
    left_out = [*labelled.ignored, *labelled.no_class]
    of = f"of {len(with_images)} class{'es' * (len(with_images) != 1)}" if names else "with numbers as labels"
    of = of if any(_labels(entry) for entry in written) else "without labels (0 classes)"
    return Account(len(written), of, listing.passed, left_out, empty, notes, warnings)


def _advice(written: list[Entry], name: str) -> str:
    """What to do if shards without labels hold classes after all."""
    tar, *folders = written[0].path.split("/")[:-1] or [""]
    if not tar:
        return "If they have some, give the right columns with --columns"
    if folders:
        return (
            f"If their folders, such as '{folders[0]}', are classes, pack each tar alone: "
            f"python -m data_tools pack {shlex.quote(f'{name}/{tar}')} DST"
        )
    return "If each tar holds one class, give it the name of the class, without a number at its end"


def _labels(entry: Entry) -> tuple[float, ...]:
    if entry.label is None:
        return ()
    return entry.label if isinstance(entry.label, tuple) else (entry.label,)


def _empty(name: str, listing: Listing, folders: bool) -> str:
    """A class without images, and what was passed over in its folder."""
    if not folders:
        return f"'{name}'"
    below = {
        reason: [path for path in paths if plain_name(path.partition("/")[0]) == name]
        for reason, paths in listing.passed.items()
    }
    found = "; ".join(f"{reason.value}: {len(paths)}" for reason, paths in below.items() if paths)
    return f"'{name}' ({found})" if found else f"'{name}'"
