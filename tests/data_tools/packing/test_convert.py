"""Images that pack writes anew so that training reads them in the right colours."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from profiles import ADOBE_RGB, SRGB, grey_profile, rgb_profile
from sample_files import files, originals, picture

from data_tools import __main__ as cli
from data_tools.errors import DataError, UsageError
from data_tools.images.decode import decode
from data_tools.packing.pack import pack
from data_tools.packing.recode import Recode
from data_tools.shards.shard_set import ShardSet

PIXELS = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
FORMATS = {"gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM"}


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def source_of(at: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        path = at / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return at / "src"


@pytest.mark.parametrize("name", ["", "jpg"])
@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats_are_converted_whatever_they_are_called(kind: str, name: str, tmp_path) -> None:
    options = {"quality": 100, "subsampling": "4:4:4"} if kind == "avif" else {}
    data = encoded(FORMATS[kind], **options)
    source = source_of(tmp_path, {f"cat/1.{name or kind}": data, "dog/1.jpg": picture(1)})
    (packed,) = pack(source, tmp_path / "out", recode=Recode(convert=True))
    assert packed.images == 2 and "from other formats: 1 " in str(packed.account)
    image, _ = originals(tmp_path / "out")[f"cat/1.{name or kind}"]
    assert Image.open(io.BytesIO(image)).format == "PNG"
    limit = {"gif": 40, "avif": 12}.get(kind, 0)  # a palette; loss
    assert np.abs(decode(image, 10**6).astype(int) - PIXELS).mean() <= limit
    (small,) = pack(source, tmp_path / "small", recode=Recode(16, 80, convert=True))
    image, _ = originals(tmp_path / "small")[f"cat/1.{name or kind}"]
    opened = Image.open(io.BytesIO(image))
    assert (opened.format, opened.size) == ("JPEG", (16, 11)) and not small.unreadable


def test_pages_turns_transparency_and_profiles_of_other_formats(tmp_path) -> None:
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    clear = Image.new("P", (8, 8), 1)
    clear.putpalette([0, 0, 0, 9, 9, 9])
    contents = {
        "one/pages.tif": encoded("TIFF", save_all=True, append_images=[image.rotate(180)] * 2),
        "one/moving.gif": encoded("GIF", save_all=True, append_images=[image.rotate(180)]),
        "one/turned.tif": encoded("TIFF", turned, exif=exif),
        "one/clear.gif": encoded("GIF", clear, transparency=1),
        "one/adobe.tif": encoded("TIFF", icc_profile=rgb_profile(ADOBE_RGB, 2.2)),
        "two/1.jpg": picture(1),
    }
    (packed,) = pack(source_of(tmp_path, contents), tmp_path / "out", recode=Recode(convert=True))
    found = {path: decode(data, 10**6) for path, (data, _) in originals(tmp_path / "out").items()}
    assert np.array_equal(found["one/pages.tif"], PIXELS) and np.array_equal(found["one/turned.tif"], PIXELS)
    assert (found["one/clear.gif"] == 255).all()
    as_jpeg = encoded("PNG", icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    assert np.array_equal(found["one/adobe.tif"], decode(as_jpeg, 10**6))
    said = str(packed.account)
    assert "only the first picture was taken: 2, first 'one/moving.gif'" in said
    assert "converted to sRGB from another colour profile: 1, first 'one/adobe.tif'" in said


def test_what_cannot_be_converted_is_left_out_and_named_also_after_an_interruption(
    tmp_path, monkeypatch
) -> None:
    fractions = encoded("TIFF", Image.fromarray(np.zeros((8, 8), np.float32)))
    contents = {f"cat/{n}.bmp": encoded("BMP", Image.fromarray(PIXELS + n)) for n in range(6)}
    contents |= {f"cat/bad{n}.tif": fractions for n in range(3)} | {
        "cow/1.gif": b"GIF89a",
        "dog/1.jpg": picture(1),
    }
    contents |= {"cat/really.bmp": picture(5)}
    source = source_of(tmp_path, contents)
    options = {"recode": Recode(convert=True), "shard_size": 6000}
    (packed,) = pack(source, tmp_path / "whole", **options)
    assert packed.images == 8 == len(ShardSet.open(tmp_path / "whole")) and packed.shards > 2
    said = str(packed.account)
    assert "images that could not be converted: 4 " in said.replace(", first", " , first")
    assert "classes without images: 1" in said and "'cow'" in said
    assert originals(tmp_path / "whole")["cat/really.bmp"][0] == picture(5)
    assert cli.main(["verify", str(tmp_path / "whole"), "--decode"]) == 0
    write, written = webdataset.TarWriter.write, []

    def stop(self, sample):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(sample)
        return write(self, sample)

    monkeypatch.setattr(webdataset.TarWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "stopped", **options)
    monkeypatch.setattr(webdataset.TarWriter, "write", write)
    (again,) = pack(source, tmp_path / "stopped", **options)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole") and again.images == 8
    assert again.account.passed == packed.account.passed
    assert "an earlier run had packed, and that were not looked at again: " in str(again.account)
    (nothing,) = [source_of(tmp_path / "nothing", {"cat/1.tif": fractions})]
    with pytest.raises(
        DataError, match=r"no image that could be converted, first 'cat/1\.tif: pixels of mode F"
    ):
        pack(nothing, tmp_path / "none", **options)
    assert not list((tmp_path / "none").iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_without_convert_one_line_counts_them(kind: str, tmp_path, capsys) -> None:
    data = encoded(FORMATS[kind])
    contents = {f"cat/1.{kind}": data, "dog/1.jpg": picture(1), "dog/2.JPG": data, "cow/1.jpg": data}
    source = source_of(tmp_path, contents)
    assert cli.main(["pack", str(source), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert f"images of formats that --convert takes: 1 (1 .{kind})" in said
    assert "of other content than their names say: 2, first 'cow/1.jpg' (2 " in said and "--convert" in said
    assert "classes without images: 2" in said and "'cow'" in said and "'cat'" in said
    (source / "dog/1.jpg").unlink()
    (source / "dog/2.JPG").unlink()
    (source / "cow/1.jpg").unlink()
    assert cli.main(["pack", str(source), str(tmp_path / "none")]) == 3
    said = capsys.readouterr().err
    assert "no image (jpg, jpeg, png or webp)" in said and f"--convert takes: 1 (1 .{kind})" in said


def test_formats_that_nothing_here_reads_are_not_promised(tmp_path, capsys) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    source = source_of(tmp_path, {"cat/1.jpg": heic, "cat/2.jpg": picture(1), "dog/1.jpg": picture(2)})
    for options in ([], ["--convert"]):
        assert cli.main(["pack", str(source), str(tmp_path / f"out{len(options)}"), *options]) == 0
        said = capsys.readouterr().err
        assert "1, first 'cat/1.jpg' (1 HEIC): fetch them again, or convert them" in said


def test_what_is_no_image_at_all_is_warned_of(tmp_path, capsys) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    contents = {"cat/1.jpg": b"<html>404</html>", "cat/2.jpg": pointer, "dog/1.jpg": picture(1)}
    assert cli.main(["pack", str(source_of(tmp_path, contents)), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "2, first 'cat/1.jpg' (1 Git LFS pointer, 1 no image): fetch them again" in said
    assert "classes without images: 1" in said and "came while" not in said


def test_masks_are_not_taken_for_images_that_came_later(tmp_path, capsys) -> None:
    contents = {"cat/1.jpg": picture(1), "cat/1.mask.png": picture(2, kind="PNG"), "dog/1.jpg": picture(3)}
    assert cli.main(["pack", str(source_of(tmp_path, contents)), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "second images of a sample, such as masks: 1" in said and "came while" not in said


@pytest.mark.parametrize(("kind", "becomes"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "JPEG")])
def test_other_colours_are_converted_at_pack_counted_and_can_be_kept(kind, becomes, tmp_path, capsys) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    other = encoded(kind, icc_profile=rgb_profile(ADOBE_RGB, 2.2), **options)
    same = encoded(kind, icc_profile=rgb_profile(SRGB, 2.25), **options)
    contents = {f"cat/1.{extension}": other, f"dog/1.{extension}": encoded(kind, **options)}
    source = source_of(
        tmp_path,
        contents
        | {"dog/grey.png": encoded("PNG", Image.new("L", (8, 8), 99), icc_profile=grey_profile(1.0))},
    )
    assert cli.main(["pack", str(source), str(tmp_path / "out")]) == 0
    assert (
        f"converted to sRGB from another colour profile: 2, first 'cat/1.{extension}'"
        in capsys.readouterr().err
    )
    found = originals(tmp_path / "out")
    image = found[f"cat/1.{extension}"][0]
    opened = Image.open(io.BytesIO(image))
    assert opened.format == becomes and "icc_profile" not in opened.info
    assert np.abs(decode(image, 10**6).astype(int) - decode(other, 10**6)).mean() < 2.5
    assert found[f"dog/1.{extension}"][0] == contents[f"dog/1.{extension}"]
    assert Image.open(io.BytesIO(found["dog/grey.png"][0])).mode == "L"
    assert cli.main(["pack", str(source), str(tmp_path / "kept"), "--icc", "keep"]) == 0
    assert (
        "sRGB" not in capsys.readouterr().err
        and originals(tmp_path / "kept")[f"cat/1.{extension}"][0] == other
    )
    assert same != other


def test_shards_that_an_earlier_version_packed_go_on(tmp_path) -> None:
    source = source_of(tmp_path, {"cat/1.jpg": picture(1), "dog/1.jpg": picture(2)})
    pack(source, tmp_path / "out", recode=Recode(icc=False))
    plan = json.loads((tmp_path / "out/pack.json").read_text())
    del plan["recode"]["icc"], plan["recode"]["convert"]
    (tmp_path / "out/pack.json").write_text(json.dumps(plan))
    assert pack(source, tmp_path / "out", recode=Recode(icc=False))[0].images == 2
    with pytest.raises(UsageError, match="other options"):
        pack(source, tmp_path / "out")
