"""Which folders are classes: layouts that look like class folders and are not, recognised by name and shape.

Nothing here guesses: what is recognised is refused with what to do, or labelled as its own file says.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.packing.labelling import Labelled, label_by_names
from data_tools.packing.listing import Listing, Reason, common_start, extension
from data_tools.shards.labels import NO_RULES, LabelRules
from data_tools.shards.roles import is_no_class, loose_role, role

ANNOTATIONS = "val_annotations.txt"  # tiny-imagenet's: file, class, and a box, with tabs between them
_PART = re.compile(
    r"(.*?)(?:part|batch|chunk|shard|subset|fold|folder|dir|image|img|data|set|vol|dis[ck])s?[ _-]?[0-9]+",
    re.IGNORECASE,
)
_SHOWN = 8


def check_class_folders(listing: Listing, told: bool = False) -> None:
    """UsageError, with what to do, if the first folders of the paths are not classes.

    told: the user says that they are; then only images outside of them are an error.

    They are not if images lie outside of them; if they are splits such as train and val, by their names or
    because they have the same sub-folders; if each holds such splits; if there is one folder around the
    class folders; if they are called images, masks and the like.
    """
    name = listing.name
    if loose := next((path for path in listing.images if "/" not in path), None):
        tables = [
            path
            for path in listing.passed.get(Reason.NO_IMAGE, [])
            if "/" not in path and extension(path) in ("csv", "tsv", "txt", "jsonl")
        ]
        known = f" (perhaps '{tables[0]}' has them)" if tables else ""
        raise UsageError(
            f"{name} holds '{loose}' outside of any class folder: put every image in the folder of its "
            f"class, or give the labels with --csv FILE{known}."
        )
    if told:
        return
    below = _sub_folders(listing)
    if why := _why_no_classes(listing, below):
        raise UsageError(f"{name} holds {why} --class-folders takes them for classes all the same.")
    if all(below.values()) and len(subs := sorted(f"{a}/{b}" for a in below for b in below[a])) > len(below):
        listing.notes.append(
            f"warning: the folders taken for classes hold no images but folders ({_some(subs)}): if these "
            "are the classes, list the images with --csv FILE"
        )
    if odd := [folder for folder in below if role(folder) or is_no_class(folder)]:
        listing.notes.append(
            "warning: folders taken for classes among others, though splits or folders of images are called "
            f"so: {_some(odd)}: move them out of the source if they are no classes"
        )


def _why_no_classes(listing: Listing, below: dict[str, set[str]]) -> str | None:
    """What the folders are instead, and what to do; None if they may be classes."""
    names = list(below)
    if splits := _named_splits(below):
        return f"the splits {_some(splits)}, not classes: {_pack_each(listing, splits)}"
    if around := _folder_around(listing):
        where = "/".join(around)
        subs = _some(sorted(_sub_folders(listing, len(around))[where]))
        return f"one folder, '{where}', with the folders {subs} in it: {_pack_each(listing, [where])}"
    if within := _splits_within(below):
        mixed = (
            f"class folders ({_some(names)}) with the splits {_some(within)} in each, which would be mixed"
        )
        return f"{mixed}: move them to {within[0]}/CLASS and so on and pack each alone."
    if shared := _same_sub_folders(below):
        splits, same = shared
        alike = f"the folders {_some(splits)} with the same sub-folders ({_some(same)})"
        return f"{alike}, so that they are splits and not classes: {_pack_each(listing, splits)}"
    if _are_parts(listing, names):
        parts = f"{_some(names)}, by their names parts of one set and no classes"
        return f"{parts}: give the labels with --csv FILE."
    if twice := [folder for folder in names if len(below[folder]) > 1 and below[folder] < below.keys()]:
        beside = f"folders have the names of those beside it ({_some(sorted(below[twice[0]]))})"
        copy = f"{_some(twice)}, in which {beside}, as in a copy or in another set"
        return f"{copy}: move it away, or {_pack_each(listing, twice[:1])}"
    if all(map(is_no_class, names)):
        return f"{_some(names)}, which names no class: give the labels with --csv FILE."
    return None


def _are_parts(listing: Listing, names: list[str]) -> bool:
    """Whether the folders are numbered parts: images_001; 00001 with 000010000.jpg, as img2dataset."""
    matches = [_PART.fullmatch(name) for name in names]
    numbered = all(matches) and len({match[1] for match in matches if match}) == 1
    inside = all(len(name) > 3 and name.isdigit() for name in names) and all(
        re.fullmatch(r"(?:.*/)?([0-9]+)/\1[0-9]+\..*", path) for path in listing.images
    )
    return len(names) > 1 and (numbered or inside)


def check_one_split(listing: Listing, paths: Iterable[str]) -> None:
    """UsageError, with what to do, if images that a table lists lie in the folders of several splits."""
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    splits = sorted(filter(role, folders))
    if len(set(map(role, splits))) > 1:
        raise UsageError(
            f"the table lists images of the splits {_some(splits)}: {_pack_each(listing, splits)[:-1]} "
            "--csv ... --allow-missing. If they are one set all the same, say so with --one-set."
        )


def has_annotations(listing: Listing) -> bool:
    """Whether the source is tiny-imagenet's val: one folder images, and val_annotations.txt beside it."""
    folders = {path.partition("/")[0] for path in listing.images}
    return folders == {"images"} and ANNOTATIONS in listing.passed.get(Reason.NO_IMAGE, [])


