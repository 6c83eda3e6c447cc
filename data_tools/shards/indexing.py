"""The index command: which shards are meant, and where their index goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.shards.index import Summary, build_index
from data_tools.shards.labels import NO_RULES, LabelRules
from data_tools.shards.names import index_stem, local_shards, relative
from data_tools.shards.remote import expand
from data_tools.shards.urls import is_url


def index_shards(
    shards: Sequence[str], out: str | None, rules: LabelRules = NO_RULES
) -> tuple[Summary, Path]:
    """Index a folder, local shards or URLs; returns what was indexed, and the folder or file of the index.

    out: the folder for the index of URLs, needed for these and for nothing else. rules: what the labels are.
    Raises as build_index().
    """
    urls = [path for path in shards if is_url(path)]
    if urls:
        if len(urls) < len(shards) or not out:
            raise UsageError("URLs of shards go without local paths and with --out DIR, for the index.")
        return build_index(out, expand(urls), rules=rules), Path(out)
    paths = local_shards(shards[0] if len(shards) == 1 else shards)
    if out:
        raise UsageError("--out DIR is for URLs: the index of local shards is written beside them.")
    if paths is None:
        return build_index(shards[0], rules=rules), Path(shards[0])
    folder, names = relative(paths)
    stem = index_stem(folder, names)
    summary = build_index(folder, names, stem=stem, rules=rules)
    return summary, folder if stem == "shardindex" else folder / f"{stem}.json"
