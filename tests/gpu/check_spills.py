"""Compiles the Hopper attention kernels and reads the assembler's report: no register is spilled but where SPILLED says.

usage: check_spills.py NVCC INCLUDE_FOLDER FILE.cu...
"""
import re
import subprocess
import sys

# (kernel, size of heads): bytes stored and loaded that are let through, and why.
SPILLED = {
    # dk and dv, 64 x 192 and 64 x 128, are 160 of a multiplying thread's 240 registers, and 24 are left to one that
    # loads: addresses are spilled, between products.
    ("hopper_backward_kernel", 3): (148, 188),
}
SIZES = 4


def report(nvcc, include, path):
    """{(kernel, size): (bytes stored, bytes loaded)} of the file's kernels that are cut by size, and warnings."""
    command = [nvcc, "-std=c++17", "-O3", "-I", include, "-gencode", "arch=compute_90a,code=sm_90a", "-Xptxas", "-v"]
    done = subprocess.run(command + ["-c", path, "-o", "/dev/null"], capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode:
        sys.exit(text)
    found, kernel = {}, None
    for line in text.splitlines():
        name = re.search(r"Compiling entry function '\S*\d(hopper_[a-z]+_kernel)\S*?hopper_size(\d)", line)
        if "Compiling entry function" in line:
            kernel = (name[1], int(name[2])) if name else None
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spills and kernel:
            found[kernel] = (int(spills[1]), int(spills[2]))
    # C7510 and its like: products that wait for one another because of registers.
    return found, [line for line in text.splitlines() if "C75" in line]


def main():
    nvcc, include, *paths = sys.argv[1:]
    wrong = 0
    for path in paths:
        found, warnings = report(nvcc, include, path)
        for warning in warnings:
            print(warning)
        wrong += len(warnings)
        if len(found) != SIZES:
            sys.exit(f"{path}: {len(found)} kernels in the assembler's report, not {SIZES}")
        for kernel, spilled in sorted(found.items()):
            allowed = SPILLED.get(kernel, (0, 0))
            good = spilled[0] <= allowed[0] and spilled[1] <= allowed[1]
            wrong += not good
            print(f"{kernel[0]}, size {kernel[1]}: {spilled} bytes spilled, {allowed} allowed{'' if good else ': TOO MANY'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