def label_by_annotations(listing: Listing, annotations: bytes, rules: LabelRules = NO_RULES) -> Labelled:
    """The labels of tiny-imagenet's val, from the content of val_annotations.txt.

    DataError, with the line, for one that names no image or no class.
    """
    labels: dict[str, str] = {}
    for number, line in enumerate(annotations.decode("utf-8", "replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        label = rest.partition("\t")[0].strip()
        path = f"images/{file}"
        if path not in listing.images or path in labels or not label:
            raise DataError(
                f"{listing.name}: {ANNOTATIONS}:{number} is not a file of images/ that no other line names, "
                "a tab and a class."
            )
        labels[path] = label
    listing.notes.append(f"labels are from {ANNOTATIONS}, as tiny-imagenet has them")
    return label_by_names(listing, labels, rules, ANNOTATIONS)


def _sub_folders(listing: Listing, depth: int = 1) -> dict[str, set[str]]:
    """For each folder of this depth, in byte order, the sub-folders of it that hold images.

    Those of a sub-folder `images` and the like count in its place.
    """
    found: dict[str, set[str]] = {}
    for path in listing.images:
        parts = path.split("/")
        while len(parts) > depth + 2 and is_no_class(parts[depth]):  # amazon/images/bike/1.jpg
            del parts[depth]
        subs = found.setdefault("/".join(parts[:depth]), set())
        if len(parts) > depth + 1:
            subs.add(parts[depth])
    return found


def _folder_around(listing: Listing) -> list[str]:
    """The one folder, perhaps with others around it, that holds several folders with all images."""
    around = common_start([path.split("/")[:-1] for path in listing.images])
    return around if around and len(_sub_folders(listing, len(around))["/".join(around)]) > 1 else []


def _named_splits(below: dict[str, set[str]]) -> list[str]:
    """The folders that are splits by their names."""
    roles = {name: role(name) for name in below}
    splits = [name for name in below if roles[name]]
    if splits and (len(splits) == len(below) or len({roles[name] for name in splits}) > 1):
        return splits
    loose = {name: loose_role(name) for name in below}
    alone = len(below) == 1 and all(len(subs) > 1 for subs in below.values())
    several = len(set(loose.values())) > 1 or alone
    return list(below) if all(loose.values()) and several else []


def _splits_within(below: dict[str, set[str]]) -> list[str]:
    """The sub-folders if all folders hold nothing but splits of at least two kinds."""
    subs = set().union(*below.values())
    if subs and all(below.values()) and all(map(role, subs)) and len({role(sub) for sub in subs}) > 1:
        return sorted(subs)
    return []


def _same_sub_folders(below: dict[str, set[str]]) -> tuple[list[str], list[str]] | None:
    """Folders that share sub-folders, and these; None if fewer than half of all are shared, or only one.

    One is enough where a folder has the name of a split, if it is not called images or the like.
    """
    counts = Counter(sub for subs in below.values() for sub in {sub.casefold() for sub in subs})
    shared = sorted(sub for sub, count in counts.items() if count > 1)
    named = any(map(role, below)) and not any(is_no_class(sub) for sub in shared)
    enough = 1 if named else 2
    if len(shared) < enough or 2 * len(shared) < len(counts):
        return None
    return [name for name, subs in below.items() if {sub.casefold() for sub in subs} & set(shared)], shared


def _pack_each(listing: Listing, folders: list[str]) -> str:
    """The command that packs the first of these folders of a source."""
    on_disk = Path(listing.name).is_dir()
    one = (Path(listing.name) if on_disk else Path("FOLDER")) / listing.prefix / folders[0]
    if on_disk and not one.exists():  # the tars of a folder were taken for its folders
        one = one.with_name(f"{one.name}.tar")
    each = len(folders) > 1 or role(folders[0]) is not None
    what, into = ("pack each alone", f"DST/{folders[0]}") if each else ("pack that", "DST")
    command = f"python -m data_tools pack {shlex.quote(str(one))} {shlex.quote(into)}"
    return f"{'' if on_disk else 'unpack it into a FOLDER and '}{what}: {command}."


def _some(names: list[str]) -> str:
    """The first names, as a list in words."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
