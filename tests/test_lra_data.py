"""Loaders, the data store and downloads: official formats agree, damage is named, made sets move and resume."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import typer
from lra_sources import (
    add,
    cifar_pixels,
    digits,
    made_up_reviews,
    review_files,
    small_sets,
    write_arrays,
    write_binary,
    write_idx,
    write_lines,
    write_pickled,
    write_sheets,
)
from PIL import Image

from ptd_conformance.lra import data_command, fetch, images, lock, making, official, reviews, store, tasks

__all__ = ["small_sets"]

# --- images


@pytest.fixture(scope="module")
def cifar():
    return cifar_pixels()


@pytest.mark.parametrize("write", [write_binary, write_pickled, write_sheets])
def test_every_form_of_cifar_has_the_same_content(write, cifar, tmp_path, monkeypatch):
    write(tmp_path, cifar)
    monkeypatch.setattr(images, "CIFAR_CONTENT", images.digest(cifar))
    found = images.cifar10(tmp_path)
    assert (np.array_equal(found.pixels, cifar.pixels), np.array_equal(found.labels, cifar.labels)) == (True, True)


def test_foreign_images_are_refused_by_name(cifar, tmp_path):
    write_binary(tmp_path, cifar)
    with pytest.raises(ValueError, match=r"^cifar-10-batches-bin: expected content sha256 795f1793d7b8"):
        images.cifar10(tmp_path)


def test_truncated_archive_is_refused_by_name(cifar, tmp_path):
    write_pickled(tmp_path, cifar)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"^cifar-10-python.tar.gz: expected the official images, got .*truncated"):
        images.cifar10(tmp_path)


def test_batch_that_would_run_code_is_refused(tmp_path):
    import os
    import pickle
    import tarfile

    class Evil:
        def __reduce__(self):
            return os.getcwd, ()

    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in images.BATCHES:
            add(archive, f"x/{name}", pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match=r"posix.getcwd in a batch"):
        images.cifar10(tmp_path)


def test_missing_images_name_where_they_are_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"^image: expected one of cifar-10-batches-py, .* ptd data fetch image$"):
        images.cifar10(tmp_path)


def test_grey_is_pillows(cifar):
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in cifar.pixels[:50]])
    assert np.array_equal(images.grey(cifar.pixels[:50]), expected)


def test_idx_files_and_arrays_of_digits_have_the_same_content(tmp_path, monkeypatch):
    numbers = digits()
    monkeypatch.setattr(images, "MNIST_CONTENT", images.digest(numbers))
    write_idx(tmp_path / "a", numbers)
    write_arrays(tmp_path / "b", numbers)
    first, second = images.mnist(tmp_path / "a"), images.mnist(tmp_path / "b")
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.train == 120


# --- texts


@pytest.fixture
def texts(monkeypatch):
    found = made_up_reviews()
    monkeypatch.setattr(reviews, "CONTENT", reviews.digest(found))
    return found


def write_folder(base, found):
    for name, data in review_files(found).items():
        path = base / "aclImdb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_archive(base, found):
    import tarfile

    with tarfile.open(base / "aclImdb_v1.tar.gz", "w:gz") as archive:
        add(archive, "aclImdb/README", b"not a review")
        for name, data in review_files(found).items():
            add(archive, f"aclImdb/{name}", data)


@pytest.mark.parametrize("write", [write_folder, write_archive, write_lines])
def test_every_form_of_the_reviews_has_the_same_content(write, texts, tmp_path):
    write(tmp_path, texts)
    assert reviews.read(tmp_path) == texts


def test_missing_review_is_noticed(texts, tmp_path):
    write_lines(tmp_path, texts[1:])
    with pytest.raises(ValueError, match=r"^imdb/imdb.jsonl.xz: expected the 50,000 official reviews, got 239 "):
        reviews.read(tmp_path)


def test_truncated_reviews_are_refused_by_name(texts, tmp_path):
    write_lines(tmp_path, texts)
    path = tmp_path / "imdb" / "imdb.jsonl.xz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"^imdb/imdb.jsonl.xz: expected the reviews, got .*truncated or foreign$"):
        reviews.read(tmp_path)


def test_some_of_the_reviews_have_both_labels(texts, tmp_path):
    """The source lists one label after the other."""
    write_lines(tmp_path, texts)
    tasks.TASKS["text"].make(tasks.Order(tmp_path, tmp_path, samples=40))
    data = store.load(tmp_path, "text")
    assert {name: len(part.targets) for name, part in data.splits.items()} == {"train": 18, "validation": 2, "test": 20}
    for part in (data.splits["train"], data.splits["test"]):
        assert np.mean(part.targets) == pytest.approx(0.5, abs=0.15)


def test_rare_characters_are_unknown():
    assert reviews.vocabulary(["aab", "a"], rarest=2) == ["a"]
    tokens, lengths = reviews.encode(["ab"], ["a"], 10)
    assert (tokens.tolist(), lengths.tolist()) == ([reviews.SPECIALS, reviews.UNKNOWN], [2])


def test_same_film_pairs_are_what_they_say():
    rng = np.random.default_rng(0)
    films, labels = np.repeat(np.arange(40), 5), rng.integers(0, 2, 200)
    pairs, same = reviews.same_film_pairs(films, labels, 400, rng)
    assert np.array_equal(films[pairs[:, 0]] == films[pairs[:, 1]], same == 1)
    assert same.mean() == 0.5
    assert np.array_equal(labels[pairs[same == 1]], labels[pairs[same == 0]])
    assert np.all(pairs[:, 0] != pairs[:, 1])


# --- released files of the generated tasks


def test_released_listops_files_are_read(tmp_path):
    folder = tmp_path / official.LISTOPS
    folder.mkdir(parents=True)
    for name in ("train", "val", "test"):
        (folder / f"basic_{name}.tsv").write_text("Source\tTarget\n( ( ( [MAX 4 ) 7 ) ] )\t7\n( ( [MIN 3 ) ] )\t3\n")
    made = tasks.TASKS["listops"].make(tasks.Order(tmp_path, tmp_path, official=True))
    data = store.load(tmp_path, "listops")
    assert store.check(made)["splits"] == {"train": 2, "validation": 2, "test": 2}
    assert data.splits["test"].inputs[0, :6].tolist() == [11, 4, 7, 14, 17, 15]
    assert data.splits["test"].lengths.tolist() == [5, 4]


def test_cut_released_file_is_named_with_its_line(tmp_path):
    folder = tmp_path / official.LISTOPS
    folder.mkdir(parents=True)
    (folder / "basic_train.tsv").write_text("Source\tTarget\n( ( ( [MAX 4 ) 7 ) ] )\t7\n( ( [MIN 3 )")
    with pytest.raises(ValueError, match=r"^basic_train.tsv line 3: expected an end of line, got none"):
        official.read_listops(tmp_path)


def test_released_pathfinder_images_are_read(tmp_path):
    folder = tmp_path / official.PATHFINDER["pathfinder"] / official.HARD
    (folder / "metadata").mkdir(parents=True)
    (folder / "imgs" / "0").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    pixels = rng.integers(0, 256, (10, 32, 32), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "imgs" / "0" / f"sample_{i}.png")
        lines.append(f"imgs/0 sample_{i}.png {i} {i % 2} 14 20\n")
    (folder / "metadata" / "0.npy").write_text("".join(lines))
    found, labels = official.read_pathfinder(tmp_path, "pathfinder", 32)
    assert (np.array_equal(found, pixels.reshape(10, -1)), labels.tolist()) == (True, [0, 1] * 5)


# --- made sets


@pytest.mark.parametrize("name", tasks.TASKS)
def test_made_set_has_the_tasks_shape(name, small_sets):
    data, task = store.load(small_sets, name), tasks.TASKS[name]
    assert list(data.splits) == ["train", "validation", "test"]
    for split in data.splits.values():
        count = len(split.targets)
        pair, channels = ((2,) if task.pair else ()), ((3,) if name == "scifar" else ())
        assert split.inputs.shape == (count, *pair, task.length, *channels)
        assert (split.inputs.dtype, int(split.targets.max()) < task.classes) == (np.uint8, True)
        if split.lengths is not None:
            assert (split.lengths.shape, split.lengths.min() > 0) == ((count, *pair), True)
            assert int(split.inputs.max()) < data.d_input


@pytest.fixture
def moved(small_sets, tmp_path):
    """A copy of a made set elsewhere."""
    folder = store.find(small_sets, "listops")
    return shutil.copytree(folder, tmp_path / "made" / folder.name)


def test_made_set_can_be_moved(moved, small_sets):
    here, there = (store.load(base, "listops").splits["train"] for base in (moved.parent.parent, small_sets))
    assert np.array_equal(here.inputs, there.inputs)


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"tokens.npy: expected \d+ bytes, got"),
    "changed": (
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        "tokens.npy: expected sha256 .* it is damaged",
    ),
    "missing": (lambda path: path.unlink(), "tokens.npy: expected a file, got none"),
    "foreign": (lambda path: (path.parent / "x.npy").write_bytes(b""), "expected the manifest's files, got also x.npy"),
    "renamed": (
        lambda path: (path.parent / "manifest.json").write_text(
            (path.parent / "manifest.json").read_text().replace('"seed": 0', '"seed": 1')
        ),
        "expected the set listops-",
    ),
    "other layout": (
        lambda path: (path.parent / "manifest.json").write_text(
            (path.parent / "manifest.json").read_text().replace('"nibbles"', '"bits"')
        ),
        "expected a manifest with a layout of dense, ragged, nibbles, pairs, got one without",
    ),
    "cut manifest": (
        lambda path: (path.parent / "manifest.json").write_text('{"format'),
        "^manifest.json: expected the manifest of listops-.*, got JSONDecodeError: .*; make the set again$",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind, moved):
    damage, message = DAMAGE[kind]
    damage(moved / "tokens.npy")
    with pytest.raises(ValueError, match=message) as found:
        store.load(moved.parent.parent, "listops")
    assert moved.name in str(found.value)


def test_missing_set_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"got none; ptd data make pathx --root "):
        store.find(tmp_path, "pathx")


def test_two_sets_of_a_task_are_told_apart_by_no_guess(moved):
    tasks.TASKS["listops"].make(tasks.Order(moved.parent.parent, moved, samples=50))
    with pytest.raises(ValueError, match=r"expected one made set under .* remove all but one"):
        store.load(moved.parent.parent, "listops")


def test_interrupted_generator_goes_on_and_ends_with_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "BLOCK", 1 << 17)
    count = 2 * 128 + 10

    def make(base, stop_after):
        calls = []

        def report(done, total):
            calls.append(done)
            if len(calls) == stop_after:
                raise KeyboardInterrupt

        tasks.TASKS["pathfinder"].make(tasks.Order(base, base, samples=count, report=report))
        return calls

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", stop_after=2)
    assert not store.made(tmp_path / "a")
    drawn = []
    from ptd_conformance.lra.pathfinder import Generator

    honest = Generator.parallel
    monkeypatch.setattr(
        Generator, "parallel", lambda self, first, *rest: drawn.append(first) or honest(self, first, *rest)
    )
    make(tmp_path / "a", stop_after=None)
    resumed = list(drawn)
    make(tmp_path / "b", stop_after=None)
    assert resumed == [256]  # the two finished blocks were not drawn again
    first, second = (store.check(store.find(tmp_path / name, "pathfinder"))["files"] for name in "ab")
    assert first == second


def small_order(base, **options) -> tasks.Order:
    return tasks.Order(base, base, samples=20, **options)


@pytest.fixture
def whole_set(tmp_path) -> Path:
    return tasks.TASKS["pathfinder"].make(small_order(tmp_path))


def test_set_that_is_there_and_whole_is_not_made_again(whole_set, tmp_path):
    before, said = (whole_set / "inputs.npy").stat(), []
    (whole_set.parent / f".{whole_set.name}.partial").mkdir()
    assert tasks.TASKS["pathfinder"].make(small_order(tmp_path, say=said.append)) == whole_set
    assert (whole_set / "inputs.npy").stat() == before
    assert said == [f"{whole_set.name}: already there, every checksum matches"]
    assert list(whole_set.parent.iterdir()) == [whole_set]


@pytest.mark.parametrize("name", ["pathfinder", "image"])
def test_damaged_set_is_replaced_by_the_one_that_is_made(name, tmp_path, cifar, monkeypatch):
    write_binary(tmp_path, cifar)
    monkeypatch.setattr(images, "CIFAR_CONTENT", images.digest(cifar))
    folder, said = tasks.TASKS[name].make(small_order(tmp_path)), []
    files = store.check(folder)["files"]
    (folder / "targets.npy").write_bytes(b"")
    assert tasks.TASKS[name].make(small_order(tmp_path, say=said.append)) == folder
    assert store.check(folder)["files"] == files
    assert said[0].startswith(f"{folder.name}/targets.npy: expected ")
    assert list(folder.parent.iterdir()) == [folder]


def test_full_disk_is_an_error_before_the_first_block(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"^inputs.npy: expected room for 20608 bytes in .* No space left .*; make room"):
        tasks.TASKS["pathfinder"].make(small_order(tmp_path))
    assert list(tmp_path.rglob("*.npy")) == []


def test_files_of_a_set_have_no_holes(tmp_path):
    draft = store.Draft(tmp_path, "pathfinder", {})
    draft.array("inputs", (1 << 20,), np.uint8)
    assert (draft.folder / "inputs.npy").stat().st_blocks * 512 >= 1 << 20


def test_maker_killed_at_its_end_keeps_its_blocks_and_leaves_nothing_foreign(tmp_path, monkeypatch):
    """Killed while it writes the manifest: an unfinished file stays, and the notes on blocks."""

    def killed(path):
        (path.parent / ".manifest.json.18009").write_bytes(b"{")
        raise KeyboardInterrupt

    honest = store.describe
    monkeypatch.setattr(store, "describe", killed)
    with pytest.raises(KeyboardInterrupt):
        tasks.TASKS["pathfinder"].make(small_order(tmp_path))
    monkeypatch.setattr(store, "describe", honest)
    from ptd_conformance.lra.pathfinder import Generator

    monkeypatch.delattr(Generator, "parallel")
    store.check(tasks.TASKS["pathfinder"].make(small_order(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples: expected a positive integer, got 0"),
        ({"samples": -5}, "samples: expected a positive integer, got -5"),
        ({"workers": 0}, "workers: expected a positive integer, got 0"),
        ({"seed": -1}, "seed: expected an integer in 0..2\\^63 - 1, got -1"),
    ],
    ids=str,
)
def test_numbers_that_make_no_set_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        tasks.Order(tmp_path, tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("listops", "3: 3 train, 0 validation, 0 test"),
        ("pathfinder", "3: 2 train, 0 validation, 1 test"),
        ("same-film", "20: 16 train, 1 validation, 3 test"),
    ],
)
def test_set_without_a_sample_in_every_split_is_refused(name, got, tmp_path):
    order = tasks.Order(tmp_path, tmp_path, samples=int(got.partition(":")[0]))
    with pytest.raises(ValueError, match=rf"^samples: expected at least \d in every split, got {got}; pass more$"):
        tasks.TASKS[name].make(order)


# --- the command


def data(*arguments: str, capfd: pytest.CaptureFixture) -> list[str]:
    """Lines of a call whose output goes to a file."""
    app = typer.Typer()
    app.command()(data_command.data)
    app(list(map(str, arguments)), standalone_mode=False)
    return capfd.readouterr().out.splitlines()


def test_all_sets_are_verified_and_damage_tells_at_the_end(small_sets, tmp_path, capfd):
    shutil.copytree(store.find(small_sets, "listops"), tmp_path / "made" / store.find(small_sets, "listops").name)
    shutil.copytree(store.find(small_sets, "mnist"), tmp_path / "made" / store.find(small_sets, "mnist").name)
    (store.find(tmp_path, "listops") / "tokens.npy").unlink()
    with pytest.raises(ValueError, match=r"^tasks: expected made sets as they were written, got 1 damaged of 2$"):
        data("verify", "--root", tmp_path, capfd=capfd)
    damaged, whole = capfd.readouterr().out.splitlines()
    assert "tokens.npy: expected a file, got none" in damaged
    assert whole.endswith(", every checksum matches")


def test_lines_are_whole_in_a_file(small_sets, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = data("verify", "--root", small_sets, capfd=capfd)
    assert (len(lines), all(line.endswith("every checksum matches") for line in lines)) == (len(tasks.TASKS), True)


@pytest.mark.parametrize("columns", ["80", None])
def test_names_of_tasks_and_sets_are_whole_in_a_list(columns, small_sets, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
    listed = "\n".join(data("list", "--root", small_sets, capfd=capfd))
    names = [*tasks.TASKS, *(folder.name for folder in store.made(small_sets))]
    assert [name for name in names if f" {name} " not in listed] == []
    assert columns or "…" not in listed


def test_tasks_are_listed_without_a_data_folder(capfd, monkeypatch):
    monkeypatch.delenv("PTD_DATA", raising=False)
    *table, last = data("list", capfd=capfd)
    assert [name for name in tasks.TASKS if f" {name} " not in "\n".join(table)] == []
    assert last == "made sets are listed with --root FOLDER or PTD_DATA"
    with pytest.raises(
        ValueError, match=r"^root: expected a data folder, got none; pass --root FOLDER or set PTD_DATA$"
    ):
        data("verify", capfd=capfd)


def test_brackets_in_names_are_no_markup(tmp_path, capfd, monkeypatch):
    base = tmp_path / "a[" / "x]" / "[red]"
    with pytest.raises(ValueError, match=r"got none"):
        data("verify", "--root", base, capfd=capfd)
    monkeypatch.setattr(fetch, "fetch", lambda base, *_: [base / "file"])
    assert data("fetch", "image", "--root", base, capfd=capfd) == [f"{base}/file: there, its checksum matches"]


def test_second_maker_of_a_task_is_refused_in_one_line(tmp_path, capfd):
    with (
        lock.alone(tmp_path / "made" / ".pathfinder.lock", "tasks", "a set"),
        pytest.raises(ValueError, match=r"^tasks: expected a set of pathfinder that no other process works on, got"),
    ):
        data("make", "pathfinder", "--samples", "20", "--root", tmp_path, capfd=capfd)
    data("make", "pathfinder", "--samples", "20", "--root", tmp_path, capfd=capfd)
    store.check(store.find(tmp_path, "pathfinder"))


def test_make_names_the_extra_that_is_missing(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"^ptd data make: needs numba .*pip install \"ptd\[lra\]\"$"):
        data("make", "pathfinder", "--root", tmp_path, capfd=capfd)


# --- parts


def test_nibbles_hold_two_tokens_to_a_byte():
    tokens = np.arange(15, dtype=np.uint8)
    manifest = {"length": 20, "pad": 15, "end": 9}
    arrays = {"tokens": store.as_nibbles(tokens), "lengths": np.array([4, 11], np.uint16)}
    rows, lengths = store._nibbles(manifest, arrays)
    assert rows[0].tolist() == [0, 1, 2, 3, 9] + [15] * 15
    assert rows[1, :12].tolist() == [*range(4, 15), 9]
    assert lengths.tolist() == [5, 12]


def test_data_folder_has_to_be_named(monkeypatch):
    monkeypatch.delenv("PTD_DATA", raising=False)
    with pytest.raises(
        ValueError, match=r"^root: expected a data folder, got none; pass --root FOLDER or set PTD_DATA"
    ):
        store.root()


# --- downloads


@pytest.fixture
def server(tmp_path):
    """A server of one file that honours ranges, and the ranges it was asked for."""
    content, asked = bytes(range(256)) * 40, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            start = int(asked[-1].removeprefix("bytes=").rstrip("-")) if asked[-1] else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : 5000 if self.path.endswith("?cut") else None])

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/x", content, asked
        running.shutdown()
        thread.join()


def served(monkeypatch, url, content):
    file = fetch.File("folder/x.bin", url, hashlib.md5(content).hexdigest())
    monkeypatch.setitem(fetch.FILES, "image", [file])


def test_fetch_writes_a_file_that_matches_its_checksum(server, tmp_path, monkeypatch):
    url, content, asked = server
    served(monkeypatch, url, content)
    (path,) = fetch.fetch(tmp_path, "image")
    fetch.fetch(tmp_path, "image")
    assert (path.read_bytes(), len(asked)) == (content, 1)


def test_fetch_goes_on_where_it_was_cut(server, tmp_path, monkeypatch):
    url, content, asked = server
    served(monkeypatch, url, content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".x.bin.part").write_bytes(content[:1000])
    (path,) = fetch.fetch(tmp_path, "image")
    assert (path.read_bytes(), asked) == (content, ["bytes=1000-"])


def test_whole_part_only_gets_its_name(server, tmp_path, monkeypatch):
    url, content, asked = server
    served(monkeypatch, url, content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".x.bin.part").write_bytes(content)
    (path,) = fetch.fetch(tmp_path, "image")
    assert (path.read_bytes(), asked) == (content, [])


def test_part_of_another_file_as_long_is_begun_again(server, tmp_path, monkeypatch):
    url, content, asked = server
    served(monkeypatch, url, content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".x.bin.part").write_bytes(bytes(len(content)))
    (path,) = fetch.fetch(tmp_path, "image")
    assert (path.read_bytes(), asked) == (content, [f"bytes={len(content)}-", None])


def test_part_of_a_server_that_closes_early_stays(server, tmp_path, monkeypatch):
    url, content, asked = server
    served(monkeypatch, f"{url}?cut", content)
    with pytest.raises(OSError, match=r"^folder/x.bin: expected .* got 5000 of 10240 bytes; .* goes on from here$"):
        fetch.fetch(tmp_path, "image")
    served(monkeypatch, url, content)
    (path,) = fetch.fetch(tmp_path, "image")
    assert (path.read_bytes(), asked) == (content, [None, "bytes=5000-"])


def test_behind_a_proxy_the_server_is_not_looked_up_here(server, tmp_path, monkeypatch):
    url, content, _ = server
    served(monkeypatch, "http://no-such-host.invalid/x", content)
    monkeypatch.setenv("http_proxy", url.removesuffix("/x"))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies it was made with
    (path,) = fetch.fetch(tmp_path, "image")
    assert path.read_bytes() == content


def test_fetched_file_that_does_not_match_is_discarded(server, tmp_path, monkeypatch):
    url, content, _ = server
    served(monkeypatch, url, content[:-1])
    with pytest.raises(ValueError, match=r"^folder/x.bin: expected MD5 .*discarded"):
        fetch.fetch(tmp_path, "image")
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "https://no-such-host.invalid/x"])
def test_without_a_network_fetch_fails_in_a_second_with_one_line(url, tmp_path, monkeypatch):
    served(monkeypatch, url, b"")
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    began = time.monotonic()
    with pytest.raises(OSError, match=r"^network: expected .* to answer, got .*; copy the file") as found:
        fetch.fetch(tmp_path, "image")
    assert (time.monotonic() - began < 2, "\n" in str(found.value)) == (True, False)


def test_generated_task_has_nothing_to_fetch(tmp_path):
    with pytest.raises(ValueError, match=r"^listops: expected a task with files to fetch.*ptd data make listops$"):
        fetch.fetch(tmp_path, "listops")


def test_manifest_says_what_a_set_was_made_from(small_sets):
    manifest = json.loads((Path(store.find(small_sets, "image")) / "manifest.json").read_text())
    assert manifest["made_from"].keys() == {"content", "seed", "samples"}
    assert manifest["full"] is False
