"""Files and folders that file managers, network storage and operating systems leave among others."""

from __future__ import annotations

# In lower case. Names that begin with a dot are hidden everywhere, and need no row.
_NAMES = frozenset(
    (
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thevolumesettingsfolder", "desktop db", "desktop df"),
        *("thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$recycle.bin", "system volume information", "found.000", "msocache"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@recentlysnapshot", "@sharebin"),  # NAS
        *("@__thumb", "@synoresource", "@synoeastream", "@snapshot", "@transcode", "#recycle", "#snapshot"),
        *("~snapshot", "lost+found", "aquota.user", "aquota.group", "__pycache__"),  # Unix
        *("picasa.ini", "zbthumbnail.info", "ws_ftp.log"),
    )
)
_BEGINNINGS = (".", "~$", "synofile_thumb_", "synophoto_thumb_")


def is_side_file(name: str) -> bool:
    """Whether a file or folder of this name is hidden (.name) or left by a system, such as Thumbs.db."""
    name = name.lower()
    return (name.startswith(_BEGINNINGS) and name not in (".", "..")) or name in _NAMES


def side_part(path: str) -> str | None:
    """A path with slashes up to its first hidden part, such as `cat/@eaDir`; None if it has none."""
    parts = path.split("/")
    for n, part in enumerate(parts, 1):
        if is_side_file(part):
            return "/".join(parts[:n])
    return None
