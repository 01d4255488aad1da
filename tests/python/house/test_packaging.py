"""What makes the packages: that it notices what changed, and what a package says of itself."""

from __future__ import annotations

import importlib
import io
import platform
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools
from repository import ROOT


def tool(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of the folder packaging, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    return importlib.import_module(name)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Any:
    return tool(monkeypatch, "sources")


def source(sources: ModuleType, **changed: Any) -> Any:
    return sources.pinned()[0]._replace(folder="made", **changed)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    made = tmp_path / "made.tar.gz"
    with tarfile.open(made, "w:gz") as tar:
        member = tarfile.TarInfo("made/code.c")
        member.size = 9
        tar.addfile(member, io.BytesIO(b"int one;\n"))
    return made


def test_an_edit_that_was_added_later_is_made(sources: Any, archive: Path, tmp_path: Path) -> None:
    folder = sources.unpack(source(sources, edits=()), archive, tmp_path)
    (folder / "left-by-a-build.o").touch()
    assert (folder / "code.c").read_text() == "int one;\n"
    sources.unpack(source(sources, edits=()), archive, tmp_path)
    assert (folder / "left-by-a-build.o").exists()
    edits = (sources.Edit("code.c", "one", "two"),)
    sources.unpack(source(sources, edits=edits), archive, tmp_path)
    assert (folder / "code.c").read_text() == "int two;\n"
    assert not (folder / "left-by-a-build.o").exists()


def test_an_edit_that_no_longer_fits_is_refused(
    sources: Any, archive: Path, tmp_path: Path
) -> None:
    edits = (sources.Edit("code.c", "three", "two"),)
    for _ in range(2):
        with pytest.raises(SystemExit, match="is the edit still needed"):
            sources.unpack(source(sources, edits=edits), archive, tmp_path)


def test_a_library_is_built_again_after_what_it_is_made_of_changed(
    sources: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ziglang")
    libraries = tool(monkeypatch, "libraries")
    pinned = sources.pinned()
    built: list[str] = []

    def record(name: str) -> Any:
        return lambda tools, folder: built.append(name)

    monkeypatch.setattr(libraries, "BUILDS", {s.name: record(s.name) for s in pinned})
    monkeypatch.setattr(sources, "pinned", lambda: pinned)

    def run() -> list[str]:
        built.clear()
        folders = dict.fromkeys(libraries.BUILDS, tmp_path)
        target = libraries.TARGETS["manylinux-x86_64"]
        libraries.build_all(target, folders, tmp_path / "prefix", tmp_path / "a" / "work")
        return list(built)

    everything = [s.name for s in pinned]
    assert run() == everything
    assert run() == []
    pinned[2] = pinned[2]._replace(version="9.9.9")
    assert run() == everything[2:]


def test_the_chosen_tests_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = tool(monkeypatch, "roots")
    assert len(roots.chosen(ROOT)) == len(roots.TESTS)


def test_a_chosen_test_that_is_gone_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    roots = tool(monkeypatch, "roots")
    with pytest.raises(SystemExit, match=f"expected one file test_{roots.TESTS[0]}"):
        roots.chosen(tmp_path)


def wheel(path: Path, *, code: bytes = b"code", mode: int = 0o644) -> Path:
    entry = zipfile.ZipInfo("enclavia/_core.abi3.so")
    entry.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(entry, code)
    return path


def test_what_differs_between_two_wheels_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ziglang")
    reproduce = tool(monkeypatch, "reproduce")
    first = wheel(tmp_path / "first")
    assert reproduce.different(first, wheel(tmp_path / "second")) == []
    (said,) = reproduce.different(first, wheel(tmp_path / "second", code=b"more"))
    assert said == "enclavia/_core.abi3.so: contents"
    (said,) = reproduce.different(first, wheel(tmp_path / "second", mode=0o600))
    assert "mode 644 and 600" in said


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_the_description_has_no_link_to_a_file(setup_arguments: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text()
    shown = setup_arguments["long_description"]
    links = re.findall(r"\]\(([^)]*)\)", re.sub(r"```.*?```", "", shown, flags=re.DOTALL))
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "[docs/guide.md](docs/guide.md): " in readme
    assert "* docs/guide.md: " in shown
    programs = re.compile(r"```.*?```", re.DOTALL)
    assert programs.findall(shown) == programs.findall(readme)


def test_each_python_that_the_package_says_it_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minors = [
        int(found[1])
        for each in project["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", each))
    ]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert project["requires-python"] == f">=3.{minors[0]}"
    limited = re.search(r"MINIMUM_PYTHON = 0x03(..)0000", (ROOT / "setup.py").read_text())
    assert limited is not None
    assert int(limited[1], 16) == minors[0]


def test_the_log_of_a_root_tells_how_far_a_command_has_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    roots = tool(monkeypatch, "roots")
    log = tmp_path / "log"
    script = f"echo begun; grep -c begun {log}; exit $0"
    assert roots.run("sh", "-c", script, "0", log=log) == "begun\n1\n" == log.read_text()
    with pytest.raises(SystemExit, match=r"failed:\nbegun\n1"):
        roots.run("sh", "-c", script, "3", log=log)


def test_a_test_that_hangs_in_a_root_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = tool(monkeypatch, "roots").PYTEST
    (tmp_path / "test_it.py").write_text("import time\n\ndef test_hangs():\n    time.sleep(60)\n")
    here = command.replace("v/bin/python", sys.executable).replace("timeout=600", "timeout=1")
    done = subprocess.run(
        f"{here} -p no:enclavia test_it.py",
        shell=True, cwd=tmp_path, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "in test_hangs" in done.stdout + done.stderr


def test_programs_of_another_architecture_are_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither the package nor the machine's start has done it."""
    roots = tool(monkeypatch, "roots")
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        ran.append(command)
        made = {"mount": "register", "update-binfmts": "qemu-s390x"}[command[0]]
        (tmp_path / made).touch()

    monkeypatch.setattr(roots, "run", run)
    roots.let_run(platform.machine(), tmp_path)
    assert ran == []
    roots.let_run("s390x", tmp_path)
    assert [command[0] for command in ran] == ["mount", "update-binfmts"]
    roots.let_run("s390x", tmp_path)
    assert len(ran) == 2
