#!/usr/bin/env bash
# Replays the kept inputs and prints what of the library's files they reach.
#   coverage.sh ROOT FUZZER...     (after `make COVERAGE=1 all`; needs llvm-profdata and llvm-cov)
set -euo pipefail
root=$1
shift
out=$root/build/fuzz-coverage
objects=()
profiles=()
for name in "$@"; do
    LLVM_PROFILE_FILE=$out/$name.profraw "$out/fuzz_$name" -runs=0 "corpus/$name" 2>/dev/null
    objects+=(-object "$out/fuzz_$name")
    profiles+=("$out/$name.profraw")
done
llvm-profdata merge -sparse "${profiles[@]}" -o "$out/all.profdata"
llvm-cov export -summary-only -instr-profile "$out/all.profdata" "${objects[@]}" |
    python3 -c '
import json, sys

def row(name, summary):
    cells = [name]
    for kind in ("functions", "lines", "regions"):
        part = summary[kind]
        percent = 100 * part["covered"] / part["count"]
        cells.append("{covered} of {count} ({0:.1f} %)".format(percent, **part))
    print("| " + " | ".join(cells) + " |")

files = json.load(sys.stdin)["data"][0]["files"]
layers = ("cbor", "wire", "ws", "noise", "session", "attest", "base")
total = {kind: {"count": 0, "covered": 0} for kind in ("functions", "lines", "regions")}
print("| file | functions | lines | regions |\n| --- | --- | --- | --- |")
for layer in layers:
    for file in sorted(files, key=lambda file: file["filename"]):
        name = file["filename"].split("csrc/")[-1]
        if name.startswith(layer + "/") and name.endswith(".c"):
            row("`" + name + "`", file["summary"])
            for kind, sums in total.items():
                for part in sums:
                    sums[part] += file["summary"][kind][part]
row("all", total)
'
