#!/usr/bin/env bash
# Make or refresh a virtual environment with FitPrune and its development tools: what `make` runs before anything else.
#
#   bash scripts/setup_venv.sh .venv        (from the repository root; PYTHON and TORCH_ARGS as in the Makefile)
#
# Where the base Python already has a torch that sees a GPU, that torch is used and never replaced, and so is every
# package named in constraints.txt that is there already (transformers only from version 5 on). Everywhere else torch is
# installed first, in the version of constraints.txt, so that nothing pulls in another one later.
# An environment that an earlier run left half-made is thrown away; one made by hand is completed in place.
set -euo pipefail

venv=${1:?usage: setup_venv.sh FOLDER}
base=${PYTHON:-python3}
python=$venv/bin/python
unfinished=$venv/.unfinished
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PIP_USER PIP_TARGET PIP_PREFIX PYTHONHOME

fail() { echo "setup: $*" >&2; exit 1; }

"$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "'$base' is not a Python of 3.10 or newer; name one with make PYTHON=/path/to/python3"

if [ -e "$unfinished" ] || { [ -e "$venv" ] && ! "$python" -m pip --version >/dev/null 2>&1; }; then
    echo "setup: $venv was left half-made; starting over"
    rm -rf "$venv"
fi

if "$base" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then gpu=1; else gpu=; fi

if [ ! -e "$venv" ]; then
    echo "setup: making $venv with $("$base" --version)${gpu:+, keeping the torch that is installed for the GPU}"
    mkdir -p "$venv"
    touch "$unfinished"
    "$base" -m venv ${gpu:+--system-site-packages} "$venv" ||
        fail "'$base' cannot make a virtual environment (on Debian: apt-get install python3-venv)"
    if [ -n "$gpu" ] && ! "$python" -c 'import torch' 2>/dev/null; then
        # The base Python is itself a virtual environment: "system" packages are not its own. Name its folders.
        "$base" -c 'import sysconfig; print(*sorted({sysconfig.get_path(k) for k in ("purelib", "platlib")}), sep="\n")' \
            >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base-python.pth"
    fi
fi
touch "$unfinished"

# constraints.txt, less what stays as it is; a torch that is kept is pinned to itself.
constraints=$venv/constraints.txt
"$python" - "${gpu:+keep}" <<'PY' >"$constraints"
import re
import sys
from importlib.metadata import PackageNotFoundError, version

keep = sys.argv[1] == "keep"
for line in open("constraints.txt", encoding="utf-8"):
    requirement = line.split("#")[0].strip()
    if not requirement:
        continue
    name = re.split(r"[<>=!~; \[]", requirement, maxsplit=1)[0]
    try:
        installed = version(name) if keep else None
    except PackageNotFoundError:
        installed = None
    if installed and name == "torch":
        print(f"torch=={installed}")
    elif not installed or (name == "transformers" and int(installed.split(".")[0]) < 5):
        print(requirement)
PY

echo "setup: installing (the first time takes a few minutes)"
[ -n "$gpu" ] || "$python" -m pip install -qq -c "$constraints" ${TORCH_ARGS:-} torch
"$python" -m pip install -qq -c "$constraints" -e '.[dev]'
"$python" -c 'import torch, transformers; print(f"setup: torch {torch.__version__}, transformers {transformers.__version__}")'
rm -f "$unfinished"
