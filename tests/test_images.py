"""Folders of images as people have them."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from wganlab.data.images import ImageFolder
from wganlab.schema import InvalidValueError


def picture(value: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """A flat image of one grey value, in any of Pillow's modes."""
    grey = Image.new("L", size, value)
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], value * 257, dtype=np.uint16))
    if mode == "CMYK":
        return Image.merge("CMYK", [Image.new("L", size, 255 - value)] * 3 + [Image.new("L", size, 0)])
    return grey.convert(mode)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of many sizes, modes and formats, in two classes, with names that are hard to handle."""
    root = tmp_path / "mixed"
    for name, mode in [
        ("cats/a rgb.png", "RGB"),
        ("cats/ü rgba.png", "RGBA"),
        ("cats/deep/er/grey.PNG", "L"),
        ("dogs/palette.gif", "P"),
        ("dogs/cmyk.jpg", "CMYK"),
        ("dogs/deep16.png", "I;16"),
        ("dogs/one.bmp", "RGB"),
    ]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(100, (20 + len(name), 50), mode).save(path)
    (root / "notes.txt").write_text("no image")
    (root / "cats" / "loop").symlink_to(root)
    return root


def test_image_folder_reads_every_mode_and_size(pictures: Path) -> None:
    source = ImageFolder(root=str(pictures), size=16)
    images = source.load()
    assert images.shape == (7, 3, 16, 16) == (len(source), *source.shape)
    assert images.dtype == torch.uint8
    assert (images.float() - 100).abs().max() <= 2, "all show the same grey"
    labels = source.labels()
    assert labels is not None
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert ImageFolder(root=str(pictures), size=8, channels=1).load().shape == (7, 1, 8, 8)


def test_image_folder_crops_the_centre_and_lays_transparency_on_white(tmp_path: Path) -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    wide.save(tmp_path / "wide.png")
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    clear, blue = ImageFolder(root=str(tmp_path), size=10).load().float()
    assert (clear == 255).all()
    assert blue[:, 2:-2, 2:-2].mean(dim=(1, 2)).tolist() == pytest.approx([0, 0, 255], abs=1)


def test_image_folder_is_cached_until_it_changes(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> tuple[Tensor, bool]:
        images = ImageFolder(root=str(pictures), size=16).load()
        return images, "decoding" in capsys.readouterr().out

    first, decoded = load()
    assert decoded
    second, decoded = load()
    assert not decoded
    assert torch.equal(first, second)
    assert torchvision.datasets.ImageFolder(str(pictures)).classes == ["cats", "dogs"], "the cache is no class"
    picture(200, mode="RGB").save(pictures / "dogs" / "one.bmp")
    third, decoded = load()
    assert decoded
    assert third.max() >= 199
    second[0] = 0  # memory-mapped, but the file is not written to
    assert load()[0].min() > 90


def test_a_read_only_folder_is_cached_elsewhere(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ImageFolder(root=str(pictures), size=16).load()
    (cached,) = pictures.glob(".wganlab-*.npy")
    cached.with_suffix(".json").unlink()
    cached.unlink()
    cached.mkdir()  # so that no such file can be written, not even by root
    assert len(ImageFolder(root=str(pictures), size=16).load()) == 7
    assert len(list((tmp_path / "cache" / "wganlab").glob("*.npy"))) == 1
    assert len(ImageFolder(root=str(pictures), size=16).load()) == 7


def test_broken_images_are_named_and_skipped_up_to_a_limit(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "cats" / "b broken.png").write_bytes(b"not an image")
    whole = (pictures / "dogs" / "cmyk.jpg").read_bytes()
    (pictures / "dogs" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    source = ImageFolder(root=str(pictures), size=16, max_broken=2)
    for _ in range(2):  # decoded, then cached
        images = source.load()
        assert len(images) == len(source) == 7
        assert (images.float() - 100).abs().max() <= 2
        labels = source.labels()
        assert labels is not None
        assert len(labels) == 7
        source = ImageFolder(root=str(pictures), size=16, max_broken=2)
    out = capsys.readouterr().out
    assert "skipped 2 broken files" in out
    assert "b broken.png (UnidentifiedImageError)" in out
    (pictures / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"3 of 10 files cannot be decoded, more than max_broken=2"):
        ImageFolder(root=str(pictures), size=16, max_broken=2).load()
    assert not list(pictures.glob(".wganlab-*.part"))
    (pictures / "empty.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of 9 files cannot be decoded.*UnidentifiedImage"):
        ImageFolder(root=str(pictures), size=16, max_broken=1).load()  # from the cache


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"root=.*no such folder"):
        ImageFolder(root=str(tmp_path / "nowhere"), size=8)
    with pytest.raises(InvalidValueError, match=r"root=.*holds no images"):
        ImageFolder(root=str(tmp_path), size=8)
    (tmp_path / "only.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 of 1 files cannot be decoded"):
        ImageFolder(root=str(tmp_path), size=8).load()


def grey(path: Path, value: int, dtype: type = np.uint16) -> None:
    """A flat image of one value, deeper than 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, dtype=dtype)).save(path)


