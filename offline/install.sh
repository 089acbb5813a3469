#!/bin/sh
# Installs lcmem-onnx from this folder alone: no network, no compiler. 'sh install.sh [DIR]' makes an environment in DIR.
# PYTHON names the interpreter (python3 by default); target.json says which this folder was made for.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
env=${1:-lcmem-onnx-env}
python=${PYTHON:-python3}

if [ -e "$env" ]; then
    echo "error: $env exists already: give another folder, or remove it" >&2
    exit 2
fi
echo "checking the files of $here"
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || {
    echo "error: these files are not as they were made: copy the folder again" >&2
    exit 2
}
"$python" - "$here/target.json" <<'PYTHON' || exit 2
import json, platform, sys
target = json.load(open(sys.argv[1], encoding="utf-8"))
here = {"python": "%d.%d" % sys.version_info[:2], "machine": platform.machine(), "system": platform.system()}
wrong = ["%s %s instead of %s" % (name, here[name], target[name]) for name in here if here[name] != target[name]]
if wrong:
    sys.exit("error: this folder was made for another machine: " + ", ".join(wrong) + ". PYTHON names another interpreter")
PYTHON

# Without ensurepip, which some distributions leave out: pip runs from its own wheel.
"$python" -m venv --without-pip "$env"
pip=$(echo "$here"/wheels/pip-*.whl)
if ! PIP_CONFIG_FILE=/dev/null "$env/bin/python" "$pip/pip" --isolated --disable-pip-version-check install --quiet --no-cache-dir --no-index \
    --find-links "$here/wheels" --require-hashes -r "$here/requirements.txt"; then
    rm -rf "$env"
    echo "error: nothing was installed" >&2
    exit 2
fi
"$env/bin/lcmem-onnx" doctor
echo "next  $env/bin/lcmem-onnx scan PATH --against GALLERY"
