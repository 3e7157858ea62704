"""Finding, reading and writing pairs; what is wrong with a folder is named."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isfl_ros.errors import InputError
from isfl_ros.io.dataset import select_pairs, set_name
from isfl_ros.io.folders import find_dataset, find_pairs, read_rgb, read_thermal, write_png
from isfl_ros.io.staging import staged_folder

RNG = np.random.default_rng(0)


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


@pytest.fixture()
def dataset(tmp_path):
    for stem in ("b", "a"):
        save(tmp_path / "ir" / f"{stem}.png", RNG.integers(0, 256, (40, 50)).astype(np.uint8))
        save(tmp_path / "vi" / f"{stem}.bmp", RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    save(tmp_path / "labels" / "a.png", np.zeros((40, 50), np.uint8))
    return tmp_path


def test_pairs_by_stem(dataset):
    pairs = find_dataset(dataset)
    assert [p.stem for p in pairs] == ["a", "b"]
    assert pairs[0].label is not None and pairs[1].label is None
    assert [p.thermal for p in find_pairs(dataset / "ir", dataset / "vi")] == [p.thermal for p in pairs]


def test_reading_keeps_depth_and_order(tmp_path):
    deep = RNG.integers(0, 65536, (40, 50)).astype(np.uint16)
    write_png(tmp_path / "t.png", deep)
    np.testing.assert_array_equal(read_thermal(tmp_path / "t.png"), deep)
    rgb = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    write_png(tmp_path / "v.png", rgb)
    np.testing.assert_array_equal(read_rgb(tmp_path / "v.png"), rgb)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "v.png")), rgb[:, :, ::-1])
    grey = rgb[:, :, 0].copy()
    write_png(tmp_path / "g.png", grey)
    np.testing.assert_array_equal(read_rgb(tmp_path / "g.png"), grey[:, :, None].repeat(3, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.png", "t.png", "v.png"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "ir" / "a.png").unlink(), "a.bmp has no partner"),
        (lambda d: (d / "ir" / "c.png").write_bytes(b""), "c.png has no partner"),
        (lambda d: (d / "ir" / "a.jpg").write_bytes(b"x"), "two pictures of the stem 'a'"),
        (lambda d: [f.unlink() for f in (d / "vi").iterdir()], "holds no pictures"),
        (lambda d: (d / "vi").rename(d / "colour"), "lacks a folder of one modality.*rgb"),
    ],
)
def test_bad_folders_are_named(dataset, spoil, message):
    spoil(dataset)
    with pytest.raises(InputError, match=message):
        find_dataset(dataset)


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("x.png", "empty.png"):
        with pytest.raises(InputError, match=f"{name} is no readable picture"):
            read_thermal(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_rgb(tmp_path / "absent.png")
    write_png(tmp_path / "deep.png", np.zeros((40, 40), np.uint16))
    with pytest.raises(InputError, match="unsupported depth"):
        read_rgb(tmp_path / "deep.png")


def test_manifest_selection(dataset):
    rows = ["set,name,ir_file,vi_file,label_file,suggested_use"]
    rows += ["s,a,ir/a.png,vi/a.bmp,labels/a.png,train", "s,b,ir/b.png,vi/b.bmp,,val", "t,b,ir/b.png,vi/b.bmp,b.txt,val"]
    manifest = dataset / "M.csv"
    manifest.write_text("\n".join(rows) + "\n")

    def stems(selection):
        return [p.stem for p in select_pairs(f"{manifest}:{selection}")]

    assert stems("set=s") == ["a", "b"] and stems("set=s,use=val") == ["b"]
    assert stems("set=s,name_from=b") == ["b"] and stems("set=s,name_below=b") == ["a"] and stems("set=s,exclude=a*") == ["b"]
    assert stems("set=s,outside=a..b") == ["b"] and stems("set=s,outside=b..c") == ["a"]
    assert select_pairs(f"{manifest}:set=s")[0].label == dataset / "labels/a.png"
    assert select_pairs(f"{manifest}:set=t")[0].label is None, "only pictures are label pictures"
    assert [p.stem for p in select_pairs(f"mine={dataset}")] == ["a", "b"]
    assert set_name(f"mine={dataset}") == "mine" and set_name(str(dataset)) == dataset.name
    assert set_name(f"{manifest}:set=s,use=val") == "s-val"
    for selection, message in [("set=x", "selects no pair"), ("colour=red", "unknown selector"), ("use=", "selects no pair"), ("outside=a", "outside of another form")]:
        with pytest.raises(InputError, match=message):
            stems(selection)
    (dataset / "vi" / "b.bmp").unlink()
    with pytest.raises(InputError, match="b.bmp is listed.*missing"):
        stems("set=s")


def test_staged_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_folder(out, marker="m", overwrite=False) as folder:
        (folder / "m").write_text("half")
        raise RuntimeError
    assert not any(tmp_path.iterdir())
    with staged_folder(out, marker="m", overwrite=False) as folder:
        (folder / "m").write_text("whole")
    with pytest.raises(InputError, match="exists"), staged_folder(out, marker="m", overwrite=False):
        pass
    with staged_folder(out, marker="m", overwrite=True) as folder:
        (folder / "m").write_text("new")
    assert (out / "m").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError), staged_folder(out, marker="m", overwrite=True) as folder:
        folder.rmdir()  # what is to be moved into place is gone
    assert (out / "m").read_text() == "new", "the earlier result comes back"
    (out / "m").rename(out / "precious")
    with pytest.raises(InputError, match="was not written by this command"), staged_folder(out, marker="m", overwrite=True):
        pass
    assert (out / "precious").exists()
