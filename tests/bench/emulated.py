"""How many instructions the array codec executes for a byte, on processors that are not here.

    python -m tests.bench.emulated [--fuzz ROUNDS]

For each processor the codec is compiled twice by one compiler (zig), with its blocks of 16 and
with the plain loop in their place, and runs under qemu-user (Debian: qemu-user-static), which
writes a line for each instruction. A run of N is taken from a run of more than N, and what is left
over is divided. ``--fuzz`` also compares the blocks with a loop over single elements for so many
random arrays under the emulator (``tests/c/blocks.c``).

What is counted does not depend on what else the machine does. It is no measure of time: a processor
executes several instructions at once, and waits for others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAYLOAD = 16_320
FEW, MANY = 1, 5
# One instruction a block, and no block jumps into the next without saying so. The emulator's name
# for the first has changed.
SINGLY = {"QEMU_SINGLESTEP": "1", "QEMU_ONE_INSN_PER_TB": "1"}


class Processor(NamedTuple):
    machine: str
    blocks: str
    """What `encl_bytes_codec` calls them."""
    without: str
    """The option that hides them from bytes.c."""

    @property
    def emulator(self) -> str:
        return f"qemu-{self.machine}-static"


PROCESSORS = (
    Processor("x86_64", "ssse3", "-U__x86_64__"),
    Processor("aarch64", "neon", "-U__ARM_NEON"),
)


def build(processor: Processor, out: Path, program: Path, *options: str) -> Path:
    codec = ROOT / "csrc" / "wire" / "bytes.c"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{processor.machine}-linux-musl"]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O3", "-static", "-g0", f"-I{ROOT / 'csrc'}"]
    objects = []
    for source, more in ((program, ()), (codec, options)):
        objects.append(out.with_name(f"{out.name}-{source.stem}.o"))
        subprocess.run(
            [*compiler, *flags, *more, "-c", "-o", str(objects[-1]), str(source)], check=True
        )
    subprocess.run([*compiler, "-static", "-o", str(out), *map(str, objects)], check=True)
    return out


def executed(processor: Processor, program: Path, what: str, times: int) -> tuple[int, str]:
    """How many instructions a run executes, and which codec ran."""
    with tempfile.TemporaryFile() as trace:
        done = subprocess.run(
            [processor.emulator, "-d", "exec,nochain", program, what, str(times)],
            stdout=subprocess.PIPE,
            stderr=trace,
            env=os.environ | SINGLY,
            check=True,
            text=True,
        )
        trace.seek(0)
        return sum(line.startswith(b"Trace ") for line in trace), done.stdout.strip()


def a_byte(processor: Processor, program: Path, what: str) -> float:
    few, many = (executed(processor, program, what, n)[0] for n in (FEW, MANY))
    return (many - few) / (MANY - FEW) / PAYLOAD


def counts(processor: Processor, directory: Path) -> dict[str, float]:
    """By "<what>, <loop>"."""
    found = {}
    source = Path(__file__).with_name("codec.c")
    for loop, options in ((processor.blocks, ()), ("plain", (processor.without,))):
        program = build(processor, directory / f"{processor.machine}-{loop}", source, *options)
        _, ran = executed(processor, program, "encode", 0)
        if ran != loop:
            raise RuntimeError(f"{processor.machine}: expected the codec {loop}, got {ran}")
        beside = a_byte(processor, program, "compare")
        found[f"decode, {loop}"] = a_byte(processor, program, "decode") - beside
        found[f"encode, {loop}"] = a_byte(processor, program, "encode")
    return found


def fuzz(processor: Processor, directory: Path, rounds: int) -> str:
    source = ROOT / "tests" / "c" / "blocks.c"
    program = build(processor, directory / f"{processor.machine}-fuzz", source)
    return subprocess.run(
        [processor.emulator, program, str(rounds)], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.emulated", description=__doc__)
    parser.add_argument("--fuzz", type=int, default=0, metavar="ROUNDS")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for processor in PROCESSORS:
            for what, count in counts(processor, Path(name)).items():
                print(
                    f"{processor.machine:8} {what:16} {count:6.2f} instructions a byte", flush=True
                )
            if asked.fuzz:
                print(
                    f"{processor.machine:8} {fuzz(processor, Path(name), asked.fuzz)}", flush=True
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
