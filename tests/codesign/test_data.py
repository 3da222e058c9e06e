"""Data sets: where they come from, how they are split, and what is refused."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codesign.data import Normalization, digits, load_data
from codesign.describe import describe

N, N_TEST, CLASSES = 60, 20, 3


def arrays(shape=(6, 6, 3), dtype=np.uint8, n=N, n_test=N_TEST):
    """Random images whose first pixel is the index of the image."""
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", n), ("test", n_test)):
        x = rng.integers(0, 256, (count, *shape)).astype(dtype)
        x.reshape(count, -1)[:, 0] = np.arange(count)
        made |= {f"x_{part}": x, f"y_{part}": np.arange(count) % CLASSES}
    return made


@pytest.fixture
def saved(tmp_path):
    def save(name="set.npz", **changes):
        path = tmp_path / name
        kept = {key: value for key, value in (arrays() | changes).items() if value is not None}
        np.savez(path, **kept)
        return str(path)

    return save


def pixels(part, scaling):
    """Images as they were before they were normalised; shape (n, C, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in scaling[1:])
    return ((part.images * std + mean) * scaling.largest).round()


def indices(part, scaling):
    return [int(image[0, 0, 0]) for image in pixels(part, scaling)]


def test_training_and_search_images_are_disjoint_parts_of_the_training_set_with_their_labels(saved):
    data = load_data(saved(), n_train=30, n_search=12)
    train, search = indices(data.train, data.scaling), indices(data.search, data.scaling)
    assert not set(train) & set(search) and len({*train, *search}) == 42
    for part, index in ((data.train, train), (data.search, search)):
        assert part.labels.tolist() == [i % CLASSES for i in index]
    assert sorted(indices(data.test, data.scaling)) == list(range(N_TEST))
    assert data.classes == CLASSES


