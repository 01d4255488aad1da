"""``enclavia.fsspec``: fsspec's own suite of tests, and what HTTP means for files."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import posixpath
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from repository import ROOT
from store_app import Store

import enclavia
from enclavia.testing import LocalEnclave

fsspec = pytest.importorskip("fsspec")
abstract = pytest.importorskip("fsspec.tests.abstract")
from enclavia.fsspec import EnclaviaFileSystem  # noqa: E402


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Store, LocalEnclave, enclavia.Client]]:
    store = Store()
    with (
        LocalEnclave(store) as enclave,
        enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client,
    ):
        yield store, enclave, client


@pytest.fixture
def store(served: tuple[Store, LocalEnclave, enclavia.Client]) -> Store:
    served[0].__init__()  # type: ignore[misc] - as new
    return served[0]


@pytest.fixture
def fs(store: Store, served: tuple[Store, LocalEnclave, enclavia.Client]) -> Any:
    return EnclaviaFileSystem(served[2], writable=True)


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc, name-defined]
    @pytest.fixture
    def fs(self, store: Store, served: tuple[Store, LocalEnclave, enclavia.Client]) -> Any:
        return EnclaviaFileSystem(served[2], writable=True)

    @pytest.fixture
    def fs_path(self) -> str:
        return "/suite"

    @pytest.fixture
    def fs_join(self) -> Any:
        return posixpath.join

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc, name-defined]
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc, name-defined]
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc, name-defined]
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc, name-defined]
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc, name-defined]
    pass


# -- what is there


def test_files_and_directories(fs: Any, store: Store) -> None:
    store.files = {"/a/b.txt": b"12345", "/a/c/d": b"", "/e f?#%": b"1"}
    assert fs.info("enclavia://a/b.txt")["size"] == 5
    assert fs.info("/a/b.txt")["type"] == "file"
    assert fs.info("a")["type"] == "directory"
    assert fs.ls("/a", detail=False) == ["/a/b.txt", "/a/c"]
    assert fs.ls("/a/b.txt", detail=False) == ["/a/b.txt"]
    assert fs.find("/") == ["/a/b.txt", "/a/c/d", "/e f?#%"]
    assert fs.glob("/a/*.txt") == ["/a/b.txt"]
    assert fs.cat_file("/e f?#%") == b"1"
    assert fs.exists("/a/b.txt") and not fs.exists("/a/x") and fs.isdir("/") and fs.isdir("/a")
    assert fs.modified("/a/b.txt").year == 2020
    for call in (fs.info, fs.ls, fs.cat_file, fs.open, fs.rm_file):
        with pytest.raises(FileNotFoundError, match="/a/x"):
            call("/a/x")


def test_what_zarr_says_to_every_file_system_is_taken(fs: Any, store: Store) -> None:
    """It has nothing to do with a client: whoever says it wraps a file system that blocks."""
    store.files = {"/a/b.txt": b"12345"}
    opened = fsspec.open("enclavia://a/b.txt", client=fs.client, asynchronous=True, loop=None)
    with opened as file:
        assert file.read() == b"12345"


def test_without_an_index(fs: Any, store: Store) -> None:
    store.files = {"/a/b.txt": b"12345"}
    store.index = False
    assert fs.cat("/a/b.txt") == b"12345"
    for call in (fs.ls, fs.find, lambda path: list(fs.walk(path))):
        with pytest.raises(io.UnsupportedOperation, match="autoindex_format json"):
            call("/a")
    with pytest.raises(io.UnsupportedOperation):
        fs.glob("/a/*")


def test_what_cannot_be_answered_is_no_no(
    fs: Any,
    store: Store,
    served: tuple[Store, LocalEnclave, enclavia.Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """fsspec takes any error for a file that is not there, and leaves out of a listing what could
    not be listed."""
    store.files = {"/a/b": b"1", "/a/c/d": b"2"}
    answer = store.answer

    def failing(method: str, path: str, environ: Any) -> Any:
        return (503, {}, b"") if path.startswith("/a/c") else answer(method, path, environ)

    store.answer = failing  # type: ignore[method-assign]
    try:
        for call in (fs.exists, fs.isfile, fs.isdir):
            assert call("/a/x") is False
            with pytest.raises(httpx2.HTTPStatusError):
                call("/a/c/d")
        with pytest.raises(httpx2.HTTPStatusError):
            fs.find("/a")
    finally:
        del store.answer

    def late(*_: object, **__: object) -> None:
        raise enclavia.ReadTimeout("nothing came")  # which is an OSError, as a missing file is

    monkeypatch.setattr(served[2], "send", late)
    for call in (fs.exists, fs.isfile, fs.isdir, fs.find):
        with pytest.raises(enclavia.ReadTimeout):
            call("/a/c")


@pytest.mark.parametrize("name", ["../x", "..", "/etc/passwd", "a/b", "", "a\\b", "a\0b"])
def test_names_that_lead_elsewhere(name: str, fs: Any, store: Store, tmp_path: Path) -> None:
    """Getting a directory makes local files of the names that the workload says."""
    store.files = {"/a/b": b"12345"}
    store.named = lambda _: name
    with pytest.raises(enclavia.ProtocolError, match="leads elsewhere"):
        fs.get("/a", str(tmp_path / "out"), recursive=True)
    with pytest.raises(ValueError, match="path: "):
        fs.cat_file("/a/../b")


def test_no_path_leads_out_of_the_enclave(fs: Any, store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        fs.cat_file("enclavia://elsewhere.example/x")
    assert store.methods == ["GET /elsewhere.example/x"]
    for path in ("//elsewhere.example/x", "https://elsewhere.example/x"):
        with pytest.raises(FileNotFoundError):
            fs.cat_file(path)
    assert all("elsewhere.example/x" in each for each in store.methods)


# -- reading and writing


def test_slices(fs: Any, store: Store) -> None:
    body = os.urandom(200_000)
    store.files = {"/x": body}
    for start, end in ((None, None), (10, 20), (-10, None), (100_000, -5), (None, 7), (5, 5)):
        assert fs.cat_file("/x", start, end) == body[start:end]
    with fs.open("/x", cache_size=65_536, read_ahead=0) as file:
        file.seek(150_000)
        assert file.read(10) == body[150_000:150_010]
    store.files = {"/t": "ä\nb\n".encode()}
    with fs.open("/t", "r", encoding="utf-8") as text:
        assert text.readlines() == ["ä\n", "b\n"]


def test_a_file_system_that_was_not_made_to_write(
    store: Store, served: tuple[Store, LocalEnclave, enclavia.Client], tmp_path: Path
) -> None:
    store.files = {"/x": b"1"}
    (tmp_path / "y").write_bytes(b"2")
    fs = EnclaviaFileSystem(served[2])
    for call in (
        lambda: fs.open("/x", "wb"),
        lambda: fs.rm("/x"),
        lambda: fs.pipe_file("/x", b""),
        lambda: fs.put_file(str(tmp_path / "y"), "/x"),
        lambda: fs.cp_file("/x", "/z"),
        lambda: fs.mv("/x", "/z"),
    ):
        with pytest.raises(io.UnsupportedOperation, match="writable=True"):
            call()
    assert store.files == {"/x": b"1"}
    assert not any(each.startswith(("PUT", "DELETE")) for each in store.methods)


def test_a_workload_that_does_not_take_it(fs: Any, store: Store) -> None:
    store.read_only = True
    with pytest.raises(io.UnsupportedOperation, match="PUT"):
        fs.pipe_file("/x", b"1")
    with pytest.raises(io.UnsupportedOperation, match="ab"):
        fs.open("/x", "ab")


def test_what_is_written(fs: Any, store: Store) -> None:
    with fs.open("/a/x", "wb") as file:
        file.write(b"1" * 100)
        assert file.tell() == 100
        assert store.files == {}
    assert store.files == {"/a/x": b"1" * 100}
    with pytest.raises(TypeError), fs.open("/a/x", "wb") as file:
        file.writelines([b"half", "no bytes"])
    assert store.files == {"/a/x": b"1" * 100}
    forgotten = fs.open("/a/x", "wb")
    forgotten.write(b"half")
    del forgotten
    assert store.files == {"/a/x": b"1" * 100}
    with pytest.raises(FileExistsError):
        fs.pipe_file("/a/x", b"", mode="create")
    with fs.transaction:
        with fs.open("/a/y", "wb") as file:
            file.write(b"2")
        assert "/a/y" not in store.files
    assert store.files["/a/y"] == b"2"
    fs.mv("/a/y", "/a/z")
    assert sorted(store.files) == ["/a/x", "/a/z"]


def test_progress(fs: Any, store: Store, tmp_path: Path) -> None:
    store.files = {"/x": bytes(300_000)}
    callback = fsspec.callbacks.Callback()
    fs.get_file("/x", str(tmp_path / "x"), callback=callback)
    assert (callback.size, callback.value) == (300_000, 300_000)
    callback = fsspec.callbacks.Callback()
    fs.put_file(str(tmp_path / "x"), "/y", callback=callback)
    assert (callback.size, callback.value) == (300_000, 300_000)


# -- how it is made


def test_two_clients_share_no_file_system(
    served: tuple[Store, LocalEnclave, enclavia.Client],
) -> None:
    """fsspec caches by the text of arguments, which does not say what a client trusts."""
    _, enclave, client = served
    wrong = enclavia.Pcrs(**{f"pcr{n}": f"{n + 7:02x}" * 48 for n in range(3)})
    other = enclavia.Client(enclave.url, pcrs=wrong, root=enclave.root)
    assert other._enclave.shown == client._enclave.shown
    one = fsspec.filesystem("enclavia", client=client)
    two = fsspec.filesystem("enclavia", client=other)
    assert one != two and two.client is other
    with pytest.raises(enclavia.PcrMismatch):
        two.cat_file("/x")
    other.close()


def test_made_of_a_url_or_the_environment(
    store: Store,
    served: tuple[Store, LocalEnclave, enclavia.Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    _, enclave, client = served
    store.files = {"/x": b"1"}
    fs = fsspec.filesystem("enclavia", url=enclave.url, pcrs=enclave.pcrs, root=enclave.root)
    assert fs.cat_file("/x") == b"1"
    fs.client.close()
    monkeypatch.setenv("ENCLAVIA_URL", enclave.url)
    for index, pcr in enumerate(enclave.pcrs.as_tuple()):
        monkeypatch.setenv(f"ENCLAVIA_PCR{index}", pcr.hex())
    fs = EnclaviaFileSystem(root=enclave.root)
    assert fs.cat_file("/x") == b"1"
    fs.client.close()
    for wrong in (5, "wss://e.example", httpx2.Client()):
        with pytest.raises(TypeError, match="client: "):
            EnclaviaFileSystem(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="client: "):
        EnclaviaFileSystem(client, url=enclave.url)
    with pytest.raises(TypeError, match="writable: "):
        EnclaviaFileSystem(client, writable=1)  # type: ignore[arg-type]


def test_fsspec_finds_it_by_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["fsspec.specs"]["enclavia"].partition(":")
    assert getattr(importlib.import_module(module), name) is EnclaviaFileSystem
    assert EnclaviaFileSystem.protocol == "enclavia"


def test_pickled(store: Store, served: tuple[Store, LocalEnclave, enclavia.Client]) -> None:
    store.files = {"/x": b"1"}
    fs = EnclaviaFileSystem(served[2])
    copy = pickle.loads(pickle.dumps(fs))
    assert copy.cat_file("/x") == b"1"
    assert copy.client is not fs.client
    copy.client.close()


# -- those who take file systems


def test_pandas_and_pyarrow(
    fs: Any, store: Store, served: tuple[Store, LocalEnclave, enclavia.Client]
) -> None:
    pandas = pytest.importorskip("pandas")
    dataset = pytest.importorskip("pyarrow.dataset")
    frame = pandas.DataFrame({"a": range(10_000)})
    options = {"client": served[2], "writable": True}
    for part in range(3):
        frame.to_parquet(f"enclavia://rows/{part}.parquet", storage_options=options)
    read = pandas.read_parquet("enclavia://rows/1.parquet", storage_options=options)
    assert read.equals(frame)
    assert dataset.dataset("/rows", filesystem=fs).to_table().num_rows == 30_000
    frame.to_csv("enclavia://rows.csv", index=False, storage_options=options)
    assert pandas.read_csv("enclavia://rows.csv", storage_options=options).equals(frame)


def test_polars(store: Store, served: tuple[Store, LocalEnclave, enclavia.Client]) -> None:
    polars = pytest.importorskip("polars")
    made = io.BytesIO()
    frame = polars.DataFrame({"a": range(1000)})
    frame.write_parquet(made)
    store.files = {"/rows.parquet": made.getvalue()}
    with EnclaviaFileSystem(served[2]).open("/rows.parquet") as file:
        assert polars.read_parquet(file).equals(frame)
