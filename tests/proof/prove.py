"""Runs Frama-C's EVA over each driver here, and compares its alarms with those that are explained.

    python tests/proof/prove.py [TARGET...]

An alarm that is not in alarms.json fails; so does one that is there and did not come, an analysis
that does not reach its end, and one that looked at nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STUBS = "tests/proof/stubs.c"
# What each driver is analysed with.
TARGETS = {
    "error": ["csrc/base/error.c"],
    "buf": ["csrc/base/buf.c", STUBS],
    "utf8": ["csrc/base/utf8.c", STUBS],
    "cbor": [
        *("csrc/cbor/cursor.c", "csrc/cbor/writer.c", "csrc/base/buf.c"),
        *(STUBS, "tests/proof/cbor_stubs.c"),
    ],
    "bytes": ["csrc/wire/bytes.c", STUBS],
}
# A search through a table says nothing of one entry by what it says of another.
MERGED = {"utf8": ["-eva-slevel-function", "is_hidden:0"]}
# The plain loops: EVA knows no vector instructions. Frama-C brings its own C library; of the
# system's headers only libcbor's are looked for, after those.
PREPROCESSOR = "-std=gnu11 -D_GNU_SOURCE -Icsrc -Itests/proof -U__x86_64__ -idirafter /usr/include"
OPTIONS = [
    *("-eva", "-machdep", "gcc_x86_64", "-c11", f"-cpp-extra-args={PREPROCESSOR}"),
    *("-eva-slevel", "100000", "-eva-split-return", "full", "-eva-alloc-builtin", "fresh"),
    *("-eva-no-show-progress", "-eva-msg-key=-initial-state,-final-states"),
]
TIME_LIMIT_S = 1800


class Failed(Exception):
    pass


def analyse(target: str) -> str:
    options = [*OPTIONS, *MERGED.get(target, [])]
    command = ["frama-c", *options, f"tests/proof/proof_{target}.c", *TARGETS[target]]
    # Frama-C looks for files from where PWD says it is.
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PWD": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(f"frama-c ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def alarms_of(output: str) -> list[str]:
    found = re.findall(r"\[eva:alarm\] (\S+?):\d+: Warning: *\n? *(.*)", output)
    return sorted({f"{path}: {text.strip()}" for path, text in found})


def number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    if found is None or int(found[1]) == 0:
        raise Failed(f"no figure like {pattern!r}: the analysis did not reach its end")
    return int(found[1])


def prove(target: str) -> tuple[str, bool]:
    begun = time.monotonic()
    expected = json.loads((HERE / "alarms.json").read_text())[target]
    try:
        output = analyse(target)
        functions = number(r"(\d+) functions analyzed", output)
        statements = number(r"statements reached \(out of \d+\): (\d+)% coverage", output)
    except (Failed, subprocess.TimeoutExpired) as error:
        return f"{target:6} {error}", False
    alarms = alarms_of(output)
    line = (
        f"{target:6} {functions:3} functions, {statements:3} % of their statements, "
        f"{len(alarms)} alarms, {time.monotonic() - begun:.0f} s"
    )
    for alarm in sorted(set(alarms) ^ set(expected)):
        line += f"\n       {'new' if alarm in alarms else 'gone'}: {alarm}"
    return line, alarms == expected


def main(wanted: list[str]) -> int:
    good = True
    with ThreadPoolExecutor(2) as pool:
        for line, passed in pool.map(prove, wanted or TARGETS):
            print(line, flush=True)
            good = good and passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
