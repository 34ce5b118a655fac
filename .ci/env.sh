#!/bin/sh
# What the Makefile needs to fill .venv. `env.sh packages` makes it and installs raycl with the
# versions of requirements.txt; `env.sh ffcv` adds FFCV where its system libraries are to be had.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python

# uv takes seconds where pip takes minutes; pip may know a mirror that uv was not told of.
install() {
    if [ -x .venv/bin/uv ]; then
        .venv/bin/uv pip install --quiet --system-certs --python "$python" \
            -c requirements.txt "$@" && return
        echo "uv did not get through; trying pip"
    fi
    "$python" -m pip install --quiet --disable-pip-version-check -c requirements.txt "$@"
}

packages() {
    "${PYTHON:-python3}" -c 'import sys
sys.exit(sys.version_info < (3, 11) and f"raycl needs Python 3.11 or newer, this is {sys.version}")'
    "$python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear .venv
    echo "Installing raycl into .venv (6 GB, once)"
    "$python" -m pip install --quiet --disable-pip-version-check -c requirements.txt uv ||
        echo "uv cannot be had here; going on with pip"
    install -e ".[dev]"
}

libraries="pkg-config g++ python3-dev libopencv-dev libturbojpeg0-dev"

has_libraries() {
    pkg-config --exists opencv4 libturbojpeg
}

install_libraries() {
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of packages
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $libraries
}

ffcv() {
    log=.venv/ffcv.log
    : >"$log"
    if ! has_libraries >>"$log" 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >>"$log"; then
        echo "Installing FFCV's system libraries with apt-get (some minutes)"
        install_libraries >>"$log" 2>&1 || true
    fi
    if has_libraries >>"$log" 2>&1 && install ffcv >>"$log" 2>&1; then
        return
    fi
    echo "Going on without FFCV ($log). To have it: apt-get install $libraries; make ffcv"
    if [ -n "${RAYCL_NEEDS_FFCV:-}" ]; then
        tail -n 40 "$log"
        return 1
    fi
}

"$1"
