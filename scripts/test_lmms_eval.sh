#!/usr/bin/env bash
# Run tests/test_lmms_eval.py against the real lmms-eval, in an environment of its own on top of .venv.
#
#   bash scripts/test_lmms_eval.sh .venv        (from the repository root, after make setup)
#
# lmms-eval requires some sixty packages for all its tasks and models. Its evaluator imports few: these are installed,
# and lmms-eval without its list. So .venv, which the other tests run in, stays as it is, and torchvision (whose build has
# to fit torch's) is not needed. filelock: lmms-eval 0.7.3 imports filelock._api, which version 4 does not have.
set -euo pipefail

venv=$(cd "${1:?usage: test_lmms_eval.sh FOLDER of the environment made by setup_venv.sh}" && pwd)
own=$venv-lmms-eval
python=$own/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

if [ ! -e "$own/.done" ] || [ "$own/.done" -ot scripts/test_lmms_eval.sh ] || [ "$own/.done" -ot pyproject.toml ]; then
    echo "setup: making $own on top of $venv"
    rm -rf "$own"
    "$venv/bin/python" -m venv "$own"
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$venv/bin/python" -c "$site" >"$("$python" -c "$site")/below.pth"
    "$python" -m pip install -qq -c constraints.txt \
        datasets evaluate 'filelock<4' loguru pytablewriter pytz sacrebleu tenacity
    "$python" -m pip install -qq --no-deps 'lmms-eval==0.7.3'
    "$python" -m pip install -qq --no-deps -e . # below.pth does not reach .venv's editable fitprune
    touch "$own/.done"
fi
"$python" -c 'import lmms_eval'
"$python" -m pytest tests/test_lmms_eval.py "${@:2}"
