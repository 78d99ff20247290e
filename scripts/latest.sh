#!/usr/bin/env bash
# What a stranger gets today, and what the next release will bring: an environment without constraints, in two steps.
#
#   bash scripts/latest.sh .venv [pytest arguments]        (make test-latest)
#
# 1. The wheel alone, in an empty environment, with what it asks for: it works, every extra resolves (tests/release/test_wheel.py). This has to pass.
# 2. There, the newest transformers, torch, accelerate and numpy that resolve today, whatever the wheel allows, and the tests of the
#    method and of the families. They have to pass on a transformers that pyproject.toml claims. On one that came out since, a
#    failure is a canary: it is shown, with its version, and blocks nothing.
#
# Made anew each time, since "today" is the point; some gigabytes where torch comes as a CUDA build.
set -euo pipefail

venv=$(cd "${1:?usage: latest.sh FOLDER of the environment made by setup_venv.sh}" && pwd)
own=$venv-latest
python=$own/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PIP_CONSTRAINT

echo "latest: the wheel in an empty environment"
rm -rf "$own"
WHEEL_ENVIRONMENT=$own "$venv/bin/python" -m pytest -p no:cacheprovider tests/release/test_wheel.py

echo "latest: the newest of what it stands on"
"$python" -m pip install -q --upgrade transformers torch accelerate numpy 2>&1 | grep -v 'requires transformers' || true
"$python" -m pip install -q 'pytest>=8' 'pytest-xdist>=3.5' 'hypothesis>=6.100' 'matplotlib>=3.8'
"$python" -m pip uninstall -q -y fitprune # from here on the tree's own
versions=$("$python" -c 'from importlib.metadata import version as v; print(*(f"{n} {v(n)}" for n in ("transformers", "torch", "accelerate", "numpy")), sep=", ")')
claimed=$("$python" -c 'from fitprune.decoder.upstream import RAN, version_numbers as n; import transformers; print("yes" if n(transformers.__version__) <= n(RAN[-1]) else "no")')

status=0
mapfile -t tests <scripts/method_tests.txt
"$python" -m pytest -n "${WORKERS:-2}" -p no:cacheprovider "${tests[@]}" "${@:2}" || status=$?
if [ $status -eq 0 ]; then
    echo "latest: green on $versions"
elif [ "$claimed" = no ]; then
    echo "latest: CANARY, red on $versions, newer than what is claimed: see above, and fitprune/decoder/upstream.py"
else
    echo "latest: red on $versions, which is claimed" >&2
    exit 1
fi