def values(folder: Path, **options: Any) -> list[int]:
    """The first value of each image of a folder, in the order of names."""
    return ImageFolder(root=str(folder), size=8, **options).load()[:, 0, 0, 0].tolist()


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two splits of two classes; grey values tell what is where."""
    for i, folder in enumerate(["Training/cat", "Training/dog", "validate/cat", "validate/dog"]):
        path = tmp_path / folder / "a.png"
        path.parent.mkdir(parents=True)
        picture(10 * (i + 1)).save(path)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "grey_values", "labels"),
    [
        ("all", [10, 20, 30, 40], [0, 1, 0, 1]),
        ("train", [10, 20], [0, 1]),
        (["val"], [30, 40], [0, 1]),
        (["train", "val"], [10, 20, 30, 40], [0, 1, 0, 1]),
        (None, [10, 20, 30, 40], [0, 0, 1, 1]),
    ],
)
def test_splits_are_no_classes(
    splits: Path, split: Any, grey_values: list[int], labels: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    source = ImageFolder(root=str(splits), size=8, split=split)
    assert source.load()[:, 0, 0, 0].tolist() == grey_values
    found = source.labels()
    assert found is not None
    assert found.tolist() == labels
    assert ("whose folders are the classes" in capsys.readouterr().out) == (split is not None)


def test_a_class_has_the_same_number_in_every_split(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        (tmp_path / name).mkdir(parents=True)
        picture(10).save(tmp_path / name / "x.png")
    source = ImageFolder(root=str(tmp_path), size=8, split="test")
    source.load()
    labels = source.labels()
    assert labels is not None
    assert labels.tolist() == [0, 2]


def test_what_is_no_split_has_no_class_and_no_say(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "assets/banner", "test"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        picture(10).save(tmp_path / name / "x.png")
    for split, expected in (("train", [0, 1]), ("test", None)):
        source = ImageFolder(root=str(tmp_path), size=8, split=[split])  # type: ignore[list-item]
        source.load()
        labels = source.labels()
        assert (None if labels is None else labels.tolist()) == expected


def test_a_torn_cache_is_made_again(pictures: Path) -> None:
    images = ImageFolder(root=str(pictures), size=8).load().clone()
    for name, content in ((".npy", b"torn"), (".json", b"{"), (".npy", None)):
        (cache,) = pictures.glob(f".wganlab-*{name}")
        cache.unlink()
        if content is not None:
            cache.write_bytes(content)
        assert torch.equal(ImageFolder(root=str(pictures), size=8).load(), images)


def test_folders_beside_others_are_no_splits_unless_asked_for(splits: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"split=test.*no such folder; its splits: train, val"):
        ImageFolder(root=str(splits), size=8, split="test")
    (splits / "horses").mkdir()
    picture(99).save(splits / "horses" / "a.png")
    source = ImageFolder(root=str(splits), size=8)
    labels = source.labels()
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 2, 2], "Training, horses, val: a class may have any name"
    assert values(splits, split="train") == [10, 20]


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ([200, 300], [50, 75], "0 to 1023"),  # one scale, and not one for each image
        ([0, 4095], [0, 255], "0 to 4095"),  # 12 bits in files of 16
        ([100, 255], [100, 255], "0 to 255"),
        ([257, 65535], [1, 255], "0 to 65535"),
    ],
)
def test_deep_images_have_one_scale_for_the_whole_folder(
    tmp_path: Path, given: list[int], expected: list[int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, value in enumerate(given):
        grey(tmp_path / f"{i}.png", value)
    for _ in range(2):  # decoded, then cached
        assert values(tmp_path) == expected
        assert f"values deeper than 8 bits: {said} become 0 to 255" in capsys.readouterr().out


def test_a_key_sets_the_scale_of_deep_images(tmp_path: Path) -> None:
    for i, value in enumerate([50, 200, 300, 700]):
        grey(tmp_path / f"{i}.tif", value)
    assert values(tmp_path, value_range=(100, 610)) == [0, 50, 100, 255]
    with pytest.raises(InvalidValueError, match=r"value_range=.*the lower one first"):
        ImageFolder(root=str(tmp_path), size=8, value_range=(3, 3))
    for i, level in enumerate([0, 0.5, 1]):
        Image.fromarray(np.full((8, 8), level, dtype=np.float32)).save(tmp_path / f"{i}.tif")
    (tmp_path / "3.tif").unlink()
    assert values(tmp_path) == [0, 128, 255]
    Image.fromarray(np.full((8, 8), -1, dtype=np.float32)).save(tmp_path / "0.tif")
    assert values(tmp_path) == [0, 191, 255], "negative values: from minus the highest"


def test_splits_of_deep_images_have_one_scale(tmp_path: Path) -> None:
    """The brightest value is in train alone; 800 of 4,095 is the same in both."""
    for name, value in (("train/a", 800), ("train/b", 4000), ("test/a", 800)):
        (tmp_path / name).mkdir(parents=True)
        grey(tmp_path / name / "x.png", value)
    assert values(tmp_path, split="test") == [round(800 * 255 / 4095)] == values(tmp_path, split="train")[:1]


def test_colours_of_16_bits_have_the_range_of_16_bits_or_are_refused(tmp_path: Path) -> None:
    raw = np.full((8, 8, 3), 3000, dtype=">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert values(tmp_path) == [3000 >> 8] == values(tmp_path, value_range=[0, 65535])
    with pytest.raises(InvalidValueError, match="colours of 16 bits, of which Pillow gives the high byte"):
        values(tmp_path, value_range=(0, 4095), max_broken=0)


def test_wide_bitmaps_of_8_bits_are_not_taken_for_deep_colours(tmp_path: Path) -> None:
    picture(100, (544, 8)).save(tmp_path / "wide.bmp")
    grey(tmp_path / "deep.png", 4000)
    assert len(values(tmp_path, max_broken=0)) == 2


def test_what_pillow_opens_is_an_image_whatever_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in [
        ("a.jfif", "JPEG"),
        ("b.avif", "AVIF"),
        ("c.JPG", "JPEG"),
        ("d.jpg", "PNG"),  # a wrong ending
        ("e", "PNG"),  # none
        ("f.data", "WEBP"),
        ("g.jp2", "JPEG2000"),
    ]:
        picture(100, mode="RGB").save(tmp_path / name, kind)
    (tmp_path / "labels.csv").write_text("a.jfif,1")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "readme.txt").write_text("nor this")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("a.png", b"")
    loaded = ImageFolder(root=str(tmp_path), size=8).load().float()
    assert len(loaded) == 7
    assert (loaded - 100).abs().max() <= 2
    out = capsys.readouterr().out
    assert "7 images in" in out
    for left_out in ("1 files that are no images (.csv)", "2 files that are no images (.txt)", "(.zip)"):
        assert left_out in out


def test_what_systems_leave_in_folders_is_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "cat" / ".hidden").mkdir(parents=True)
    for name in ("__MACOSX/a.png", "cat/.hidden/a.png", "cat/a.png"):
        picture(100).save(tmp_path / name)
    for name in ("cat/._a.png", "__MACOSX/._a.png", "Thumbs.db", "cat/thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    source = ImageFolder(root=str(tmp_path), size=8, max_broken=0)
    assert len(source.load()) == 1
    assert source.labels() is None, "one class"
    assert "left out" not in capsys.readouterr().out, "nobody has to be told of them"


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(["elsewhere/cats", "data/dogs"]):
        (tmp_path / name).mkdir(parents=True)
        picture(10 * (i + 1)).save(tmp_path / name / "a.png")
    (tmp_path / "data" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "data" / "dogs" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dogs" / "gone.png").symlink_to(tmp_path / "nothing")
    source = ImageFolder(root=str(tmp_path / "data"), size=8)
    assert source.load()[:, 0, 0, 0].tolist() == [10, 20]
    assert source.labels() is not None
    assert "1 links to a folder around them" in capsys.readouterr().out


def test_huge_images_are_read_and_bombs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(100, (10_000, 9_000)).save(tmp_path / "poster.png")  # 90 megapixels, which Pillow warns of
    picture(0, (20_000, 9_000), "1").save(tmp_path / "bomb.png")  # 180, which it refuses
    loaded = ImageFolder(root=str(tmp_path), size=8).load()
    assert len(loaded) == 1
    assert (loaded == 100).all()
    assert "skipped 1 broken files" in (out := capsys.readouterr().out)
    assert "bomb.png (DecompressionBombError)" in out


def test_animated_images_give_their_first_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [picture(value, (8, 8)) for value in (50, 100, 150)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[2].save(tmp_path / "b.gif")
    assert values(tmp_path) == [50, 150]
    assert "1 animated images, of which the first frame is taken" in capsys.readouterr().out


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 100, 100, 100])
    palette.save(tmp_path / "a.png", transparency=0)
    palette.paste(1, (0, 0, 8, 8))
    palette.save(tmp_path / "b.png", transparency=0)
    assert values(tmp_path) == [255, 100]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", b"")
    (tmp_path / "set.zip").write_bytes(buffer.getvalue())
    with pytest.raises(InvalidValueError, match=r"root=.*is a file; unpack it, and name the folder"):
        ImageFolder(root=str(tmp_path / "set.zip"), size=8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set.zip").rename(tmp_path / "set" / "set.zip")
    with pytest.raises(InvalidValueError, match=r"holds no images at any depth, but 1 files that are no images \(.zip"):
        ImageFolder(root=str(tmp_path / "set"), size=8)


def test_images_need_not_be_square(tmp_path: Path) -> None:
    wide = Image.new("RGB", (64, 48), "red")
    wide.paste("blue", (0, 0, 32, 48))
    wide.save(tmp_path / "a.png")
    source = ImageFolder(root=str(tmp_path), size=(48, 64))
    (image,) = source.load()
    assert image.shape == source.shape == (3, 48, 64)
    assert torch.equal(image, torch.from_numpy(np.array(wide)).permute(2, 0, 1)), "nothing to resize or crop"


def test_real_image_folders(real_data: Path) -> None:
    faces = ImageFolder(root=str(real_data / "anime_faces"), size=64).load()
    assert faces.shape == (6000, 3, 64, 64)
    assert faces.float().std() > 40
    horses = ImageFolder(root=str(real_data / "cifar10_jpeg"), size=32)
    assert horses.load().shape == (6000, 3, 32, 32)