def test_by_default_all_images_are_used_and_a_fifth_of_the_training_set_is_for_search(saved):
    data = load_data(saved())
    assert [len(part.labels) for part in data] == [N - N // 5, N // 5, N_TEST]


def test_each_part_has_the_classes_in_their_shares_and_so_have_its_first_images(saved):
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    data = load_data(saved(y_train=labels), n_train=36, n_search=12)
    assert (data.train.labels.bincount() - torch.tensor([18, 12, 6])).abs().max() <= 1
    assert (data.search.labels.bincount() - torch.tensor([6, 4, 2])).abs().max() <= 1
    assert (data.train.labels[:18].bincount() - torch.tensor([9, 6, 3])).abs().max() <= 1


def test_the_choice_depends_on_the_seed_alone_and_fewer_images_are_a_subset(saved):
    path = saved()
    data = load_data(path, n_train=30, n_search=10, seed=1)
    assert describe(data) == describe(load_data(path, n_train=30, n_search=10, seed=1))
    few, other = load_data(path, n_train=20, n_search=10, seed=1), load_data(path, n_train=30, n_search=10, seed=2)
    assert indices(few.train, few.scaling) == indices(data.train, data.scaling)[:20]
    assert indices(other.train, other.scaling) != indices(data.train, data.scaling)


def test_pixels_are_normalised_by_the_mean_and_deviation_of_the_training_part_alone(saved):
    data = load_data(saved(), n_train=30)
    raw = arrays()["x_train"][indices(data.train, data.scaling)] / 255
    assert data.scaling.mean == pytest.approx(raw.mean((0, 1, 2)), rel=1e-6)
    assert data.scaling.std == pytest.approx(raw.std((0, 1, 2)), rel=1e-6)
    assert data.train.images.mean((0, 2, 3)).numpy() == pytest.approx(0, abs=1e-6)
    assert data.train.images.std((0, 2, 3), correction=0).numpy() == pytest.approx(1, rel=1e-6)
    expected = (raw - raw.mean((0, 1, 2))) / raw.std((0, 1, 2))
    assert data.train.images.numpy() == pytest.approx(expected.transpose(0, 3, 1, 2), abs=1e-5)
    assert data.train.images.dtype == torch.float32 and data.train.images.is_contiguous()


def test_a_constant_channel_stays_finite(saved):
    images = arrays()["x_train"]
    images[..., 2] = 77
    data = load_data(saved(x_train=images))
    assert data.train.images.isfinite().all() and (data.train.images[:, 2].abs() < 1e-6).all()


@pytest.mark.parametrize(
    ("shape", "move", "expected"),
    [
        ((6, 7, 3), lambda x: x, (3, 6, 7)),
        ((6, 7, 3), lambda x: x.transpose(0, 3, 1, 2), (3, 6, 7)),
        ((6, 7), lambda x: x, (1, 6, 7)),
    ],
)
def test_layouts_with_channels_last_or_first_or_none_are_understood(saved, shape, move, expected):
    made = arrays(shape)
    data = load_data(saved(**made | {"x_train": move(made["x_train"]), "x_test": move(made["x_test"])}))
    assert data.test.images.shape[1:] == expected
    order = indices(data.test, data.scaling)
    first = made["x_test"][order[0]]
    assert (pixels(data.test, data.scaling)[0].numpy() == np.moveaxis(first.reshape(6, 7, -1), -1, 0)).all()


def test_float_pixels_are_taken_as_they_are_and_labels_may_be_a_column(saved):
    made = arrays(dtype=np.float64)
    data = load_data(saved(**made | {"y_train": made["y_train"][:, None].astype(np.uint8)}))
    assert data.scaling.largest == 1 and data.scaling.mean[0] > 50


def test_the_digits_are_embedded_and_their_test_set_is_that_of_digits():
    data, plain = load_data("digits", n_search=100, seed=4), digits(4)
    assert sorted(data.test.labels.tolist()) == sorted(plain.test.labels.tolist())
    assert [len(part.labels) for part in data] == [1437 - 100, 100, 360]


BAD = {
    "a test set without labels": ({"y_test": None}, r"but y_test missing: it has x_train, y_train, x_test"),
    "labels of another length": ({"y_train": np.zeros(5, int)}, r"60 images and labels \(5,\)"),
    "labels that are not integers": ({"y_train": np.zeros(N)}, r"x_train must have integer labels, got float64"),
    "a negative label": (
        {"y_train": np.arange(N) % 3 - 1},
        "labels of the training images must be from 0 to 1, got -1",
    ),
    "a test label that training has not": ({"y_test": np.arange(N_TEST)}, "test images must be from 0 to 2, got 3"),
    "a class that has no images": ({"y_train": np.arange(N) % 3 * 2}, "got none of class 1"),
    "a label far too large": ({"y_train": np.arange(N) * 1000}, "got none of class"),
    "vectors in place of images": ({"x_train": np.zeros((N, 9), np.uint8)}, r"shape \(n, H, W\).*got \(60, 9\)"),
    "seven channels": ({"x_train": np.zeros((N, 9, 9, 7), np.uint8)}, r"got \(60, 9, 9, 7\)"),
    "signed pixels": ({"x_train": np.zeros((N, 9, 9), np.int16)}, "uint8 or float, got int16"),
    "pixels that are nan": ({"x_train": np.full((N, 6, 6, 3), np.nan)}, "pixels must be finite"),
    "test images of another size": ({"x_test": np.zeros((N_TEST, 5, 6, 3), np.uint8)}, "must have one shape"),
    "no test images": ({"x_test": np.zeros((0, 6, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "got none"),
    "objects": ({"y_train": np.array([object()] * N)}, "must be numbers, but some are Python objects"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_file_is_refused_that_holds(saved, changes, message):
    path = saved(**changes)
    with pytest.raises(ValueError, match=message) as error:
        load_data(path)
    assert path in str(error.value)


def test_a_file_that_is_cut_short_or_damaged_is_refused(saved, tmp_path):
    data = Path(saved()).read_bytes()
    for n in (0, 10, 3000, len(data) // 2, len(data) - 10):
        (tmp_path / "cut.npz").write_bytes(data[:n])
        with pytest.raises(ValueError, match="cut short"):
            load_data("cut.npz", tmp_path)
    (tmp_path / "cut.npz").write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    with pytest.raises(ValueError, match="damaged"):
        load_data("cut.npz", tmp_path)


def test_a_pickle_is_not_opened_whatever_its_name(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "opened"), "w")

    for name in ("set.npz", "cifar10.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    batches = tmp_path / "cifar" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (batches / name).write_bytes(pickle.dumps(Bomb()))
    for source, folder in (("set.npz", tmp_path), ("cifar10", tmp_path), ("cifar10", tmp_path / "cifar")):
        with pytest.raises(ValueError):
            load_data(source, folder)
    assert not (tmp_path / "opened").exists()


def test_more_images_than_there_are_is_refused(saved):
    path = saved()
    with pytest.raises(ValueError, match="asked for, got 65 of 60"):
        load_data(path, n_train=50, n_search=15)
    with pytest.raises(ValueError, match="61 of 60"):
        load_data(path, n_search=60)
    with pytest.raises(ValueError, match="test images as are asked for, got 21 of 20"):
        load_data(path, n_test=21)
    with pytest.raises(ValueError, match="n_train must be at least 1, got n_train=0"):
        load_data(path, n_train=0)
    with pytest.raises(ValueError, match="raise n_train"):
        load_data(path, n_train=2)


def test_what_is_not_there_is_named_with_what_could_be_meant(tmp_path):
    with pytest.raises(ValueError, match=r"digits, cifar10, .*near it is fashion-mnist"):
        load_data("fashon-mnist")
    with pytest.raises(FileNotFoundError, match=r"data_dir must be a folder, got .*absent"):
        load_data("cifar10", tmp_path / "absent")
    with pytest.raises(ValueError, match="give data_dir"):
        load_data("cifar10")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_data(str(tmp_path / "absent.npz"))


def test_a_known_set_may_be_an_npz_whose_labels_are_checked_against_its_classes(saved, tmp_path):
    saved("mnist.npz", **arrays((6, 6)))
    with pytest.raises(ValueError, match="each class from 0 to 9"):
        load_data("mnist", tmp_path)
    saved("mnist.npz", **arrays((6, 6)) | {"y_train": np.arange(N) % 10})
    assert load_data("MNIST", tmp_path).train.images.shape[1:] == (1, 6, 6)


@pytest.fixture
def idx(tmp_path):
    """A small data set in torchvision's layout of MNIST."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 50), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        images[:, 0, 0] = np.arange(n)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    return tmp_path


def test_files_as_torchvision_keeps_them_are_read(idx):
    data = load_data("fashion-mnist", idx, n_search=10)
    assert data.train.images.shape == (40, 1, 28, 28) and len(data.test.labels) == 20
    assert data.train.labels.tolist() == [i % 10 for i in indices(data.train, data.scaling)]


@pytest.mark.parametrize("n_bytes", [None, 0, 12, 1000])
def test_torchvision_files_that_are_missing_or_half_downloaded_are_refused(idx, n_bytes):
    path = idx / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    data = path.read_bytes()
    path.unlink()
    if n_bytes is not None:
        path.write_bytes(data[:n_bytes])
    with pytest.raises(ValueError, match="damaged") as error:
        load_data("fashion-mnist", idx)
    assert "train-images-idx3-ubyte" in str(error.value) or n_bytes is not None


def test_each_missing_file_of_cifar_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cifar-10-batches-py/data_batch_1, .*test_batch missing or damaged"):
        load_data("cifar10", tmp_path)
    with pytest.raises(ValueError, match=r"train_32x32.mat, test_32x32.mat missing or damaged"):
        load_data("svhn", tmp_path)


def test_the_real_fashion_mnist_is_read(reference_dir, tmp_path):
    script = reference_dir / "data" / "unpack.py"
    subprocess.run([sys.executable, script, tmp_path, "fashion_mnist"], check=True, stdout=subprocess.DEVNULL)
    data = load_data("fashion-mnist", tmp_path, n_train=2000, n_search=1000)
    assert [len(part.labels) for part in data] == [2000, 1000, 10_000]
    assert data.train.labels.bincount().tolist() == [200] * 10 and data.test.labels.bincount().tolist() == [1000] * 10
    whole = load_data("fashion-mnist", tmp_path, n_train=59_990, n_search=10, n_test=1)
    # The mean and deviation that are commonly quoted for the 60,000 training images.
    assert whole.scaling.mean[0] == pytest.approx(0.2860, abs=1e-4)
    assert whole.scaling.std[0] == pytest.approx(0.3530, abs=1e-4)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 10), ("val", 4)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


def test_a_folder_of_pictures_is_read(pictures):
    data = load_data(str(pictures), n_search=4)
    assert [tuple(part.images.shape) for part in data] == [(16, 3, 6, 5), (4, 3, 6, 5), (8, 3, 6, 5)]
    assert data.train.labels.bincount().tolist() == [8, 8]
    dog = np.asarray(Image.open(pictures / "val" / "dog" / "0.png")).transpose(2, 0, 1)
    matching = [i for i, image in enumerate(pixels(data.test, data.scaling).numpy()) if (image == dog).all()]
    assert data.test.labels[matching].tolist() == [1]


def test_a_folder_is_refused_whose_pictures_are_cut_of_other_sizes_or_in_other_classes(pictures):
    file = pictures / "train" / "cat" / "0.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"0\.png.*must be a whole picture"):
        load_data(str(pictures))
    Image.new("RGB", (7, 7)).save(file)
    with pytest.raises(ValueError, match="one size"):
        load_data(str(pictures))
    file.write_bytes(whole)
    (pictures / "val" / "dog").rename(pictures / "val" / "wolf")
    with pytest.raises(ValueError, match="not in both: dog, wolf"):
        load_data(str(pictures))
    (pictures / "val").rename(pictures / "other")
    with pytest.raises(ValueError, match="must hold train/ and test/ or val/, it has other, train"):
        load_data(str(pictures))


def test_the_search_set_can_be_taken_from_the_test_images(saved):
    path = saved()
    data = load_data(path, search_from="test")
    assert [len(part.labels) for part in data] == [N, N_TEST // 5, N_TEST - N_TEST // 5]
    search, test = indices(data.search, data.scaling), indices(data.test, data.scaling)
    assert sorted(search + test) == list(range(N_TEST))
    assert data.search.labels.tolist() == [i % CLASSES for i in search]
    with pytest.raises(ValueError, match="search_from must be train or test, got 'val'"):
        load_data(path, search_from="val")
    with pytest.raises(ValueError, match="as many test images as are asked for, got 21 of 20"):
        load_data(path, search_from="test", n_search=20)


def test_images_can_be_normalised_as_weights_expect(saved):
    given = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    data = load_data(saved(), n_train=30, normalize=given)
    assert data.scaling == (255.0, *given)
    raw = arrays()["x_train"][indices(data.train, data.scaling)[0]]
    expected = (raw / 255 - np.array(given.mean)) / np.array(given.std)
    np.testing.assert_allclose(data.train.images[0].permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    assert Normalization.parse("0.1,0.2,0.3/0.5,0.6,0.7") == given
    assert Normalization.parse("imagenet").mean == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match="a number for each of the 3 channels, got 1"):
        load_data(saved(), normalize=Normalization((0.5,), (0.5,)))


@pytest.mark.parametrize("text", ["image", "0.5", "0.5,0.5/0.5", "0.5/0", "0.5/-1", "nan/1", "a/b", "1/2/3"])
def test_a_normalization_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="it must be imagenet, or the mean of each channel"):
        Normalization.parse(text)
