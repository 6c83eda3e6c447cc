"""What the names of folders, shards and samples say images are for: train, val, test, extra.

Images of different roles are different sets, which must not be mixed in silence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from data_tools.errors import UsageError, shown
from data_tools.shards.urls import is_url

_SPLITS = {
    "train": "train training trn trainset traindata",
    "val": "val valid validation validate valset dev devel development eval evaluation holdout",
    "test": "test testing tst testset testdata query gallery probe",
    "extra": "extra unlabeled unlabelled unsup unsupervised pred predict prediction",
}
_ROLE = {word: role for role, words in _SPLITS.items() for word in words.split()}
_WORDS = {
    # These say nothing of their own: train_images, seg_train, dataset_test.
    "neutral": "set data dataset images image imgs img seg split part new full mini",
    "containers": "images image imgs img jpg jpeg jpegs jpgs png pngs jpegimages photos photo pictures "
    "picture pics pic frames data dataset files raw all",
    "annotations": "masks mask labels label annotations annotation annots segmentation segmentations "
    "segmentationclass segmentationobject gt groundtruth trimaps depth edges boxes bbox",
}
_NEUTRAL = frozenset(_WORDS["neutral"].split())
_NO_CLASS = frozenset(f"{_WORDS['containers']} {_WORDS['annotations']}".split())
_NUMBER = re.compile(r"(?<=[-_.])[0-9]+|[0-9]+(?=\.tar$)")
_SHORTEST = [word for word in _ROLE if not any(other in word for other in _ROLE if other != word)]
_SHOWN = 3


def role(name: str) -> str | None:
    """train, val, test or extra if the name, such as seg_train or TestSet2, says nothing else."""
    words = _words(name)
    roles = {_ROLE[word] for word in words if word in _ROLE}
    if squeezed := _ROLE.get("".join(words)):
        return squeezed
    known = _NEUTRAL | _NO_CLASS | _ROLE.keys()
    return roles.pop() if len(roles) == 1 and known.issuperset(words) else None


def loose_role(name: str) -> str | None:
    """As role(), for a name that may say other things too, such as chest_xray_train."""
    return role(name) or next((_ROLE[word] for word in _words(name) if word in _ROLE), None)


def is_no_class(name: str) -> bool:
    """Whether a folder of this name is one of images, masks and the like."""
    return "".join(_words(name)) in _NO_CLASS


def role_of_key(key: str) -> str | None:
    """The role that a sample has by its key, such as train/0 or val_0."""
    lower = key.lower()
    if not any(word in lower for word in _SHORTEST):  # of most keys, and quick
        return None
    return _role_of_parts(re.sub("[0-9]+", "0", key))


def members_like(key: str) -> str:
    """A pattern of the members of a shard that have their role in the same place as this key."""
    parts = key.split("/")
    place = next(number for number, part in enumerate(parts) if role(part))
    start = "/".join(parts[: place + 1])
    return f"{start}/*" if place + 1 < len(parts) else re.sub("[0-9].*$", "", start) + "*"


def roles_of_shards(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The role of each shard by its name, as a key; nothing where the name says none."""
    found = {}
    for name in names:
        parts = reversed(name.removesuffix(".tar").split("/"))
        first = next(filter(None, map(loose_role, parts)), None)
        found[name] = {first: "*"} if first else {}
    return found


def check_one_set(folder: Path, shards: Mapping[str, Mapping[str, str]]) -> None:
    """UsageError, with the command that takes one, for shards of several roles.

    shards: of each shard the roles that it holds, and a pattern of their members.
    """
    roles = sorted(set().union(*shards.values()))
    if len(roles) < 2:
        return
    of = {role: [name for name, found in shards.items() if role in found] for role in roles}
    wanted = "train" if "train" in of else roles[0]
    parts = " and ".join(f"{role} ({shown(names[0])})" for role, names in of.items())
    first = next((name for name in of[wanted] if len(shards[name]) > 1), None)
    if first is None:
        how = f"take each alone, such as python -m data_tools index {_given(folder, of[wanted], shards)} "
        how += "(pack and training take the same)"
    else:
        others = " ".join(shlex.quote(found) for role, found in shards[first].items() if role != wanted)
        how = f"make a tar of each, such as cp {shlex.quote(shown(str(folder / first)))} {wanted}.tar && "
        how += f"tar --delete --wildcards -f {wanted}.tar {others}"
    raise UsageError(
        f"{folder} holds samples of {parts}, which are different sets: {how}. "
        "If they are one set all the same, say so with --one-set."
    )


def _words(name: str) -> list[str]:
    """seg_train -> seg, train; TrainSet2 -> train, set."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+", name)]


@lru_cache(maxsize=1 << 12)
def _role_of_parts(key: str) -> str | None:
    return next(filter(None, map(role, key.split("/"))), None)


def _given(folder: Path, names: list[str], shards: Iterable[str]) -> str:
    """These of the shards as they are given on a command line."""
    if is_url(names[0]):
        return f"{shown(names[0])} {'... ' * (len(names) > 1)}--out DIR"
    patterns = sorted({_NUMBER.sub("*", name) for name in names})
    if any(fnmatch(name, pattern) for name in set(shards).difference(names) for pattern in patterns):
        patterns = names
    quoted = [f"'{folder / pattern}'" for pattern in patterns[:_SHOWN]]
    return " ".join([*quoted, *["..."] * (len(patterns) > _SHOWN)])
