"""transformers' image processors for ViT and ViT-Hybrid: the same arguments, the same numbers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.errors import UsageError
from pretrain.checkpoints.described import parse_strictly

from ..formats.descriptions import Described
from ..formats.files import PREPROCESSOR
from ..formats.hf_settings import processor_of
from .images import FIRST, Array, Features, as_array, as_tensors, each, layout, layout_of, to_layout

FILTERS = range(6)  # Pillow's: nearest, lanczos, bilinear, bicubic, box, hamming
# What else a preprocessor_config.json may say without changing a number.
_SILENT = {"feature_extractor_type", "processor_class", "auto_map", "data_format", "return_tensors"}


class ImageProcessor:
    """Resizes, crops, rescales and normalises images, in this order.

    do_resize: to `size`: {"shortest_edge": n}, which keeps the ratio, {"height": h, "width": w}, (h, w), or a
    number. resample: Pillow's number of the filter, 0 to 5. do_center_crop: to crop_size, given in the same
    ways; a smaller image is first surrounded by zeros. do_rescale: times rescale_factor. do_normalize: minus
    image_mean, then divided by image_std, each a number or one for each channel. do_convert_rgb: of Pillow's
    images. image_processor_type: the class of transformers whose defaults stand for None.

    All of them are attributes too. ValueError for a value that cannot be.
    """

    def __init__(
        self,
        do_resize: bool = True,
        size: Any = None,
        resample: int | None = None,
        do_center_crop: bool | None = None,
        crop_size: Any = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_convert_rgb: bool = True,
        image_processor_type: str = "ViTHybridImageProcessor",
    ) -> None:
        usual, _ = processor_of({"image_processor_type": image_processor_type, "size": size})
        self.image_processor_type = image_processor_type
        self.do_resize = do_resize
        self.size = _sides(usual.size if size is None else size, "size", usual.square)
        self.resample = int(usual.resample if resample is None else resample)
        self.do_center_crop = usual.crops if do_center_crop is None else do_center_crop
        self.crop_size = _sides(
            usual.crop or usual.size if crop_size is None else crop_size, "crop_size", True
        )
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = _numbers(usual.mean if image_mean is None else image_mean, "image_mean")
        self.image_std = _numbers(usual.std if image_std is None else image_std, "image_std")
        self.do_convert_rgb = do_convert_rgb
        if self.resample not in FILTERS:
            raise ValueError(f"resample must be 0 to 5, Pillow's number of a filter, got {resample}")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> ImageProcessor:
        """The processor of a folder with a preprocessor_config.json, or of such a file.

        Raises UsageError if there is none, or it asks for what this processor does not do, naming the key;
        DataError if it is damaged.
        """
        file = Path(path) if Path(path).suffix == ".json" else Path(path) / PREPROCESSOR
        try:
            found = parse_strictly(Described, file.read_bytes(), str(file))
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
        known = {key: value for key, value in found.items() if key in ARGUMENTS}
        other = [key for key, value in found.items() if key not in {*ARGUMENTS, *_SILENT} and value]
        if other:
            raise UsageError(f"{file}: it asks for {other[0]}, which ImageProcessor does not do")
        known.setdefault("image_processor_type", _type_for(found))
        try:
            return cls(**known)
        except ValueError as error:
            raise UsageError(f"{file}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json into a folder, which is made if it is not there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(folder) / PREPROCESSOR).write_text(text, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The arguments, as in preprocessor_config.json."""
        return {key: getattr(self, key) for key in ARGUMENTS}

    def __call__(
        self,
        images: Any,
        *,
        return_tensors: Any = None,
        data_format: Any = FIRST,
        input_data_format: Any = None,
        **other: Any,
    ) -> Features:
        """pixel_values of one image or several: a list of arrays, or with return_tensors one array or tensor.

        images: of Pillow, arrays or tensors (H, W, C) or (C, H, W), batches (N, ...), or lists of them.
        return_tensors: None, "np" or "pt". data_format: of the result, channels_first or channels_last;
        input_data_format: of arrays; by default it is found out. other: arguments of this processor, for this
        call. TypeError for one that does not exist, ValueError for what cannot be.
        """
        if unknown := [key for key in other if key not in ARGUMENTS]:
            known = ", ".join(ARGUMENTS)
            raise TypeError(f"ImageProcessor has no argument {unknown[0]!r}; it has {known}")
        given = {key: value for key, value in other.items() if value is not None}
        chosen = ImageProcessor(**self.to_dict() | given) if given else self
        target = layout(data_format, "data_format")
        values = [chosen._process(image, input_data_format, target) for image in each(images)]
        return Features(pixel_values=as_tensors(values, return_tensors))

    preprocess = __call__

    def _process(self, image: Any, source: Any, target: str) -> Array:
        array = as_array(image, self.do_convert_rgb)
        layout_in = layout_of(array, source)
        array = to_layout(array, layout_in, "channels_last")
        if self.do_resize:
            array = resize(array, *_target(array.shape[0], array.shape[1], self.size), self.resample)
        if self.do_center_crop:
            array = center_crop(array, self.crop_size["height"], self.crop_size["width"])
        if self.do_rescale:
            array = (array.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            array = _normalised(array, self.image_mean, self.image_std)
        return np.ascontiguousarray(to_layout(array, "channels_last", target))


ARGUMENTS = tuple(inspect.signature(ImageProcessor).parameters)


def resize(image: Array, height: int, width: int, resample: int) -> Array:
    """(H, W, C) by Pillow, in the steps of 8-bit images; numbers in [0, 1] are multiplied by 255 before.

    ValueError for other numbers that are not 0 to 255.
    """
    factor = 255 if _is_share(image) else 1
    pixels = (image * factor).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    resized = np.array(picture.resize((width, height), resample=Image.Resampling(resample)))
    resized = resized.reshape(height, width, image.shape[-1])
    return resized if factor == 1 else (resized * (1 / 255)).astype(np.float32)


def center_crop(image: Array, height: int, width: int) -> Array:
    """The middle of (H, W, C); a smaller image is surrounded by zeros, one more before it than behind it."""
    missing = [max(side - own, 0) for side, own in zip((height, width), image.shape, strict=False)]
    padded = np.pad(image, [(-(-m // 2), m // 2) for m in missing] + [(0, 0)]) if any(missing) else image
    top, left = (
        (own - side) // 2 + -(-gap // 2)
        for own, side, gap in zip(image.shape, (height, width), missing, strict=False)
    )
    return padded[max(top, 0) : top + height, max(left, 0) : left + width]


def _is_share(image: Array) -> bool:
    """Whether the numbers are in [0, 1] and not all whole, as transformers decides it."""
    if image.dtype == np.uint8:
        return False
    low, high = float(image.min()), float(image.max())
    whole = np.allclose(image, image.astype(np.int64))
    if not (low >= 0 and high <= (255 if whole else 1)):
        raise ValueError(
            f"an image of {image.dtype} from {low:g} to {high:g} cannot be resized: give whole numbers up to "
            "255, or numbers of 0 to 1 and do_rescale=False"
        )
    return not whole


def _target(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The (height, width) that an image is resized to."""
    if "height" in size:
        return size["height"], size["width"]
    short = size["shortest_edge"]
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _normalised(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    channels = image.shape[-1]
    for key, values in (("image_mean", mean), ("image_std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{key} has {len(values)} numbers, but the image has {channels} channels")
    kind = image.dtype if np.issubdtype(image.dtype, np.floating) else np.float32
    return (image.astype(kind) - np.array(mean, kind)) / np.array(std, kind)


def _sides(given: Any, key: str, square: bool) -> dict[str, int]:
    """A size as a dictionary of height and width, or of shortest_edge; square: what one number means."""
    if isinstance(given, int) and not isinstance(given, bool):
        given = {"height": given, "width": given} if square else {"shortest_edge": given}
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        given = {"height": given[0], "width": given[1]}
    ways = [{"height", "width"}, {"shortest_edge"}] if key == "size" else [{"height", "width"}]
    if not isinstance(given, Mapping) or set(given) not in ways:
        names = " or ".join(" and ".join(sorted(way)) for way in ways)
        raise ValueError(f"{key} must be a number, (height, width) or a dictionary of {names}, got {given!r}")
    if not all(isinstance(side, int) and side > 0 for side in given.values()):
        raise ValueError(f"{key} must be whole numbers above 0, got {given!r}")
    return dict(given)


def _numbers(given: float | Sequence[float], key: str) -> list[float]:
    values = [given] if isinstance(given, int | float) else list(given)
    if not values or (key == "image_std" and 0 in values):
        raise ValueError(f"{key} must be a number or one for each channel{', not 0' * (key == 'image_std')}")
    return [float(value) for value in values]


def _type_for(found: Mapping[str, Any]) -> str:
    """The class of a file that names only an older one, or none: by its size."""
    old = str(found.get("feature_extractor_type") or "").removesuffix("FeatureExtractor")
    kind, _ = processor_of(dict(found))
    return f"{old or kind.name or ('ViT' if kind.square else 'ViTHybrid')}ImageProcessor"
