"""Which folders are splits and which are classes: many names, without packing them."""

from __future__ import annotations

import pytest

from data_tools.errors import DataError, UsageError
from data_tools.packing.layout import ANNOTATIONS, check_class_folders, label_by_annotations
from data_tools.packing.listing import Listing, Reason


def listing(*paths: str) -> Listing:
    return Listing("src", images=dict.fromkeys(sorted(paths), 1))


def below(names: list[str], subs: str = "ab") -> Listing:
    return listing(*(f"{name}/{sub}/1.jpg" for name in names for sub in subs))


@pytest.mark.parametrize(
    "names",
    [
        *(["train", "val"], ["Train", "Test"], ["TRAIN", "VALID"], ["Training", "Testing"], ["train"]),
        *(
            ["dev", "eval"],
            ["seg_train", "seg_test"],
            ["seg_train", "seg_test", "seg_pred"],
            ["training_set", "test_set"],
        ),
        *(["train2017", "val2017"], ["trainSet", "testSet"], ["train-images", "validation images"]),
        *(["train", "val", "extra"], ["train", "test", "unlabeled"], ["train", "val", "annotations"]),
        *(["ILSVRC_train", "ILSVRC_val"], ["chest_xray_train", "chest_xray_test"], ["test"]),
        *(["train", "train_masks"], ["PrivateTest", "PublicTest", "Training"], ["train", "test1"]),
    ],
)
def test_names_of_splits(names: list[str]) -> None:
    for flat in (False, True):
        layout = listing(*(f"{name}/1.jpg" for name in names)) if flat else below(names)
        with pytest.raises(UsageError, match=r"holds the splits .* not classes: .*data_tools pack"):
            check_class_folders(layout)
        check_class_folders(layout, told=True)


@pytest.mark.parametrize(
    "names",
    [
        *(["cat", "dog"], ["train", "bus", "car"], ["steam_train", "bullet_train"], ["valid", "invalid"]),
        *(["test", "control"], ["0", "1"], ["日本", "中国"], ["image_a", "image_b"], ["contrain", "detest"]),
    ],
)
def test_names_of_classes(names: list[str]) -> None:
    check_class_folders(listing(*(f"{name}/1.jpg" for name in names)))
    check_class_folders(listing(*(f"{name}/images/1.jpg" for name in names)))
    check_class_folders(listing(*(f"{name}/{name}{n}/1.jpg" for name in names for n in "ab")))


@pytest.mark.parametrize(
    "paths",
    [
        ["x/a/1.jpg", "x/b/1.jpg", "y/a/1.jpg", "y/b/1.jpg"],
        ["x/a/1.jpg", "x/b/1.jpg", "x/c/1.jpg", "y/a/1.jpg", "y/b/1.jpg"],  # a small part lacks a class
        ["x/A/1.jpg", "x/b/1.jpg", "y/a/1.jpg", "y/B/1.jpg", "z/1.jpg"],
    ],
)
def test_equal_sub_folders_are_splits(paths: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"the folders x, y with the same sub-folders \(a, b\).*class-folders"
    ):
        check_class_folders(listing(*paths))


def test_a_split_that_lacks_classes_of_the_others_is_a_split() -> None:
    with pytest.raises(UsageError, match=r"holdout, split_1 with the same sub-folders \(cat\)"):
        check_class_folders(listing("holdout/cat/1.jpg", "split_1/cat/1.jpg", "split_1/dog/1.jpg"))


@pytest.mark.parametrize("odd", ["test", "train", "unlabeled", "images"])
def test_one_split_among_classes_is_warned_of(odd: str) -> None:
    layout = listing("cat/1.jpg", "dog/1.jpg", f"{odd}/1.jpg")
    check_class_folders(layout)
    (note,) = layout.notes
    assert note.startswith("warning: folders taken for classes") and f": {odd}: " in note


def test_splits_inside_of_classes_are_not_mixed() -> None:
    with pytest.raises(UsageError, match=r"class folders \(cat, dog\) with the splits test, train in each"):
        check_class_folders(listing("cat/train/1.jpg", "cat/test/1.jpg", "dog/train/1.jpg"))


def test_annotations_of_tiny_imagenet_are_read_strictly() -> None:
    layout = listing("images/a.JPEG", "images/b.JPEG")
    layout.pass_over(Reason.NO_IMAGE, ANNOTATIONS)
    labelled = label_by_annotations(layout, b"a.JPEG\tn02\t0\t1\r\n")
    assert labelled.classes == ["n02"] and labelled.ignored == ["images/b.JPEG"]
    for text in (b"c.JPEG\tn01\n", b"a.JPEG\n", b"a.JPEG\tn01\na.JPEG\tn02\n", b"a.JPEG\t\t3\n", b"\xff\n"):
        with pytest.raises(DataError, match=r"val_annotations\.txt:[12] is not"):
            label_by_annotations(layout, text)
